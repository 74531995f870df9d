"""Several subjects in one style (Sec. 3.5, Table 4 and Figure 9): each merged with it, the merges composed by 1/n."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from statistics import fmean

import torch
from torch import Tensor

from duolora.atelier.classifier import Classifier, classify
from duolora.atelier.pairs import IDENTIFIERS, STYLE_IDENTIFIER, Pair, truth
from duolora.atelier.scene import PLACES, window
from duolora.bench.cells.cell import Cell, Part
from duolora.bench.cells.pairs import Case, noise_seeds
from duolora.bench.cells.scores import Images, shared_classifier, similarities, words_of
from duolora.bench.tables.rows import Row
from duolora.model.images import as_image, as_pixels


@dataclass(frozen=True)
class Group:
    """Subjects that share a style and its image; each is named by its own identifier."""

    subjects: tuple[Case, ...]

    @property
    def dataset(self) -> str:
        """How many subjects there are, as "multi2"."""
        return f"multi{len(self.subjects)}"

    @property
    def name(self) -> str:
        """A name for folders."""
        kinds = "-".join(case.pair.kind for case in self.subjects)
        return f"{self.dataset}-{kinds}-{self.subjects[0].pair.style}-{self.subjects[0].style_seed}"

    @property
    def title(self) -> str:
        """The classes and the style."""
        return f"{' and '.join(case.pair.kind for case in self.subjects)}, {self.subjects[0].pair.style}"

    @property
    def parts(self) -> list[Part]:
        """Those of each subject."""
        return [part for case in self.subjects for part in case.parts]

    def about(self, row: Row) -> object:
        """All of it."""
        return asdict(self)

    def asked(self, row: Row) -> list[str]:
        """Directional: "a sks duck on the left and a ohw car on the right in zwx style"."""
        pairs, places = [case.pair for case in self.subjects], PLACES[len(self.subjects)]
        named = [f"a {p.identifier} {p.noun} {place[0]}" for p, place in zip(pairs, places, strict=True)]
        return [f"{' and '.join(named)} in {STYLE_IDENTIFIER} style"]

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
        found = group_truth(shared_classifier(), pixels, [case.pair for case in self.subjects])
        return {"truth": found, "similarity": similarity}


def groups(cases: Sequence[Case], number: int, most: int = 4) -> list[Group]:
    """Groups of `number` subjects out of four of a data set, each with one of its styles in turn.

    The four are of as many kinds as there are, and so is each group; subjects of one kind differ in colour or pattern.
    """
    first = {case.pair.kind: case for case in reversed(cases)}.values()
    subjects = sorted(cases, key=lambda case: (case not in first, case.content_seed))[: len(IDENTIFIERS)]
    chances = list(combinations(range(len(subjects)), number))
    kinds = [len({subjects[i].pair.kind for i in chosen}) for chosen in chances]
    mixed = (chosen for chosen, n in zip(chances, kinds, strict=True) if n == max(kinds))
    found = []
    for k, chosen in enumerate(islice(mixed, most)):
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
def group_truth(classifier: Classifier, images: Tensor, subjects: Sequence[Pair]) -> dict[str, float | None]:
    """Shares of subjects that are right at their own places, of images with the style, and of both at once."""
    style = classify(classifier, images).style
    seen = [replace(classify(classifier, crop), style=style) for crop in crops(images, len(subjects))]
    found = [truth(at, subject) for at, subject in zip(seen, subjects, strict=True)]
    known = {name: [each[name] for each in found] for name in found[0] if name != "pattern"}
    return {name: fmean(v for v in values if v is not None) if None not in values else None
            for name, values in known.items()} | {"pattern": None}  # fmt: skip
