"""How Atelier's weights are made. Not part of the package; run from the repository's root."""
