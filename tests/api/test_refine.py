"""Refining: which images are kept, and the LoRA that is trained on them."""

import pytest
import torch
from PIL import Image

from command import run
from duolora.api.refine import ranked, refine
from duolora.atelier.pairs import rendered
from duolora.bench.cells.pairs import suite
from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.model.base import load_base
from duolora.model.blocks import target_modules
from duolora.training.options import TrainOptions
from tiny import random_adapter

PAIR = suite()[0].pair
QUICK = {"options": TrainOptions(rank=2, steps=2), "steps": 2, "progress": False}


@pytest.fixture(scope="module")
def base():
    return load_base("atelier", "cpu")


@pytest.fixture
def given(base, tmp_path):
    """Two LoRA files, a subject's image and a style's."""
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for k, path in enumerate(files):
        modules = random_adapter(base.unet, target_modules(base.unet)[:2], 2, k, scale=0.1)
        write_adapter(path, Adapter(modules, {}))
    for name, scene in (("content", PAIR.content_scenes(1)[0]), ("style", PAIR.style_scene())):
        Image.fromarray(rendered([scene])[0]).save(tmp_path / f"{name}.png")
    return files, tmp_path / "content.png", tmp_path / "style.png"


def test_style_counts_and_content_half_as_much():
    content = torch.tensor([0.9, 0.1, 0.5, 0.3])
    style = torch.tensor([0.1, 0.8, 0.9, 0.2])
    # ranks from 0: content 3 0 2 1, style 0 2 3 1; style + content / 2: 1.5, 2, 4, 1.5
    assert ranked(content, style).tolist() == [2, 1, 0, 3]
    assert ranked(torch.zeros(3), torch.tensor([0.0, 2.0, 1.0])).tolist()[0] == 1


def test_the_best_images_are_kept_and_learnt(base, given, tmp_path):
    files, content, style = given
    out = tmp_path / "refined.safetensors"
    (tmp_path / "refined-kept").mkdir()
    (tmp_path / "refined-kept" / "009.png").write_bytes(b"of a run before")
    done = refine(files, PAIR.merged_prompt, content, style, out, base, num=2, keep=3, seed=4, **QUICK)
    assert [path.name for path in sorted(done.images.iterdir())] == ["000.png", "001.png", "002.png"]
    assert sum(done.kept.values()) == 3 and set(done.kept) == set(files)
    learnt = read_adapter(done.path)
    assert learnt.metadata["prompt"] == PAIR.merged_prompt
    assert {lora.rank for lora in learnt.modules.values()} == {2}
    again = refine(
        files, PAIR.merged_prompt, content, style, tmp_path / "again.safetensors", base, num=2, keep=3, seed=4, **QUICK
    )
    assert (again.images / "000.png").read_bytes() == (done.images / "000.png").read_bytes()


def test_more_than_there_are_cannot_be_kept(base, given, tmp_path):
    files, content, style = given
    with pytest.raises(InputError, match="keep: expected 1 to 4, 2 images of each file, got 5"):
        refine(files, "a cat", content, style, tmp_path / "x.safetensors", base, num=2, keep=5)
    with pytest.raises(InputError, match="one of the inputs"):
        refine(files, "a cat", content, style, files[0], base)


def test_by_command(given, tmp_path):
    files, content, style = given
    out = tmp_path / "refined.safetensors"
    out.write_bytes(b"mine")
    asked = ["refine", *files, "--prompt", "a cat", "--content", content, "--style", style, "--out", out]
    refused = run(*asked)
    assert refused.exit_code == 1
    assert out.read_bytes() == b"mine"
    assert "refined.safetensors" in refused.stderr
