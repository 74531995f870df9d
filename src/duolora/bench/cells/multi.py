"""Several subjects in one style (Sec. 3.5, Table 4 and Figure 9): each merged with it, the merges composed by 1/n."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from statistics import fmean
from typing import Generic, TypeVar

import torch
from torch import Tensor

from duolora.atelier.classifier import classify
from duolora.atelier.pairs import IDENTIFIERS, STYLE_IDENTIFIER, Pair, truth
from duolora.atelier.scene import PLACES, window
from duolora.bench.cells.cell import Cell, Part
from duolora.bench.cells.pairs import Case, noise_seeds
from duolora.bench.cells.photos import PhotoPair, similarity
from duolora.bench.cells.scores import Images, seen, shared_classifier, similarities, words_of
from duolora.bench.tables.rows import Row
from duolora.metrics.datasets.dataset import SUBJECT
from duolora.model.images import as_image, as_pixels

ONE = f"a {SUBJECT}"
MOST = 4
"""Groups of each number of subjects."""
T = TypeVar("T", Case, PhotoPair)


@dataclass(frozen=True)
class _Subjects(Generic[T]):
    """What groups of either kind have in common."""

    subjects: tuple[T, ...]

    @property
    def dataset(self) -> str:
        """How many subjects there are, as "multi2"."""
        return f"multi{len(self.subjects)}"

    @property
    def parts(self) -> list[Part]:
        """Those of each subject."""
        return [part for subject in self.subjects for part in subject.parts]


@dataclass(frozen=True)
class Group(_Subjects[Case]):
    """Subjects that share a style and its image; each is named by its own identifier."""

    @property
    def name(self) -> str:
        """A name for folders."""
        kinds = "-".join(case.pair.kind for case in self.subjects)
        return f"{self.dataset}-{kinds}-{self.subjects[0].pair.style}-{self.subjects[0].style_seed}"

    @property
    def title(self) -> str:
        """The classes and the style."""
        return f"{' and '.join(case.pair.kind for case in self.subjects)}, {self.subjects[0].pair.style}"

    def about(self, row: Row) -> object:
        """All of it."""
        return {"subjects": [case.about(row) for case in self.subjects]}

    def asked(self, row: Row) -> list[str]:
        """Directional: "a sks duck on the left and a ohw car on the right in zwx style"."""
        named = [f"a {case.pair.identifier} {case.pair.noun}" for case in self.subjects]
        return [f"{_placed(named)} in {STYLE_IDENTIFIER} style"]

    def noise_seeds(self, seed: int) -> list[int]:
        """The same for every row."""
        return noise_seeds(seed)

    def scores(self, cell: Cell, images: Images = ()) -> dict[str, object]:
        """By the classifier and by similarity, each subject at its own place with its own images, then the mean."""
        pixels, scores = as_pixels(images), []
        for loras, case, place in zip(cell.loras(), self.subjects, crops(pixels, len(self.subjects)), strict=True):
            content, style = (loras[kind].shown() for kind in ("content", "style"))
            scores.append(similarities([as_image(crop) for crop in place], content, style, words_of(case.pair)))
        similarity = {name: fmean(score[name] for score in scores) for name in scores[0]}
        found = group_truth(pixels, [case.pair for case in self.subjects])
        return {"truth": found, "similarity": similarity}


@dataclass(frozen=True)
class PhotoGroup(_Subjects[PhotoPair]):
    """The same of photos, where nobody sees which place is whose: each image is compared with each subject's photos."""

    @property
    def name(self) -> str:
        """A name for folders."""
        names = [pair.content.name for pair in self.subjects]
        return "-".join((self.dataset, self.subjects[0].dataset, *names, self.subjects[0].style.name))

    @property
    def title(self) -> str:
        """The subjects and the style in words."""
        return f"{' and '.join(pair.content.words for pair in self.subjects)}, {self.subjects[0].style.words}"

    def about(self, row: Row) -> object:
        """That of each pair."""
        return [pair.about(row) for pair in self.subjects]

    def asked(self, row: Row) -> list[str]:
        """Directional, as in a `Group`."""
        return [f"{_placed([pair.content.identified(ONE) for pair in self.subjects])} in {STYLE_IDENTIFIER} style"]

    def noise_seeds(self, seed: int) -> list[int]:
        """Those of the manifest."""
        return [*self.subjects[0].seeds]

    def scores(self, cell: Cell, images: Images = ()) -> dict[str, object]:
        """Means over the subjects."""
        first = self.subjects[0]
        text = f"{_placed([pair.in_words(ONE) for pair in self.subjects])} in {first.style.words}"
        found = [similarity(cell, loras, [text]) for loras in cell.loras()]
        scores: list[dict[str, float]] = [each["similarity"] for each in found]  # type: ignore[misc]
        return found[0] | {"similarity": {name: fmean(each[name] for each in scores) for name in scores[0]}}


