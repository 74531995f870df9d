"""The verb: files are ranked by the images that they generate, by the geometric mean of two similarities."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from command import run
from duolora.api import choose as verb
from duolora.api.choose import Candidate, both_metrics, choose
from duolora.atelier.pairs import rendered
from duolora.bench.cells.pairs import suite
from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.write.file import write_adapter
from duolora.metrics.encoders import load_embedder
from duolora.metrics.similarity import all_pairs_mean
from duolora.model.base import load_base
from duolora.model.blocks import target_modules
from duolora.model.images import as_pixels
from tiny import random_adapter

PAIR = suite()[0].pair


def image_of(scene):
    return Image.fromarray(rendered([scene])[0])


@pytest.fixture
def photos(tmp_path):
    for name, scene in (("content", PAIR.content_scenes(1)[0]), ("style", PAIR.style_scene())):
        (tmp_path / name).mkdir()
        image_of(scene).save(tmp_path / name / "0.png")
    return tmp_path / "content", tmp_path / "style"


@pytest.fixture
def shows(monkeypatch):
    """Files that generate one image each: the subject in the style, the subject alone, and the style alone."""
    subject = PAIR.content_scenes(1)[0]
    images = {
        "both": replace(subject, style=PAIR.style),
        "content": subject,
        "style": PAIR.style_scene(),
    }
    seen = {}

    @contextmanager
    def applied(base, loras):
        seen["now"] = loras[0].stem
        yield

    def sample(base, prompts, seeds, *args, **how):
        seen.setdefault("asked", []).append((prompts[0], [*seeds]))
        return as_pixels([image_of(images[seen["now"]])] * len(prompts))

    monkeypatch.setattr(verb, "applied", applied)
    monkeypatch.setattr(verb, "sample_images", sample)
    return images, seen


def test_the_file_that_shows_both_is_the_best_and_every_number_is_its_formula(shows, photos):
    images, seen = shows
    files = [f"{name}.safetensors" for name in ("content", "both", "style")]
    done = choose(files, "a sks car in zwx style", *photos, num=2, seed=5, progress=False)
    assert done.path.name == "both.safetensors"
    assert seen["asked"] == [("a sks car in zwx style", [5, 6])] * 3
    assert done.metrics == ("atelier-content", "atelier-csd")
    content, style = (load_embedder(name, None, "cpu") for name in done.metrics)
    for each in done.candidates:
        shown = [image_of(images[each.path.stem])]
        assert each.content == pytest.approx(all_pairs_mean(content(shown), content([image_of(images["content"])])))
        assert each.style == pytest.approx(all_pairs_mean(style(shown), style([image_of(images["style"])])), abs=1e-5)
    scores = [each.score for each in done.candidates]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx((done.candidates[0].content * done.candidates[0].style) ** 0.5)
    assert done.table().splitlines()[1].startswith("both.safetensors")
    assert done.facts()["path"] == done.path


def test_a_negative_similarity_is_no_credit_for_the_other():
    assert Candidate(Path("a"), -0.9, -0.9).score == 0 == Candidate(Path("a"), -0.1, 1.0).score


def test_which_similarities(shows, photos):
    assert both_metrics(None, "sdxl/") == ("dino", "csd-s")
    assert both_metrics("clip-i,dino", "atelier") == ("dino", "clip-i")
    for wrong in ("dino", "dino,atelier-content", "dino,clip-i,csd-s", "dino,leakage", "dino,clip-t", "nosuch,dino"):
        with pytest.raises(InputError, match="expected one of the content and one of the style"):
            both_metrics(wrong, "atelier")
    with pytest.raises(InputError, match="two or more files"):
        choose("one.safetensors", "a cat", *photos)
    with pytest.raises(InputError, match="csd"):
        choose(["a.safetensors", "b.safetensors"], "a cat", *photos, metrics="atelier-content,csd-s")


def test_by_command_the_best_is_copied(photos, tmp_path):
    base, files = load_base("atelier", "cpu"), []
    for k in range(2):
        files.append(tmp_path / f"{k}.safetensors")
        modules = random_adapter(base.unet, target_modules(base.unet)[:2], 2, k, scale=0.1)
        write_adapter(files[-1], Adapter(modules, {}))
    content, style = photos
    asked = ["choose", *files, "--prompt", "a cat", "--content", content, "--style", style, "--num", "1", "--json"]
    found = json.loads(run(*asked, "--out", tmp_path / "best.safetensors").stdout)
    assert found["path"] in map(str, files)
    best = next(file for file in files if str(file) == found["path"])
    assert (tmp_path / "best.safetensors").read_bytes() == best.read_bytes()
    again = run(*asked, "--out", tmp_path / "best.safetensors")
    assert again.exit_code == 1
    assert "best.safetensors" in again.stderr
    assert torch.isfinite(torch.tensor([each["score"] for each in found["candidates"]])).all()
