"""A base model: loading, device, blocks, mounted LoRAs, prediction, sampling, images."""
