"""Choose among LoRA files: the one whose images are nearest to the subject's photos and to the style image together.

Which method merges best differs from pair to pair, far more than methods differ in the mean. The
rule is that of tuning on photos: the geometric mean of the two similarities.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from duolora.api.generate import applied
from duolora.errors import InputError
from duolora.metrics.encoder import Card, Embedder
from duolora.metrics.encoders import load_embedder
from duolora.metrics.named import METRICS
from duolora.metrics.similarity import mean_by_row
from duolora.model.base import Base, BaseChoice, opened
from duolora.model.defaults import STEPS, Sampling, check_sampling
from duolora.model.image_files import image_paths, read_image
from duolora.model.images import as_image
from duolora.model.prompts import refuse_unread
from duolora.model.sample import sample_images
from duolora.options import several

ATELIER, PUBLISHED = ("atelier-content", "atelier-csd"), ("dino", "csd-s")
"""The similarities with the subject and with the style, on Atelier and on other bases."""


class ChooseKeywords(TypedDict, total=False):
    """What `choose` takes by keyword only; it says what each is."""

    metrics: str | Sequence[str] | None
    checkpoints: Mapping[str, str | Path] | None
    num: int
    seed: int
    steps: int
    guidance: float | None
    progress: bool


@dataclass(frozen=True)
class Candidate:
    """A file, and how near its images are to the subject and to the style: average cosines, in [-1, 1]."""

    path: Path
    content: float
    style: float

    @property
    def score(self) -> float:
        """The geometric mean of the two, 0 where one is negative."""
        return math.sqrt(max(self.content, 0.0) * max(self.style, 0.0))


@dataclass(frozen=True)
class Choice:
    """The files, the best first, and what was measured."""

    candidates: tuple[Candidate, ...]
    metrics: tuple[str, str]
    """Those with the subject and with the style."""
    cards: tuple[Card, Card]
    prompt: str
    images: int
    """How many of each file."""

    @property
    def path(self) -> Path:
        """The best file."""
        return self.candidates[0].path

    def facts(self) -> dict[str, object]:
        """All of it as plain data, for JSON."""
        scores = [asdict(each) | {"score": each.score} for each in self.candidates]
        return asdict(self) | {"path": self.path, "candidates": scores}

    def table(self) -> str:
        """The files for people, the best first."""
        width = max(len(str(each.path)) for each in self.candidates)
        lines = [f"{'':{width}}  {self.metrics[0]:>15}  {self.metrics[1]:>11}  both"]
        for each in self.candidates:
            lines.append(f"{each.path!s:{width}}  {each.content:15.3f}  {each.style:11.3f}  {each.score:.3f}")
        lines.append(
            f"\nthe best of {len(self.candidates)}: {self.path} ({self.images} images each of {self.prompt!r})"
        )
        return "\n".join(lines)


def choose(
    loras: str | Path | Sequence[str | Path],
    prompt: str,
    content: str | Path,
    style: str | Path,
    base: str | BaseChoice | Base = "atelier",
    **given: Unpack[ChooseKeywords],
) -> Choice:
    """Generate with each file from the same seeds, and rank the files by how near their images are to the photos.

    Args:
        loras: two or more LoRA files, such as merges of the same two by several methods or strengths.
        prompt: what to generate, "a sks teapot in zwx style".
        content: the subject's photos, a folder or one.
        style: the style image, or a folder of them.
        base: a name, path or hub id (see `load_base`), a choice of how to run it, or a loaded base.
        metrics: one that compares with the content and one with the style (`METRICS`); by default `ATELIER` on
            Atelier and `PUBLISHED` elsewhere. Without CSD's checkpoint, "dino,clip-i".
        checkpoints: hub id or path by embedder, where it is not the published one; CSD always needs one.
        num: images of each file, by default 8.
        seed: the first seed.
        steps: denoising steps, by default 25.
        guidance: classifier-free guidance scale, by default what suits the base; 1 is none.
        progress: show bars on stderr, as by default.

    Raises:
        DuoLoRAError: there are fewer than two files, or an input or a checkpoint cannot be used.
    """
    num, seed, steps = given.get("num", 8), given.get("seed", 0), given.get("steps", STEPS)
    guidance, progress = given.get("guidance"), given.get("progress", True)
    loras = several(loras)
    if len(loras) < 2:
        raise InputError(f"loras: expected two or more files to choose among, got {len(loras)}")
    check_sampling([prompt], Sampling(num, steps, Sampling.guidance if guidance is None else guidance))
    names = both_metrics(given.get("metrics"), name_of(base))
    near = references(names, given.get("checkpoints"), content, style)
    paths, seeds = [Path(lora).expanduser() for lora in loras], range(seed, seed + num)
    candidates = [
        Candidate(each.path, float(each.content.mean()), float(each.style.mean()))
        for each in judged(opened(base), paths, prompt, near, seeds, steps, guidance, progress)
    ]
    ranked = sorted(candidates, key=lambda each: -each.score)
    return Choice(tuple(ranked), names, (near[0].card, near[1].card), prompt, num)


@dataclass(frozen=True, eq=False)
class Judged:
    """A file's images, and how near each is to the content and to the style: average cosines, in [-1, 1]."""

    path: Path
    images: list[Image.Image]
    content: Float[Tensor, " n"]
    style: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The photos of one side, as its embedder sees them."""

    embed: Embedder
    known: Float[Tensor, "m d"]

    @property
    def card(self) -> Card:
        """What made the embeddings."""
        return self.embed.card

    def near(self, images: Sequence[Image.Image]) -> Float[Tensor, " n"]:
        """Each image's average cosine with the photos."""
        return mean_by_row(self.embed(images), self.known)


