"""What suits a base: the defaults that its own folder has, or the paper's and diffusers'; nothing heavy is imported."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from duolora.errors import FileRefused, InputError
from duolora.options import check, option
from duolora.textfiles import read_json

STEPS = 25
"""Denoising steps of an image."""
GUIDANCE = 5.0
"""The scale of classifier-free guidance; 1 is none."""
FILE = "duolora.json"
AUTO = "auto"
"""The base by the LoRA files themselves, where they say enough."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Sampling:
    """How images are generated."""

    num: int = option(4, "Images of each prompt.", least=1)
    steps: int = option(STEPS, "Denoising steps.", least=1)
    guidance: float = option(GUIDANCE, "Classifier-free guidance; 1 is none.", least=0)


def check_sampling(prompts: Sequence[str], how: Sampling) -> None:
    """Refuse prompts without words, and numbers that no image can be generated with.

    Raises:
        InputError: the first of them.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise InputError("prompt: expected words for what to generate, got none")
    check(how)


@dataclass(frozen=True)
class BaseChoice:
    """Which base to load, and where and how it is to run (see `load_base`)."""

    base: str = option("atelier", "`atelier`, a diffusers folder, a .safetensors checkpoint, or a hub id.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float8", "nf4"] = option(
        "auto",
        "What the base computes in: auto, float32, bfloat16 or float16; float8 and nf4 are auto, with a transformer's "
        "blocks kept in 8 bits, or in 4 by bitsandbytes.",
        flag="base-dtype",
    )
    offload: Literal["auto", "none", "model", "sequential"] = option(
        "auto", "auto, none, model (networks take turns on the device) or sequential (layers do: slow)."
    )
    announce: Callable[[str], object] | None = None
    """Called with a line about the base once it is loaded."""
    config: Path | None = option(
        None,
        "For a single checkpoint: a diffusers folder with its configs and tokenizers, and for a transformer with the "
        "other networks, too  [SDXL's, Vega's, SD 1.5's, …].",
        flag="base-config",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = option(
        "auto", "on, off or auto: compute activations twice, not keeping them  [auto: on GPUs of less than 20 GB]."
    )
    resolution: int | None = option(None, "Height and width of images in pixels  [what the base was made for].")


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
    """The compute dtype, as `--base-dtype` names it."""


FITS: dict[str, str] = {
    "crop": "the square about the centre of each is used",
    "pad": "each is used whole, with white beside it",
    "resize": "each is used whole, its sides made equal",
}
"""How an image becomes a square."""


def base_path(base: str) -> Path:
    """The folder of the base that ships, or the path itself."""
    shipped = resources.files("duolora").joinpath("atelier", "weights", "base")
    return Path(str(shipped)) if base == "atelier" else Path(base).expanduser()


def check_base(base: str) -> None:
    """Refuse a path where nothing is; a hub id, which nothing is known of here, is let through.

    Raises:
        InputError: there is no such file or folder.
    """
    if base == AUTO:
        return
    path = base_path(base)
    if base == "atelier" and not os.path.isdir(path):
        raise InputError("atelier: its weights are missing from this installation of duolora; install it again")
    no_id = base.count("/") != 1 or base.startswith((".", "/", "~")) or path.suffix in (".safetensors", *PICKLES)
    if no_id and not os.path.exists(path):
        raise InputError(
            f"{base}: no such file or folder; expected `atelier`, a folder, a .safetensors file or a hub id"
        )


def read_defaults(base: str) -> BaseDefaults:
    """The defaults in a base's folder; those of SDXL where it says nothing, in a single file or on the hub.

    Raises:
        FileRefused: the file is there, but is not valid JSON or says something else.
    """
    path = base_path(base) / FILE
    if not path.is_file():
        return BaseDefaults()
    known = {each.name: each.type for each in fields(BaseDefaults)}
    try:
        found = read_json(path)
        if unknown := sorted(found.keys() - known.keys()):
            raise ValueError(f"it says {unknown[0]!r}")
        numbers = isinstance(found.get("guidance", 1), int | float) and isinstance(found.get("dtype", ""), str)
        if not numbers or not all(isinstance(found.get(name, {}), dict) for name in ("training", "style_training")):
            raise ValueError("a value has the wrong type")
    except (OSError, FileRefused, ValueError, AttributeError) as error:
        raise FileRefused(
            f"{path}: expected a JSON object of {', '.join(known)}, but {error}; fix it or delete it"
        ) from error
    return BaseDefaults(**found)
