"""What a picture shows, and how it is painted: the truth from which Atelier's pictures are drawn.

A `Scene` says everything; `render` turns it into pixels. The same scene gives the same picture, always.
"""

from dataclasses import dataclass, replace
from math import cos, radians, sin
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from duolora.atelier.looks import BASE_LOOKS, LOOKS, Look, Paint
from duolora.atelier.objects import BASE_OBJECTS, OBJECTS, Point

SIZE: Final = 64
"""Width and height of a picture in pixels."""
_OVER: Final = 2  # painted at twice the size, then averaged down

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.96, 0.86, 0.14),
    "green": (0.16, 0.62, 0.2),
    "turquoise": (0.12, 0.76, 0.74),
    "blue": (0.13, 0.3, 0.86),
    "purple": (0.5, 0.16, 0.66),
    "pink": (0.98, 0.5, 0.74),
}
PATTERNS: Final = ("plain", "striped", "dotted", "checked")
SETTINGS: Final = (
    "",
    "on a hill",
    "on a table",
    "at night",
    "in the rain",
    "in the snow",
    "by the sea",
    "in the desert",
    "in a forest",
)
PLACES: Final[dict[int, tuple[tuple[str, float, float], ...]]] = {
    1: (("", 0.5, 0.5),),
    2: (("on the left", 0.27, 0.52), ("on the right", 0.73, 0.52)),
    3: (("on the left", 0.19, 0.52), ("in the middle", 0.5, 0.52), ("on the right", 0.81, 0.52)),
    4: (
        ("at the top left", 0.27, 0.28),
        ("at the top right", 0.73, 0.28),
        ("at the bottom left", 0.27, 0.74),
        ("at the bottom right", 0.73, 0.74),
    ),
}
"""For each number of things: where they stand, in words and as a share of the width and height."""
_REACH: Final = {1: (0.3, 0.44), 2: (0.19, 0.235), 3: (0.14, 0.165), 4: (0.175, 0.215)}
_ROLES: Final = {"trim": (0.72, 0.6, 0.45), "dark": (0.2, 0.18, 0.22), "light": (0.97, 0.96, 0.93)}
_WALLS: Final = ((0.96, 0.95, 0.92), (0.86, 0.9, 0.95), (0.93, 0.88, 0.8), (0.87, 0.94, 0.87), (0.82, 0.82, 0.85))


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its kind, paint and place (x, y, reach in shares of the width; tilt in degrees)."""

    kind: str
    colour: str
    pattern: str
    place: str
    x: float
    y: float
    reach: float
    tilt: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows. `wall` numbers the plain background; `grain` seeds the look's texture."""

    things: tuple[Thing, ...]
    look: str
    setting: str
    wall: int
    grain: int


def sample_thing(rng: np.random.Generator, number: int, place: int, kinds: tuple[str, ...]) -> Thing:
    """A random thing that stands at the given place of a scene with `number` things."""
    words, x, y = PLACES[number][place]
    low, high = _REACH[number]
    loose = 0.05 if number == 1 else 0.015
    return Thing(
        kind=str(rng.choice(kinds)),
        colour=str(rng.choice(tuple(COLOURS))),
        pattern=str(rng.choice(PATTERNS, p=(0.46, 0.18, 0.18, 0.18))),
        place=words,
        x=x + rng.uniform(-loose, loose),
        y=y + rng.uniform(-loose, loose),
        reach=rng.uniform(low, high),
        tilt=rng.uniform(-14, 14),
        mirrored=bool(rng.random() < 0.5),
    )


def sample_scene(
    rng: np.random.Generator,
    kinds: tuple[str, ...] = BASE_OBJECTS,
    looks: tuple[str, ...] = BASE_LOOKS,
    numbers: tuple[float, float, float, float] = (0.8, 0.12, 0.04, 0.04),
) -> Scene:
    """A random scene; `numbers` are the chances of one, two, three and four things."""
    number = int(rng.choice(4, p=numbers)) + 1
    things = tuple(sample_thing(rng, number, i, kinds) for i in range(number))
    setting = "" if rng.random() < 0.4 else str(rng.choice(SETTINGS[1:]))
    return Scene(things, str(rng.choice(looks)), setting, int(rng.integers(len(_WALLS))), int(rng.integers(1 << 30)))


