"""One cell of a table: a row on a problem with a seed, from the images of a LoRA to the scores of what is generated."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from duolora.api.compose import compose
from duolora.api.generate import applied
from duolora.api.merge import merge
from duolora.api.train import default_options
from duolora.bench.cells.lora import Lora, Source, shared_base
from duolora.bench.cells.scores import Images, Scoring
from duolora.bench.tables.rows import ALONE, Row
from duolora.lora.read.file import read_adapter
from duolora.merging.inputs import sources
from duolora.merging.klora import klora
from duolora.merging.mask_file import MaskFile, write_masks
from duolora.merging.options import MergeOptions, options_of
from duolora.model.images import as_image, load_images, tiled
from duolora.model.sample import sample_images
from duolora.textfiles import read_json, write_json
from duolora.training.pair_customization import sample_with_style_guidance, train_pair

MERGED, MASKS, SHEET = "merged.safetensors", "masks.safetensors", "images.png"
"""A cell's merge, its masks, and a sheet of its images, in its folder."""
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
        ...

    @property
    def name(self) -> str:
        """A name for folders."""
        ...

    @property
    def title(self) -> str:
        """What figures call it."""
        ...

    @property
    def parts(self) -> Sequence[Part]:
        """Its subjects, each with the style; the merges of several are composed."""
        ...

    def about(self, row: Row) -> object:
        """What the results depend on, as plain data."""
        ...

    def asked(self, row: Row) -> list[str]:
        """The prompts of a row."""
        ...

    def noise_seeds(self, seed: int) -> list[int]:
        """The seeds of each prompt's images."""
        ...

    def scores(self, cell: "Cell", images: Images = ()) -> dict[str, object]:
        """What is measured of a cell's images."""
        ...


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

    @property
    def folder(self) -> Path:
        """Where its results are, the same for the same measurement in any table."""
        merged = self.row.how == "merge"
        # without options that are off, so that one that is new and off changes no folder
        options = {name: value for name, value in asdict(self.options).items() if value} if merged else {}
        about = json.dumps([described(self.row), options, self.problem.about(self.row)], sort_keys=True)
        name = self.row.method if merged else self.row.how
        mark = hashlib.sha256(about.encode()).hexdigest()[:8]
        return self.out / "cells" / self.problem.name / f"{name}-{mark}-{self.seed}"

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

    def result(self) -> dict[str, Any]:
        """What was measured."""
        return read_json(self.folder / "result.json")

    def loras(self) -> list[dict[str, Lora]]:
        """The LoRAs of each part of its problem by kind, needed or not."""
        blocks = self.row.blocks
        return [
            {k: Lora(self.out, source, self.base, tuple(blocks.get(k, ()))) for k, source in part.sources.items()}
            for part in self.problem.parts
        ]

    def needs(self) -> list[Lora]:
        """The LoRAs that must be there before it runs."""
        how = self.row.how
        kinds = [ALONE[how]] if how in ALONE else ["content", "style"] if how in ("merge", "klora") else []
        return [loras[kind] for loras in self.loras() for kind in kinds]

    def run(self) -> None:
        """Merge, generate and score; the result is written last, whole, so that what is there is finished."""
        begun = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        prompts, seeds = self.problem.asked(self.row), self.problem.noise_seeds(self.seed)
        files, cost = self._files()
        generated = self._generated(files, [p for p in prompts for _ in seeds], seeds * len(prompts))
        images = [as_image(pixels) for pixels in generated.clamp(-1, 1)]
        self._keep(images, len(seeds))
        result = {"problem": asdict(self.problem), "row": asdict(self.row), "seed": self.seed, "prompts": prompts}  # type: ignore[call-overload]
        result |= {"base": self.base, "device": shared_base(self.base).device.type} | cost
        result |= self.problem.scores(self, images)
        write_json(self.folder / "result.json", result | {"seconds_all": time.perf_counter() - begun})

    def complete(self) -> None:
        """Score the kept images by what is asked for now."""
        write_json(self.folder / "result.json", self.result() | self.problem.scores(self))

    def _files(self) -> tuple[list[Path], dict[str, object]]:
        """The LoRA files that it generates with, and what they cost."""
        parts, how, cost = self.loras(), self.row.how, dict[str, object]()
        files = [loras[ALONE[how]].path for loras in parts] if how in ALONE else []
        if how == "merge":
            names = [MERGED] if len(parts) == 1 else [f"merged-{k}.safetensors" for k in range(len(parts))]
            files = [self.folder / name for name in names]
            for path, loras, part in zip(files, parts, self.problem.parts, strict=True):
                cost = self._merge(path, loras["content"], loras["style"], part.prompt)
        if len(files) > 1:
            composed = compose(files, self.folder / "composed.safetensors", [1 / len(files)] * len(files))
            return [composed.path], {"bytes": composed.verification.size}
        return files, cost

    def _merge(self, path: Path, content: Lora, style: Lora, prompt: str) -> dict[str, object]:
        """Merge two LoRAs into a file; returns what the merge cost and how it was made."""
        merged = merge(
            content.path, style.path, path, self.row.method, shared_base(self.base), content.images, style.images,
            merged_prompt=prompt, options=self.options, progress=False,
        )  # fmt: skip
        storage = 0
        if self.options.masks != "none":
            masks = {"content": merged.content_masks, "style": merged.style_masks}
            storage = write_masks(self.folder / MASKS, MaskFile(masks, {}))
        return {
            "options": asdict(self.options),
            "trainable": merged.trainable,
            "storage": storage,
            "change": merged.mean_change,
            "bytes": merged.verification.size,
            "seconds": merged.seconds,
            "error": merged.verification.error,
        }

    def _generated(self, files: Sequence[Path], prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """An image of each prompt and seed, by the LoRA files, or by K-LoRA or PairCustomization."""
        base = shared_base(self.base)
        if self.row.how == "klora":
            content, style = (read_adapter(lora.path) for lora in self.needs())
            both = sources(base.architecture, content, style, MergeOptions())
            with klora(base, both, **self.row.changes) as chooser:  # type: ignore[arg-type]
                return sample_images(base, prompts, seeds, before_step=chooser)
        if self.row.how == "pair":
            (part,), (loras,) = self.problem.parts, self.loras()
            shown = [load_images(loras[kind].references(), base.resolution) for kind in ("content", "twin")]
            options = replace(default_options(base.name), seed=self.seed)
            prompt = part.sources["content"].prompt
            pair = train_pair(base, shown[0], shown[1], prompt, part.prompt, options, progress=False)
            return sample_with_style_guidance(base, pair, prompt, prompts, seeds)
        with applied(base, files):
            return sample_images(base, prompts, seeds)

    def _keep(self, images: Images, count: int) -> None:
        """Keep a sheet of the images with a row for each prompt; with a scoring each of them, too."""
        if self.scoring is not None:
            shutil.rmtree(self.folder / "images", ignore_errors=True)
            (self.folder / "images").mkdir()
            for k, image in enumerate(images):
                image.save(self.folder / "images" / f"{k:04d}.png")
        small = [_thumbnail(image) for image in images]
        tiled([small[i : i + count] for i in range(0, len(small), count)]).save(self.folder / SHEET)


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return small


def described(row: Row) -> dict[str, object]:
    """A row as what it measures: whatever it is called, and without what it leaves empty."""
    found = asdict(row) | {"label": ""}
    return {name: value for name, value in found.items() if name != "group" and (name != "blocks" or value)}
