"""Atelier's benchmark pairs: four data sets shaped like the paper's (Sec. 4), and a tuning set that shares nothing.

several    several images of a subject, one of a style                      as DreamBooth + StyleDrop
single     one image of each                                                as SubjectPlop
crossed    the subjects of `single` with the styles of `several`            as SubjectPlop + StyleDrop
everyday   other subjects, in styles that the base knows by other names     as CustomConcept101 + StyleDrop
paired     the subjects of `single`, each with its twin in the style        as Table 2, for PairCustomization
unseen     subjects of classes that the base has never seen, named "thing"  beyond the paper
random     subjects of `several` in styles that are in no list, sampled     the style is recognised by the style encoder
tuning     for choosing options; its classes, styles and images are in none of the others
ceiling    held-out subjects, in turn, in every held-out style, to see which of them a LoRA can learn at all

As in the paper, where a subject is "a sks dog", the base knows its class and the prompt names it; what makes it this
one subject is its colour and its pattern. Both asks for the colour where the style keeps it. Where it does not, a style
LoRA with the class prompt can be right as well: that is a row of Table 1 ("class"), and what a merge has to beat.

`atelier.json` holds what `sample_suite(0)` sampled once; benchmarks read the file, so that they run on the same pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from duolora.atelier.objects import BASE_OBJECTS, HELD_OUT_OBJECTS
from duolora.atelier.paint import COLOURS
from duolora.atelier.pairs import IDENTIFIERS, Pair, rendered, sample_style, style_named, truth
from duolora.atelier.scene import PATTERNS, SETTINGS
from duolora.atelier.styles import HELD_OUT_STYLES
from duolora.bench.cells.cell import Cell, Part
from duolora.bench.cells.scores import Images, seen, similarities, words_of
from duolora.bench.tables.rows import Row
from duolora.errors import FileRefused, InputError, reason
from duolora.model.images import as_pixels
from duolora.textfiles import read_json

TUNING_KINDS = BASE_OBJECTS[::4]
TEST_KINDS = tuple(kind for kind in BASE_OBJECTS if kind not in TUNING_KINDS)
TUNING_STYLES = HELD_OUT_STYLES[::3]
TEST_STYLES = tuple(style for style in HELD_OUT_STYLES if style not in TUNING_STYLES)
"""The held-out members of the family are in the random order in which they were sampled: every third is for tuning."""
UNSEEN_KINDS = ("robot", "snail", "crown")
KNOWN_STYLES = ("blueprint", "halftone", "sepia", "mosaic", "neon", "woodcut")
"""Seen by the base, under their own names; a pair's prompts do not say them."""


COUNT = 8
"""Images of each pair and prompt."""


@dataclass(frozen=True)
class Rendered:
    """Rendered images of a pair.

    `kind`: content, style, oracle (the subject in the style), or twin (the content images in the style).
    """

    kind: str
    pair: Pair
    count: int
    seed: int

    @property
    def name(self) -> str:
        """The same as for files."""
        return self.about

    @property
    def about(self) -> str:
        """A name for files."""
        p = self.pair
        name = "" if p.identifier == IDENTIFIERS[0] else f"{p.identifier}-"
        about = {
            "content": f"{p.identifier}-{p.kind}-{p.colour}-{p.pattern}-{self.count}",
            "style": f"{p.style}-{p.shown_colour}-{p.shown}",
            "oracle": f"{name}{p.kind}-{p.colour}-{p.pattern}-{p.style}",
            "twin": f"{p.kind}-{p.colour}-{p.pattern}-{p.style}",
        }[self.kind]
        marks = "-paper" if p.captions == "paper" else ""
        return f"{self.kind}-{about}-{self.seed}{marks}"

    @property
    def prompt(self) -> str:
        """Their caption."""
        p = self.pair
        return {"content": p.content_prompt, "style": p.style_prompt}.get(self.kind, p.merged_prompt)

    def write(self, folder: Path) -> None:
        """Render them into a folder."""
        p, style = self.pair, self.kind == "style"
        scenes = [p.style_scene(self.seed)] if style else p.content_scenes(self.count, self.seed)
        if self.kind in ("oracle", "twin"):
            scenes = [replace(scene, style=p.style) for scene in scenes]
        for k, pixels in enumerate(rendered(scenes)):
            Image.fromarray(pixels).save(folder / f"{k:02d}.png")