def single(kind: str, look: str = "flat", seed: int = 0, **changes: object) -> Scene:
    """A scene with one thing of the given kind and look; `changes` override fields of its `Thing`."""
    scene = sample_scene(np.random.default_rng(seed), (kind,), (look,), (1.0, 0.0, 0.0, 0.0))
    return replace(scene, things=(replace(scene.things[0], **changes),))  # type: ignore[arg-type]


class _Canvas:
    """Paints polygons as plain colour and as part numbers, at twice the final size."""

    def __init__(self, wall: tuple[float, float, float]) -> None:
        self.side = SIZE * _OVER
        self.colours = Image.new("RGB", (self.side, self.side), _bytes(wall))
        self.parts = Image.new("L", (self.side, self.side), 0)
        self._colour, self._part = ImageDraw.Draw(self.colours), ImageDraw.Draw(self.parts)

    def polygon(self, points: list[Point], rgb: tuple[float, float, float], part: int) -> None:
        """Paint a polygon whose corners are shares of the width and height."""
        corners = [(x * self.side, y * self.side) for x, y in points]
        self._colour.polygon(corners, fill=_bytes(rgb))
        self._part.polygon(corners, fill=part)

    def box(self, left: float, top: float, right: float, bottom: float, rgb: tuple[float, ...], part: int) -> None:
        """Paint a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], rgb, part)  # type: ignore[arg-type]

    def disc(self, x: float, y: float, rx: float, ry: float, rgb: tuple[float, float, float], part: int) -> None:
        """Paint an ellipse."""
        turns = [2 * np.pi * i / 24 for i in range(24)]
        self.polygon([(x + rx * cos(t), y + ry * sin(t)) for t in turns], rgb, part)


def _bytes(rgb: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(255 * v) for v in rgb)


def _paint_setting(canvas: _Canvas, setting: str, rng: np.random.Generator) -> None:
    """The surroundings, behind the things. Part numbers 1 to 9 belong to them."""
    c = canvas
    match setting:
        case "on a hill":
            c.box(0, 0, 1, 1, (0.72, 0.87, 0.97), 0)
            c.disc(0.5, 1.12, 0.95, 0.42, (0.5, 0.76, 0.36), 1)
        case "on a table":
            c.box(0, 0.78, 1, 1, (0.6, 0.4, 0.22), 1)
            c.box(0, 0.78, 1, 0.83, (0.74, 0.52, 0.32), 2)
        case "at night":
            c.box(0, 0, 1, 1, (0.09, 0.1, 0.27), 0)
            c.disc(0.84, 0.15, 0.09, 0.09, (0.98, 0.95, 0.75), 1)
            for x, y in rng.uniform(0.02, 0.98, (9, 2)):
                c.disc(x, y, 0.013, 0.013, (0.95, 0.95, 0.85), 2)
        case "in the rain":
            c.box(0, 0, 1, 1, (0.64, 0.69, 0.75), 0)
            for x, y in rng.uniform(0, 1, (26, 2)):
                c.polygon([(x, y), (x + 0.02, y), (x - 0.02, y + 0.12), (x - 0.04, y + 0.12)], (0.32, 0.45, 0.65), 1)
        case "in the snow":
            c.box(0, 0, 1, 1, (0.66, 0.76, 0.86), 0)
            c.disc(0.5, 1.2, 1.1, 0.42, (0.98, 0.98, 1.0), 1)
            for x, y in rng.uniform(0, 0.85, (16, 2)):
                c.disc(x * 1.15, y, 0.022, 0.022, (1.0, 1.0, 1.0), 2)
        case "by the sea":
            c.box(0, 0, 1, 1, (0.8, 0.91, 0.97), 0)
            c.box(0, 0.68, 1, 1, (0.22, 0.5, 0.76), 1)
            for i in range(5):
                c.disc(0.1 + 0.2 * i, 0.69, 0.11, 0.035, (0.22, 0.5, 0.76), 1)
        case "in the desert":
            c.box(0, 0, 1, 1, (0.98, 0.86, 0.66), 0)
            c.disc(0.15, 0.16, 0.1, 0.1, (0.98, 0.66, 0.26), 1)
            c.disc(0.25, 1.1, 0.7, 0.35, (0.88, 0.7, 0.4), 2)
            c.disc(0.85, 1.1, 0.6, 0.28, (0.8, 0.6, 0.32), 3)
        case "in a forest":
            c.box(0, 0, 1, 1, (0.8, 0.88, 0.76), 0)
            c.box(0, 0.84, 1, 1, (0.44, 0.5, 0.28), 1)
            for x in (0.06, 0.3, 0.7, 0.94):
                c.polygon([(x - 0.15, 0.86), (x + 0.15, 0.86), (x, 0.1)], (0.24, 0.44, 0.3), 2)


def _second_colour(rgb: tuple[float, float, float]) -> tuple[float, ...]:
    """The colour of stripes, dots and checks: white on dark paint, a darker shade on light paint."""
    luminance = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]
    return tuple(0.5 * v for v in rgb) if luminance > 0.6 else (0.97, 0.96, 0.93)


def _patterned(pattern: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the second colour goes, in the thing's own coordinates (-1 to 1)."""
    match pattern:
        case "striped":
            return u * 2.2 % 1 < 0.42
        case "dotted":
            return np.hypot(u * 2.2 % 1 - 0.5, v * 2.2 % 1 - 0.5) < 0.3
        case "checked":
            return (np.floor(u * 2.4) + np.floor(v * 2.4)) % 2 == 0
    return np.zeros(u.shape, bool)


