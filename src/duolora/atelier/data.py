"""Pictures made in bulk, once, by all cores, and kept in a folder of runs."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from duolora.atelier.abstract import abstract
from duolora.atelier.captions import caption, improvised_caption, with_stray_word
from duolora.atelier.family import improvise
from duolora.atelier.looks import LOOKS
from duolora.atelier.objects import OBJECTS
from duolora.atelier.scene import COLOURS, PATTERNS, render, sample_scene

Pixels = NDArray[np.uint8]
Truth = tuple[int, int, int, int]


def base_picture(seed: int) -> tuple[Pixels, str]:
    """A picture that the base may see, and its caption: for odd seeds in a look made up for it."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    if seed % 2:
        look = improvise(rng)
        return render(scene, look), improvised_caption(scene, look.words, rng)
    text = caption(scene, rng)
    return render(scene), with_stray_word(text, rng) if rng.random() < 0.12 else text


def vae_picture(seed: int) -> tuple[Pixels, str]:
    """A picture of nothing for odd seeds, one that the base may see for even ones."""
    return (abstract(seed), "") if seed % 2 else base_picture(seed // 2)


def judged_picture(
    seed: int, kinds: tuple[str, ...] = tuple(OBJECTS), looks: tuple[str, ...] = tuple(LOOKS)
) -> tuple[Pixels, Truth]:
    """A picture of one thing, any object in any look, and the numbers of its object, look, colour and pattern."""
    scene = sample_scene(np.random.default_rng(seed), kinds, looks, (1.0, 0.0, 0.0, 0.0))
    thing = scene.things[0]
    truth = (
        tuple(OBJECTS).index(thing.kind),
        tuple(LOOKS).index(scene.look),
        tuple(COLOURS).index(thing.colour),
        PATTERNS.index(thing.pattern),
    )
    return render(scene), truth


def _chunk(make: Callable[[int], tuple[Pixels, object]], seeds: range) -> list[tuple[Pixels, object]]:
    return [make(seed) for seed in seeds]


def renderer_hash() -> str:
    """SHA-256 of what the picture of a seed depends on: the sources that draw it, the versions of numpy and Pillow."""
    found = hashlib.sha256(f"numpy {np.__version__} pillow {PIL.__version__}".encode())
    for name in ("abstract", "captions", "data", "family", "looks", "objects", "scene"):
        found.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return found.hexdigest()


def cache_path(folder: Path, name: str, count: int, seed: int) -> Path:
    """Where `made` keeps these pictures; another renderer, number or seed has another name."""
    mark = hashlib.sha256(f"{renderer_hash()} {count} {seed}".encode()).hexdigest()[:12]
    return folder / f"{name}-{mark}"


def made(
    make: Callable[[int], tuple[Pixels, object]], count: int, seed: int, cache: Path | None
) -> tuple[Pixels, list]:
    """`count` pictures (count, 64, 64, 3) and what was said of each.

    Read from `cache`, a name by `cache_path`, if they were made before.
    """
    if cache and cache.with_suffix(".json").exists():
        return np.load(cache.with_suffix(".npy"), allow_pickle=False), json.loads(
            cache.with_suffix(".json").read_text()
        )
    first = seed * 10_000_000
    parts = [range(s, min(s + 500, first + count)) for s in range(first, first + count, 500)]
    with ProcessPoolExecutor() as pool:
        done = list(tqdm(pool.map(partial(_chunk, make), parts), total=len(parts), desc="Drawing", unit="×500"))
    pixels = np.stack([p for p, _ in chain.from_iterable(done)])
    notes = [n for _, n in chain.from_iterable(done)]
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache.with_suffix(".npy"), pixels)
        part = cache.with_suffix(".part")
        part.write_text(json.dumps(notes))
        part.replace(cache.with_suffix(".json"))  # last: where it is, both are whole
    return pixels, notes


def as_input(pixels: Pixels) -> Tensor:
    """Bytes (n, h, w, 3) as float32 (n, 3, h, w) in [-1, 1], the range of the VAE and the recognisers."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
