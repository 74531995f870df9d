"""Fixtures that this folder shares."""

from tiny_encoders import clip, dino, dinov2, generated

__all__ = ["clip", "dino", "dinov2", "generated"]
