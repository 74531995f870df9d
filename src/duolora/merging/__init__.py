"""How two LoRAs become one: what goes in (sources), the masks that are trained (learn), what comes out (fold)."""
