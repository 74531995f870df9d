"""One cell of a table: a row on a problem with a seed, from the images of a LoRA to the scores of what is generated."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from duolora.api.choose import ATELIER, choose
from duolora.api.compose import compose
from duolora.api.generate import applied
from duolora.api.merge import merge
from duolora.api.refine import FIRST, GUIDANCE, KEEP, NUM, refine
from duolora.api.train import default_options
from duolora.bench.cells.lora import Lora, Source, shared_base
from duolora.bench.cells.scores import Images, Scoring
from duolora.bench.options import PLAIN, Settings
from duolora.bench.tables.render import is_sound
from duolora.bench.tables.rows import ALONE, BEST, CANDIDATES, Row
from duolora.bench.tables.tuning import STYLES
from duolora.errors import FileRefused, InputError
from duolora.lora.read.file import read_adapter
from duolora.merging.inputs import sources
from duolora.merging.klora import klora
from duolora.merging.mask_file import MaskFile, write_masks
from duolora.merging.options import MergeOptions, options_of
from duolora.model.base import Base
from duolora.model.image_files import read_image
from duolora.model.images import as_image, load_images, tiled
from duolora.model.sample import images_at_once, sample_images
from duolora.provenance import facts
from duolora.textfiles import read_json, write_json, write_whole
from duolora.training.pair_customization import sample_with_style_guidance, train_pair

MERGED, MASKS, COST, SHEET, IMAGES = "merged.safetensors", "masks.safetensors", "cost.json", "images.png", "images"
"""A cell's merge, its masks and what they cost, a sheet of its images and, while it runs or is to be scored by other
metrics later, each of them, in its folder."""
SIDE = 256
"""The largest side of an image on the sheet."""


@dataclass(frozen=True)
class Part:
    """A subject with the style: the images of its LoRAs by kind, and the prompt of their merge."""

    sources: Mapping[str, Source]
    prompt: str


@runtime_checkable
class Problem(Protocol):
    """What methods are compared on: a pair, several subjects in one style, or a pair of photos."""

    @property
    def dataset(self) -> str:
        """The data set that it belongs to."""

    @property
    def name(self) -> str:
        """A name for folders."""

    @property
    def title(self) -> str:
        """What figures call it."""

    @property
    def parts(self) -> Sequence[Part]:
        """Its subjects, each with the style; the merges of several are composed."""

    def about(self, row: Row) -> object:
        """What the results depend on, as plain data."""

    def asked(self, row: Row) -> list[str]:
        """The prompts of a row."""

    def noise_seeds(self, seed: int) -> list[int]:
        """The seeds of each prompt's images."""

    def scores(self, cell: "Cell", images: Images = ()) -> dict[str, object]:
        """What is measured of a cell's images."""


