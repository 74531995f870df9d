"""One cell of a table: a pair, a method and a seed, from the pair's pictures to what the judges say."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from duolora.api.generate import applied
from duolora.api.merge import merge
from duolora.api.train import default_options
from duolora.atelier.classifier import Classifier, judge
from duolora.atelier.looks import KEEP_COLOUR, KEEP_PATTERN
from duolora.atelier.pairs import Pair
from duolora.atelier.scene import SETTINGS
from duolora.bench.cells.folder import InFolder, write_result
from duolora.bench.cells.jobs import LoraJob, Training, reference_images, references, shared_base, shared_judges
from duolora.bench.cells.pairs import Case
from duolora.bench.cells.similarity import similarities, words_of
from duolora.bench.tables.rows import ALONE, Row
from duolora.lora.read.file import read_adapter
from duolora.merging.inputs import sources
from duolora.merging.klora import klora
from duolora.merging.mask_file import MaskFile, write_masks
from duolora.merging.options import MergeOptions
from duolora.model.images import as_image, read_pictures, tiled
from duolora.model.sample import draw
from duolora.training.pair_customization import draw_with_style_guidance, train_pair

COUNT = 8
"""Pictures of each pair and prompt."""
MERGED = "merged.safetensors"
"""A cell's merge, in its folder."""


@dataclass(frozen=True)
class Cell(InFolder):
    """What is measured: a row of a table on a case, with a seed for merging and drawing."""

    out: Path
    case: Case
    row: Row
    seed: int = 0
    base: str = "atelier"

    @property
    def folder(self) -> Path:
        """Where its results are, the same for the same measurement in any table."""
        row = described(self.row)
        if self.row.how == "merge":
            row["options"] = self.asked
        return self.place(self.case.name, [row, asdict(self.case)])

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


def described(row: Row) -> dict[str, object]:
    """A row as what it measures: whatever it is called, and without what it leaves empty."""
    found = asdict(row) | {"label": ""}
    return {name: value for name, value in found.items() if name != "group" and (name != "blocks" or value)}


def jobs_of(cell: Cell) -> dict[str, LoraJob]:
    """The content, the style and the oracle LoRA of a cell's pair, needed or not."""
    case, blocks = cell.case, cell.row.blocks
    of_style = ("style", 1, case.style_seed)
    if case.dataset == "paired":
        of_style = ("twin", case.pictures, case.content_seed)

    def job(kind: str, count: int, seed: int, trained: str = "") -> LoraJob:
        return LoraJob(cell.out, kind, case.pair, count, seed, cell.base, tuple(blocks.get(trained, ())))

    return {
        "content": job("content", case.pictures, case.content_seed, "content"),
        "style": job(*of_style, "style"),
        "oracle": job("oracle", 5, case.content_seed),
    }


def loras_of(cell: Cell) -> dict[str, LoraJob]:
    """The LoRAs that a cell needs."""
    kinds = dict[str, list[str]](floor=[], pair=[]) | {how: [kind] for how, kind in ALONE.items()}
    return {kind: job for kind, job in jobs_of(cell).items() if kind in kinds.get(cell.row.how, ["content", "style"])}