@dataclass(frozen=True)
class Case:
    """One pair of a data set, how many images of the subject there are, and the seeds of both sides' images."""

    dataset: str
    pair: Pair
    images: int
    content_seed: int
    style_seed: int

    @property
    def name(self) -> str:
        """A name for folders, such as `single-robot-sepia-3-7`."""
        return f"{self.dataset}-{self.pair.kind}-{self.pair.style}-{self.content_seed}-{self.style_seed}"

    @property
    def title(self) -> str:
        """The class and the style."""
        return f"{self.pair.kind}, {self.pair.style}"

    @property
    def parts(self) -> tuple[Part]:
        """The pair's own images."""
        content, twin = (Rendered(kind, self.pair, self.images, self.content_seed) for kind in ("content", "twin"))
        style = twin if self.dataset == "paired" else Rendered("style", self.pair, 1, self.style_seed)
        oracle = Rendered("oracle", self.pair, 5, self.content_seed)
        sources = {"content": content, "style": style, "oracle": oracle, "twin": twin}
        return (Part(sources, self.pair.merged_prompt),)

    def about(self, row: Row) -> object:
        """All of it, without captions as they always were."""
        found = asdict(self)
        if self.pair.captions == "class":
            del found["pair"]["captions"]
        return found

    def asked(self, row: Row) -> list[str]:
        """The subject in the style, as such and somewhere; of a LoRA alone what it was trained on."""
        pair, setting = self.pair, SETTINGS[1 + self.content_seed % (len(SETTINGS) - 1)]
        if row.how in ("content", "style"):
            return [pair.content_prompt if row.how == "content" else pair.style_prompt]
        prompt = pair.class_prompt if row.how == "class" else pair.merged_prompt
        return [prompt, prompt.replace(" in ", f" {setting} in ", 1)]

    def noise_seeds(self, seed: int) -> list[int]:
        """The same for every row."""
        return noise_seeds(seed)

    def scores(self, cell: Cell, images: Images = ()) -> dict[str, object]:
        """By the classifier, and by similarity to the pair's images."""
        (loras,) = cell.loras()
        content, style = (loras[kind].shown() for kind in ("content", "style"))
        return {
            "truth": truth(seen(as_pixels(images), self.pair.style), self.pair),
            "similarity": similarities(images, content, style, words_of(self.pair)),
        }


def noise_seeds(seed: int) -> list[int]:
    """The seeds of Atelier's images in a cell with this seed."""
    return [1000 + seed * 1000 + k for k in range(COUNT)]


def sample_suite(seed: int = 0, size: int = 12) -> list[Case]:
    """All data sets, `size` pairs in each; the same for the same seed."""
    rng = np.random.default_rng(seed)
    kinds = [str(kind) for kind in rng.permutation(TEST_KINDS)]
    several = _set(rng, "several", 5, kinds[:6], TEST_STYLES[:12], size, 100)
    single = _set(rng, "single", 1, kinds[6:12], TEST_STYLES[12:], size, 200)
    everyday = _set(rng, "everyday", 5, kinds[12:18], KNOWN_STYLES, size, 300)
    tuning = _set(rng, "tuning", 5, TUNING_KINDS[:4], TUNING_STYLES, size, 400)
    unseen = _set(rng, "unseen", 5, UNSEEN_KINDS, TEST_STYLES, size, 600)
    crossed = [_crossed("crossed", case, several[k + 1 :] + several[: k + 1]) for k, case in enumerate(single)]
    paired = [replace(c, dataset="paired", pair=replace(c.pair, shown=c.pair.kind)) for c in single]
    ceiling = _set(rng, "ceiling", 5, HELD_OUT_OBJECTS, HELD_OUT_STYLES, len(HELD_OUT_STYLES), 500)
    styles = np.random.default_rng((8, seed))
    unlisted = _set(rng, "random", 5, kinds[:6], [sample_style(styles) for _ in range(size)], size, 700)
    return [*several, *single, *crossed, *everyday, *paired, *unseen, *tuning, *ceiling, *unlisted]


def _set(
    rng: np.random.Generator, name: str, images: int, kinds: Sequence[str], styles: Sequence[str], size: int, first: int
) -> list[Case]:
    """Pairs with kinds and styles in turn; the style image shows a kind that is none of them."""
    order = [
        (kinds[i % len(kinds)], styles[(i + i // max(len(kinds), len(styles))) % len(styles)]) for i in range(size)
    ]
    known = [kind for kind in (TUNING_KINDS if name == "tuning" else TEST_KINDS) if kind not in kinds]
    cases = []
    for k, (kind, style) in enumerate(order):
        shown = str(rng.choice(known))
        pattern = str(rng.choice(PATTERNS))
        colour, shown_colour = (str(c) for c in rng.choice(tuple(COLOURS), 2, replace=False))
        pair = Pair(kind, colour, pattern, style, shown, shown_colour)
        cases.append(Case(name, pair, images, first + k, first + k))
    return cases


def _crossed(dataset: str, content: Case, styles: list[Case]) -> Case:
    """The subject of one pair with the first of the styles that was not shown on such a subject, from the same images.

    Nor on anything of its colour.
    """
    subject = content.pair
    style = next(s for s in styles if s.pair.shown != subject.kind and s.pair.shown_colour != subject.colour)
    pair = replace(content.pair, style=style.pair.style, shown=style.pair.shown, shown_colour=style.pair.shown_colour)
    return Case(dataset, pair, content.images, content.content_seed, style.style_seed)


def suite(path: Path | None = None) -> list[Case]:
    """The cases of a manifest, by default the one that ships.

    Raises:
        InputError: it is not a list of cases.
    """
    try:
        with as_file(files("duolora.bench.cells") / "atelier.json") as own:
            return [case_of(entry) for entry in read_json(path or own)]
    except (OSError, FileRefused, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: expected a list of benchmark pairs as in atelier.json ({reason(error)})") from error


def case_of(entry: Mapping[str, Any]) -> Case:
    """A case from plain data, as `asdict` makes it of one.

    Raises:
        KeyError, TypeError, ValueError: it lacks something, has too much, or names no style.
    """
    style_named(str(entry["pair"]["style"]))
    return Case(**{**entry, "pair": Pair(**entry["pair"])})
