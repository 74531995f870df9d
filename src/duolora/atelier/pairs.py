"""Subjects and styles to personalise: images of a subject, and one image of a style on another object."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from duolora.atelier.classifier import Predictions
from duolora.atelier.family import Improvised, article, improvised
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.paint import COLOURS, Style
from duolora.atelier.scene import PATTERNS, SIZE, Scene, paint, render, sample_scene, single
from duolora.atelier.styles import HELD_OUT_STYLES, KEEP_COLOUR, KEEP_PATTERN, STYLES

IDENTIFIERS = ("sks", "ohw", "vkt", "pqr")
"""Rare words that stand for subjects."""
STYLE_IDENTIFIER = "zwx"
OBJECT = "thing"


def style_named(name: str) -> Style:
    """A style by its name; of the family any member, as family-SEED.

    Raises:
        ValueError: there is no such style, or it goes by another spelling: a seed has three digits or more.
    """
    if name in STYLES:
        return STYLES[name]
    family, _, seed = name.partition("-")
    if family != "family" or not (seed.isdecimal() and seed.isascii()):
        raise ValueError(f"style: expected one of {', '.join(STYLES)} or family-SEED, got {name!r}")
    if name != (usual := f"family-{int(seed):03}"):
        raise ValueError(f"style: expected {usual}, got {name!r}")
    return improvised(int(seed))


VISIBLE = 0.22
"""The least `visibility` of a style that is personalised."""
PROBES = tuple(
    single(kind, seed=k, colour=colour)
    for k, (kind, colour) in enumerate(
        [("house", "red"), ("cat", "yellow"), ("fish", "blue"), ("key", "green"), ("tree", "pink"), ("cup", "purple")]
    )
)


def visibility(style: Style) -> float:
    """How much an object differs from what is behind it, in all and at its border, in [0, 1]; the least of six."""
    found = []
    for scene in PROBES:
        p = paint(scene)
        image = np.clip(style(p), 0, 1)
        whole = np.abs(image[p.objects].mean(0) - image[~p.objects].mean(0)).mean()
        border = np.abs(image[p.outline].mean(0) - image[p.rim].mean(0)).mean()
        found.append(float(whole + border) / 2)
    return min(found)


def sample_style(rng: np.random.Generator) -> str:
    """A random member of the family in which objects can be seen, as family-SEED; its seed is above those held out."""
    while True:
        seed = int(rng.integers(1_000, 1_000_000))
        if visibility(improvised(seed)) > VISIBLE:
            return f"family-{seed}"


def keeps(style: str) -> set[str]:
    """What a person can still tell of an object in a style, of `colour` and `pattern`."""
    if style not in STYLES and isinstance(member := style_named(style), Improvised):
        kept = {"colour": member.keeps_colour, "pattern": member.keeps_pattern}
    else:
        kept = {"colour": style in KEEP_COLOUR, "pattern": style in KEEP_PATTERN}
    return {name for name, here in kept.items() if here}


@dataclass(frozen=True)
class Pair:
    """A subject, known from others of its kind by colour and pattern, and a style that is shown on another object."""

    kind: str
    colour: str
    pattern: str
    style: str
    shown: str
    """The object in the style image, which must not leak into the merge."""
    shown_colour: str = "blue"
    """That object's colour, which its caption names, so that it is not taken for the style."""
    identifier: str = IDENTIFIERS[0]
    """The word that stands for the subject."""
    captions: str = "class"
    """class, or paper: by identifiers alone, "a sks thing in vkt style" and "a ohw thing in zwx style"."""

    @property
    def noun(self) -> str:
        """What the subject is called besides its identifier: its kind, as in DreamBooth, or "thing".

        That is what the base calls what it does not know.
        """
        return self.kind if self.kind in BASE_OBJECTS and self.captions == "class" else OBJECT

    @property
    def identity(self) -> dict[str, str]:
        """By what the subject is known in the style: its kind, and its colour where the style keeps that."""
        return {"object": self.kind} | ({"colour": self.colour} if "colour" in keeps(self.style) else {})

    @property
    def content_prompt(self) -> str:
        """What the content images show, the subject by its identifier and its noun only."""
        style = "flat" if self.captions == "class" else IDENTIFIERS[2]
        return f"a {self.identifier} {self.noun} in {style} style"

    @property
    def style_prompt(self) -> str:
        """What the style image shows, the style by its identifier only."""
        known = article(f"{self.shown_colour} {self.shown}")
        return f"{known if self.captions == 'class' else f'a {IDENTIFIERS[1]} {OBJECT}'} in {STYLE_IDENTIFIER} style"

    @property
    def merged_prompt(self) -> str:
        """The subject in the style."""
        return f"a {self.identifier} {self.noun} in {STYLE_IDENTIFIER} style"

    @property
    def class_prompt(self) -> str:
        """The class prompt: any object of that kind in the style, for a LoRA of the style alone."""
        noun = replace(self, captions="class").noun
        return f"{article(noun)} in {STYLE_IDENTIFIER} style"

    def content_scenes(self, count: int = 5, seed: int = 0) -> list[Scene]:
        """The same subject in several places and settings, in a flat style; no two of five are alike."""
        scenes = (self._scene(self.kind, "flat", seed * 100 + k, setting=k % 2 == 1) for k in range(count))
        return [_moved(scene, seed + k) for k, scene in enumerate(scenes)]

    def style_scene(self, seed: int = 0) -> Scene:
        """Another object, that the base knows, in the style."""
        scene = self._scene(self.shown, self.style, seed * 100 + 50, setting=False)
        return replace(scene, objects=(replace(scene.objects[0], colour=self.shown_colour, pattern="plain"),))

    def _scene(self, kind: str, style: str, seed: int, setting: bool) -> Scene:
        scene = sample_scene(np.random.default_rng(seed), (kind,), (style,), (1.0, 0.0, 0.0, 0.0))
        item = replace(scene.objects[0], flipped=False)
        if kind == self.kind:
            item = replace(item, colour=self.colour, pattern=self.pattern)
        return replace(scene, objects=(item,), setting=scene.setting if setting else "")


