"""What speed is measured on: a base, two random LoRAs and random latents. No images, no training."""

from dataclasses import dataclass

import torch

from duolora.bench.speed.random_base import random_base, random_lora
from duolora.errors import InputError
from duolora.merging.inputs import Sources
from duolora.merging.learn import Calibration
from duolora.model.base import Base, load_base
from duolora.model.blocks import roles
from duolora.paper.constyle import Prompts

IMAGES = 4
BASES = {"sdxl-random": "sdxl", "ssd-1b-random": "ssd-1b", "vega-random": "segmind-vega"}
SMALL, SMALL_WIDTH = "sdxl-small", 64
"""SDXL's blocks at a fifth of its width: about 100 M parameters."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A merge to measure."""

    name: str
    base: Base
    both: Sources
    data: Calibration


def scene(
    base: str,
    rank: int,
    resolution: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    width: int | None = None,
    seed: int = 0,
) -> Scene:
    """A scene on `atelier`, on an SDXL-shaped UNet of about 100 M random parameters, or on an exact random one.

    `width` narrows an exact one, to try a measurement out; resolution is that of the images, in pixels.

    Raises:
        InputError: there is no such base.
    """
    if base == "atelier":
        loaded = load_base("atelier", device, dtype)
    elif base == SMALL:
        loaded = random_base("sdxl", width or SMALL_WIDTH, resolution or 256, device, dtype, seed)
    elif base in BASES:
        loaded = random_base(BASES[base], width, resolution or 1024, device, dtype, seed)
    else:
        raise InputError(f"base: expected atelier, {SMALL} or one of {', '.join(BASES)}, got {base!r}")
    size, channels = loaded.unet.config.sample_size, loaded.unet.config.in_channels
    rng = torch.Generator().manual_seed(seed)
    x_c, x_s = torch.randn(2, IMAGES, channels, size, size, generator=rng).to(loaded.device)
    both = Sources(random_lora(loaded, rank, 1), random_lora(loaded, rank, 2), {}, {}, roles(loaded.unet))
    data = Calibration(
        x_c, x_s, Prompts("a sks thing in flat style", "a house in zwx style", "a sks thing in zwx style")
    )
    return Scene(base, loaded, both, data)
