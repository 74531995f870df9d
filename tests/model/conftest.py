"""A tiny base on disk, made once for all tests of the networks."""

from pathlib import Path

import pytest

from tiny import save_single_file, tiny_pipeline


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base in diffusers' folder layout; copy it before changing it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(folder / "tokenizers").save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def base_file(base_folder: Path) -> Path:
    """The same base as a single file."""
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(str(base_folder))
    return save_single_file(pipeline, base_folder.parent / "base.safetensors")
