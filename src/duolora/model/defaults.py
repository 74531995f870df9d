"""What suits a base: the defaults that its own folder has, or the paper's and diffusers'; nothing heavy is imported."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused

STEPS = 25
"""Denoising steps of an image."""
GUIDANCE = 5.0
"""The scale of classifier-free guidance; 1 is none."""
FILE = "duolora.json"


@dataclass(frozen=True)
class BaseDefaults:
    """The file `duolora.json` beside a pipeline's `model_index.json`; what it does not say is as on SDXL."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainOptions` for any LoRA."""
    style_training: Mapping[str, Any] = field(default_factory=dict)
    """What is different for the LoRA of a style."""
    guidance: float = GUIDANCE
    """The scale of classifier-free guidance at sampling."""
    dtype: str = "auto"
    """The compute dtype, as `--dtype` names it."""


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


def read_defaults(base: str) -> BaseDefaults:
    """The defaults in a base's folder; those of SDXL where it says nothing, in a single file or on the hub.

    Raises:
        FileRefused: the file is there, but is not valid JSON or says something else.
    """
    path = base_place(base) / FILE
    if not path.is_file():
        return BaseDefaults()
    known = {each.name: each.type for each in fields(BaseDefaults)}
    try:
        found = json.loads(path.read_text("utf-8"))
        if unknown := sorted(found.keys() - known.keys()):
            raise ValueError(f"it says {unknown[0]!r}")
        numbers = isinstance(found.get("guidance", 1), int | float) and isinstance(found.get("dtype", ""), str)
        if not numbers or not all(isinstance(found.get(name, {}), dict) for name in ("training", "style_training")):
            raise ValueError("a value has the wrong type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise FileRefused(
            f"{path}: expected a JSON object of {', '.join(known)}, but {error}; fix it or delete it"
        ) from error
    return BaseDefaults(**found)