def _placed(subjects: Sequence[str]) -> str:
    """The subjects in words, each at its place."""
    places = PLACES[len(subjects)]
    return " and ".join(f"{subject} {place[0]}" for subject, place in zip(subjects, places, strict=True))


def photo_groups(pairs: Sequence[PhotoPair], number: int) -> list[PhotoGroup]:
    """Groups of `number` of the first four subjects, each with one of the pairs' styles in turn."""
    first: dict[str, PhotoPair] = {}
    for pair in pairs:
        first.setdefault(pair.content.name, pair)
    named = [
        replace(pair, content=replace(pair.content, identifier=word), twin=None)
        for pair, word in zip(first.values(), IDENTIFIERS, strict=False)
    ]
    return [
        PhotoGroup(tuple(replace(pair, style=pairs[k % len(pairs)].style) for pair in chosen))
        for k, chosen in enumerate(islice(combinations(named, number), MOST))
    ]


def groups(cases: Sequence[Case], number: int) -> list[Group]:
    """Groups of `number` subjects out of four of a data set, each with one of its styles in turn.

    The four are of as many kinds as there are, and so is each group; subjects of one kind differ in colour or pattern.
    """
    first = {case.pair.kind: case for case in reversed(cases)}.values()
    subjects = sorted(cases, key=lambda case: (case not in first, case.content_seed))[: len(IDENTIFIERS)]
    chances = list(combinations(range(len(subjects)), number))
    kinds = [len({subjects[i].pair.kind for i in chosen}) for chosen in chances]
    mixed = (chosen for chosen, n in zip(chances, kinds, strict=True) if n == max(kinds))
    found = []
    for k, chosen in enumerate(islice(mixed, MOST)):
        style = cases[k % len(cases)]
        shared = {name: getattr(style.pair, name) for name in ("style", "shown", "shown_colour")}
        members = []
        for i in chosen:
            pair = replace(subjects[i].pair, **shared, identifier=IDENTIFIERS[i])
            members.append(replace(subjects[i], pair=pair, style_seed=style.style_seed))
        found.append(Group(tuple(members)))
    return found


def crops(images: Tensor, number: int) -> list[Tensor]:
    """For each place of a scene with `number` subjects, the square about it, enlarged to the images' own size.

    Images are Atelier's, (n, 3, 32, 32).
    """
    return [images[..., rows, columns] for rows, columns in (window(number, place) for place in range(number))]


@torch.no_grad()
def group_truth(images: Tensor, subjects: Sequence[Pair]) -> dict[str, float | None]:
    """Shares of subjects that are right at their own places, of images with the style, and of both at once."""
    style = seen(images, subjects[0].style).style
    places = [replace(classify(shared_classifier(), crop), style=style) for crop in crops(images, len(subjects))]
    found = [truth(at, subject) for at, subject in zip(places, subjects, strict=True)]
    known = {name: [each[name] for each in found] for name in found[0] if name != "pattern"}
    return {name: fmean(v for v in values if v is not None) if None not in values else None
            for name, values in known.items()} | {"pattern": None}  # fmt: skip