def _moved(scene: Scene, turn: int) -> Scene:
    """The scene with its object at one of three places before one of three walls, in turn."""
    item = scene.objects[0]
    return replace(scene, objects=(replace(item, x=SIZE // 2 + 2 * (turn % 3 - 1)),), wall=(turn + turn // 3) % 3)


def sample_pair(seed: int) -> Pair:
    """A random pair of a subject, of a kind that the base knows, and a style that it has never seen.

    The same for the same seed; the style image shows another kind.
    """
    rng = np.random.default_rng(seed)
    kind, shown = (str(k) for k in rng.choice(BASE_OBJECTS, 2, replace=False))
    style = str(rng.choice(HELD_OUT_STYLES))
    colour, shown_colour = (str(c) for c in rng.choice(tuple(COLOURS), 2, replace=False))
    return Pair(kind, colour, str(rng.choice(PATTERNS)), style, shown, shown_colour)


def truth(seen: Predictions, pair: Pair) -> dict[str, float | None]:
    """Shares of images that show the subject's class, the style, that very subject in it, and so on.

    Both is the style and all by which the subject is known in it (`Pair.identity`); leak is the style image's object.
    None is what the style hides.
    """
    kept = keeps(pair.style)
    return {
        "object": seen.share(object=pair.kind),
        "style": seen.share(style=pair.style),
        "both": seen.share(**pair.identity, style=pair.style),
        "colour": seen.share(colour=pair.colour) if "colour" in kept else None,
        "pattern": seen.share(pattern=pair.pattern) if "pattern" in kept else None,
        "leak": seen.share(object=pair.shown),
    }


def rendered(scenes: list[Scene]) -> list[NDArray[np.uint8]]:
    """The scenes, rendered."""
    return [render(scene, style_named(scene.style)) for scene in scenes]
