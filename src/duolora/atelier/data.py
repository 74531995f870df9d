"""What the base is trained on: an image and its caption for each seed."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duolora.atelier.captions import caption, improvised_caption, with_stray_word
from duolora.atelier.family import improvise
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.paint import Style
from duolora.atelier.scene import Scene, render, sample_scene

Pixels = NDArray[np.uint8]


def base_scene(rng: np.random.Generator, improvised: bool) -> tuple[Scene, Style | None, str]:
    """A scene that the base may see, the style made up for it if there is to be one, and its caption.

    One scene in ten has objects made up for it.
    """
    kinds = tuple(f"thing-{n}" for n in rng.integers(1 << 30, size=4)) if rng.random() < 0.1 else BASE_OBJECTS
    scene = sample_scene(rng, kinds)
    if improvised:
        style = improvise(rng)
        return scene, style, improvised_caption(scene, style.words, rng)
    text = caption(scene, rng)
    return scene, None, with_stray_word(text, rng) if rng.random() < 0.08 else text


def base_image(seed: int) -> tuple[Pixels, str]:
    """An image that the base may see, and its caption; odd seeds have a style made up for them."""
    scene, style, text = base_scene(np.random.default_rng(seed), bool(seed % 2))
    return render(scene, style), text


def as_input(pixels: Pixels) -> Tensor:
    """Bytes (n, h, w, 3) as float32 (n, 3, h, w) in [-1, 1], the range of the VAE and the classifier."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
