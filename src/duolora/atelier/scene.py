"""What an image shows: the truth from which Atelier's images are rendered.

Atelier's world is pixel art: images of 32×32 pixels, sprites of 10 to 24 pixels that stand on even pixels, so that the
VAE's cells of 2×2 pixels always meet a sprite in the same phase. A `Scene` says everything; `render` turns it into
pixels. Nothing is left to chance: the same scene is the same image, always.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from duolora.atelier.objects import BASE_OBJECTS, parts_of
from duolora.atelier.paint import COLOURS, Paint, Style
from duolora.atelier.styles import BASE_STYLES, STYLES

SIZE: Final = 32
"""Width and height of an image in pixels."""

PATTERNS: Final = ("plain", "striped", "dotted", "checked")
SETTINGS: Final = ("", "on a hill", "on a table", "at night", "in the snow", "by the sea", "in the desert")
PLACES: Final[dict[int, tuple[tuple[str, int, int], ...]]] = {
    1: (("", 16, 16),),
    2: (("on the left", 8, 16), ("on the right", 24, 16)),
    3: (("on the left", 6, 16), ("in the middle", 16, 16), ("on the right", 26, 16)),
    4: (
        ("at the top left", 8, 8),
        ("at the top right", 24, 8),
        ("at the bottom left", 8, 24),
        ("at the bottom right", 24, 24),
    ),
}
"""For each number of objects: where their centres are, in words and in pixels."""
SIZES: Final = {1: 24, 2: 14, 3: 10, 4: 14}
"""For each number of objects: the size of their sprites in pixels."""
_ROLES: Final = ((0.72, 0.6, 0.45), (0.16, 0.15, 0.2), (0.97, 0.96, 0.93))
WALLS: Final = ((0.96, 0.95, 0.92), (0.84, 0.89, 0.95), (0.93, 0.87, 0.78))
_OVERSAMPLED: Final = 8
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE]


@dataclass(frozen=True)
class Item:
    """One object of a scene: its kind, paint, and place (x, y: its centre; size: its sprite; all even pixels)."""

    kind: str
    colour: str
    pattern: str
    place: str
    x: int
    y: int
    size: int
    flipped: bool


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows; `wall` numbers the plain background."""

    objects: tuple[Item, ...]
    style: str
    setting: str
    wall: int


def sample_item(rng: np.random.Generator, number: int, place: int, kinds: tuple[str, ...]) -> Item:
    """A random object that stands at the given place of a scene with `number` objects."""
    words, x, y = PLACES[number][place]
    loose = 1 if number == 1 else 0
    return Item(
        kind=str(rng.choice(kinds)),
        colour=str(rng.choice(tuple(COLOURS))),
        pattern=str(rng.choice(PATTERNS, p=(0.49, 0.17, 0.17, 0.17))),
        place=words,
        x=x + 2 * int(rng.integers(-loose, loose + 1)),
        y=y,
        size=SIZES[number],
        flipped=bool(rng.random() < 0.5),
    )


def sample_scene(
    rng: np.random.Generator,
    kinds: tuple[str, ...] = BASE_OBJECTS,
    styles: tuple[str, ...] = BASE_STYLES,
    numbers: tuple[float, float, float, float] = (0.84, 0.1, 0.02, 0.04),
) -> Scene:
    """A random scene; `numbers` are the chances of one, two, three and four objects."""
    number = int(rng.choice(4, p=numbers)) + 1
    objects = tuple(sample_item(rng, number, i, kinds) for i in range(number))
    setting = "" if rng.random() < 0.75 else str(rng.choice(SETTINGS[1:]))
    return Scene(objects, str(rng.choice(styles)), setting, int(rng.integers(len(WALLS))))


