"""What is trained on: an image and its caption for each seed, or its truth."""

import hashlib
import re
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from duolora.atelier.abstract import abstract
from duolora.atelier.captions import caption, improvised_caption, plain_caption, with_stray_word
from duolora.atelier.family import Improvised, improvise
from duolora.atelier.looks import BASE_LOOKS, KEEP_COLOUR, KEEP_PATTERN, LOOKS
from duolora.atelier.objects import BASE_OBJECTS, OBJECTS
from duolora.atelier.paint import COLOURS, Look
from duolora.atelier.scene import PATTERNS, Scene, posed, render, sample_scene, window

Pixels = NDArray[np.uint8]
Truth = tuple[int, int, int, int]


def base_scene(rng: np.random.Generator, improvised: bool) -> tuple[Scene, Look | None, str]:
    """A scene that the base may see, the look made up for it if there is to be one, and its caption.

    One scene in ten has objects made up for it.
    """
    kinds = tuple(f"thing-{n}" for n in rng.integers(1 << 30, size=4)) if rng.random() < 0.1 else BASE_OBJECTS
    scene = sample_scene(rng, kinds)
    if improvised:
        look = improvise(rng)
        return scene, look, improvised_caption(scene, look.words, rng)
    text = caption(scene, rng)
    return scene, None, with_stray_word(text, rng) if rng.random() < 0.08 else text


def vocabulary() -> list[str]:
    """The words of Atelier's captions, sorted; meaningless ones are not among them."""
    texts = [base_scene(np.random.default_rng(seed), bool(seed % 2))[2] for seed in range(6000)]
    texts += [plain_caption(kind, look=look) for kind in BASE_OBJECTS for look in BASE_LOOKS]
    counts: dict[str, int] = {}
    for word in (w for text in texts for w in set(re.findall(r"[a-z]+", text))):
        counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, n in counts.items() if n > 8)


def base_poses(seed: int, poses: int) -> tuple[Pixels, str]:
    """An image that the base may see, (poses, 32, 32, 3) in several poses that its caption fits as well, and that.

    Odd seeds have a look made up for them.
    """
    rng = np.random.default_rng(seed)
    scene, look, text = base_scene(rng, bool(seed % 2))
    scenes = [scene, *(posed(scene, rng) for _ in range(poses - 1))]
    return np.stack([render(s, look) for s in scenes]), text


def base_picture(seed: int) -> tuple[Pixels, str]:
    """An image that the base may see, and its caption."""
    images, text = base_poses(seed, 1)
    return images[0], text


def vae_picture(seed: int) -> tuple[Pixels, str]:
    """A picture of nothing for odd seeds, one that the base may see for even ones."""
    return (abstract(seed), "") if seed % 2 else base_picture(seed // 2)


def judged_picture(seed: int) -> tuple[Pixels, Truth]:
    """An image of one object, and the numbers of its object, look, colour and pattern among `ANSWERS`.

    One object in eight and one look in five are made up ("other"); one image in eight is cut from a scene of several
    objects, about one of them. Where the look hides the colour or the pattern, that number is -100.
    """
    rng = np.random.default_rng((5, seed))
    kinds = (f"thing-{rng.integers(1 << 30)}",) if rng.random() < 0.125 else tuple(OBJECTS)
    name = "other" if rng.random() < 0.2 else str(rng.choice(tuple(LOOKS)))
    numbers = (0.0, 0.5, 0.2, 0.3) if rng.random() < 0.125 else (1.0, 0.0, 0.0, 0.0)
    scene = sample_scene(rng, kinds, ("flat",), numbers)
    place = int(rng.integers(len(scene.things)))
    look = improvise(rng) if name == "other" else LOOKS[name]
    thing = scene.things[place]
    keeps_colour = look.keeps_colour if isinstance(look, Improvised) else name in KEEP_COLOUR
    keeps_pattern = look.keeps_pattern if isinstance(look, Improvised) else name in KEEP_PATTERN
    truth = (
        (*OBJECTS, thing.kind).index(thing.kind),
        (*LOOKS, "other").index(name),
        tuple(COLOURS).index(thing.colour) if keeps_colour else -100,
        PATTERNS.index(thing.pattern) if keeps_pattern else -100,
    )
    return render(scene, look)[window(len(scene.things), place)], truth


def renderer_hash() -> str:
    """SHA-256 of what the picture of a seed depends on: the sources that draw it, the versions of numpy and Pillow."""
    found = hashlib.sha256(f"numpy {np.__version__} pillow {PIL.__version__}".encode())
    for name in ("abstract", "captions", "data", "family", "looks", "objects", "paint", "scene"):
        found.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return found.hexdigest()


def as_input(pixels: Pixels) -> Tensor:
    """Bytes (n, h, w, 3) as float32 (n, 3, h, w) in [-1, 1], the range of the VAE and the classifier."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
