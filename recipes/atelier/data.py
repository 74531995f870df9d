"""What Atelier's networks are trained on: images with their captions, several poses of one, or their truth."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL

from duolora.atelier import captions
from duolora.atelier.captions import plain_caption
from duolora.atelier.data import Pixels, base_image, base_scene
from duolora.atelier.family import Improvised, improvise
from duolora.atelier.objects import BASE_OBJECTS, OBJECTS
from duolora.atelier.paint import COLOURS
from duolora.atelier.scene import PATTERNS, WALLS, Scene, render, sample_item, sample_scene, window
from duolora.atelier.styles import BASE_STYLES, KEEP_COLOUR, KEEP_PATTERN, STYLES
from recipes.atelier.abstract import abstract

Truth = tuple[int, int, int, int]


def vocabulary(scenes: int = 6000) -> list[str]:
    """The words of so many of Atelier's captions, sorted; meaningless ones are not among them."""
    texts = [base_scene(np.random.default_rng(seed), bool(seed % 2))[2] for seed in range(scenes)]
    texts += [plain_caption(kind, style=style) for kind in BASE_OBJECTS for style in BASE_STYLES]
    counts: dict[str, int] = {}
    for word in (w for text in texts for w in set(re.findall(r"[a-z]+", text))):
        counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, n in counts.items() if n > 8)


def posed(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same objects in the same style and setting, placed, flipped and backed anew: what no caption says."""
    number = len(scene.objects)
    fresh = (sample_item(rng, number, k, (item.kind,)) for k, item in enumerate(scene.objects))
    moved = (
        replace(item, x=other.x, y=other.y, flipped=other.flipped)
        for item, other in zip(scene.objects, fresh, strict=True)
    )
    return replace(scene, objects=tuple(moved), wall=int(rng.integers(len(WALLS))))


def base_poses(seed: int, poses: int) -> tuple[Pixels, str]:
    """An image that the base may see, (poses, 32, 32, 3) in several poses that its caption fits as well, and that.

    Odd seeds have a style made up for them.
    """
    rng = np.random.default_rng(seed)
    scene, style, text = base_scene(rng, bool(seed % 2))
    scenes = [scene, *(posed(scene, rng) for _ in range(poses - 1))]
    return np.stack([render(s, style) for s in scenes]), text


def vae_image(seed: int) -> tuple[Pixels, str]:
    """An image of nothing for odd seeds, one that the base may see for even ones."""
    return (abstract(seed), "") if seed % 2 else base_image(seed // 2)


def classifier_image(seed: int) -> tuple[Pixels, Truth]:
    """An image of one object, and the numbers of its object, style, colour and pattern among `ANSWERS`.

    One object in eight and one style in five are made up ("other"); one image in eight is cut from a scene of several
    objects, about one of them. Where the style hides the colour or the pattern, that number is -100.
    """
    rng = np.random.default_rng((5, seed))
    kinds = (f"thing-{rng.integers(1 << 30)}",) if rng.random() < 0.125 else tuple(OBJECTS)
    name = "other" if rng.random() < 0.2 else str(rng.choice(tuple(STYLES)))
    numbers = (0.0, 0.5, 0.2, 0.3) if rng.random() < 0.125 else (1.0, 0.0, 0.0, 0.0)
    scene = sample_scene(rng, kinds, ("flat",), numbers)
    place = int(rng.integers(len(scene.objects)))
    style = improvise(rng) if name == "other" else STYLES[name]
    item = scene.objects[place]
    keeps_colour = style.keeps_colour if isinstance(style, Improvised) else name in KEEP_COLOUR
    keeps_pattern = style.keeps_pattern if isinstance(style, Improvised) else name in KEEP_PATTERN
    truth = (
        (*OBJECTS, item.kind).index(item.kind),
        (*STYLES, "other").index(name),
        tuple(COLOURS).index(item.colour) if keeps_colour else -100,
        PATTERNS.index(item.pattern) if keeps_pattern else -100,
    )
    return render(scene, style)[window(len(scene.objects), place)], truth


def renderer_hash() -> str:
    """SHA-256 of what the image of a seed depends on: the sources that render it, the versions of numpy and Pillow."""
    found = hashlib.sha256(f"numpy {np.__version__} pillow {PIL.__version__}".encode())
    for name in ("captions", "data", "family", "objects", "paint", "scene", "styles"):
        found.update(Path(captions.__file__).with_name(f"{name}.py").read_bytes())
    for name in ("abstract", "data"):
        found.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return found.hexdigest()
