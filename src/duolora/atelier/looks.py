"""How Atelier can draw it: each look turns the plain paint and the shapes of a scene into a picture.

A look is a function of `Paint` (plain colours, shapes and where the thing is, all at twice the final size) and a
random generator. It returns an image of the same size, values about [0, 1]. Everything is NumPy and seeded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Map = NDArray[np.float32]
Look = Callable[["Paint", np.random.Generator], Image]


@dataclass
class Paint:
    """A scene before any look: `albedo` (h, w, 3) in [0, 1], `shapes` (h, w) part numbers, `thing` (h, w) bool."""

    albedo: Image
    shapes: NDArray[np.uint8]
    thing: NDArray[np.bool_]

    @cached_property
    def light(self) -> Map:
        """Luminance of the plain paint, (h, w)."""
        return np.asarray(self.albedo @ np.array([0.3, 0.59, 0.11], np.float32), np.float32)

    @cached_property
    def grid(self) -> tuple[Map, Map]:
        """Row and column numbers, each (h, w)."""
        y, x = np.mgrid[0 : self.shapes.shape[0], 0 : self.shapes.shape[1]]
        return y.astype(np.float32), x.astype(np.float32)

    def edges(self, width: int) -> Map:
        """1 within about `width` pixels of the border between two parts, 0 elsewhere, (h, w)."""
        s = self.shapes
        out = np.zeros(s.shape, bool)
        out[1:] |= s[1:] != s[:-1]
        out[:, 1:] |= s[:, 1:] != s[:, :-1]
        for _ in range(width - 1):
            grown = out.copy()
            grown[1:] |= out[:-1]
            grown[:-1] |= out[1:]
            grown[:, 1:] |= out[:, :-1]
            grown[:, :-1] |= out[:, 1:]
            out = grown
        return out.astype(np.float32)


def mix(under: Image, over: Image | NDArray[np.float32], cover: Map) -> Image:
    """`over` laid on `under` with opacity `cover` (h, w)."""
    return under + (over - under) * cover[..., None]


def colour(*rgb: float) -> NDArray[np.float32]:
    """One colour as float32, shape (3,)."""
    return np.array(rgb, np.float32)


def blur(image: Image, radius: int) -> Image:
    """A box blur, twice, that repeats the border."""
    size = 2 * radius + 1
    for axis in (0, 1, 0, 1):
        pad = [(0, 0)] * image.ndim
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float32)
        head = [slice(None)] * image.ndim
        tail = [slice(None)] * image.ndim
        head[axis], tail[axis] = slice(size, None), slice(None, -size)
        image = (total[tuple(head)] - total[tuple(tail)]) / np.float32(size)
    return image


def clouds(shape: tuple[int, int], cell: int, rng: np.random.Generator) -> Map:
    """Smooth noise in about [-1, 1] whose blotches are `cell` pixels wide, (h, w)."""
    h, w = shape
    coarse = rng.uniform(-1, 1, (h // cell + 2, w // cell + 2)).astype(np.float32)
    y, x = np.arange(h) / cell, np.arange(w) / cell
    iy, ix = y.astype(int), x.astype(int)
    fy, fx = (y - iy).astype(np.float32)[:, None], (x - ix).astype(np.float32)
    top = coarse[iy][:, ix] * (1 - fx) + coarse[iy][:, ix + 1] * fx
    low = coarse[iy + 1][:, ix] * (1 - fx) + coarse[iy + 1][:, ix + 1] * fx
    return np.asarray(top * (1 - fy) + low * fy, np.float32)


def tiles(paint: Paint, cell: int, jitter: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], Map]:
    """Irregular tiles of about `cell` pixels: the number of each pixel's tile, and the joints between them."""
    h, w = paint.shapes.shape
    gh, gw = h // cell + 3, w // cell + 3
    shift = rng.uniform(-jitter, jitter, (2, gh, gw))
    cy = (np.arange(gh)[:, None] - 0.5 + shift[0]) * cell
    cx = (np.arange(gw)[None, :] - 0.5 + shift[1]) * cell
    y, x = paint.grid
    by, bx = (y // cell).astype(int) + 1, (x // cell).astype(int) + 1
    best = np.full((h, w), np.inf)
    number = np.zeros((h, w), np.int64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            iy, ix = by + dy, bx + dx
            distance = (cy[iy, ix] - y) ** 2 + (cx[iy, ix] - x) ** 2
            nearer = distance < best
            best = np.where(nearer, distance, best)
            number = np.where(nearer, iy * gw + ix, number)
    joint = np.zeros((h, w), np.float32)
    joint[1:] = number[1:] != number[:-1]
    joint[:, 1:] = np.maximum(joint[:, 1:], number[:, 1:] != number[:, :-1])
    return number, joint


def averaged(image: Image, number: NDArray[np.int64]) -> Image:
    """Each tile filled with its mean colour."""
    flat = number.ravel()
    count = np.maximum(np.bincount(flat), 1)
    means = [np.bincount(flat, image[..., c].ravel()) / count for c in range(3)]
    return np.stack(means, -1).astype(np.float32)[number]


def saturated(image: Image, gain: float) -> Image:
    """Colours pulled away from their grey by `gain`."""
    grey = image.mean(-1, keepdims=True)
    return np.clip(grey + (image - grey) * np.float32(gain), 0, 1)


def flat(p: Paint, rng: np.random.Generator) -> Image:
    """Plain paint."""
    return p.albedo


def outline(p: Paint, rng: np.random.Generator) -> Image:
    """Plain paint with a thick black contour, like a comic."""
    return mix(p.albedo * 0.9 + 0.1, colour(0.02, 0.02, 0.02), p.edges(3))


def watercolour(p: Paint, rng: np.random.Generator) -> Image:
    """Thin blotchy paint on white paper, darker where it pooled at the rim."""
    wash = np.clip(0.72 + 0.34 * clouds(p.shapes.shape, 14, rng), 0.25, 1)
    soft = mix(np.ones_like(p.albedo), blur(p.albedo, 1), wash)
    return soft * (1 - 0.3 * blur(p.edges(1), 1)[..., None])


def pixel(p: Paint, rng: np.random.Generator) -> Image:
    """Large square pixels."""
    y, x = p.grid
    number = (y // 8).astype(np.int64) * 64 + (x // 8).astype(np.int64)
    return saturated(averaged(p.albedo, number), 1.15)


def hatching(p: Paint, rng: np.random.Generator) -> Image:
    """Black pen: slanting strokes, denser in the dark, on white paper."""
    y, x = p.grid
    stroke = ((x + y) % 8 < 3) & (p.light < 0.75)
    cross = ((x - y) % 8 < 3) & (p.light < 0.42)
    ink = np.maximum((stroke | cross).astype(np.float32) * 0.85, p.edges(2))
    return mix(np.full_like(p.albedo, 0.97), colour(0.08, 0.08, 0.12), ink)


def halftone(p: Paint, rng: np.random.Generator) -> Image:
    """Printed dots of colour on cream, larger in the dark."""
    y, x = p.grid
    u, v = (x + y) / 10, (x - y) / 10
    ink = saturated(averaged(p.albedo, (u.astype(np.int64) + 1) * 64 + np.floor(v).astype(np.int64) + 32), 1.4)
    distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    dots = np.clip((0.62 - 0.3 * p.light - distance) * 6, 0, 1).astype(np.float32)
    return mix(np.zeros_like(p.albedo) + colour(0.98, 0.94, 0.84), ink * 0.85, dots)


def neon(p: Paint, rng: np.random.Generator) -> Image:
    """Glowing tubes of colour on black."""
    tube = p.edges(2)[..., None] * saturated(p.albedo * 0.6 + 0.4, 2.2)
    return np.clip(0.06 * p.albedo + blur(tube, 3) * 1.3 + tube * 0.8, 0, 1)


def blueprint(p: Paint, rng: np.random.Generator) -> Image:
    """White lines and a faint grid on blue."""
    y, x = p.grid
    rule = ((x % 16 < 2) | (y % 16 < 2)).astype(np.float32) * 0.22
    lines = np.maximum(rule, p.edges(2) * 0.95)
    return mix(np.zeros_like(p.albedo) + colour(0.08, 0.22, 0.56), colour(0.93, 0.96, 1.0), lines)


def sepia(p: Paint, rng: np.random.Generator) -> Image:
    """A brown old photograph, darker at its corners."""
    y, x = p.grid
    h, w = p.shapes.shape
    corner = ((y / h - 0.5) ** 2 + (x / w - 0.5) ** 2) * 0.9
    tone = np.clip(1.25 * p.light - 0.1 - corner, 0, 1)[..., None]
    return colour(0.25, 0.14, 0.05) + tone * (colour(0.98, 0.88, 0.68) - colour(0.25, 0.14, 0.05))


def stained_glass(p: Paint, rng: np.random.Generator) -> Image:
    """Luminous panes between black leads."""
    number, joint = tiles(p, 22, 0.35, rng)
    tint = 0.85 + 0.3 * (number % 7 / 7).astype(np.float32)[..., None]
    panes = np.clip(saturated(p.albedo, 1.9) * tint, 0, 1)
    return mix(panes, colour(0.02, 0.02, 0.03), np.maximum(p.edges(3), np.maximum(joint, np.roll(joint, 1, 1))))


def pastel(p: Paint, rng: np.random.Generator) -> Image:
    """Pale, soft and powdery."""
    grain = clouds(p.shapes.shape, 3, rng)[..., None] * 0.05
    return np.clip(blur(p.albedo, 1) * 0.5 + colour(0.48, 0.45, 0.48) + grain, 0, 1)


def woodcut(p: Paint, rng: np.random.Generator) -> Image:
    """Black ink on cream with wavy horizontal cuts."""
    y, x = p.grid
    wave = np.sin((y + 2 * np.sin(x / 9)) * (2 * np.pi / 9)) * 0.5 + 0.5
    ink = np.maximum((wave > p.light * 1.15 - 0.05).astype(np.float32), p.edges(2))
    return mix(np.zeros_like(p.albedo) + colour(0.95, 0.89, 0.74), colour(0.1, 0.06, 0.05), ink)


def negative(p: Paint, rng: np.random.Generator) -> Image:
    """Every colour turned into its opposite."""
    return 1 - p.albedo


def mosaic(p: Paint, rng: np.random.Generator) -> Image:
    """Small irregular tiles with grey joints."""
    number, joint = tiles(p, 11, 0.2, rng)
    tone = 0.88 + 0.24 * (number * 7919 % 11 / 11).astype(np.float32)[..., None]
    return mix(np.clip(averaged(p.albedo, number) * tone, 0, 1), colour(0.72, 0.7, 0.66), joint)


def crayon(p: Paint, rng: np.random.Generator) -> Image:
    """Waxy slanting strokes that leave paper showing."""
    y, x = p.grid
    streak = np.sin((x * 0.9 + y * 0.5) * 0.9 + 3 * clouds(p.shapes.shape, 16, rng))
    wax = np.clip(0.62 + 0.45 * streak, 0, 1).astype(np.float32)
    return mix(np.full_like(p.albedo, 0.96), saturated(p.albedo, 1.3) * 0.95, wax)


def chalk(p: Paint, rng: np.random.Generator) -> Image:
    """Coloured chalk on a dark green board."""
    rough = np.clip(0.4 + 0.5 * clouds(p.shapes.shape, 4, rng), 0, 1)
    board = np.zeros_like(p.albedo) + colour(0.1, 0.19, 0.15)
    drawn = np.maximum(p.edges(2) * 0.95, rough * p.thing * 0.5)
    return mix(board, p.albedo * 0.55 + 0.45, np.asarray(drawn, np.float32))


def thermal(p: Paint, rng: np.random.Generator) -> Image:
    """A heat camera: violet in the cold, over red, to yellow in the hot."""
    heat = np.clip(blur(1 - p.light, 2) * 0.8 + 0.3 * blur(p.thing.astype(np.float32), 3), 0, 1)
    stops = np.linspace(0, 1, 5)
    ramp = np.array([(0.05, 0, 0.25), (0.45, 0, 0.6), (0.95, 0.15, 0.3), (1, 0.65, 0.1), (1, 1, 0.75)])
    return np.stack([np.interp(heat, stops, ramp[:, c]) for c in range(3)], -1).astype(np.float32)


def risograph(p: Paint, rng: np.random.Generator) -> Image:
    """Two inks, pink and teal, printed out of register."""
    paper = np.zeros_like(p.albedo) + colour(0.98, 0.96, 0.9)
    pink = np.asarray((p.light < 0.72) * 0.85, np.float32)
    shifted = np.maximum(np.roll(p.light < 0.42, 4, (0, 1)), np.roll(p.edges(2), 3, (0, 1)))
    teal = np.asarray(shifted * 0.8, np.float32)
    return (
        paper
        * mix(np.ones_like(paper), colour(1.0, 0.35, 0.55), pink)
        * mix(np.ones_like(paper), colour(0.1, 0.6, 0.65), teal)
    )


def stitched(p: Paint, rng: np.random.Generator) -> Image:
    """Felt patches sewn on with white thread."""
    y, x = p.grid
    felt = p.albedo * (0.72 + 0.1 * clouds(p.shapes.shape, 2, rng)[..., None])
    inner = np.clip(p.edges(5) - p.edges(2), 0, 1)
    dashes = inner * ((x + y) % 12 < 7)
    return mix(felt, colour(1.0, 0.99, 0.95), np.asarray(dashes, np.float32))


def cross_stitch(p: Paint, rng: np.random.Generator) -> Image:
    """Small crosses of coloured thread on linen."""
    y, x = p.grid
    number = (y // 8).astype(np.int64) * 64 + (x // 8).astype(np.int64)
    thread = saturated(averaged(p.albedo, number), 1.2) * 0.92
    u, v = x % 8 - 3.5, y % 8 - 3.5
    cross = np.clip(2.2 - np.minimum(np.abs(u - v), np.abs(u + v)), 0, 1).astype(np.float32)
    return mix(np.zeros_like(p.albedo) + colour(0.9, 0.85, 0.75), thread, cross)


def copper(p: Paint, rng: np.random.Generator) -> Image:
    """An embossed sheet of copper with a green patina in its hollows."""
    height = blur(p.light, 1)
    slope = np.clip(0.5 + 2.2 * (height - np.roll(height, (3, 3), (0, 1))), 0, 1)[..., None]
    metal = colour(0.35, 0.14, 0.05) + slope * (colour(1.0, 0.72, 0.45) - colour(0.35, 0.14, 0.05))
    return mix(metal, colour(0.25, 0.62, 0.55), np.clip((0.5 - height) * 1.4, 0, 0.75))


def scanlines(p: Paint, rng: np.random.Generator) -> Image:
    """A green monitor with dark lines."""
    y, _ = p.grid
    beam = 0.55 + 0.45 * np.sin(y * np.float32(2 * np.pi / 8))
    glow = np.clip(1.5 * p.light - 0.35, 0.06, 1) * beam + 0.25 * p.edges(2)
    return np.stack([glow * 0.15, glow, glow * 0.35], -1).astype(np.float32)


def gilded(p: Paint, rng: np.random.Generator) -> Image:
    """Gold contours and dots on deep purple."""
    y, x = p.grid
    ground = colour(0.2, 0.05, 0.28) + 0.22 * p.albedo
    dots = (np.hypot(x % 12 - 6, y % 12 - 6) < 2.6) & (p.light > 0.55)
    gold = np.maximum(p.edges(3), dots.astype(np.float32) * 0.9)
    return mix(ground, colour(0.98, 0.8, 0.25), gold)


LOOKS: dict[str, Look] = {
    "flat": flat,
    "outline": outline,
    "watercolour": watercolour,
    "pixel": pixel,
    "hatching": hatching,
    "halftone": halftone,
    "neon": neon,
    "blueprint": blueprint,
    "sepia": sepia,
    "stained glass": stained_glass,
    "pastel": pastel,
    "woodcut": woodcut,
    "negative": negative,
    "mosaic": mosaic,
    "crayon": crayon,
    "chalk": chalk,
    "thermal": thermal,
    "risograph": risograph,
    "stitched": stitched,
    "cross-stitch": cross_stitch,
    "copper": copper,
    "scanlines": scanlines,
    "gilded": gilded,
}

HELD_OUT_LOOKS = ("risograph", "stitched", "cross-stitch", "copper", "scanlines", "gilded")
BASE_LOOKS = tuple(name for name in LOOKS if name not in HELD_OUT_LOOKS)

# Looks after which a person can still tell the colour or the pattern that the thing was painted with.
KEEP_COLOUR = (
    *("flat", "outline", "watercolour", "pixel", "halftone", "stained glass", "pastel", "mosaic", "crayon"),
    *("stitched", "cross-stitch"),
)
KEEP_PATTERN = ("flat", "outline", "watercolour", "pastel", "crayon", "negative", "stitched")
