"""Pictures of nothing in particular: shapes, gradients and textures in random colours.

The VAE learns from these as much as from scenes, so that it draws looks that the base has never seen as well as
those it has. None of Atelier's own looks is used here.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from duolora.atelier.looks import Image as Picture
from duolora.atelier.looks import Map, Paint, averaged, blur, clouds, mix, tiles
from duolora.atelier.scene import SIZE


def _waves(y: Map, x: Map, rng: np.random.Generator) -> Map:
    """Stripes, dots, crosses or a grid with a random period, direction and sharpness, in [0, 1]."""
    angle = rng.uniform(0, np.pi)
    period = np.exp(rng.uniform(np.log(5), np.log(28)))
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    kind = rng.integers(4)
    field = (np.sin(u), np.sin(u) * np.sin(v), np.maximum(np.sin(u), np.sin(v)), np.sin(u + 1.5 * np.sin(v / 3)))[kind]
    return np.asarray(np.clip(0.5 + (field + rng.uniform(-0.7, 0.7)) * np.exp(rng.uniform(-0.7, 2)), 0, 1), np.float32)


def _shapes(side: int, rng: np.random.Generator) -> tuple[Picture, NDArray[np.uint8]]:
    """Overlapping polygons, discs and lines: their colours and their numbers."""
    colours, parts = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3))), Image.new("L", (side, side))
    brush, label = ImageDraw.Draw(colours), ImageDraw.Draw(parts)
    for number in range(1, int(rng.integers(2, 16))):
        fill = tuple(rng.integers(0, 256, 3))
        centre, reach = rng.uniform(0, side, 2), np.exp(rng.uniform(np.log(4), np.log(70)))
        corners = [tuple(centre + reach * rng.uniform(-1, 1, 2)) for _ in range(int(rng.integers(2, 7)))]
        if len(corners) == 2:
            width = int(rng.integers(1, 6))
            brush.line(corners, fill=fill, width=width)
            label.line(corners, fill=number, width=width)
        elif rng.random() < 0.4:
            box = [*(centre - reach), *(centre + reach * rng.uniform(0.5, 1.2, 2))]
            brush.ellipse(box, fill=fill)
            label.ellipse(box, fill=number)
        else:
            brush.polygon(corners, fill=fill)
            label.polygon(corners, fill=number)
    return np.asarray(np.array(colours) / 255, np.float32), np.array(parts)


def _treated(paint: Paint, rng: np.random.Generator) -> Picture:
    """The paint with a random few treatments on it."""
    image, (y, x) = paint.albedo, paint.grid
    tint = rng.uniform(0, 1, 3).astype(np.float32)
    if rng.random() < 0.5:
        mixing = np.eye(3) * rng.uniform(0.2, 1.2) + rng.normal(0, 0.35, (3, 3))
        image = np.asarray(np.clip((image - 0.5) @ mixing + rng.uniform(0.25, 0.75, 3), 0, 1), np.float32)
    if rng.random() < 0.3:
        image = averaged(image, tiles(paint, int(rng.integers(5, 24)), rng.uniform(0, 0.4), rng)[0])
    if rng.random() < 0.3:
        image = blur(image, int(rng.integers(1, 5)))
    for _ in range(int(rng.integers(0, 3))):
        where = _waves(y, x, rng) * rng.uniform(0.2, 1)
        where = where * (image.mean(-1) < rng.uniform(0.2, 1)) if rng.random() < 0.5 else where
        image = mix(image, rng.uniform(0, 1, 3).astype(np.float32), np.asarray(where, np.float32))
    if rng.random() < 0.4:
        image = mix(image, tint, paint.edges(int(rng.integers(1, 5))))
    if rng.random() < 0.3:
        image = image + rng.uniform(0.05, 0.3) * clouds(paint.shapes.shape, int(rng.integers(2, 30)), rng)[..., None]
    return image


def abstract(seed: int) -> NDArray[np.uint8]:
    """A picture of nothing, (64, 64, 3) bytes; the same for the same seed."""
    rng = np.random.default_rng(seed)
    albedo, parts = _shapes(2 * SIZE, rng)
    if rng.random() < 0.4:
        y, x = np.mgrid[0:1:128j, 0:1:128j].astype(np.float32)
        slope = np.clip(rng.normal() * (x - 0.5) + rng.normal() * (y - 0.5) + 0.5, 0, 1)[..., None]
        albedo = albedo * slope + rng.uniform(0, 1, 3).astype(np.float32) * (1 - slope)
    image = _treated(Paint(np.asarray(albedo, np.float32), parts, parts > 0), rng)
    small = image.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    return np.asarray(np.clip(small, 0, 1) * 255 + 0.5, np.uint8)
