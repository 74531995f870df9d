"""LoRA files and what can be done with them without a base model."""