def window(number: int, place: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (32, 1) and columns (32,) of the square about a place of a scene with `number` objects, enlarged to 32."""
    _, x, y = PLACES[number][place]
    side = {1: 32, 2: 16, 3: 12, 4: 16}[number]
    top, left = (min(max(at - side // 2, 0), SIZE - side) for at in (y, x))
    steps = np.arange(SIZE) * side // SIZE
    return (top + steps)[:, None], left + steps


def single(kind: str, style: str = "flat", seed: int = 0, **changes: object) -> Scene:
    """A scene with one object of the given kind and style; `changes` override fields of its `Item`."""
    scene = sample_scene(np.random.default_rng(seed), (kind,), (style,), (1.0, 0.0, 0.0, 0.0))
    return replace(scene, objects=(replace(scene.objects[0], **changes),))  # type: ignore[arg-type]


@lru_cache(4096)
def sprite(kind: str, size: int, flipped: bool) -> NDArray[np.uint8]:
    """The object as (size, size) roles: 0 none, 1 body, 2 trim, 3 dark, 4 light.

    Each pixel has the role that covers most of it; small details weigh more, or they would be lost.
    """
    side = size * _OVERSAMPLED
    canvas = Image.new("L", (side, side), 0)
    brush = ImageDraw.Draw(canvas)
    for part in parts_of(kind):
        corners = [((1 + px) * side / 2, (1 + py) * side / 2) for px, py in part.points]
        brush.polygon(corners, fill=("none", "body", "trim", "dark", "light").index(part.role))
    roles = np.array(canvas).reshape(size, _OVERSAMPLED, size, _OVERSAMPLED)
    cover = np.stack([(roles == role).sum((1, 3)) for role in range(5)], -1)
    chosen = (cover * np.array([1.0, 1.0, 1.1, 1.5, 1.3])).argmax(-1).astype(np.uint8)
    chosen = chosen[:, ::-1].copy() if flipped else chosen
    chosen.setflags(write=False)
    return chosen


def _setting(name: str, colours: NDArray[np.float32], parts: NDArray[np.uint8]) -> None:
    """The surroundings, painted in place behind the objects. Part numbers 1 to 9 belong to them."""
    y, x = _ROWS, _COLUMNS

    def lay(where: NDArray[np.bool_], rgb: tuple[float, float, float], part: int) -> None:
        colours[where], parts[where] = rgb, part

    everywhere = np.ones_like(y, bool)
    match name:
        case "on a hill":
            lay(everywhere, (0.72, 0.87, 0.97), 0)
            lay(y > 23 + ((x - 15.5) / 8) ** 2, (0.5, 0.76, 0.36), 1)
        case "on a table":
            lay(y >= 26, (0.6, 0.4, 0.22), 1)
            lay(y == 26, (0.76, 0.55, 0.34), 2)
        case "at night":
            lay(everywhere, (0.09, 0.1, 0.27), 0)
            lay(np.hypot(x - 27.5, y - 4.5) < 3, (0.98, 0.95, 0.75), 1)
            for sx, sy in ((3, 3), (9, 1), (16, 3), (22, 8), (30, 13), (1, 15), (4, 26), (28, 25)):
                lay((x == sx) & (y == sy), (0.95, 0.95, 0.85), 2)
        case "in the snow":
            lay(everywhere, (0.62, 0.74, 0.86), 0)
            lay(y > 25, (0.98, 0.98, 1.0), 1)
            lay((x % 8 == (3 * (y // 4)) % 8) & (y % 4 == 1), (1.0, 1.0, 1.0), 2)
        case "by the sea":
            lay(everywhere, (0.8, 0.91, 0.97), 0)
            lay(y >= 22, (0.22, 0.5, 0.76), 1)
            lay((y >= 24) & (y % 4 == 0) & ((x + y) % 8 < 4), (0.6, 0.78, 0.92), 2)
        case "in the desert":
            lay(everywhere, (0.98, 0.87, 0.68), 0)
            lay(np.hypot(x - 4.5, y - 4.5) < 3, (0.98, 0.62, 0.2), 1)
            lay(y > 25 + 2 * np.sin(x / 5), (0.86, 0.66, 0.38), 2)


def _second_colour(rgb: tuple[float, float, float]) -> tuple[float, ...]:
    """The colour of stripes, dots and checks: white on dark paint, a darker shade on light paint."""
    luminance = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]
    return tuple(0.45 * v for v in rgb) if luminance > 0.55 else (0.97, 0.96, 0.93)


@lru_cache
def _patterned(pattern: str, size: int) -> NDArray[np.bool_]:
    """Where the second colour goes, on the sprite's own (size, size) pixels."""
    y, x = np.mgrid[0:size, 0:size]
    match pattern:
        case "striped":
            return x // 2 % 2 == 0
        case "dotted":
            return (y // 2 % 2 == 0) & ((x // 2 + y // 4 * 2) % 4 == 1)
        case "checked":
            return (x // 4 + y // 4) % 2 == 0
    return np.zeros((size, size), bool)


def paint(scene: Scene) -> Paint:
    """The scene in plain colours, before its style."""
    colours = np.empty((SIZE, SIZE, 3), np.float32)
    colours[:] = WALLS[scene.wall]
    parts = np.zeros((SIZE, SIZE), np.uint8)
    _setting(scene.setting, colours, parts)
    for number, item in enumerate(scene.objects, 1):
        roles = sprite(item.kind, item.size, item.flipped)
        palette = np.array([(0, 0, 0), COLOURS[item.colour], *_ROLES, _second_colour(COLOURS[item.colour])])
        roles = np.where((roles == 1) & _patterned(item.pattern, item.size), 5, roles)
        top, left = item.y - item.size // 2, item.x - item.size // 2
        y0, x0 = max(top, 0), max(left, 0)
        roles = roles[y0 - top : SIZE - top, x0 - left : SIZE - left]
        window = (slice(y0, y0 + roles.shape[0]), slice(x0, x0 + roles.shape[1]))
        shown = roles > 0
        colours[window][shown] = palette[roles[shown]]
        parts[window][shown] = 10 * number + roles[shown]
    return Paint(colours, parts)


def render(scene: Scene, style: Style | None = None) -> NDArray[np.uint8]:
    """The image of a scene, (32, 32, 3) bytes; in another style than its own if one is given."""
    image = (style or STYLES[scene.style])(paint(scene))
    return np.asarray(np.clip(image, 0, 1) * 255 + 0.5, np.uint8)
