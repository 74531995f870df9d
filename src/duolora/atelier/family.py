"""Looks made up on the spot: colours, paper, relief, texture and lines drawn at random, and how they are described.

A base that has seen only a dozen looks takes a new one for a change of everything, and a LoRA of it swallows the
base. So half of the base's pictures are in looks of this family, no two alike, as a large model has seen every manner
of painting. The held-out looks are not among them, but share kinds of steps with them (a ramp of colours, two inks,
lines, dots, relief), so chance may bring a picture near one. The judges, who have no answer "none of these", call 12 %
of improvised pictures a held-out look with p > 0.9 (`tests/atelier/test_family.py`), mostly by mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from duolora.atelier.looks import Image, Map, Paint, averaged, blur, clouds, mix, saturated, tiles
from duolora.atelier.scene import COLOURS

PAINTS: Final[dict[str, tuple[float, float, float]]] = {
    "black": (0.04, 0.04, 0.05),
    "grey": (0.55, 0.55, 0.56),
    "white": (0.97, 0.97, 0.96),
    "cream": (0.96, 0.9, 0.76),
    "brown": (0.42, 0.25, 0.13),
    "gold": (0.9, 0.7, 0.2),
    "navy": (0.08, 0.12, 0.36),
    "teal": (0.08, 0.45, 0.46),
    "olive": (0.42, 0.45, 0.15),
    "maroon": (0.42, 0.06, 0.14),
    **COLOURS,
}
"""The colours of things, and more that only looks have."""

Step = Callable[[Paint, Image, np.random.Generator], Image]


@dataclass(frozen=True)
class Improvised:
    """A look of the family: its steps in order, and the words for each of them."""

    steps: tuple[Step, ...]
    words: tuple[str, ...]

    def __call__(self, paint: Paint, rng: np.random.Generator) -> Image:
        """Turn plain paint into a picture; `rng` draws the texture's chances."""
        image = paint.albedo
        for step in self.steps:
            image = step(paint, image, rng)
        return image


def improvise(rng: np.random.Generator) -> Improvised:
    """A random look of the family."""
    ground = rng.random() < 0.2
    parts = [_shape(rng)] if rng.random() < 0.3 else []
    parts += [_relief(rng)] if rng.random() < 0.15 else []
    parts += [_ground(rng) if ground else _colours(rng)]
    parts += [_texture(rng) for _ in range(int(rng.choice(3, p=(0.4, 0.45, 0.15))))]
    parts += [_lines(rng)] if ground or rng.random() < 0.55 else []
    parts += [_grain(rng)] if rng.random() < 0.25 else []
    return Improvised(tuple(step for step, _ in parts), tuple(words for _, words in parts))


def _paint(rng: np.random.Generator, near: str | None = None) -> tuple[str, Image]:
    """A colour near a named one, and its name."""
    name = near or str(rng.choice(tuple(PAINTS)))
    return name, np.clip(np.array(PAINTS[name]) + rng.normal(0, 0.05, 3), 0, 1).astype(np.float32)


def _light(rgb: Image) -> float:
    return float(rgb @ np.array([0.3, 0.59, 0.11], np.float32))


def _luminance(image: Image) -> Map:
    return np.asarray(image @ np.array([0.3, 0.59, 0.11], np.float32), np.float32)


def _colours(rng: np.random.Generator) -> tuple[Step, str]:
    """What becomes of the colours: kept, mixed up, laid on a ramp from dark to light, or printed in two inks."""
    kind = rng.choice(5, p=(0.3, 0.1, 0.35, 0.2, 0.05))
    if kind == 0:
        gain, lift, span = rng.uniform(0.4, 1.8), rng.uniform(0, 0.35), rng.uniform(0.5, 1)
        word = "faded colours" if gain < 0.8 or span < 0.65 else "vivid colours" if gain > 1.3 else "natural colours"
        return lambda p, image, r: (saturated(image, gain) * span + lift * (1 - span)).astype(np.float32), word
    if kind == 1:
        mixing = np.linalg.qr(rng.normal(0, 1, (3, 3)))[0].astype(np.float32)
        return lambda p, image, r: np.clip((image - 0.5) @ mixing + 0.5, 0, 1), "odd colours"
    if kind == 4:
        return lambda p, image, r: 1 - image, "inverted colours"
    (first, one), (second, two) = sorted((_paint(rng), _paint(rng)), key=lambda named: _light(named[1]))
    if kind == 2:
        middle = (one + two) / 2 + rng.normal(0, 0.12, 3)
        ramp = np.stack([one, np.clip(middle, 0, 1), two])
        ramp = ramp[::-1] if rng.random() < 0.2 else ramp
        sharp = rng.uniform(1, 1.6)

        def on_ramp(p: Paint, image: Image, r: np.random.Generator) -> Image:
            light = np.clip((_luminance(image) - 0.5) * sharp + 0.5, 0, 1)
            return np.stack([np.interp(light, (0, 0.5, 1), ramp[:, c]) for c in range(3)], -1).astype(np.float32)

        return on_ramp, f"{first} and {second} tones"
    paper, (high, low) = (
        _paint(rng, str(rng.choice(("white", "cream"))))[1],
        (rng.uniform(0.6, 0.8), rng.uniform(0.3, 0.5)),
    )
    shift = tuple(int(s) for s in rng.integers(-4, 5, 2))

    def printed(p: Paint, image: Image, r: np.random.Generator) -> Image:
        light = _luminance(image)
        under = mix(np.ones_like(image), two, np.asarray(light < high, np.float32) * 0.85)
        over = mix(np.ones_like(image), one, np.asarray(np.roll(light < low, shift, (0, 1)), np.float32) * 0.85)
        return paper * under * over

    return printed, f"{first} and {second} ink"


