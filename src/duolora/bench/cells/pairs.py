"""Atelier's benchmark pairs: four data sets shaped like the paper's (Sec. 4), and a tuning set that shares nothing.

several    several pictures of a thing, one of a look                    as DreamBooth + StyleDrop
single     one picture of each                                           as SubjectPlop
crossed    the things of `single` with the looks of `several`            as SubjectPlop + StyleDrop
everyday   other things, in looks that the base has met by another name  as CustomConcept101 + StyleDrop
paired     the things of `single`, each with its twin in the look        as Table 2, for PairCustomization
unseen     things of kinds that the base has never seen, named "thing"   beyond the paper
tuning     for choosing options; its kinds, looks and pictures are in none of the others
ceiling    held-out things, in turn, in every held-out look, to see which of them a LoRA can learn at all

As in the paper, where a thing is "a sks dog", the base knows its kind and hears it named; what makes it this one thing
is its colour and its pattern. Joint truth asks for the colour where the look keeps it. Where it does not, a style LoRA
that is told the kind can be right as well: that is a row of Table 1 ("told"), and what a merge has to beat.

`atelier.json` holds what `sample_suite(0)` drew once; benchmarks read the file, so that they run on the same pairs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from duolora.atelier.looks import HELD_OUT_LOOKS
from duolora.atelier.objects import BASE_OBJECTS, HELD_OUT_OBJECTS
from duolora.atelier.paint import COLOURS
from duolora.atelier.pairs import Pair
from duolora.atelier.scene import PATTERNS
from duolora.bench.cells.photos import PhotoPair
from duolora.errors import InputError

TUNING_KINDS = BASE_OBJECTS[::4]
TEST_KINDS = tuple(kind for kind in BASE_OBJECTS if kind not in TUNING_KINDS)
TUNING_LOOKS = HELD_OUT_LOOKS[::3]
TEST_LOOKS = tuple(look for look in HELD_OUT_LOOKS if look not in TUNING_LOOKS)
"""The held-out members of the family are in the random order in which they were drawn: every third is for tuning."""
UNSEEN_KINDS = ("robot", "snail", "crown")
KNOWN_LOOKS = ("blueprint", "halftone", "sepia", "mosaic", "neon", "woodcut")
"""Seen by the base, under their own names; a pair's prompts do not say them."""


@dataclass(frozen=True)
class Case:
    """One pair of a data set, how many pictures of the thing there are, and the seeds of both sides' pictures."""

    dataset: str
    pair: Pair
    pictures: int
    content_seed: int
    style_seed: int

    @property
    def name(self) -> str:
        """A name for folders, such as `single-robot-copper-3`."""
        return f"{self.dataset}-{self.pair.kind}-{self.pair.look}-{self.content_seed}-{self.style_seed}"


C = TypeVar("C", Case, PhotoPair)


def sample_suite(seed: int = 0, size: int = 12) -> list[Case]:
    """All data sets, `size` pairs in each; the same for the same seed."""
    rng = np.random.default_rng(seed)
    kinds = [str(kind) for kind in rng.permutation(TEST_KINDS)]
    several = _set(rng, "several", 5, kinds[:6], TEST_LOOKS[:12], size, 100)
    single = _set(rng, "single", 1, kinds[6:12], TEST_LOOKS[12:], size, 200)
    everyday = _set(rng, "everyday", 5, kinds[12:18], KNOWN_LOOKS, size, 300)
    tuning = _set(rng, "tuning", 5, TUNING_KINDS[:4], TUNING_LOOKS, size, 400)
    unseen = _set(rng, "unseen", 5, UNSEEN_KINDS, TEST_LOOKS, size, 600)
    crossed = [_crossed("crossed", case, several[k + 1 :] + several[: k + 1]) for k, case in enumerate(single)]
    paired = [replace(c, dataset="paired", pair=replace(c.pair, shown=c.pair.kind)) for c in single]
    ceiling = _set(rng, "ceiling", 5, HELD_OUT_OBJECTS, HELD_OUT_LOOKS, len(HELD_OUT_LOOKS), 500)
    return [*several, *single, *crossed, *everyday, *paired, *unseen, *tuning, *ceiling]


def _set(
    rng: np.random.Generator,
    name: str,
    pictures: int,
    kinds: Sequence[str],
    looks: Sequence[str],
    size: int,
    first: int,
) -> list[Case]:
    """Pairs with kinds and looks in turn; the style picture shows a kind that is none of them."""
    order = [(kinds[i % len(kinds)], looks[(i + i // max(len(kinds), len(looks))) % len(looks)]) for i in range(size)]
    known = [kind for kind in (TUNING_KINDS if name == "tuning" else TEST_KINDS) if kind not in kinds]
    cases = []
    for k, (kind, look) in enumerate(order):
        shown = str(rng.choice(known))
        pattern = str(rng.choice(PATTERNS))
        colour, shown_colour = (str(c) for c in rng.choice(tuple(COLOURS), 2, replace=False))
        pair = Pair(kind, colour, pattern, look, shown, shown_colour)
        cases.append(Case(name, pair, pictures, first + k, first + k))
    return cases


def _crossed(dataset: str, content: Case, styles: list[Case]) -> Case:
    """The thing of one pair with the first of the looks that was not shown on such a thing, from the same pictures.

    Nor on anything of its colour.
    """
    thing = content.pair
    style = next(s for s in styles if s.pair.shown != thing.kind and s.pair.shown_colour != thing.colour)
    pair = replace(content.pair, look=style.pair.look, shown=style.pair.shown, shown_colour=style.pair.shown_colour)
    return Case(dataset, pair, content.pictures, content.content_seed, style.style_seed)


def suite(path: Path | None = None) -> list[Case]:
    """The cases of a manifest, by default the one that ships.

    Raises:
        InputError: it is not a list of cases.
    """
    text = path.read_text("utf-8") if path else files("duolora.bench.cells").joinpath("atelier.json").read_text("utf-8")
    try:
        return cases_of(json.loads(text))
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: expected a list of benchmark pairs as in atelier.json ({error})") from error


def cases_of(entries: Sequence[Mapping[str, Any]]) -> list[Case]:
    """Cases from plain data, as `asdict` makes it of them."""
    return [Case(**{**entry, "pair": Pair(**entry["pair"])}) for entry in entries]


def limited(cases: list[C], most: int | None) -> list[C]:
    """The first `most` cases of each data set; all when there is no limit."""
    sets = dict.fromkeys(case.dataset for case in cases)
    return [case for name in sets for case in [c for c in cases if c.dataset == name][:most]]