def run_cell(cell: Cell) -> None:
    """Merge, draw and judge; the result is written last, whole, so that what is there is finished."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    prompts = prompts_of(cell)
    loras, merging = loras_of(cell), {}
    if cell.row.how == "merge":
        prompt = cell.case.pair.merged_prompt
        merging = merged_into(cell.folder, cell.row, cell.options, cell.base, loras, prompt)
    drawn = _drawn(cell, prompts, loras)
    images = [as_image(p) for p in drawn]
    result: dict[str, object] = {
        "case": asdict(cell.case),
        "row": asdict(cell.row),
        "seed": cell.seed,
        "prompts": prompts,
        "base": cell.base,
        "device": shared_base(cell.base).device.type,
        "truth": truth(shared_judges(), drawn, cell.case.pair),
        "similarity": _similarity(cell, images),
        "seconds_all": time.perf_counter() - started,
    }
    result |= merging
    tiled([images[i : i + COUNT] for i in range(0, len(images), COUNT)]).save(cell.folder / "pictures.png")
    write_result(cell.folder, result)


def _similarity(cell: Cell, images: Sequence[Image.Image]) -> dict[str, float]:
    content, style = (reference_images(jobs_of(cell)[kind]) for kind in ("content", "style"))
    return similarities(images, content, style, words_of(cell.case.pair))


def prompts_of(cell: Cell) -> list[str]:
    """What is drawn: the thing in the look, as such and somewhere. A LoRA alone is asked for what it has learnt."""
    pair, setting = cell.case.pair, SETTINGS[1 + cell.case.content_seed % (len(SETTINGS) - 1)]
    if cell.row.how == "content":
        return [pair.content_prompt]
    if cell.row.how == "style":
        return [pair.style_prompt]
    asked = pair.told_prompt if cell.row.how == "told" else pair.merged_prompt
    return [asked, asked.replace(" in ", f" {setting} in ", 1)]


def truth(judges: Classifier, drawn: Tensor, pair: Pair) -> dict[str, float | None]:
    """Shares of the pictures in which the judges see the thing's kind, the look, that very thing in it, and so on.

    Joint is the look and all by which the thing is known in it (`Pair.identity`); leak is the style picture's object.
    """
    found = judge(judges, drawn)
    return {
        "object": found.share(object=pair.kind),
        "look": found.share(look=pair.look),
        "joint": found.share(**pair.identity, look=pair.look),
        "colour": found.share(colour=pair.colour) if pair.look in KEEP_COLOUR else None,
        "pattern": found.share(pattern=pair.pattern) if pair.look in KEEP_PATTERN else None,
        "leak": found.share(object=pair.shown),
    }


def merged_into(
    folder: Path, row: Row, options: MergeOptions, base: str, loras: Mapping[str, Training], prompt: str
) -> dict[str, object]:
    """Merge a cell's two LoRAs into its folder; returns what the merge cost and how it was made."""
    content, style = loras["content"], loras["style"]
    merged = merge(
        content.path, style.path, folder / MERGED, row.method, shared_base(base), content.images, style.images,
        merged_prompt=prompt, options=options, progress=False,
    )  # fmt: skip
    storage = 0
    if options.masks != "none":
        masks = {"content": merged.content_masks, "style": merged.style_masks}
        storage = write_masks(folder / "masks.safetensors", MaskFile(masks, {}))
    return {
        "options": asdict(options),
        "trainable": merged.trainable,
        "storage": storage,
        "moved": merged.moved,
        "bytes": merged.proof.size,
        "seconds": merged.seconds,
        "error": merged.proof.error,
    }


def drawn_with(
    folder: Path, row: Row, base_name: str, loras: Mapping[str, Training], asked: Sequence[str], seeds: Sequence[int]
) -> Tensor:
    """A picture of each prompt and seed, by what a cell's row draws with: its merge, a LoRA alone, K-LoRA or none."""
    base, how = shared_base(base_name), row.how
    if how == "klora":
        content, style = (read_adapter(loras[kind].path) for kind in ("content", "style"))
        both = sources(base.architecture, content, style, MergeOptions())
        with klora(base, both, **row.changes) as chooser:  # type: ignore[arg-type]
            return draw(base, asked, seeds, before_step=chooser).clamp(-1, 1)
    alone = [loras[ALONE[how]].path] if how in ALONE else []
    with applied(base, [folder / MERGED] if how == "merge" else alone):
        return draw(base, asked, seeds).clamp(-1, 1)


def _drawn(cell: Cell, prompts: list[str], loras: Mapping[str, LoraJob]) -> Tensor:
    seeds = [1000 + cell.seed * 1000 + k for k in range(COUNT)]
    asked, all_seeds = [p for p in prompts for _ in seeds], seeds * len(prompts)
    if cell.row.how == "pair":
        return _drawn_by_pair(cell, asked, all_seeds).clamp(-1, 1)
    return drawn_with(cell.folder, cell.row, cell.base, loras, asked, all_seeds)


def _drawn_by_pair(cell: Cell, asked: list[str], seeds: list[int]) -> Tensor:
    base, case = shared_base(cell.base), cell.case
    pictures_of = {
        kind: read_pictures(
            references(LoraJob(cell.out, kind, case.pair, case.pictures, case.content_seed)), base.resolution
        )
        for kind in ("content", "twin")
    }
    prompts = (case.pair.content_prompt, case.pair.merged_prompt)
    options = replace(default_options(base.name), seed=cell.seed)
    pair = train_pair(base, pictures_of["content"], pictures_of["twin"], *prompts, options, progress=False)
    return draw_with_style_guidance(base, pair, prompts[0], asked, seeds)
