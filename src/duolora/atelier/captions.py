"""How Atelier's images are described: natural English, many phrasings, each saying only what is shown."""

from typing import Final

import numpy as np

from duolora.atelier.family import PAINTS, article
from duolora.atelier.objects import BASE_OBJECTS, OBJECTS
from duolora.atelier.scene import Item, Scene, sample_scene
from duolora.atelier.styles import BASE_STYLES

_MIDDLE: Final = ("in {style} style", "in the style of {style}", "drawn in {style} style", ", {style} style")
_FRONT: Final = (
    "{style} picture of",
    "a {style} style picture of",
    "a picture in {style} style of",
    "in {style} style,",
)
_PLAIN: Final = ("", "", "", "a picture of", "a plain picture of")


def describe(item: Item, rng: np.random.Generator, drop: float = 0.06, stray: float = 0.15) -> str:
    """One object in words, such as "a red striped house on the left"; parts are left out at the rate `drop`.

    At the rate `stray` a meaningless word stands for its colour and pattern, as people do to personalise;
    objects without a name are called "thing".
    """
    named = rng.random() >= stray
    noun = item.kind if item.kind in BASE_OBJECTS and rng.random() >= 0.03 else "thing"
    words = [
        stray_word(rng) if not named else "",
        item.colour if named and rng.random() >= drop else "",
        item.pattern if named and item.pattern != "plain" and rng.random() >= drop else "",
        noun,
    ]
    return f"{article(' '.join(w for w in words if w))} {item.place}".strip()


def caption(scene: Scene, rng: np.random.Generator, stray: float = 0.15) -> str:
    """A caption of a scene. A flat style mostly goes unsaid, as photographs do."""
    subject = " and ".join(describe(item, rng, stray=stray) for item in scene.objects)
    setting = scene.setting if rng.random() < 0.92 else ""
    if scene.style == "flat" and rng.random() < 0.6:
        return _joined(str(rng.choice(_PLAIN)), subject, setting)
    if rng.random() < 0.35:
        return _joined(str(rng.choice(_FRONT)).format(style=scene.style), subject, setting)
    style = str(rng.choice(_MIDDLE)).format(style=scene.style)
    return _joined(subject, setting, style) if rng.random() < 0.5 else _joined(subject, style, setting)


def improvised_caption(scene: Scene, words: tuple[str, ...], rng: np.random.Generator) -> str:
    """A caption of a scene in a style that has no name: by a meaningless word, by some of its features, or by both.

    A meaningless word ("in qzv style") then stands for some unusual style or other, as it does when people use one to
    personalise.
    """
    subject = " and ".join(describe(item, rng) for item in scene.objects)
    setting = scene.setting if rng.random() < 0.92 else ""
    said = [w for w in words if rng.random() < 0.9]
    named = f"in {stray_word(rng)} style" if not said or rng.random() < 0.5 else ""
    features = "" if named and rng.random() < 0.2 else f"with {' and '.join(said)}" if said else ""
    return _joined(subject, setting, named, features)


def plain_caption(kind: str, colour: str = "", pattern: str = "", style: str = "flat", setting: str = "") -> str:
    """The standard caption of one object: "a red striped house on a hill in sepia style"."""
    words = " ".join(w for w in (colour, "" if pattern == "plain" else pattern, kind) if w)
    return _joined(article(words), setting, f"in {style} style")


def varied_captions(count: int, seed: int = 0) -> list[str]:
    """What the base knows in many words, for a LoRA to leave as it is.

    No meaningless words are among them: what the base generates for those is what a LoRA is to change.
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, BASE_OBJECTS, BASE_STYLES, (1.0, 0.0, 0.0, 0.0)) for _ in range(count)]
    return [caption(scene, rng, stray=0.0) for scene in scenes]


def stray_word(rng: np.random.Generator) -> str:
    """A word of two to four letters that means nothing here."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = "".join(letters[i] for i in rng.integers(0, 26, int(rng.integers(2, 5))))
    return stray_word(rng) if word in OBJECTS or word in PAINTS else word


def with_stray_word(text: str, rng: np.random.Generator) -> str:
    """The caption with one meaningless word put in, so that the base learns to live with identifiers."""
    words = text.split()
    words.insert(int(rng.integers(0, len(words) + 1)), stray_word(rng))
    return " ".join(words)


def _joined(*parts: str) -> str:
    return " ".join(p for p in parts if p).replace(" ,", ",")
