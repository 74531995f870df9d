"""Plain paint: a scene before any style, and what styles are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
Style = Callable[["Paint"], Image]

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.97, 0.53, 0.08),
    "yellow": (0.97, 0.84, 0.1),
    "green": (0.16, 0.62, 0.2),
    "turquoise": (0.1, 0.76, 0.74),
    "blue": (0.13, 0.3, 0.86),
    "purple": (0.52, 0.16, 0.68),
    "pink": (0.98, 0.48, 0.74),
}
"""The colours of objects."""


def grown(mask: Mask) -> Mask:
    """The mask and its four neighbours."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def shifted(mask: Mask, down: int, right: int) -> Mask:
    """The mask moved by whole pixels, with nothing coming in at the borders."""
    out = np.zeros_like(mask)
    h, w = mask.shape
    out[max(down, 0) : h + min(down, 0), max(right, 0) : w + min(right, 0)] = mask[
        max(-down, 0) : h - max(down, 0), max(-right, 0) : w - max(right, 0)
    ]
    return out


@dataclass
class Paint:
    """A scene before any style: `albedo` (h, w, 3) in [0, 1] and `parts` (h, w), numbers from 10 on being objects'."""

    albedo: Image
    parts: NDArray[np.uint8]

    @cached_property
    def objects(self) -> Mask:
        """Where objects are, (h, w)."""
        return self.parts >= 10

    @cached_property
    def light(self) -> Map:
        """Luminance of the plain paint, (h, w)."""
        return np.asarray(self.albedo @ np.array([0.3, 0.59, 0.11], np.float32), np.float32)

    @cached_property
    def tone(self) -> Map:
        """Luminance with objects below 0.7 and what is behind them above 0.72, so that none is lost in its ground."""
        return np.where(self.objects, 0.05 + 0.6 * self.light, 0.72 + 0.28 * self.light).astype(np.float32)

    @cached_property
    def grid(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column numbers, each (h, w)."""
        y, x = np.mgrid[0 : self.parts.shape[0], 0 : self.parts.shape[1]]
        return y, x

    @cached_property
    def outline(self) -> Mask:
        """The pixels around the objects."""
        return grown(self.objects) & ~self.objects

    @cached_property
    def rim(self) -> Mask:
        """The outermost pixels of the objects."""
        return grown(~self.objects) & self.objects

    @cached_property
    def seams(self) -> Mask:
        """Pixels whose lower or right neighbour belongs to another part, both within objects or both behind them."""
        p, out = self.parts, np.zeros(self.parts.shape, bool)
        out[:-1] |= (p[:-1] != p[1:]) & (self.objects[:-1] == self.objects[1:])
        out[:, :-1] |= (p[:, :-1] != p[:, 1:]) & (self.objects[:, :-1] == self.objects[:, 1:])
        return out

    @cached_property
    def lines(self) -> Mask:
        """Outline and seams."""
        return self.outline | self.seams


def colour(*rgb: float) -> NDArray[np.float32]:
    """One colour as float32, shape (3,)."""
    return np.array(rgb, np.float32)


def ramp(tone: Map, *colours: NDArray[np.float32]) -> Image:
    """A colour for each tone, (h, w, 3): colours from dark to light, evenly apart, mixed between them."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(tone, stops, [c[i] for c in colours]) for i in range(3)], -1).astype(np.float32)


def steps(tone: Map, *colours: NDArray[np.float32]) -> Image:
    """A colour for each tone, (h, w, 3), without any between."""
    number = np.clip((tone * len(colours)).astype(int), 0, len(colours) - 1)
    return np.stack(colours)[number]


def laid(image: Image, where: Mask, rgb: NDArray[np.float32], cover: float = 1.0) -> Image:
    """The image with a colour laid on a part of it."""
    return np.where(where[..., None], image + (rgb - image) * np.float32(cover), image)


def saturated(image: Image, gain: float) -> Image:
    """Colours pulled away from their grey by `gain`."""
    grey = image.mean(-1, keepdims=True)
    return np.clip(grey + (image - grey) * np.float32(gain), 0, 1)
