"""Several things in one look (Sec. 3.5, Table 4 and Figure 9): merges of each thing with the look, composed by 1/n."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from duolora.atelier.pairs import IDENTIFIERS, STYLE_IDENTIFIER, Pair
from duolora.atelier.recognisers import Recogniser, judge
from duolora.atelier.scene import PLACES
from duolora.bench.cells import COUNT, LoraJob, shared_base, shared_judges
from duolora.bench.pairs import Case
from duolora.bench.tables import Row
from duolora.images import as_image, tiled
from duolora.methods import MergeOptions
from duolora.sampling import draw
from duolora.verbs.compose import compose
from duolora.verbs.generate import applied
from duolora.verbs.merge import merge, options_of

CROP: dict[int, float] = {1: 1.0, 2: 0.5, 3: 0.37, 4: 0.5}
"""The side of the square about a thing's place that the judges look at, as a share of the picture's."""


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
        """Directional: "a sks thing on the left and a ohw thing on the right in zwx style"."""
        places = PLACES[len(self.things)]
        named = [f"a {c.pair.identifier} thing {place[0]}" for c, place in zip(self.things, places, strict=True)]
        return f"{' and '.join(named)} in {STYLE_IDENTIFIER} style"


def groups(cases: Sequence[Case], number: int, most: int = 4) -> list[Group]:
    """Groups of `number` things out of the first four kinds of a data set, each with one of its looks in turn."""
    by_kind = {case.pair.kind: case for case in reversed(cases)}
    things = sorted(by_kind.values(), key=lambda case: case.content_seed)[: len(IDENTIFIERS)]
    found = []
    for k, chosen in enumerate(islice(combinations(range(len(things)), number), most)):
        style = cases[k % len(cases)]
        members = []
        for i in chosen:
            pair = replace(things[i].pair, look=style.pair.look, shown=style.pair.shown, identifier=IDENTIFIERS[i])
            members.append(replace(things[i], pair=pair, style_seed=style.style_seed))
        found.append(Group(tuple(members)))
    return found


@dataclass(frozen=True)
class GroupCell:
    """What is measured: a method on a group, with a seed for merging and drawing."""

    out: Path
    group: Group
    row: Row
    seed: int = 0

    @property
    def dataset(self) -> str:
        """How many things there are, as "multi2"."""
        return f"multi{len(self.group.things)}"

    def needs(self) -> list[LoraJob]:
        """The LoRAs that must be there before it runs."""
        return [job for pair in self.loras() for job in pair]

    def run(self) -> None:
        """Merge, compose, draw and judge."""
        run_group(self)

    @property
    def options(self) -> MergeOptions:
        """The options of its merges."""
        return replace(options_of(self.row.method, **self.row.changes), seed=self.seed)

    @property
    def folder(self) -> Path:
        """Where its results are."""
        mark = json.dumps([asdict(self.options), asdict(self.group)], sort_keys=True).encode()
        name = f"{self.row.method}-{hashlib.sha256(mark).hexdigest()[:8]}-{self.seed}"
        return self.out / "cells" / self.group.name / name

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").exists()

    def result(self) -> dict:
        """What was measured."""
        return json.loads((self.folder / "result.json").read_text("utf-8"))

    def loras(self) -> list[tuple[LoraJob, LoraJob]]:
        """The content and the style LoRA of each thing."""
        return [
            (
                LoraJob(self.out, "content", case.pair, case.pictures, case.content_seed),
                LoraJob(self.out, "style", case.pair, 1, case.style_seed),
            )
            for case in self.group.things
        ]


def run_group(cell: GroupCell) -> None:
    """Merge each thing with the look, compose the merges, draw and judge; the result is written last."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    base, merges = shared_base(), []
    for k, (content, style) in enumerate(cell.loras()):
        done = merge(
            content.path, style.path, cell.folder / f"merged-{k}.safetensors", cell.row.method, base, content.images,
            style.images, merged_prompt=content.pair.merged_prompt, options=cell.options, progress=False,
        )  # fmt: skip
        merges.append(done.path)
    both = cell.folder / "composed.safetensors"
    proof = compose(merges, both).proof
    with applied(base, [both]):
        drawn = draw(base, [cell.group.prompt] * COUNT, [1000 + cell.seed * 1000 + k for k in range(COUNT)])
    things = [case.pair for case in cell.group.things]
    result = {
        "row": asdict(cell.row),
        "group": asdict(cell.group),
        "prompt": cell.group.prompt,
        "bytes": proof.size,
        "truth": group_truth(shared_judges(), drawn.clamp(-1, 1), things),
    }
    tiled([[as_image(p) for p in drawn]]).save(cell.folder / "pictures.png")
    part = cell.folder / "result.json.part"
    part.write_text(json.dumps(result, indent=1, default=str), "utf-8")
    os.replace(part, cell.folder / "result.json")


def crops(pictures: Tensor, number: int) -> list[Tensor]:
    """For each place of a scene with `number` things, the square about it, at the pictures' own size."""
    side, cut = pictures.shape[-1], []
    for _, x, y in PLACES[number]:
        half = CROP[number] / 2
        left, top = (round(side * min(max(at - half, 0), 1 - 2 * half)) for at in (x, y))
        width = round(side * 2 * half)
        square = pictures[..., top : top + width, left : left + width]
        cut.append(F.interpolate(square, (side, side), mode="bicubic", antialias=True).clamp(-1, 1))
    return cut


@torch.no_grad()
def group_truth(judges: Recogniser, pictures: Tensor, things: Sequence[Pair]) -> dict[str, float | None]:
    """Shares of things that are right at their own places, of pictures with the look, and of both at once."""
    look = judge(judges, pictures).look
    seen = [judge(judges, crop).object for crop in crops(pictures, len(things))]
    hits = [[got == thing.kind for got in found] for found, thing in zip(seen, things, strict=True)]
    right = [got == things[0].look for got in look]
    total = len(things) * len(right)
    joint = sum(hit and ok for row in hits for hit, ok in zip(row, right, strict=True))
    leaks = sum(got == things[0].shown for found in seen for got in found)
    return {
        "object": sum(map(sum, hits)) / total,
        "look": sum(right) / len(right),
        "joint": joint / total,
        "colour": None,
        "pattern": None,
        "leak": leaks / total,
    }