def _ground(rng: np.random.Generator) -> tuple[Step, str]:
    """One colour for everything, through which the paint shines faintly."""
    name, rgb = _paint(rng)
    share = np.float32(rng.uniform(0, 0.3))
    return lambda p, image, r: rgb * (1 - share) + image * share, f"a {name} ground"


def _shape(rng: np.random.Generator) -> tuple[Step, str]:
    """The forms coarsened: squares, chips or a blur."""
    kind, cell = rng.choice(("squares", "chips", "soft forms")), int(rng.integers(5, 15))
    if kind == "soft forms":
        radius = 1 + cell // 5
        return lambda p, image, r: blur(image, radius), kind
    joints, (name, rgb) = rng.random() < 0.5, _paint(rng)

    def coarse(p: Paint, image: Image, r: np.random.Generator) -> Image:
        if kind == "chips":
            number, joint = tiles(p, cell + 4, 0.3, r)
        else:
            y, x = p.grid
            number = (y // cell).astype(np.int64) * 64 + (x // cell).astype(np.int64)
            joint = np.asarray((y % cell < 1.5) | (x % cell < 1.5), np.float32)
        image = averaged(image, number)
        return mix(image, rgb, joint) if joints else image

    return coarse, f"{kind} with {name} joints" if joints else str(kind)


def _relief(rng: np.random.Generator) -> tuple[Step, str]:
    """Light from one side on a surface as high as it is bright."""
    shift, depth = tuple(int(s) for s in rng.choice((-3, -2, 2, 3), 2)), np.float32(rng.uniform(0.6, 2))

    def embossed(p: Paint, image: Image, r: np.random.Generator) -> Image:
        height = blur(_luminance(image), 1)
        slope = depth * (height - np.roll(height, shift, (0, 1)))
        return np.clip(0.35 + 0.35 * image + slope[..., None], 0, 1)

    return embossed, "relief"


def _texture(rng: np.random.Generator) -> tuple[Step, str]:
    """Stripes, dots, a grid or waves of a colour, all over or only in some parts of the picture."""
    name, rgb = _paint(rng)
    kind = str(rng.choice(("stripes", "dots", "grid", "waves")))
    where = str(rng.choice(("", "in the dark", "in the light", "on the thing", "behind")))
    angle = rng.uniform(0, np.pi) if rng.random() < 0.6 else rng.choice((0.0, np.pi / 2))
    period, edge = np.exp(rng.uniform(np.log(5), np.log(18))), np.exp(rng.uniform(-0.5, 1.8))
    level, cover = rng.uniform(-0.6, 0.3), rng.uniform(0.35, 1) if where else rng.uniform(0.15, 0.5)

    def textured(p: Paint, image: Image, r: np.random.Generator) -> Image:
        y, x = p.grid
        u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
        v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
        field = {
            "stripes": lambda: np.sin(u),
            "dots": lambda: np.sin(u) * np.sin(v) * 1.6 - 0.3,
            "grid": lambda: np.maximum(np.sin(u), np.sin(v)) - 0.5,
            "waves": lambda: np.sin(u + 1.5 * np.sin(v / 3)),
        }[kind]()
        mask = np.clip(0.5 + (field + level) * edge, 0, 1) * cover
        light = _luminance(image)
        part = {
            "in the dark": lambda: light < 0.5,
            "in the light": lambda: light >= 0.5,
            "on the thing": lambda: p.thing,
            "behind": lambda: ~p.thing,
        }.get(where)
        return mix(image, rgb, np.asarray(mask if part is None else mask * part(), np.float32))

    return textured, f"{name} {kind} {where}".strip()


def _lines(rng: np.random.Generator) -> tuple[Step, str]:
    """The borders of the parts drawn in a colour: thin or thick, broken into dashes, or glowing."""
    name, rgb = _paint(rng, "black" if rng.random() < 0.3 else None)
    width, kind = int(rng.integers(1, 5)), str(rng.choice(("", "broken", "glowing"), p=(0.76, 0.12, 0.12)))
    length = int(rng.integers(8, 17))

    def lined(p: Paint, image: Image, r: np.random.Generator) -> Image:
        line = p.edges(width)
        if kind == "broken":
            y, x = p.grid
            line = np.asarray(p.edges(width + 2) * ((x + y) % length < 0.6 * length), np.float32)
        image = mix(image, rgb, line)
        return np.clip(image + 0.8 * blur(line, 3)[..., None] * rgb, 0, 1) if kind == "glowing" else image

    return lined, " ".join(w for w in (kind, "thick" if width > 2 else "thin", name, "outlines") if w)


def _grain(rng: np.random.Generator) -> tuple[Step, str]:
    """Blotches or grain over everything."""
    cell, depth = int(np.exp(rng.uniform(np.log(2), np.log(20)))), np.float32(rng.uniform(0.05, 0.25))
    word = "blotches" if cell > 6 else "grain"
    return lambda p, image, r: np.clip(image + depth * clouds(p.shapes.shape, cell, r)[..., None], 0, 1), word
