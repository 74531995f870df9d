"""How two LoRAs become one: what goes in (sources), the masks that are learnt (learn), what comes out (fold)."""
