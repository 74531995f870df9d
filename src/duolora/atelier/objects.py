"""What Atelier can render: each object is a list of parts, and each part a role and a polygon.

Coordinates are those of the object's own square, x to the right and y down, both in [-1, 1]. Parts are painted in
order, later over earlier. The role says which colour a part takes: `body` the colour that the caption names (and
the pattern), `trim` a quiet second colour, `dark` and `light` the details.
"""

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin
from typing import Literal

import numpy as np

Role = Literal["body", "trim", "dark", "light"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One painted polygon of an object."""

    role: Role
    points: tuple[Point, ...]


def polygon(role: Role, *points: Point) -> Part:
    """A part with the given corners."""
    return Part(role, points)


def rectangle(role: Role, left: float, top: float, right: float, bottom: float) -> Part:
    """An upright rectangle."""
    return Part(role, ((left, top), (right, top), (right, bottom), (left, bottom)))


def ellipse(role: Role, x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 1.0) -> Part:
    """An ellipse about (x, y), or the slice of it between two turns (0 is right, 0.25 down, 0.5 left, 0.75 up)."""
    n = 24
    turns = (start + (stop - start) * i / n for i in range(n + 1))
    return Part(role, tuple((x + rx * cos(2 * pi * t), y + ry * sin(2 * pi * t)) for t in turns))


def star(role: Role, x: float, y: float, outer: float, inner: float, spikes: int) -> Part:
    """A star with the given number of spikes, the first one pointing up."""
    radii = [outer if i % 2 == 0 else inner for i in range(2 * spikes)]
    angles = [-pi / 2 + i * pi / spikes for i in range(2 * spikes)]
    return Part(role, tuple((x + r * cos(a), y + r * sin(a)) for r, a in zip(radii, angles, strict=True)))


OBJECTS: dict[str, tuple[Part, ...]] = {
    "house": (
        rectangle("dark", 0.35, -0.85, 0.6, -0.3),
        rectangle("body", -0.75, -0.15, 0.75, 0.9),
        polygon("trim", (-0.95, -0.15), (0, -0.9), (0.95, -0.15)),
        rectangle("dark", -0.2, 0.3, 0.2, 0.9),
        rectangle("light", -0.6, 0.05, -0.3, 0.35),
        rectangle("light", 0.3, 0.05, 0.6, 0.35),
    ),
    "mushroom": (
        polygon("trim", (-0.25, 0.0), (0.25, 0.0), (0.4, 0.9), (-0.4, 0.9)),
        ellipse("body", 0, 0.05, 0.9, 0.9, 0.5, 1.0),
    ),
    "fish": (
        polygon("trim", (0.4, 0.0), (0.95, -0.55), (0.95, 0.55)),
        polygon("trim", (-0.3, -0.35), (0.25, -0.85), (0.3, -0.3)),
        ellipse("body", -0.2, 0, 0.75, 0.5),
        ellipse("light", -0.6, -0.12, 0.14, 0.14),
        ellipse("dark", -0.62, -0.12, 0.07, 0.07),
    ),
    "tree": (
        rectangle("dark", -0.15, 0.1, 0.15, 0.95),
        ellipse("body", -0.4, -0.05, 0.45, 0.42),
        ellipse("body", 0.4, -0.05, 0.45, 0.42),
        ellipse("body", 0, -0.45, 0.52, 0.5),
    ),
    "cat": (
        polygon("trim", (0.3, 0.75), (0.85, 0.75), (0.95, -0.1), (0.8, -0.1), (0.7, 0.55), (0.3, 0.55)),
        ellipse("body", 0, 0.5, 0.48, 0.45),
        polygon("body", (-0.55, -0.3), (-0.55, -0.95), (-0.1, -0.6)),
        polygon("body", (0.55, -0.3), (0.55, -0.95), (0.1, -0.6)),
        ellipse("body", 0, -0.25, 0.56, 0.45),
        ellipse("light", -0.22, -0.3, 0.13, 0.13),
        ellipse("light", 0.22, -0.3, 0.13, 0.13),
        ellipse("dark", -0.22, -0.3, 0.07, 0.12),
        ellipse("dark", 0.22, -0.3, 0.07, 0.12),
        polygon("dark", (-0.08, -0.1), (0.08, -0.1), (0, 0.0)),
    ),
    "car": (
        polygon("body", (-0.5, -0.05), (-0.3, -0.5), (0.35, -0.5), (0.6, -0.05)),
        rectangle("body", -0.95, -0.08, 0.95, 0.4),
        polygon("light", (-0.35, -0.08), (-0.22, -0.38), (-0.02, -0.38), (-0.02, -0.08)),
        polygon("light", (0.08, -0.08), (0.08, -0.38), (0.28, -0.38), (0.42, -0.08)),
        ellipse("dark", -0.52, 0.42, 0.25, 0.25),
        ellipse("dark", 0.52, 0.42, 0.25, 0.25),
        ellipse("trim", -0.52, 0.42, 0.1, 0.1),
        ellipse("trim", 0.52, 0.42, 0.1, 0.1),
    ),
    "boat": (
        rectangle("dark", -0.06, -0.9, 0.06, 0.4),
        polygon("light", (0.1, -0.85), (0.75, 0.2), (0.1, 0.2)),
        polygon("trim", (-0.1, -0.6), (-0.6, 0.2), (-0.1, 0.2)),
        polygon("body", (-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)),
    ),
    "flower": (
        rectangle("dark", -0.06, 0.1, 0.06, 0.95),
        ellipse("dark", 0.25, 0.65, 0.25, 0.1),
        *(ellipse("body", 0.42 * cos(2 * pi * k / 6), -0.3 + 0.42 * sin(2 * pi * k / 6), 0.26, 0.26) for k in range(6)),
        ellipse("trim", 0, -0.3, 0.26, 0.26),
    ),
    "cup": (
        ellipse("trim", 0.55, 0.1, 0.38, 0.38),
        ellipse("light", 0.55, 0.1, 0.2, 0.2),
        polygon("body", (-0.7, -0.45), (0.6, -0.45), (0.45, 0.75), (-0.55, 0.75)),
        ellipse("dark", -0.05, -0.45, 0.65, 0.16),
    ),
    "umbrella": (
        rectangle("dark", -0.05, -0.2, 0.05, 0.75),
        polygon("dark", (-0.05, 0.65), (-0.05, 0.9), (-0.4, 0.9), (-0.4, 0.7), (-0.3, 0.7), (-0.3, 0.8), (-0.15, 0.8)),
        ellipse("body", 0, 0.0, 0.95, 0.85, 0.5, 1.0),
        polygon("trim", (-0.3, 0.02), (0.3, 0.02), (0, -0.85)),
    ),
    "key": (
        rectangle("body", -0.1, -0.12, 0.95, 0.12),
        rectangle("body", 0.55, 0.1, 0.7, 0.45),
        rectangle("body", 0.8, 0.1, 0.95, 0.4),
        ellipse("body", -0.48, 0, 0.48, 0.48),
        ellipse("dark", -0.48, 0, 0.22, 0.22),
    ),
    "star": (star("body", 0, 0.05, 0.98, 0.4, 5),),
    "heart": (
        ellipse("body", -0.43, -0.3, 0.48, 0.48),
        ellipse("body", 0.43, -0.3, 0.48, 0.48),
        polygon("body", (-0.86, -0.08), (0, -0.35), (0.86, -0.08), (0, 0.9)),
    ),
    "bird": (
        polygon("trim", (0.5, -0.05), (0.98, -0.4), (0.98, 0.2)),
        polygon("dark", (-0.9, -0.3), (-0.55, -0.45), (-0.55, -0.15)),
        rectangle("dark", -0.1, 0.4, -0.02, 0.9),
        rectangle("dark", 0.15, 0.4, 0.23, 0.9),
        ellipse("body", 0.08, 0.1, 0.58, 0.42),
        ellipse("body", -0.4, -0.32, 0.32, 0.32),
        ellipse("light", 0.2, 0.05, 0.32, 0.18),
        ellipse("dark", -0.46, -0.38, 0.08, 0.08),
    ),
    "butterfly": (
        ellipse("body", -0.5, -0.35, 0.45, 0.45),
        ellipse("body", 0.5, -0.35, 0.45, 0.45),
        ellipse("trim", -0.4, 0.42, 0.36, 0.38),
        ellipse("trim", 0.4, 0.42, 0.36, 0.38),
        ellipse("dark", 0, 0.05, 0.11, 0.7),
    ),
    "apple": (
        polygon("dark", (-0.05, -0.5), (0.05, -0.95), (0.18, -0.9), (0.08, -0.5)),
        ellipse("trim", 0.4, -0.72, 0.28, 0.14),
        ellipse("body", -0.3, 0.15, 0.55, 0.7),
        ellipse("body", 0.3, 0.15, 0.55, 0.7),
    ),
    "hat": (
        ellipse("body", 0, 0.55, 0.98, 0.25),
        polygon("body", (-0.5, 0.5), (-0.42, -0.75), (0.42, -0.75), (0.5, 0.5)),
        polygon("dark", (-0.5, 0.45), (-0.48, 0.15), (0.48, 0.15), (0.5, 0.45)),
    ),
    "lamp": (
        rectangle("dark", -0.07, 0.0, 0.07, 0.8),
        ellipse("dark", 0, 0.82, 0.45, 0.14),
        polygon("body", (-0.35, -0.85), (0.35, -0.85), (0.8, 0.1), (-0.8, 0.1)),
    ),
    "bottle": (
        rectangle("dark", -0.16, -0.98, 0.16, -0.75),
        rectangle("body", -0.16, -0.78, 0.16, -0.3),
        ellipse("body", 0, -0.2, 0.42, 0.3),
        rectangle("body", -0.42, -0.2, 0.42, 0.95),
        rectangle("light", -0.42, 0.1, 0.42, 0.6),
    ),
    "bell": (
        ellipse("dark", 0, 0.72, 0.2, 0.2),
        ellipse("dark", 0, -0.82, 0.14, 0.14),
        ellipse("body", 0, -0.1, 0.52, 0.72, 0.5, 1.0),
        polygon("body", (-0.52, -0.12), (0.52, -0.12), (0.9, 0.65), (-0.9, 0.65)),
        polygon("trim", (-0.82, 0.48), (0.82, 0.48), (0.9, 0.65), (-0.9, 0.65)),
    ),
    "kite": (
        polygon("dark", (-0.04, 0.4), (0.04, 0.4), (0.24, 0.95), (0.14, 0.98)),
        polygon("body", (0, -0.98), (0.65, -0.25), (0, 0.55), (-0.65, -0.25)),
        polygon("trim", (0, -0.98), (0.65, -0.25), (0, -0.25)),
        polygon("trim", (0, -0.25), (0, 0.55), (-0.65, -0.25)),
    ),
    "duck": (
        polygon("trim", (-0.95, -0.32), (-0.6, -0.5), (-0.55, -0.2)),
        ellipse("body", 0.1, 0.35, 0.8, 0.5),
        polygon("body", (0.5, 0.2), (0.98, -0.25), (0.88, 0.5)),
        ellipse("body", -0.38, -0.38, 0.38, 0.38),
        ellipse("trim", 0.2, 0.32, 0.4, 0.22),
        ellipse("dark", -0.48, -0.45, 0.09, 0.09),
    ),
    "chair": (
        rectangle("dark", -0.6, 0.2, -0.42, 0.95),
        rectangle("dark", 0.42, 0.2, 0.6, 0.95),
        rectangle("body", -0.6, -0.95, -0.28, 0.3),
        rectangle("body", -0.6, 0.05, 0.65, 0.32),
    ),
    "envelope": (
        rectangle("body", -0.95, -0.6, 0.95, 0.65),
        polygon("light", (-0.95, -0.6), (0.95, -0.6), (0, 0.2)),
        ellipse("dark", 0, 0.15, 0.18, 0.18),
    ),
    "balloon": (
        polygon("dark", (-0.03, 0.4), (0.03, 0.4), (0.12, 0.98), (0.02, 0.98)),
        polygon("trim", (-0.15, 0.5), (0.15, 0.5), (0, 0.28)),
        ellipse("body", 0, -0.28, 0.6, 0.68),
        ellipse("light", -0.22, -0.55, 0.12, 0.18),
    ),
    "ladder": (
        rectangle("body", -0.5, -0.95, -0.28, 0.95),
        rectangle("body", 0.28, -0.95, 0.5, 0.95),
        *(rectangle("trim", -0.3, y, 0.3, y + 0.16) for y in (-0.75, -0.3, 0.15, 0.6)),
    ),
    # held out: the base never sees these; they are what people personalise
    "teapot": (
        polygon("trim", (-0.5, 0.35), (-0.98, -0.35), (-0.8, -0.45), (-0.45, -0.05)),
        ellipse("trim", 0.62, 0.15, 0.35, 0.4),
        ellipse("light", 0.62, 0.15, 0.18, 0.22),
        ellipse("body", 0, 0.2, 0.62, 0.55),
        ellipse("body", 0, -0.35, 0.35, 0.14),
        ellipse("dark", 0, -0.56, 0.13, 0.13),
    ),
    "robot": (
        rectangle("dark", -0.04, -0.98, 0.04, -0.7),
        rectangle("trim", -0.92, -0.05, -0.6, 0.5),
        rectangle("trim", 0.6, -0.05, 0.92, 0.5),
        rectangle("dark", -0.4, 0.6, -0.12, 0.95),
        rectangle("dark", 0.12, 0.6, 0.4, 0.95),
        rectangle("body", -0.45, -0.75, 0.45, -0.2),
        rectangle("body", -0.58, -0.12, 0.58, 0.65),
        rectangle("light", -0.3, -0.6, -0.08, -0.4),
        rectangle("light", 0.08, -0.6, 0.3, -0.4),
        rectangle("light", -0.3, 0.1, 0.3, 0.4),
    ),
    "cactus": (
        polygon("trim", (-0.5, 0.5), (0.5, 0.5), (0.35, 0.98), (-0.35, 0.98)),
        rectangle("body", -0.22, -0.7, 0.22, 0.55),
        ellipse("body", 0, -0.7, 0.22, 0.25),
        polygon("body", (-0.2, 0.25), (-0.8, 0.25), (-0.8, -0.4), (-0.52, -0.4), (-0.52, -0.03), (-0.2, -0.03)),
        polygon("body", (0.2, 0.05), (0.8, 0.05), (0.8, -0.6), (0.52, -0.6), (0.52, -0.23), (0.2, -0.23)),
    ),
    "snail": (
        polygon("trim", (-0.95, 0.8), (-0.85, -0.05), (-0.6, -0.05), (-0.5, 0.5), (0.95, 0.65), (0.95, 0.85)),
        rectangle("dark", -0.9, -0.4, -0.83, 0.0),
        rectangle("dark", -0.68, -0.4, -0.61, 0.0),
        ellipse("body", 0.18, 0.05, 0.6, 0.6),
        ellipse("light", 0.18, 0.05, 0.36, 0.36),
        ellipse("body", 0.24, 0.08, 0.2, 0.2),
    ),
    "rocket": (
        polygon("dark", (-0.2, 0.65), (0.2, 0.65), (0, 0.98)),
        polygon("trim", (-0.3, 0.1), (-0.75, 0.75), (-0.3, 0.6)),
        polygon("trim", (0.3, 0.1), (0.75, 0.75), (0.3, 0.6)),
        polygon("body", (0, -0.98), (0.32, -0.4), (0.32, 0.65), (-0.32, 0.65), (-0.32, -0.4)),
        ellipse("light", 0, -0.2, 0.19, 0.19),
    ),
    "crown": (
        polygon("body", (-0.85, 0.7), (-0.95, -0.6), (-0.45, 0.0), (0, -0.85), (0.45, 0.0), (0.95, -0.6), (0.85, 0.7)),
        rectangle("trim", -0.85, 0.4, 0.85, 0.72),
        ellipse("dark", 0, 0.56, 0.13, 0.13),
        ellipse("light", -0.48, 0.56, 0.1, 0.1),
        ellipse("light", 0.48, 0.56, 0.1, 0.1),
    ),
}

HELD_OUT_OBJECTS = ("teapot", "robot", "cactus", "snail", "rocket", "crown")
BASE_OBJECTS = tuple(name for name in OBJECTS if name not in HELD_OUT_OBJECTS)


def parts_of(kind: str) -> tuple[Part, ...]:
    """The parts of an object by its name; of one made up on the spot by "thing-" and a number."""
    return OBJECTS[kind] if kind in OBJECTS else made_up(int(kind.removeprefix("thing-")))


@cache
def made_up(seed: int) -> tuple[Part, ...]:
    """An object without a name: a symmetric body of two or three shapes, with one to three details on it."""
    rng = np.random.default_rng((78, seed))
    lopsided = rng.random() < 0.35
    body = []
    for k in range(int(rng.integers(1, 4))):
        x, rx, ry = 0.0 if k else rng.uniform(-0.2, 0.2), rng.uniform(0.35, 0.9), rng.uniform(0.3, 0.9)
        body.append(_shape(rng, "body", x, rx, ry, rng.uniform(-0.35, 0.35)))
    details: list[Part] = []
    for _ in range(int(rng.integers(1, 4))):
        role: Role = ("trim", "dark", "light")[int(rng.integers(3))]
        x, y, size = rng.uniform(0.0, 0.75), rng.uniform(-0.75, 0.75), rng.uniform(0.12, 0.35)
        details += [_shape(rng, role, x, size, size * rng.uniform(0.6, 1.6), y)]
        if not lopsided and x > 0.15:
            details += [Part(role, tuple((-px, py) for px, py in details[-1].points))]
    return (*body, *details)


def _shape(rng: np.random.Generator, role: Role, x: float, rx: float, ry: float, y: float) -> Part:
    """An ellipse, box, triangle, diamond or trapezium about (x, y), cut at the borders of the square."""
    kind, narrow = int(rng.integers(5)), rng.uniform(0.2, 0.8)
    corners = {
        0: [(x + rx * cos(2 * pi * k / 24), y + ry * sin(2 * pi * k / 24)) for k in range(24)],
        1: [(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)],
        2: [(x - rx, y + ry), (x, y - ry), (x + rx, y + ry)],
        3: [(x, y - ry), (x + rx, y), (x, y + ry), (x - rx, y)],
        4: [(x - rx * narrow, y - ry), (x + rx * narrow, y - ry), (x + rx, y + ry), (x - rx, y + ry)],
    }[kind]
    return Part(role, tuple((min(max(px, -1.0), 1.0), min(max(py, -1.0), 1.0)) for px, py in corners))
