"""A family of styles, sampled at random: palette, ground, texture, lines, shadow and frame, and the words for them.

Half of the base's images are in styles of this family, no two alike, as a large model has seen every manner of
painting. The styles that a benchmark personalises are members of it that the base has not seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from duolora.atelier.paint import COLOURS, Image, Mask, Paint, grown, laid, ramp, saturated, shifted, steps

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
"""The colours of objects, and more that only styles have."""

Step = Callable[[Paint, Image], Image]
Colour = np.ndarray


@dataclass(frozen=True)
class Improvised:
    """A style of the family: its steps in order, the words for each, and what of an object it leaves to be seen."""

    steps: tuple[Step, ...]
    words: tuple[str, ...]
    keeps_colour: bool
    keeps_pattern: bool

    def __call__(self, paint: Paint) -> Image:
        """Turn plain paint into an image."""
        image = paint.albedo
        for step in self.steps:
            image = step(paint, image)
        return image


@cache
def improvised(seed: int) -> Improvised:
    """The member of the family that a seed makes."""
    return improvise(np.random.default_rng((77, seed)))


def improvise(rng: np.random.Generator) -> Improvised:
    """A random style of the family."""
    natural = rng.random() < 0.5
    parts = [_natural(rng) if natural else _palette(rng)]
    textured = rng.random() < 0.45
    if rng.random() < 0.6:
        parts.append(_ground(rng))
    if textured:
        parts.append(_texture(rng))
    if rng.random() < 0.25:
        parts.append(_shadow(rng))
    if rng.random() < 0.65:
        parts.append(_lines(rng))
    if rng.random() < 0.2:
        parts.append(_frame(rng))
    return Improvised(
        tuple(step for step, _ in parts), tuple(words for _, words in parts), natural, natural and not textured
    )


def _paint(rng: np.random.Generator, *names: str) -> tuple[str, Colour]:
    """A colour near a named one, and its name."""
    name = str(rng.choice(names or tuple(PAINTS)))
    return name, np.clip(np.array(PAINTS[name]) + rng.normal(0, 0.03, 3), 0, 1).astype(np.float32)


def article(words: str) -> str:
    """The words behind the indefinite article that fits them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _light(rgb: Colour) -> float:
    return float(rgb @ np.array([0.3, 0.59, 0.11], np.float32))


def _by_light(rng: np.random.Generator, count: int, apart: float) -> list[tuple[str, Colour]]:
    """Paints from dark to light, the darkest and the lightest at least `apart` in luminance."""
    while True:
        found = sorted((_paint(rng) for _ in range(count)), key=lambda named: _light(named[1]))
        if _light(found[-1][1]) - _light(found[0][1]) >= apart:
            return found


def _natural(rng: np.random.Generator) -> tuple[Step, str]:
    """The objects' own colours, stronger or weaker, lighter or darker."""
    kind = str(rng.choice(("natural", "vivid", "faded", "dark")))
    gain = {"natural": 1.0, "vivid": 1.7, "faded": 0.6, "dark": 1.1}[kind]
    span, lift = {"natural": (1.0, 0.0), "vivid": (1.0, 0.0), "faded": (0.6, 0.36), "dark": (0.6, 0.0)}[kind]
    return lambda p, image: saturated(image, gain) * np.float32(span) + np.float32(lift), f"{kind} colours"


def _palette(rng: np.random.Generator) -> tuple[Step, str]:
    """Colours by tone alone: two or three of them, mixed between or not, or turned round."""
    count, mixed, inverted = int(rng.choice((2, 3))), rng.random() < 0.5, rng.random() < 0.25
    found = _by_light(rng, count, 0.35)
    colours = [rgb for _, rgb in found][:: -1 if inverted else 1]
    words = " and ".join(dict.fromkeys(name for name, _ in found))
    if mixed:
        return lambda p, image: ramp(p.tone, *colours), f"{words} tones"
    return lambda p, image: steps(p.tone, *colours), f"{words} ink"


