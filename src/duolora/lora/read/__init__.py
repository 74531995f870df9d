"""Reading LoRA files: header, keys, strength, and what is refused."""
