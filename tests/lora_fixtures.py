"""A tiny base, and a few images to train on."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from duolora.api.train import TrainOptions, train
from duolora.model.base import Base, load_base
from duolora.model.images import as_image
from tiny import tiny_pipeline

OPTIONS = TrainOptions(rank=4, steps=12, batch=2, lr=1e-2)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base in diffusers' layout."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(folder / "tokenizers").save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def base(folder: Path) -> Base:
    """The tiny base, loaded."""
    return load_base(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images, of odd sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for k, size in enumerate([(40, 30), (16, 16), (21, 33)]):
        noise = torch.rand(3, size[1], size[0], generator=torch.Generator().manual_seed(k)) * 2 - 1
        as_image(noise).save(folder / f"{k}.png")
    Image.new("L", (20, 20), 128).save(folder / "grey.jpg")
    return folder


@pytest.fixture(scope="session")
def loras(base: Base, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A content LoRA and a style LoRA on the tiny base."""
    folder = tmp_path_factory.mktemp("loras")
    train(photos, "a sks cat in flat style", folder / "content.safetensors", base, OPTIONS, progress=False)
    style = TrainOptions(rank=3, steps=12, batch=2, lr=1e-2, seed=1)
    train(photos / "1.png", "a house in zwx style", folder / "style.safetensors", base, style, progress=False)
    return folder / "content.safetensors", folder / "style.safetensors"
