"""Where a base lies, and defaults and choices that help texts name as well; nothing heavy is imported."""

from importlib import resources
from pathlib import Path

STEPS = 25
"""Denoising steps of a picture."""
GUIDANCE = 5.0
"""The scale of classifier-free guidance; 1 is none."""
ATELIER_GUIDANCE = 3.0
"""Under more guidance than this, LoRAs on the small base overshoot (`docs/log.md`)."""

FITS: dict[str, str] = {
    "crop": "the square about the centre of each is used",
    "pad": "each is used whole, with white beside it",
    "resize": "each is used whole, its sides made equal",
}
"""How an image becomes a square."""


def base_place(base: str) -> Path:
    """The folder of the base that ships, or the path itself."""
    shipped = resources.files("duolora").joinpath("atelier", "weights", "base")
    return Path(str(shipped)) if base == "atelier" else Path(base).expanduser()