def _screen(rng: np.random.Generator) -> tuple[Callable[[Paint], Mask], str]:
    """A pattern on the pixels, and its name. None repeats after two pixels: the VAE's cells would all be alike."""
    kind = str(rng.choice(("rows", "columns", "slants", "checks", "dots", "grid")))
    period = int(rng.choice((4, 8), p=(0.65, 0.35)))

    def screen(p: Paint) -> Mask:
        y, x = p.grid
        match kind:
            case "rows":
                return y % period < period // 2
            case "columns":
                return x % period < period // 2
            case "slants":
                return (x + y) % period < period // 2
            case "checks":
                return (y // (period // 2) + x // (period // 2)) % 2 == 0
            case "dots":
                return (y % period < period // 2) & (x % period < period // 2)
        return (y % period == 0) | (x % period == 0)

    return screen, f"{'large' if period == 8 else 'fine'} {kind}"


def _ground(rng: np.random.Generator) -> tuple[Step, str]:
    """What is behind the objects: one colour, or a pattern of one on another."""
    (name, rgb), (other, second) = _paint(rng), _paint(rng)
    cover = float(rng.choice((0.85, 1.0)))
    if rng.random() < 0.45:
        return lambda p, image: laid(image, ~p.objects, rgb, cover), f"{article(name)} ground"
    screen, word = _screen(rng)
    plain = rng.random() < 0.5

    def ground(p: Paint, image: Image) -> Image:
        image = image if plain else laid(image, ~p.objects, rgb, cover)
        return laid(image, ~p.objects & screen(p), second, 0.9)

    return ground, f"{other} {word} behind" if plain else f"{article(name)} ground with {other} {word}"


def _texture(rng: np.random.Generator) -> tuple[Step, str]:
    """A pattern of one colour on the objects, or on everything."""
    (name, rgb), (screen, word) = _paint(rng), _screen(rng)
    everywhere, cover = rng.random() < 0.3, float(rng.choice((0.45, 0.8)))

    def texture(p: Paint, image: Image) -> Image:
        where = screen(p)
        return laid(image, where if everywhere else where & p.objects, rgb, cover)

    return texture, f"{name} {word}" if everywhere else f"{name} {word} inside"


def _shadow(rng: np.random.Generator) -> tuple[Step, str]:
    """The objects' shape in a colour, two or three pixels off."""
    name, rgb = _paint(rng)
    down, right = int(rng.choice((2, 3))), int(rng.choice((-3, -2, 2, 3)))
    return lambda p, image: laid(
        image, shifted(p.objects, down, right) & ~p.objects, rgb, 0.9
    ), f"{article(name)} shadow"


def _lines(rng: np.random.Generator) -> tuple[Step, str]:
    """The borders of objects in a colour: around, inside, double, broken, or with all seams."""
    name, rgb = _paint(rng, "black", "white") if rng.random() < 0.4 else _paint(rng)
    other, second = _paint(rng)
    kind = str(rng.choice(("around", "inside", "double", "thick", "broken", "drawn")))

    def lines(p: Paint, image: Image) -> Image:
        y, x = p.grid
        match kind:
            case "around":
                return laid(image, p.outline, rgb)
            case "inside":
                return laid(image, p.rim, rgb)
            case "double":
                return laid(laid(image, grown(p.outline) & ~p.objects, second), p.outline, rgb)
            case "thick":
                return laid(image, grown(p.outline) & ~p.objects, rgb)
            case "broken":
                return laid(image, p.outline & ((x + y) % 4 < 2), rgb)
        return laid(image, p.lines, rgb)

    words = {
        "around": f"{name} outlines",
        "inside": f"{name} rims",
        "double": f"double outlines in {name} and {other}",
        "thick": f"thick {name} outlines",
        "broken": f"broken {name} outlines",
        "drawn": f"{name} lines",
    }
    return lines, words[kind]


def _frame(rng: np.random.Generator) -> tuple[Step, str]:
    """A frame of two pixels around the image."""
    name, rgb = _paint(rng)

    def framed(p: Paint, image: Image) -> Image:
        y, x = p.grid
        h, w = p.parts.shape
        return laid(image, (np.minimum(y, h - 1 - y) < 2) | (np.minimum(x, w - 1 - x) < 2), rgb)

    return framed, f"{article(name)} frame"
