"""How fast merges are, compared with a dense reference and with a bare UNet."""
