"""Several things in one look (Sec. 3.5, Table 4 and Figure 9): merges of each thing with the look, composed by 1/n."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from duolora.api.compose import compose
from duolora.api.generate import applied
from duolora.api.merge import merge
from duolora.atelier.classifier import Classifier, judge
from duolora.atelier.looks import KEEP_COLOUR
from duolora.atelier.pairs import IDENTIFIERS, STYLE_IDENTIFIER, Pair
from duolora.atelier.scene import PLACES, window
from duolora.bench.cells.cell import COUNT
from duolora.bench.cells.folder import InFolder, write_result
from duolora.bench.cells.jobs import LoraJob, reference_images, shared_base, shared_judges
from duolora.bench.cells.pairs import Case
from duolora.bench.cells.similarity import similarities, words_of
from duolora.bench.tables.rows import Row
from duolora.model.images import as_image, as_pictures, tiled
from duolora.model.sample import draw


@dataclass(frozen=True)
class Group:
    """Things that share a look and its picture; each is named by its own identifier."""

    things: tuple[Case, ...]

    @property
    def name(self) -> str:
        """A name for folders."""
        kinds = "-".join(case.pair.kind for case in self.things)
        return f"multi{len(self.things)}-{kinds}-{self.things[0].pair.look}-{self.things[0].style_seed}"

    @property
    def prompt(self) -> str:
        """Directional: "a sks duck on the left and a ohw car on the right in zwx style"."""
        places = PLACES[len(self.things)]
        named = [
            f"a {c.pair.identifier} {c.pair.noun} {place[0]}" for c, place in zip(self.things, places, strict=True)
        ]
        return f"{' and '.join(named)} in {STYLE_IDENTIFIER} style"


def groups(cases: Sequence[Case], number: int, most: int = 4) -> list[Group]:
    """Groups of `number` things out of four of a data set, each with one of its looks in turn.

    The four are of as many kinds as there are, and so is each group; things of one kind differ in colour or pattern.
    """
    first = {case.pair.kind: case for case in reversed(cases)}.values()
    things = sorted(cases, key=lambda case: (case not in first, case.content_seed))[: len(IDENTIFIERS)]
    chances = list(combinations(range(len(things)), number))
    kinds = [len({things[i].pair.kind for i in chosen}) for chosen in chances]
    mixed = (chosen for chosen, n in zip(chances, kinds, strict=True) if n == max(kinds))
    found = []
    for k, chosen in enumerate(islice(mixed, most)):
        style = cases[k % len(cases)]
        shared = {name: getattr(style.pair, name) for name in ("look", "shown", "shown_colour")}
        members = []
        for i in chosen:
            pair = replace(things[i].pair, **shared, identifier=IDENTIFIERS[i])
            members.append(replace(things[i], pair=pair, style_seed=style.style_seed))
        found.append(Group(tuple(members)))
    return found


@dataclass(frozen=True)
class GroupCell(InFolder):
    """What is measured: a method on a group, with a seed for merging and drawing."""

    out: Path
    group: Group
    row: Row
    seed: int = 0
    base: str = "atelier"

    @property
    def dataset(self) -> str:
        """How many things there are, as "multi2"."""
        return f"multi{len(self.group.things)}"

    def needs(self) -> list[LoraJob]:
        """The LoRAs that must be there before it runs."""
        if self.row.how == "oracle":
            return [self._job("oracle", case) for case in self.group.things]
        return [job for pair in self.loras() for job in pair] if self.row.how == "merge" else []

    def run(self) -> None:
        """Merge, compose, draw and judge."""
        run_group(self)

    @property
    def folder(self) -> Path:
        """Where its results are."""
        about: list[object] = [self.asked if self.row.how == "merge" else self.row.how, asdict(self.group)]
        return self.place(self.group.name, about)

    def loras(self) -> list[tuple[LoraJob, LoraJob]]:
        """The content and the style LoRA of each thing."""
        return [(self._job("content", case), self._job("style", case)) for case in self.group.things]

    def _job(self, kind: str, case: Case) -> LoraJob:
        count, seed = {
            "content": (case.pictures, case.content_seed),
            "style": (1, case.style_seed),
            "oracle": (5, case.content_seed),
        }[kind]
        return LoraJob(self.out, kind, case.pair, count, seed, self.base)


def run_group(cell: GroupCell) -> None:
    """Merge each thing with the look, compose the merges, draw and judge; the result is written last."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    base = shared_base(cell.base)
    result: dict[str, object] = {"row": asdict(cell.row), "group": asdict(cell.group), "prompts": [cell.group.prompt]}
    result["device"] = base.device.type
    used = []
    if cell.row.how != "floor":
        used = [cell.folder / "composed.safetensors"]
        result["bytes"] = compose(parts := _parts(cell), used[0], [1 / len(parts)] * len(parts)).proof.size
    with applied(base, used):
        drawn = draw(base, [cell.group.prompt] * COUNT, [1000 + cell.seed * 1000 + k for k in range(COUNT)])
    images = [as_image(p) for p in drawn]
    result["truth"] = group_truth(shared_judges(), drawn.clamp(-1, 1), [case.pair for case in cell.group.things])
    result["similarity"] = group_similarity(cell, images)
    tiled([images]).save(cell.folder / "pictures.png")
    write_result(cell.folder, result)


def _parts(cell: GroupCell) -> list[Path]:
    """What is composed: the merge of each thing with the look, or for the oracle a LoRA on true pictures of that."""
    if cell.row.how == "oracle":
        return [job.path for job in cell.needs()]
    merges = []
    for k, (content, style) in enumerate(cell.loras()):
        done = merge(
            content.path, style.path, cell.folder / f"merged-{k}.safetensors", cell.row.method, shared_base(cell.base),
            content.images, style.images, merged_prompt=content.pair.merged_prompt, options=cell.options,
            progress=False,
        )  # fmt: skip
        merges.append(done.path)
    return merges


def group_similarity(cell: GroupCell, images: Sequence[Image.Image]) -> dict[str, float]:
    """The similarities of pictures of several things: each at its own place with its own pictures, then the mean."""
    places = crops(as_pictures(images), len(cell.group.things))
    scores = []
    for (content, style), place in zip(cell.loras(), places, strict=True):
        cut = [as_image(picture) for picture in place]
        words = words_of(content.pair)
        scores.append(similarities(cut, reference_images(content), reference_images(style), words))
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def crops(pictures: Tensor, number: int) -> list[Tensor]:
    """For each place of a scene with `number` things, the square about it, enlarged to the pictures' own size.

    Pictures are Atelier's, (n, 3, 32, 32).
    """
    return [pictures[..., rows, columns] for rows, columns in (window(number, place) for place in range(number))]


@torch.no_grad()
def group_truth(judges: Classifier, pictures: Tensor, things: Sequence[Pair]) -> dict[str, float | None]:
    """Shares of things that are right at their own places, of pictures with the look, and of both at once."""
    look = judge(judges, pictures).look
    seen = [replace(judge(judges, crop), look=look) for crop in crops(pictures, len(things))]
    both = list(zip(seen, things, strict=True))
    kept = things[0].look in KEEP_COLOUR
    return {
        "object": fmean(at.share(object=thing.kind) for at, thing in both),
        "look": seen[0].share(look=things[0].look),
        "joint": fmean(at.share(**thing.identity, look=thing.look) for at, thing in both),
        "colour": fmean(at.share(colour=thing.colour) for at, thing in both) if kept else None,
        "pattern": None,
        "leak": fmean(at.share(object=thing.shown) for at, thing in both),
    }
