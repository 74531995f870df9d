"""One cell of a table on photos: a pair, a method and a seed, from the photos to the encoders' similarities."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from PIL import Image

from duolora.api.evaluate import METRICS, chosen, evaluate
from duolora.api.train import default_options, train
from duolora.bench.cells.cell import described, drawn_with, merged_into
from duolora.bench.cells.folder import InFolder, write_result
from duolora.bench.cells.jobs import Training, lora_path, shared_base
from duolora.bench.cells.photos import PhotoPair, Photos
from duolora.bench.tables.rows import ALONE, Row
from duolora.metrics.encoder import Embedder
from duolora.metrics.encoders import load_embedder
from duolora.model.images import as_image, tiled

SIDE = 256
"""The largest side of a picture on a cell's sheet; the pictures themselves are beside it."""


@dataclass(frozen=True)
class Scoring:
    """What the pictures are scored by."""

    metrics: tuple[str, ...]
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """By embedder, where it is not the published one."""


@dataclass(frozen=True)
class PhotoJob:
    """A LoRA on photos; only `blocks` of the UNet learn, or all of it when there are none."""

    out: Path
    photos: Photos
    base: str
    blocks: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Whether it learns the thing (content) or the look (style)."""
        return self.photos.kind

    @property
    def path(self) -> Path:
        """The file, named for what it is trained on."""
        return lora_path(self.out, self.photos.about, self.blocks)

    @property
    def images(self) -> Path:
        """The folder of its photos."""
        return self.out / "references" / self.photos.about

    def train(self) -> None:
        """Train it as suits the base, unless it is there."""
        if not self.path.exists():
            options = replace(default_options(self.base, self.photos.kind), blocks=self.blocks)
            train(self.images, self.photos.prompt, self.path, shared_base(self.base), options, progress=False)


@dataclass(frozen=True)
class PhotoCell(InFolder):
    """What is measured: a row of a table on a pair of photos, with a seed for merging."""

    out: Path
    pair: PhotoPair
    row: Row
    scoring: Scoring
    seed: int = 0
    base: str = "atelier"

    @property
    def dataset(self) -> str:
        """The data set of its pair."""
        return self.pair.dataset

    @property
    def folder(self) -> Path:
        """Where its results are, the same for the same pictures in any table."""
        pair, merged = self.pair, self.row.how == "merge"
        about: list[object] = [
            described(self.row),
            self.asked if merged else {},
            pair.content.about,
            pair.style.about,
        ]
        about += [self.prompts, pair.seeds]
        return self.place(pair.name, about)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is asked for, with `{thing}` and `{style}`; of a LoRA alone what it has learnt."""
        alone = {"content": self.pair.content, "style": self.pair.style}
        return (alone[self.row.how].caption,) if self.row.how in alone else self.pair.prompts

    @property
    def jobs(self) -> dict[str, PhotoJob]:
        """The content and the style LoRA of its pair, needed or not."""
        blocks = self.row.blocks
        return {
            photos.kind: PhotoJob(self.out, photos, self.base, tuple(blocks.get(photos.kind, ())))
            for photos in (self.pair.content, self.pair.style)
        }

    @property
    def images(self) -> int:
        """How many images are generated for it."""
        return len(self.prompts) * len(self.pair.seeds)

    def needs(self) -> list[Training]:
        """The LoRAs that must be there before it runs."""
        how = self.row.how
        return [job for kind, job in self.jobs.items() if how in ("merge", "klora") or ALONE.get(how) == kind]

    def scored(self) -> bool:
        """Whether its result has the scores that are asked for."""
        return self.result().get("scoring") == _plain(self.scoring)

    def run(self) -> None:
        """Merge, draw and score; the result is written last, whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ask = self.pair.told if self.row.how == "told" else self.pair.drawn
        jobs, seeds, asked = self.jobs, self.pair.seeds, [ask(prompt) for prompt in self.prompts]
        merging: dict[str, object] = {}
        if self.row.how == "merge":
            merging = merged_into(self.folder, self.row, self.options, self.base, jobs, self.pair.merged_prompt)
        prompts = [prompt for prompt in asked for _ in seeds]
        drawn = drawn_with(self.folder, self.row, self.base, jobs, prompts, [*seeds] * len(asked))
        self._keep([as_image(picture) for picture in drawn])
        about = {"photos": asdict(self.pair), "row": asdict(self.row), "seed": self.seed, "prompts": asked}
        write_result(
            self.folder,
            about | {"base": self.base, "device": shared_base(self.base).device.type} | merging | self._scores(),
        )

    def complete(self) -> None:
        """Score the kept pictures by what is asked for now."""
        write_result(self.folder, self.result() | self._scores())

    def _keep(self, images: Sequence[Image.Image]) -> None:
        """Keep the pictures, and a sheet of them with a row for each prompt."""
        folder, count = self.folder / "pictures", len(self.pair.seeds)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        small = []
        for k, image in enumerate(images):
            image.save(folder / f"{k:04d}.png")
            small.append(image.copy())
            small[-1].thumbnail((SIDE, SIDE))
        tiled([small[i : i + count] for i in range(0, len(small), count)]).save(self.folder / "pictures.png")

    def _scores(self) -> dict[str, object]:
        """Means over the pictures, and the encoders behind them."""
        content, style = (self.jobs[kind].images for kind in ("content", "style"))
        texts = [self.pair.said(prompt) for prompt in self.prompts for _ in self.pair.seeds]
        scoring, loaded = self.scoring, _loaded(tuple(sorted(self.scoring.checkpoints.items())))
        done = evaluate(
            self.folder / "pictures", content, style, texts, scoring.metrics, scoring.checkpoints, cache=self.out,
            embedders=loaded,
        )  # fmt: skip
        cards = {score.card.name: asdict(score.card) for score in done.scores}
        values = {score.metric: score.value.mean for score in done.scores}
        texts = list(dict.fromkeys(texts))
        return {"similarity": values, "encoders": cards, "scoring": _plain(scoring), "texts": texts}


@cache
def _loaded(checkpoints: tuple[tuple[str, str], ...]) -> dict[str, Embedder]:
    """Encoders by name, each loaded once in each process when it is first needed."""
    return {}


def _plain(scoring: Scoring) -> dict[str, object]:
    return {"metrics": list(scoring.metrics), "checkpoints": dict(scoring.checkpoints)}


def scoring_of(metrics: str, checkpoints: Mapping[str, str]) -> Scoring:
    """The scoring by metrics as they are typed, such as "paper" or "dino,clip-t".

    Raises:
        InputError: a name is unknown.
    """
    places = {
        name: str(Path(where).absolute()) if Path(where).exists() else where for name, where in checkpoints.items()
    }
    return Scoring(tuple(chosen(metrics, ["content", "style", "prompt"])), places)


def check_scoring(scoring: Scoring) -> None:
    """Load every encoder once, so that a missing checkpoint is known before anything is trained.

    Raises:
        DuoLoRAError: one is not there, or is not the network that it should be.
    """
    for name in dict.fromkeys(METRICS[metric].embedder for metric in scoring.metrics):
        load_embedder(name, scoring.checkpoints.get(name), "cpu")


def photo_cells(
    rows: Sequence[Row], pairs: Sequence[PhotoPair], scoring: Scoring, out: Path, seed: int = 0, base: str = "atelier"
) -> list[PhotoCell]:
    """All cells of a table on photos, which are brought into `out`.

    Raises:
        InputError: a photo is gone or was changed.
    """
    for photos in {side.about: side for pair in pairs for side in (pair.content, pair.style)}.values():
        photos.brought(out)
    return [PhotoCell(out, pair, row, scoring, seed, base) for row in rows for pair in pairs]
