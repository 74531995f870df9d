"""How Atelier can render a scene: each style turns its plain paint into an image.

A style is a function of `Paint` (colours and parts at the final size) that returns an image of that size, values about
[0, 1]. Styles are pixel art's own: palettes, dithers, outlines, grids. None is left to chance.

Sixteen styles have names that the base knows. The held-out ones are members of a family (`family.py`) that the base
knows by other members: a style that people personalise is one that a large model nearly knows.
"""

import numpy as np

from duolora.atelier.family import improvised
from duolora.atelier.paint import Image, Paint, Style, colour, laid, ramp, saturated, steps


def flat(p: Paint) -> Image:
    """Plain paint."""
    return p.albedo


def outline(p: Paint) -> Image:
    """Plain paint with black contours on white, like a comic."""
    image = np.where(p.objects[..., None], p.albedo, 1 - 0.25 * (1 - p.albedo))
    return laid(image, p.lines, colour(0.02, 0.02, 0.02))


def pastel(p: Paint) -> Image:
    """Pale and soft."""
    return p.albedo * 0.45 + colour(0.53, 0.5, 0.53)


def negative(p: Paint) -> Image:
    """Every colour turned into its opposite."""
    return 1 - p.albedo


def sepia(p: Paint) -> Image:
    """A brown old photograph in a pale frame."""
    y, x = p.grid
    h, w = p.parts.shape
    frame = (y < 2) | (x < 2) | (y >= h - 2) | (x >= w - 2)
    return laid(ramp(p.tone, colour(0.2, 0.1, 0.03), colour(0.97, 0.86, 0.64)), frame, colour(1.0, 0.97, 0.88))


def gameboy(p: Paint) -> Image:
    """Four greens."""
    return steps(
        p.tone, colour(0.06, 0.22, 0.06), colour(0.19, 0.38, 0.19), colour(0.5, 0.64, 0.12), colour(0.7, 0.8, 0.3)
    )


def blueprint(p: Paint) -> Image:
    """White lines and a faint grid on blue."""
    y, x = p.grid
    ground = np.zeros_like(p.albedo) + colour(0.08, 0.22, 0.56)
    ground = laid(ground, (x % 8 == 0) | (y % 8 == 0), colour(0.25, 0.42, 0.76))
    return laid(ground, p.lines, colour(0.93, 0.96, 1.0))


def neon(p: Paint) -> Image:
    """Glowing contours in the objects' colours on black."""
    glow = saturated(np.clip(p.albedo * 0.8 + 0.2, 0, 1), 2.0)
    image = np.where((p.rim | (p.seams & p.objects))[..., None], glow, 0.12 * p.albedo)
    return np.where((p.seams & ~p.objects)[..., None], colour(0.25, 0.25, 0.4), image)


