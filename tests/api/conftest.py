"""Fixtures that this folder shares."""

from tiny_encoders import clip, dino, dinov2, pictures

__all__ = ["clip", "dino", "dinov2", "pictures"]
