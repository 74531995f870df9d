"""Writing LoRA files: whole or not at all, in each format, verified by reading them back."""