def references(
    metrics: tuple[str, str], checkpoints: Mapping[str, str | Path] | None, content: str | Path, style: str | Path
) -> tuple[Reference, Reference]:
    """The content photos and the style image, each by the embedder of its metric.

    Raises:
        DuoLoRAError: a photo or a checkpoint cannot be used.
    """
    photos = [[read_image(path) for path in image_paths(where)] for where in (content, style)]
    names = [METRICS[name].embedder for name in metrics]
    embedders = [load_embedder(name, (checkpoints or {}).get(name)) for name in names]
    first, second = (Reference(embed, embed(images)) for embed, images in zip(embedders, photos, strict=True))
    return first, second


def judged(
    base: Base,
    loras: Sequence[Path],
    prompt: str,
    near: tuple[Reference, Reference],
    seeds: Sequence[int],
    steps: int,
    guidance: float | None,
    progress: bool,
) -> Iterator[Judged]:
    """Generate with each file from the same seeds, and compare with the content and the style.

    Raises:
        DuoLoRAError: a file cannot be used.
    """
    for path in loras:
        with applied(base, [path]):
            refuse_unread(base.parts, [prompt])
            pixels = sample_images(base, [prompt] * len(seeds), seeds, steps, guidance, progress=progress)
        images = [as_image(each) for each in pixels.clamp(-1, 1)]
        yield Judged(path, images, near[0].near(images), near[1].near(images))


def name_of(base: str | BaseChoice | Base) -> str:
    """What a base is called, loaded or not."""
    return base.name if isinstance(base, Base) else base.base if isinstance(base, BaseChoice) else base


def both_metrics(metrics: str | Sequence[str] | None, base: str) -> tuple[str, str]:
    """The metric with the content and the one with the style, by default those that suit the base.

    Raises:
        InputError: there are more or fewer, or both compare with the same.
    """
    if metrics is None:
        return ATELIER if base == "atelier" else PUBLISHED
    names = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    by_reference = {METRICS[n].against: n for n in map(str.strip, names) if n in METRICS and "leakage" not in n}
    if len(names) != 2 or not {"content", "style"} <= by_reference.keys():
        raise InputError(
            f"metrics: expected one of the content and one of the style, such as dino,csd-s; got {','.join(names)}"
        )
    return by_reference["content"], by_reference["style"]
