"""The LoRAs that cells need, each trained once for all of them, and the pictures that they are trained on."""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from duolora.api.train import default_options, train
from duolora.atelier.classifier import Classifier, load_classifier
from duolora.atelier.pairs import IDENTIFIERS, Pair, pictures
from duolora.model.base import Base, load_base
from duolora.model.image_files import picture_files, read_image
from duolora.training.options import TrainOptions


@runtime_checkable
class Training(Protocol):
    """A LoRA that cells need."""

    @property
    def kind(self) -> str:
        """What it learns: content, style, or what the pair's own kinds are."""
        ...

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def images(self) -> Path:
        """The folder of its pictures."""
        ...

    def train(self) -> None:
        """Train it, unless it is there."""
        ...


@dataclass(frozen=True)
class LoraJob:
    """A LoRA on the pictures of a pair.

    `kind`: content, style, oracle (true pictures of the thing in the look), or twin (the content pictures in the look).
    `blocks`: only these parts of the UNet learn, as in B-LoRA; all of it when there are none.
    """

    out: Path
    kind: str
    pair: Pair
    count: int
    seed: int
    base: str = "atelier"
    blocks: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file, named for what it is trained on."""
        return lora_path(self.out, self._about, self.blocks)

    @property
    def images(self) -> Path:
        """The folder of its pictures."""
        return self.out / "references" / self._about

    @property
    def prompt(self) -> str:
        """What it is told that its pictures show."""
        p = self.pair
        return {"content": p.content_prompt, "style": p.style_prompt}.get(self.kind, p.merged_prompt)

    def train(self) -> None:
        """Draw its pictures and train it, unless it is there."""
        train_lora(self)

    @property
    def _about(self) -> str:
        p = self.pair
        name = "" if p.identifier == IDENTIFIERS[0] else f"{p.identifier}-"
        about = {
            "content": f"{p.identifier}-{p.kind}-{p.colour}-{p.pattern}-{self.count}",
            "style": f"{p.look}-{p.shown_colour}-{p.shown}",
            "oracle": f"{name}{p.kind}-{p.colour}-{p.pattern}-{p.look}",
            "twin": f"{p.kind}-{p.colour}-{p.pattern}-{p.look}",
        }[self.kind]
        return f"{self.kind}-{about}-{self.seed}"


def lora_path(out: Path, about: str, blocks: tuple[str, ...] = ()) -> Path:
    """Where a LoRA is, by what it is trained on and the blocks that learn."""
    mark = hashlib.sha256("\n".join(blocks).encode()).hexdigest()[:8] if blocks else ""
    return out / "loras" / f"{'-'.join(filter(None, (about, mark)))}.safetensors"


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
        part = job.images / f".{k:02d}-{os.getpid()}.png"  # another process may be drawing the same
        Image.fromarray(picture).save(part)
        os.replace(part, job.images / f"{k:02d}.png")
    done.touch()
    return job.images


def reference_images(job: LoraJob) -> list[Image.Image]:
    """The pictures of a LoRA, drawn if need be."""
    return [read_image(path) for path in picture_files(references(job))]


def train_lora(job: LoraJob, options: TrainOptions | None = None) -> None:
    """Draw the pictures and train the LoRA on them, unless it is there; by default as suits the base."""
    if not job.path.exists():
        options = options or default_options(job.base, job.kind)
        options = replace(options, blocks=job.blocks)
        train(references(job), job.prompt, job.path, shared_base(job.base), options, progress=False)


@cache
def shared_base(base: str) -> Base:
    """A base, loaded once in each process."""
    return load_base(base)


@cache
def shared_judges() -> Classifier:
    """The judges, likewise."""
    return load_classifier()
