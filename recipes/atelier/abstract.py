"""Images of nothing in particular: shapes, gradients, patterns and noise in random colours.

The VAE learns from these as much as from scenes, so that it keeps what the base has never seen as well as what it has.
None of Atelier's objects or styles is used here.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 32


def _shapes(rng: np.random.Generator) -> NDArray[np.float32]:
    """Overlapping polygons, discs and lines, (32, 32, 3) in [0, 1]."""
    canvas = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(0, 256, 3)))
    brush = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 14))):
        fill, centre = tuple(rng.integers(0, 256, 3)), rng.uniform(0, SIDE, 2)
        reach = np.exp(rng.uniform(np.log(1), np.log(20)))
        corners = [tuple(centre + reach * rng.uniform(-1, 1, 2)) for _ in range(int(rng.integers(2, 7)))]
        if len(corners) == 2:
            brush.line(corners, fill=fill, width=int(rng.integers(1, 4)))
        elif rng.random() < 0.4:
            brush.ellipse([*(centre - reach), *(centre + reach * rng.uniform(0.5, 1.2, 2))], fill=fill)
        else:
            brush.polygon(corners, fill=fill)
    return np.asarray(np.array(canvas) / 255, np.float32)


def _pattern(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Stripes, checks, a grid or loose pixels, (32, 32)."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    period, slope = int(rng.integers(2, 9)), int(rng.integers(-2, 3))
    match int(rng.integers(4)):
        case 0:
            return (x + slope * y) % period < rng.integers(1, period)
        case 1:
            return (x // period + y // period) % 2 == 0
        case 2:
            return (x % period == 0) | (y % period == 0)
    return rng.random((SIDE, SIDE)) < rng.uniform(0.05, 0.5)


def abstract(seed: int) -> NDArray[np.uint8]:
    """An image of nothing, (32, 32, 3) bytes; the same for the same seed."""
    rng = np.random.default_rng(seed)
    image: NDArray[np.floating] = _shapes(rng)
    if rng.random() < 0.4:
        y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
        slope = np.clip(rng.normal() * (x - 0.5) + rng.normal() * (y - 0.5) + 0.5, 0, 1)[..., None]
        image = image * slope + rng.uniform(0, 1, 3) * (1 - slope)
    for _ in range(int(rng.integers(0, 3))):
        image = np.where(_pattern(rng)[..., None], image + (rng.uniform(0, 1, 3) - image) * rng.uniform(0.3, 1), image)
    if rng.random() < 0.25:
        image = image + rng.normal(0, rng.uniform(0.02, 0.2), image.shape)
    return np.asarray(np.clip(image, 0, 1) * 255 + 0.5, np.uint8)
