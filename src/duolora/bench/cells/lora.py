"""The LoRAs that cells need, each trained once for all of them, and the images that they are trained on."""

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from duolora.api.train import default_options, train
from duolora.bench.options import PLAIN, Settings
from duolora.model.base import Base, BaseChoice, opened
from duolora.model.image_files import image_paths, read_image


@runtime_checkable
class Source(Protocol):
    """Images of a subject or a style, and their caption."""

    @property
    def kind(self) -> str:
        """What a LoRA learns from them: content, style, or what the pair's own kinds are."""

    @property
    def name(self) -> str:
        """What it is of."""

    @property
    def about(self) -> str:
        """A name for files, another one for other images or captions."""

    @property
    def prompt(self) -> str:
        """Their caption."""

    def write(self, folder: Path) -> None:
        """Write the images into a folder."""


@dataclass(frozen=True)
class Lora:
    """A LoRA on the images of a source; only `blocks` of the UNet are trained, or all if there are none."""

    out: Path
    source: Source
    base: str = "atelier"
    blocks: tuple[str, ...] = ()
    settings: Settings = PLAIN

    @property
    def kind(self) -> str:
        """What it learns."""
        return self.source.kind

    @property
    def path(self) -> Path:
        """The file, named for what it is trained on and how; or the finished one."""
        if self.settings.loras:
            return Path(self.settings.loras) / f"{self.kind}s" / f"{self.source.name}.safetensors"
        how = self.settings.said("training", "resolution", "dtype")
        about = "\n".join((*self.blocks, json.dumps(how, sort_keys=True)) if how else self.blocks)
        mark = hashlib.sha256(about.encode()).hexdigest()[:8] if about else ""
        return self.out / "loras" / f"{'-'.join(filter(None, (self.source.about, mark)))}.safetensors"

    @property
    def images(self) -> Path:
        """The folder of its images."""
        return self.out / "references" / self.source.about

    def references(self) -> Path:
        """The folder of its images, written whole unless it is there."""
        if not self.images.is_dir():
            draft = self.images.with_name(f".{self.images.name}.{secrets.token_hex(4)}")
            draft.mkdir(parents=True)
            try:
                self.source.write(draft)
                if not self.images.is_dir():
                    os.replace(draft, self.images)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return self.images

    def shown(self) -> list[Image.Image]:
        """Its images."""
        return [read_image(path) for path in image_paths(self.references())]

    def train(self) -> None:
        """Train it, unless it is there."""
        if not self.path.exists():
            options = replace(default_options(self.base, self.kind), **self.settings.training, blocks=self.blocks)  # type: ignore[arg-type]
            base = shared_base(self.settings.chosen(self.base))
            train(self.references(), self.source.prompt, self.path, base, options, progress=False)


@cache
def shared_base(base: BaseChoice) -> Base:
    """A base, loaded once in each process."""
    return opened(base)