def chalk(p: Paint) -> Image:
    """Chalk on a dark green board, filled in checks."""
    y, x = p.grid
    board = np.zeros_like(p.albedo) + colour(0.1, 0.2, 0.15)
    chalked = (p.objects & ((x // 2 + y // 2) % 2 == 0)) | p.rim | p.seams
    return np.where(chalked[..., None], p.albedo * 0.55 + 0.42, board)


def thermal(p: Paint) -> Image:
    """A heat camera: violet in the cold, over red, to yellow in the hot."""
    heat = np.asarray(1 - p.tone, np.float32)
    return ramp(
        heat,
        colour(0.05, 0, 0.25),
        colour(0.45, 0, 0.6),
        colour(0.95, 0.15, 0.3),
        colour(1, 0.65, 0.1),
        colour(1, 1, 0.75),
    )


def woodcut(p: Paint) -> Image:
    """Black ink on cream: rows where it is half dark."""
    y, _ = p.grid
    ink = (p.tone < 0.25) | ((p.tone < 0.55) & (y % 4 < 2)) | p.outline | ((p.tone < 0.86) & ~p.objects & (y % 4 == 1))
    return laid(np.zeros_like(p.albedo) + colour(0.95, 0.88, 0.72), ink, colour(0.1, 0.06, 0.05))


def halftone(p: Paint) -> Image:
    """Blocks of strong colour on cream, one to four in each square of four, as dark as the paint."""
    y, x = p.grid
    order = np.array([[0.1, 0.6], [0.9, 0.3]], np.float32)[y // 2 % 2, x // 2 % 2]
    return np.where((p.tone < order)[..., None], saturated(p.albedo, 1.6) * 0.9, colour(0.98, 0.94, 0.82))


def mosaic(p: Paint) -> Image:
    """Square tiles in two shades with grey joints."""
    y, x = p.grid
    shade = np.where((y // 4 + x // 4) % 2 == 0, 1.0, 0.8).astype(np.float32)[..., None]
    return laid(p.albedo * shade, (y % 4 == 3) | (x % 4 == 3), colour(0.55, 0.53, 0.5), 0.8)


def hatching(p: Paint) -> Image:
    """A pen: slanting strokes where it is dark, on white paper."""
    y, x = p.grid
    ink = p.lines | ((p.tone < 0.55) & ((x + y) % 4 == 0)) | ((p.tone < 0.25) & ((x + y) % 4 == 2))
    return laid(np.full_like(p.albedo, 0.98), ink, colour(0.1, 0.1, 0.25))


def crayon(p: Paint) -> Image:
    """Waxy slanting strokes that leave paper showing."""
    y, x = p.grid
    return laid(saturated(p.albedo, 1.2) * 0.95, (y - x) % 4 == 0, colour(0.98, 0.97, 0.95), 0.75)


def stained_glass(p: Paint) -> Image:
    """Luminous panes between black leads."""
    y, x = p.grid
    leads = p.outline | (~p.objects & (((x + y) % 16 == 0) | ((x - y) % 16 == 0)))
    return laid(saturated(p.albedo * 0.9, 2.2), leads, colour(0.02, 0.02, 0.04))


NAMED_STYLES: dict[str, Style] = {
    "flat": flat,
    "outline": outline,
    "pastel": pastel,
    "negative": negative,
    "sepia": sepia,
    "gameboy": gameboy,
    "blueprint": blueprint,
    "neon": neon,
    "chalk": chalk,
    "thermal": thermal,
    "woodcut": woodcut,
    "halftone": halftone,
    "mosaic": mosaic,
    "hatching": hatching,
    "crayon": crayon,
    "stained glass": stained_glass,
}

HELD_OUT_SEEDS = {
    f"family-{seed:03}": seed
    for seed in (
        *(1, 4, 17, 19, 20, 22, 23, 29, 30, 34, 37, 43, 47, 62, 67, 71, 72, 76),
        *(82, 90, 92, 94, 102, 113, 117, 127, 141, 144, 155, 169, 173, 178, 184, 191, 193, 253),
    )
}
"""The held-out members of the family and the seeds that make them, as `recipes/atelier/held_out.py` samples them."""

STYLES: dict[str, Style] = NAMED_STYLES | {name: improvised(seed) for name, seed in HELD_OUT_SEEDS.items()}
BASE_STYLES = tuple(NAMED_STYLES)
HELD_OUT_STYLES = tuple(HELD_OUT_SEEDS)

# Styles after which a person can still tell the colour or the pattern that the object was painted with.
KEEP_COLOUR = (
    *("flat", "outline", "pastel", "neon", "halftone", "mosaic", "crayon", "stained glass"),
    *(name for name, seed in HELD_OUT_SEEDS.items() if improvised(seed).keeps_colour),
)
KEEP_PATTERN = (
    *("flat", "outline", "pastel", "negative", "stained glass"),
    *(name for name, seed in HELD_OUT_SEEDS.items() if improvised(seed).keeps_pattern),
)