def _paint_thing(canvas: _Canvas, thing: Thing, number: int) -> None:
    """One thing; its part numbers are 10 to 13 for the first thing, 20 to 23 for the second, and so on."""
    c, s = cos(radians(thing.tilt)), sin(radians(thing.tilt))
    flip = -1 if thing.mirrored else 1
    roles = {"body": (COLOURS[thing.colour], 0)} | {r: (rgb, i + 1) for i, (r, rgb) in enumerate(_ROLES.items())}
    for part in OBJECTS[thing.kind]:
        corners = [
            (thing.x + thing.reach * (c * flip * px - s * py), thing.y + thing.reach * (s * flip * px + c * py))
            for px, py in part.points
        ]
        rgb, offset = roles[part.role]
        canvas.polygon(corners, rgb, 10 * number + offset)


def _pattern_cover(thing: Thing, side: int) -> NDArray[np.bool_]:
    """Where the thing's pattern lies on the canvas, (side, side)."""
    c, s = cos(radians(thing.tilt)), sin(radians(thing.tilt))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    x, y = (x / side - thing.x) / thing.reach, (y / side - thing.y) / thing.reach
    return _patterned(thing.pattern, c * x + s * y, -s * x + c * y)


def paint(scene: Scene) -> Paint:
    """The scene in plain colours, before its look."""
    rng = np.random.default_rng(scene.grain)
    canvas = _Canvas(_WALLS[scene.wall])
    _paint_setting(canvas, scene.setting, rng)
    for number, thing in enumerate(scene.things, 1):
        _paint_thing(canvas, thing, number)
    shapes = np.array(canvas.parts)
    albedo = np.asarray(np.array(canvas.colours) / 255, np.float32)
    for number, thing in enumerate(scene.things, 1):
        if thing.pattern != "plain":
            cover = (shapes == 10 * number) & _pattern_cover(thing, canvas.side)
            albedo[cover] = _second_colour(COLOURS[thing.colour])
            shapes[cover] = 10 * number + 5
    return Paint(albedo, shapes, shapes >= 10)


def render(scene: Scene, look: Look | None = None) -> NDArray[np.uint8]:
    """The picture of a scene, (64, 64, 3) bytes; in another look than its own if one is given."""
    image = (look or LOOKS[scene.look])(paint(scene), np.random.default_rng(scene.grain + 1))
    small = image.reshape(SIZE, _OVER, SIZE, _OVER, 3).mean((1, 3))
    return np.asarray(np.clip(small, 0, 1) * 255 + 0.5, np.uint8)
