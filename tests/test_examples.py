"""The examples run, one on what another wrote."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from duolora.model.defaults import base_path

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def made(few_steps, unloaded, tmp_path_factory):
    """What the longest example leaves, after one training step."""
    out = tmp_path_factory.mktemp("example")
    return out, example("train_and_merge")(out, steps=1)


def test_from_images_to_images(made):
    out, images = made
    assert len(images) == 4
    assert {path.name for path in out.glob("*.safetensors")} >= {"content.safetensors", "both.safetensors"}


def test_two_files_into_one(made):
    out, _ = made
    merged = example("merge_two_files")(
        str(out / "content.safetensors"), str(out / "style.safetensors"), str(out / "sum.safetensors")
    )
    assert merged.path.stat().st_size > 10_000


def test_in_plain_diffusers(made):
    out, _ = made
    base = str(base_path("atelier"))
    for name in ("both", "content"):
        example("in_diffusers")(base, str(out / f"{name}.safetensors"), "a house", str(out / f"{name}.png"), steps=2)
    both, content = (np.asarray(Image.open(out / f"{name}.png")) for name in ("both", "content"))
    assert (both != content).any()
