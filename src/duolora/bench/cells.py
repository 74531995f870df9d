"""One cell of a table: a pair, a method and a seed, from the pair's pictures to what the judges say."""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from PIL import Image
from torch import Tensor

from duolora.adapters.files import read_adapter
from duolora.atelier.looks import KEEP_COLOUR, KEEP_PATTERN
from duolora.atelier.pairs import Pair, pictures
from duolora.atelier.recognisers import Recogniser, judge, load_recogniser
from duolora.atelier.scene import SETTINGS
from duolora.bench.pairs import Case
from duolora.bench.tables import Row
from duolora.images import as_image, read_pictures, tiled
from duolora.merging.klora import klora
from duolora.merging.sources import sources
from duolora.methods import MergeOptions
from duolora.networks.bases import Base, load_base
from duolora.sampling import draw
from duolora.verbs.generate import applied
from duolora.verbs.merge import Merged, merge, options_of
from duolora.verbs.pair_customization import draw_with_style_guidance, train_pair
from duolora.verbs.train import TrainOptions, default_options, train

COUNT = 8
"""Pictures of each pair and prompt."""


@dataclass(frozen=True)
class Cell:
    """What is measured: a row of a table on a case, with a seed for merging and drawing."""

    out: Path
    case: Case
    row: Row
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Where its results are, the same for the same measurement in any table."""
        row = asdict(self.row) | {"label": ""}
        if self.row.how == "merge":
            row["options"] = asdict(self.options)
        mark = hashlib.sha256(json.dumps([row, asdict(self.case)], sort_keys=True).encode()).hexdigest()[:8]
        name = self.row.method if self.row.how == "merge" else self.row.how
        return self.out / "cells" / self.case.name / f"{name}-{mark}-{self.seed}"

    @property
    def dataset(self) -> str:
        """The data set of its case."""
        return self.case.dataset

    def needs(self) -> "list[LoraJob]":
        """The LoRAs that must be there before it runs."""
        return list(loras_of(self).values())

    def run(self) -> None:
        """Merge, draw and judge."""
        run_cell(self)

    @property
    def options(self) -> MergeOptions:
        """The options of its merge."""
        return replace(options_of(self.row.method, **self.row.changes), seed=self.seed)

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").exists()

    def result(self) -> dict:
        """What was measured."""
        return json.loads((self.folder / "result.json").read_text("utf-8"))


@dataclass(frozen=True)
class LoraJob:
    """A LoRA that cells need, trained once for all of them.

    `kind`: content, style, oracle (true pictures of the thing in the look), or twin (the content pictures in the look).
    """

    out: Path
    kind: str
    pair: Pair
    count: int
    seed: int

    @property
    def path(self) -> Path:
        """The file, named for what it is trained on."""
        p = self.pair
        about = {
            "content": f"{p.identifier}-{p.kind}-{p.colour}-{p.pattern}-{self.count}",
            "style": f"{p.look}-{p.shown}",
            "oracle": f"{p.kind}-{p.colour}-{p.pattern}-{p.look}",
            "twin": f"{p.kind}-{p.colour}-{p.pattern}-{p.look}",
        }[self.kind]
        return self.out / "loras" / f"{self.kind}-{about}-{self.seed}.safetensors"

    @property
    def images(self) -> Path:
        """The folder of its pictures."""
        return self.out / "references" / self.path.stem


def loras_of(cell: Cell) -> dict[str, LoraJob]:
    """The LoRAs that a cell needs."""
    case, kinds = cell.case, {"floor": [], "pair": [], "content": ["content"], "style": ["style"], "oracle": ["oracle"]}
    style = LoraJob(cell.out, "style", case.pair, 1, case.style_seed)
    if case.dataset == "paired":
        style = LoraJob(cell.out, "twin", case.pair, case.pictures, case.content_seed)
    jobs = {
        "content": LoraJob(cell.out, "content", case.pair, case.pictures, case.content_seed),
        "style": style,
        "oracle": LoraJob(cell.out, "oracle", case.pair, 5, case.content_seed),
    }
    return {kind: jobs[kind] for kind in kinds.get(cell.row.how, ["content", "style"])}


def references(job: LoraJob) -> Path:
    """Draw the pictures of a LoRA into its folder, unless they are there."""
    p, done = job.pair, job.images / "done"
    if done.exists():
        return job.images
    scenes = [p.style_scene(job.seed)] if job.kind == "style" else p.content_scenes(job.count, job.seed)
    if job.kind in ("oracle", "twin"):
        scenes = [replace(scene, look=p.look) for scene in scenes]
    job.images.mkdir(parents=True, exist_ok=True)
    for k, picture in enumerate(pictures(scenes)):
        Image.fromarray(picture).save(job.images / f"{k:02d}.png")
    done.touch()
    return job.images


def train_lora(job: LoraJob, options: TrainOptions | None = None) -> None:
    """Draw the pictures and train the LoRA on them, unless it is there; by default as suits the base."""
    if job.path.exists():
        return
    p = job.pair
    prompt = {"content": p.content_prompt, "style": p.style_prompt}.get(job.kind, p.merged_prompt)
    train(references(job), prompt, job.path, shared_base(), options, progress=False)


def run_cell(cell: Cell) -> None:
    """Merge, draw and judge; the result is written last, whole, so that what is there is finished."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    prompts = prompts_of(cell)
    loras = {kind: job.path for kind, job in loras_of(cell).items()}
    merged = _merged(cell) if cell.row.how == "merge" else None
    lora = merged.path if merged else loras.get(cell.row.how)
    drawn = _drawn(cell, prompts, lora)
    result: dict[str, object] = {
        "case": asdict(cell.case),
        "row": asdict(cell.row),
        "seed": cell.seed,
        "prompts": prompts,
        "truth": truth(shared_judges(), drawn, cell.case.pair),
        "seconds_all": time.perf_counter() - started,
    }
    if merged:
        result |= {
            "options": asdict(cell.options),
            "trainable": merged.trainable,
            "moved": merged.moved,
            "bytes": merged.proof.size,
            "seconds": merged.seconds,
            "error": merged.proof.error,
        }
    images = [as_image(p) for p in drawn]
    tiled([images[i : i + COUNT] for i in range(0, len(images), COUNT)]).save(cell.folder / "pictures.png")
    part = cell.folder / "result.json.part"
    part.write_text(json.dumps(result, indent=1, default=str), "utf-8")
    os.replace(part, cell.folder / "result.json")