@dataclass(frozen=True)
class Cell:
    """What is measured: a row of a table on a problem, with a seed for merging and generating."""

    out: Path
    problem: Problem
    row: Row
    seed: int = 0
    base: str = "atelier"
    scoring: Scoring | None = None
    """By which scores its images are kept one by one, so that others can be added later."""
    settings: Settings = PLAIN

    @property
    def folder(self) -> Path:
        """Where its results are, the same for the same measurement in any table."""
        merged = self.row.how == "merge"
        # without options that are off, so that one that is new and off changes no folder
        options = {name: value for name, value in asdict(self.options).items() if value} if merged else {}
        measured = [described(self.row), options, self.problem.about(self.row)]
        measured += [how] if (how := self.settings.said()) else []
        if self.row.how in BEST:
            measured += [[asdict(options_of(method)) for method in CANDIDATES], self._similarities()]
        if self.row.how == "refined":
            measured += [[GUIDANCE, NUM, KEEP], asdict(default_options(self.base))]
        about = json.dumps(measured, sort_keys=True)
        mark = hashlib.sha256(about.encode()).hexdigest()[:8]
        return self.out / "cells" / self.problem.name / f"{self.row.name}-{mark}-{self.seed}"

    @property
    def options(self) -> MergeOptions:
        """The options of its merge."""
        return replace(options_of(self.row.method, **self.row.changes), seed=self.seed)

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").exists()

    @property
    def scored(self) -> bool:
        """Whether its result has all scores that are asked for."""
        return self.scoring is None or self.result().get("scoring") == self.scoring.plain()

    @property
    def images(self) -> int:
        """How many images are generated for it."""
        return len(self.problem.asked(self.row)) * len(self.problem.noise_seeds(self.seed))

    @property
    def loaded(self) -> Base:
        """Its base."""
        return shared_base(self.settings.chosen(self.base))

    def result(self) -> dict[str, Any]:
        """What was measured.

        Raises:
            FileRefused: its file is damaged.
        """
        path = self.folder / "result.json"
        if not is_sound(found := read_json(path)):
            raise FileRefused(f"{path}: not as a benchmark leaves it; delete its folder and run it again")
        return found

    def loras(self) -> list[dict[str, Lora]]:
        """The LoRAs of each part of its problem by kind, needed or not."""
        blocks = self.row.blocks
        return [
            {
                kind: Lora(self.out, source, self.base, tuple(blocks.get(kind, ())), self.settings)
                for kind, source in part.sources.items()
            }
            for part in self.problem.parts
        ]

    def needs(self) -> list[Lora]:
        """The LoRAs that must be there before it runs."""
        how = self.row.how
        kinds = [ALONE[how]] if how in ALONE else ["content", "style"] if how in ("merge", "klora", *BEST) else []
        return [loras[kind] for loras in self.loras() for kind in kinds]

    def run(self) -> None:
        """Merge, generate and score; the result is written last, whole, so that what is there is finished.

        A cell that was stopped goes on with the merge and the images that it has.
        """
        begun, made = time.perf_counter(), facts(self.loaded.device.type, self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        prompts, seeds = self.problem.asked(self.row), self.problem.noise_seeds(self.seed)
        files, cost = self._files()
        images = self._generated(files, [p for p in prompts for _ in seeds], seeds * len(prompts))
        small = [_thumbnail(image) for image in images]
        tiled([small[i : i + len(seeds)] for i in range(0, len(small), len(seeds))]).save(self.folder / SHEET)
        result = {"problem": asdict(self.problem), "row": asdict(self.row), "seed": self.seed, "prompts": prompts}  # type: ignore[call-overload]
        result |= made | {"base": self.base, "device": self.loaded.device.type, "settings": self.settings.said()} | cost
        result |= self.problem.scores(self, images)
        write_json(self.folder / "result.json", result | {"seconds_all": time.perf_counter() - begun})
        if self.scoring is None:
            shutil.rmtree(self.folder / IMAGES, ignore_errors=True)

    def complete(self) -> None:
        """Score the kept images by what is asked for now."""
        write_json(self.folder / "result.json", self.result() | self.problem.scores(self))

    def _files(self) -> tuple[list[Path], dict[str, object]]:
        """The LoRA files that it generates with, and what they cost."""
        parts, how = self.loras(), self.row.how
        files = [loras[ALONE[how]].path for loras in parts] if how in ALONE else []
        if how in ("merge", *BEST):
            names = [MERGED] if len(parts) == 1 else [f"merged-{k}.safetensors" for k in range(len(parts))]
            files = [self.folder / name for name in names]
        whole = [self.folder / "composed.safetensors"] if len(files) > 1 else files
        made = self.folder / COST
        if not made.exists():
            cost: dict[str, object] = {}
            for path, loras, part in () if how in ALONE else zip(files, parts, self.problem.parts, strict=False):
                made_by = self._merge if how == "merge" else self._best
                cost = made_by(path, loras["content"], loras["style"], part.prompt)
            if whole != files:
                cost = {"bytes": compose(files, whole[0], [1 / len(files)] * len(files)).verification.size}
            write_json(made, cost)
        return whole, read_json(made)

    def _merge(self, path: Path, content: Lora, style: Lora, prompt: str) -> dict[str, object]:
        """Merge two LoRAs into a file; returns what the merge cost and how it was made."""
        merged = merge(
            content.path, style.path, path, self.row.method, self.loaded, content.images, style.images,
            content_prompt=content.source.prompt, style_prompt=style.source.prompt, merged_prompt=prompt,
            options=self.options, progress=False,
        )  # fmt: skip
        storage = 0
        if self.options.masks != "none":
            masks = {"content": merged.content_masks, "style": merged.style_masks}
            storage = write_masks(path.with_name(MASKS), MaskFile(masks, {}))
        return {
            "options": asdict(self.options),
            "trainable": merged.trainable,
            "storage": storage,
            "change": merged.mean_change,
            "bytes": merged.verification.size,
            "seconds": merged.seconds,
            "error": merged.verification.error,
        }

    def _candidates(self, path: Path, content: Lora, style: Lora, prompt: str) -> dict[Path, dict[str, Any]]:
        """The merges that the best is made of, with their costs: finished cells', or made beside `path`."""
        costs = dict[Path, dict[str, Any]]()
        for method in CANDIDATES:
            cell = replace(self, row=Row(method, method))
            if cell.done and (cell.folder / MERGED).exists():
                costs[cell.folder / MERGED] = read_json(cell.folder / COST) | {"chosen": method}
            else:
                own = path.with_name(f"{method}.safetensors")
                costs[own] = cell._merge(own, content, style, prompt) | {"chosen": method}
        path.with_name(MASKS).unlink(missing_ok=True)  # the last candidate's
        return costs

    def _best(self, path: Path, content: Lora, style: Lora, prompt: str) -> dict[str, object]:
        """Keep the merge that `choose` takes of the candidates', or train a LoRA on the best of their images.

        The images have other seeds than those that are scored.
        """
        metrics = self._similarities()
        if len(metrics) < 2:
            raise InputError(f"{self.row.label}: expected dino, and csd-s or clip-i, among --metrics, to choose by")
        costs = self._candidates(path, content, style, prompt)
        begun, merging = time.perf_counter(), sum(cost["seconds"] for cost in costs.values())
        photo, shown, how = content.references(), style.references(), self.settings.sampling()
        checkpoints = self.scoring.checkpoints if self.scoring else None
        known: dict[str, Any] = {"metrics": metrics, "checkpoints": checkpoints, "progress": False}
        if self.row.how == "chosen":
            found = choose([*costs], prompt, photo, shown, self.loaded, seed=FIRST + self.seed, **known, **how)
            write_whole(path, found.path.read_bytes())
            scores = {costs[each.path]["chosen"]: each.score for each in found.candidates}
            cost = costs[found.path] | {"scores": scores}
        else:
            options = replace(default_options(self.base), **self.settings.training, seed=self.seed)  # type: ignore[arg-type]
            steps = {name: value for name, value in how.items() if name == "steps"}  # its guidance is its own
            known |= steps | {"seed": self.seed, "options": options}
            made = refine([*costs], prompt, photo, shown, path, self.loaded, **known)
            shutil.rmtree(made.images)
            size = made.trained.verification.size
            cost = {"bytes": size, "kept": {costs[file]["chosen"]: n for file, n in made.kept.items()}}
        for file in costs:
            if file.parent == path.parent:
                file.unlink(missing_ok=True)
        return cost | {"seconds": merging + time.perf_counter() - begun}

    def _similarities(self) -> tuple[str, ...]:
        """By what a merge is chosen: Atelier's own or, on photos, DINO and the better style measure that is there."""
        if self.scoring is None:
            return ATELIER
        asked = self.scoring.metrics
        return (*(["dino"] if "dino" in asked else []), *[name for name in STYLES if name in asked][:1])

    def _generated(self, files: Sequence[Path], prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """An image of each prompt and seed; each is written as it is made, and those that are there stay.

        As many are made at once as ever, so that they are the same if the cell was stopped among them.
        """
        base, folder = self.loaded, self.folder / IMAGES
        places = [folder / f"{k:04d}.png" for k in range(len(prompts))]
        at_once = images_at_once(base.resolution, base.offload)
        parts = [range(i, min(i + at_once, len(places))) for i in range(0, len(places), at_once)]
        if waiting := [part for part in parts if not all(places[k].exists() for k in part)]:
            with self._sampler(files) as sample:
                for part in waiting:
                    generated = sample([prompts[k] for k in part], [seeds[k] for k in part])
                    for k, pixels in zip(part, generated.clamp(-1, 1), strict=True):
                        file = BytesIO()
                        as_image(pixels).save(file, "PNG")
                        write_whole(places[k], file.getvalue())
        return [read_image(place) for place in places]

    @contextmanager
    def _sampler(self, files: Sequence[Path]) -> Iterator[Callable[[list[str], list[int]], Tensor]]:
        """What makes images of prompts and seeds: the LoRA files on the base, K-LoRA or PairCustomization."""
        base, how = self.loaded, self.settings.sampling()
        if self.row.how == "klora":
            content, style = (read_adapter(lora.path) for lora in self.needs())
            both = sources(base.architecture, content, style, MergeOptions())
            with klora(base, both, **self.row.changes) as chooser:  # type: ignore[arg-type]
                yield lambda prompts, seeds: sample_images(base, prompts, seeds, before_step=chooser, **how)
        elif self.row.how == "pair":
            (part,), (loras,) = self.problem.parts, self.loras()
            shown = [load_images(loras[kind].references(), base.resolution) for kind in ("content", "twin")]
            options = replace(default_options(base.name), **self.settings.training, seed=self.seed)  # type: ignore[arg-type]
            prompt = part.sources["content"].prompt
            pair = train_pair(base, shown[0], shown[1], prompt, part.prompt, options, progress=False)
            yield lambda prompts, seeds: sample_with_style_guidance(base, pair, prompt, prompts, seeds, **how)
        else:
            with applied(base, files):
                yield lambda prompts, seeds: sample_images(base, prompts, seeds, **how)


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return small


def described(row: Row) -> dict[str, object]:
    """A row as what it measures: whatever it is called, and without what it leaves empty."""
    found = asdict(row) | {"label": ""}
    return {name: value for name, value in found.items() if name != "group" and (name != "blocks" or value)}
