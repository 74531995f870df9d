"""How fast merges are, beside a dense reference and beside a bare UNet."""