def prompts_of(cell: Cell) -> list[str]:
    """What is drawn: the thing in the look, as such and somewhere. A LoRA alone is asked for what it has learnt."""
    pair, setting = cell.case.pair, SETTINGS[1 + cell.case.content_seed % (len(SETTINGS) - 1)]
    if cell.row.how == "content":
        return [pair.content_prompt]
    if cell.row.how == "style":
        return [pair.style_prompt]
    return [pair.merged_prompt, pair.merged_prompt.replace(" in ", f" {setting} in ", 1)]


def truth(judges: Recogniser, drawn: Tensor, pair: Pair) -> dict[str, float | None]:
    """Shares of the pictures in which the judges see the thing, the look, both, and the style picture's object."""
    found = judge(judges, drawn)
    return {
        "object": found.share(object=pair.kind),
        "look": found.share(look=pair.look),
        "joint": found.share(object=pair.kind, look=pair.look),
        "colour": found.share(colour=pair.colour) if pair.look in KEEP_COLOUR else None,
        "pattern": found.share(pattern=pair.pattern) if pair.look in KEEP_PATTERN else None,
        "leak": found.share(object=pair.shown),
    }


def _merged(cell: Cell) -> Merged:
    jobs, pair = loras_of(cell), cell.case.pair
    return merge(
        jobs["content"].path, jobs["style"].path, cell.folder / "merged.safetensors", cell.row.method, shared_base(),
        jobs["content"].images, jobs["style"].images, merged_prompt=pair.merged_prompt, options=cell.options,
        progress=False,
    )  # fmt: skip


def _drawn(cell: Cell, prompts: list[str], lora: Path | None) -> Tensor:
    base, seeds = shared_base(), [1000 + cell.seed * 1000 + k for k in range(COUNT)]
    asked, all_seeds = [p for p in prompts for _ in seeds], seeds * len(prompts)
    if cell.row.how == "klora":
        jobs = loras_of(cell)
        content, style = (read_adapter(jobs[kind].path) for kind in ("content", "style"))
        both = sources(base, content, style, MergeOptions())
        with klora(base, both, **cell.row.changes) as chooser:  # type: ignore[arg-type]
            return draw(base, asked, all_seeds, before_step=chooser).clamp(-1, 1)
    if cell.row.how == "pair":
        return _drawn_by_pair(cell, asked, all_seeds).clamp(-1, 1)
    with applied(base, [lora] if lora else []):
        return draw(base, asked, all_seeds).clamp(-1, 1)


def _drawn_by_pair(cell: Cell, asked: list[str], seeds: list[int]) -> Tensor:
    base, case = shared_base(), cell.case
    pictures_of = {
        kind: read_pictures(references(LoraJob(cell.out, kind, case.pair, case.pictures, case.content_seed)), 64)
        for kind in ("content", "twin")
    }
    prompts = (case.pair.content_prompt, case.pair.merged_prompt)
    options = replace(default_options(base.name), seed=cell.seed)
    pair = train_pair(base, pictures_of["content"], pictures_of["twin"], *prompts, options, progress=False)
    return draw_with_style_guidance(base, pair, prompts[0], asked, seeds)


@cache
def shared_base() -> Base:
    """Atelier, loaded once in each process."""
    return load_base("atelier")


@cache
def shared_judges() -> Recogniser:
    """The judges, likewise."""
    return load_recogniser()
