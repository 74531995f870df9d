"""Training of LoRAs: options, checkpoints, callbacks, prior preservation."""
