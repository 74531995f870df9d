"""Refining: which images are kept, and the LoRA that is trained on them."""

import json

import pytest
import torch
from PIL import Image

from command import run
from duolora.api import refine as module
from duolora.api.choose import Judged
from duolora.api.refine import FIRST, ranked, refine
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


@pytest.fixture
def known(monkeypatch):
    """Each file's images by number, the nearer the higher, and how they were asked for."""
    asked = []

    def judged(base, paths, prompt, near, seeds, steps, guidance, progress):
        asked.append((list(seeds), guidance))
        for k, path in enumerate(paths):
            values = torch.arange(len(seeds)) * 10.0 + k
            images = [Image.new("RGB", (32, 32), (int(value), 0, 0)) for value in values]
            yield Judged(path, images, values, values)

    monkeypatch.setattr(module, "judged", judged)
    return asked


def test_the_best_images_are_kept_and_learnt(base, given, known, tmp_path):
    files, content, style = given
    out = tmp_path / "refined.safetensors"
    (tmp_path / "refined-kept").mkdir()
    (tmp_path / "refined-kept" / "009.png").write_bytes(b"of a run before")
    done = refine(files, PAIR.merged_prompt, content, style, out, base, num=3, keep=3, seed=4, **QUICK)
    kept = [Image.open(path).getpixel((0, 0))[0] for path in sorted(done.images.iterdir())]
    assert kept == [21, 20, 11], "of 0, 10, 20 and 1, 11, 21"
    assert done.kept == {files[0]: 1, files[1]: 2}
    assert known == [([FIRST + 4000, FIRST + 4001, FIRST + 4002], 1.5)]
    learnt = read_adapter(done.path)
    assert learnt.metadata["made_by"] == "duolora refine"
    assert learnt.metadata["prompt"] == PAIR.merged_prompt
    assert learnt.metadata["kept"] == [1, 2]
    assert len(learnt.metadata["sources"]) == 2 and len(learnt.metadata["images"]) == 3
    assert {lora.rank for lora in learnt.modules.values()} == {2}


def test_images_are_really_generated_and_compared(base, given, tmp_path):
    files, content, style = given
    done = refine(
        files[0], PAIR.merged_prompt, content, style, tmp_path / "x.safetensors", base, num=2, keep=2, **QUICK
    )
    assert done.metrics == ("atelier-content", "atelier-csd")
    assert len({path.read_bytes() for path in done.images.iterdir()}) == 2


def test_what_cannot_be_is_refused_before_any_image(base, given, known, tmp_path):
    files, content, style = given
    out, kept = tmp_path / "x.safetensors", tmp_path / "x-kept"

    def refused(match, loras=files, photos=content, out=out, **how):
        with pytest.raises(InputError, match=match):
            refine(loras, "a cat", photos, style, out, base, **{"num": 2, "keep": 3} | how)

    refused("keep: expected 1 to 4, 2 images of each file, got 5", keep=5)
    refused("a file or more", loras=[])
    refused("one of the inputs", out=files[0])
    refused("rank: expected at most", options=TrainOptions(rank=10_000))
    kept.mkdir()
    (kept / "000.png").write_bytes(content.read_bytes())
    refused("there are images already", overwrite=False)
    refused("inputs are never replaced", photos=kept)
    (kept / "cat.jpg").write_bytes(b"mine")
    refused("got cat.jpg as well")
    assert {path.name for path in kept.iterdir()} == {"000.png", "cat.jpg"}
    kept.rename(tmp_path / "elsewhere")
    kept.write_bytes(b"a file")
    refused("x-kept")
    assert not known


def test_by_command(given, tmp_path, known):
    files, content, style = given
    out = tmp_path / "refined.safetensors"
    asked = ["refine", *files, "--prompt", "a cat", "--content", content, "--style", style, "--out", out, "--json"]
    found = json.loads(run(*asked, "--num", "2", "--keep", "3", "--rank", "2", "--steps", "1").stdout)
    assert found["path"] == str(out)
    assert sum(found["kept"].values()) == len(list((tmp_path / "refined-kept").iterdir())) == 3
    before = out.read_bytes()
    refused = run(*asked)
    assert refused.exit_code == 1
    assert "refined.safetensors" in refused.stderr
    assert out.read_bytes() == before
