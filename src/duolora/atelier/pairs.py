"""Things and looks to personalise: pictures of a thing, and one picture of a look on another object."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from duolora.atelier.family import article
from duolora.atelier.looks import HELD_OUT_LOOKS, KEEP_COLOUR
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.paint import COLOURS
from duolora.atelier.scene import PATTERNS, SIZE, Scene, render, sample_scene

IDENTIFIERS = ("sks", "ohw", "vkt", "pqr")
"""Rare words that stand for things."""
STYLE_IDENTIFIER = "zwx"


@dataclass(frozen=True)
class Pair:
    """A thing, told from others of its kind by colour and pattern, and a look that is shown on another object."""

    kind: str
    colour: str
    pattern: str
    look: str
    shown: str
    """The object in the style picture, which must not leak into the merge."""
    shown_colour: str = "blue"
    """That object's colour, which its caption names, so that it is not taken for the look."""
    identifier: str = IDENTIFIERS[0]
    """The word that stands for the thing."""

    @property
    def noun(self) -> str:
        """What the thing is called besides its identifier: its kind, or "thing" if the base does not know the kind.

        So it is in DreamBooth and in the paper: "a sks dog".
        """
        return self.kind if self.kind in BASE_OBJECTS else "thing"

    @property
    def identity(self) -> dict[str, str]:
        """By what the thing is known in the look: its kind, and its colour where the look keeps that."""
        return {"object": self.kind} | ({"colour": self.colour} if self.look in KEEP_COLOUR else {})

    @property
    def content_prompt(self) -> str:
        """What the content pictures show, the thing by its identifier and its noun only."""
        return f"a {self.identifier} {self.noun} in flat style"

    @property
    def style_prompt(self) -> str:
        """What the style picture shows, the look by its identifier only."""
        return f"{article(f'{self.shown_colour} {self.shown}')} in {STYLE_IDENTIFIER} style"

    @property
    def merged_prompt(self) -> str:
        """The thing in the look."""
        return f"a {self.identifier} {self.noun} in {STYLE_IDENTIFIER} style"

    @property
    def told_prompt(self) -> str:
        """Any thing of that kind in the look, for who has only seen the look."""
        return f"{article(self.noun)} in {STYLE_IDENTIFIER} style"

    def content_scenes(self, count: int = 5, seed: int = 0) -> list[Scene]:
        """The same thing in several places and settings, in a flat look; no two of five are alike."""
        scenes = (self._scene(self.kind, "flat", seed * 100 + k, setting=k % 2 == 1) for k in range(count))
        return [_moved(scene, seed + k) for k, scene in enumerate(scenes)]

    def style_scene(self, seed: int = 0) -> Scene:
        """Another object, that the base knows, in the look."""
        scene = self._scene(self.shown, self.look, seed * 100 + 50, setting=False)
        return replace(scene, things=(replace(scene.things[0], colour=self.shown_colour, pattern="plain"),))

    def _scene(self, kind: str, look: str, seed: int, setting: bool) -> Scene:
        scene = sample_scene(np.random.default_rng(seed), (kind,), (look,), (1.0, 0.0, 0.0, 0.0))
        thing = replace(scene.things[0], mirrored=False)
        if kind == self.kind:
            thing = replace(thing, colour=self.colour, pattern=self.pattern)
        return replace(scene, things=(thing,), setting=scene.setting if setting else "")


def _moved(scene: Scene, turn: int) -> Scene:
    """The scene with its thing at one of three places before one of three walls, in turn."""
    thing = scene.things[0]
    return replace(scene, things=(replace(thing, x=SIZE // 2 + 2 * (turn % 3 - 1)),), wall=(turn + turn // 3) % 3)


def sample_pair(seed: int) -> Pair:
    """A random pair of a thing, of a kind that the base knows, and a look that it has never seen.

    The same for the same seed; the style picture shows another kind.
    """
    rng = np.random.default_rng(seed)
    kind, shown = (str(k) for k in rng.choice(BASE_OBJECTS, 2, replace=False))
    look = str(rng.choice(HELD_OUT_LOOKS))
    colour, shown_colour = (str(c) for c in rng.choice(tuple(COLOURS), 2, replace=False))
    return Pair(kind, colour, str(rng.choice(PATTERNS)), look, shown, shown_colour)


def pictures(scenes: list[Scene]) -> list[NDArray[np.uint8]]:
    """The scenes, rendered."""
    return [render(scene) for scene in scenes]
