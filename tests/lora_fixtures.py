"""A tiny base, and a few images to train on."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from duolora.api.train import TrainOptions, train
from duolora.lora.read.file import read_adapter
from duolora.lora.write import file as writer
from duolora.lora.write.file import write_adapter
from duolora.merging import inputs, learn
from duolora.model.base import Base, load_base
from duolora.model.images import as_image
from duolora.model.sample import sample_images
from duolora.training import loop, prior_preservation
from duolora.ui import work
from tiny import tiny_pipeline, tiny_unet

OPTIONS = TrainOptions(rank=4, steps=12, batch=2, lr=1e-2)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base in diffusers' layout; one transformer in each attention, since a merge costs by the module."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(folder / "tokenizers", tiny_unet(transformer_layers_per_block=1)).save_pretrained(folder / "base")
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
def whole_loras(base: Base, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A content LoRA and a style LoRA on the tiny base, of all attention layers."""
    folder = tmp_path_factory.mktemp("whole")
    train(photos, "a sks cat in flat style", folder / "content.safetensors", base, OPTIONS, progress=False)
    style = TrainOptions(rank=3, steps=12, batch=2, lr=1e-2, seed=1)
    train(photos / "1.png", "a house in zwx style", folder / "style.safetensors", base, style, progress=False)
    return folder / "content.safetensors", folder / "style.safetensors"


@pytest.fixture(scope="session")
def loras(whole_loras: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same two with a quarter of the layers, one in each attention: a merge costs by the module."""
    folder = tmp_path_factory.mktemp("loras")
    for path in whole_loras:
        adapter = read_adapter(path)
        kept = {name: lora for name, lora in adapter.modules.items() if name.endswith(("attn1.to_out.0", "attn2.to_v"))}
        write_adapter(folder / path.name, replace(adapter, modules=kept))
    return folder / "content.safetensors", folder / "style.safetensors"


@pytest.fixture(scope="module")
def few_steps() -> Iterator[None]:
    """Images in two denoising steps, where training, merging and the page generate some."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (inputs, learn, loop, prior_preservation, work):
            patch.setattr(module, "sample_images", partial(sample_images, steps=2))
        patch.setattr(inputs, "CALIBRATION_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def unloaded() -> Iterator[None]:
    """Files are not loaded by diffusers as they are written, which takes half of that and is tested in `lora/`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "error_in_diffusers", lambda *_: 0.0)
        yield
