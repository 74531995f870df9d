"""A folder that is drawn into twice: nothing is replaced, and what is scored is what was drawn last."""

import json

import pytest
import torch
from PIL import Image

from duolora.api import generate as module
from duolora.api.generated import first_number, generated_images, write_list
from duolora.errors import InputError
from duolora.model.image_files import GENERATED


@pytest.fixture
def drawing(monkeypatch):
    """`generate` without a network."""

    class Loaded:
        name, parts = "none", None

    monkeypatch.setattr(module, "opened", lambda base: Loaded())
    monkeypatch.setattr(module, "unread", lambda parts, prompt: [])
    monkeypatch.setattr(module, "applied", lambda *_: torch.no_grad())
    monkeypatch.setattr(module, "sample_images", lambda base, prompts, *_, **__: torch.zeros(len(prompts), 3, 8, 8))


def test_numbers_go_on_and_the_last_run_is_what_is_scored(drawing, tmp_path):
    first = module.generate(["a cat", "a dog"], tmp_path, num=2)
    assert [f.name for f in first] == ["00-0.png", "00-1.png", "01-0.png", "01-1.png"]
    whole = first[0].read_bytes()
    again = module.generate("a cow", tmp_path, num=1, seed=7)
    assert [f.name for f in again] == ["02-7.png"]
    assert first[0].read_bytes() == whole
    found = generated_images(tmp_path)
    assert found.files == tuple(again)
    assert found.left_out == tuple(f"{f.name} (of another run)" for f in first)
    facts = json.loads((tmp_path / GENERATED).read_text("utf-8"))
    assert facts["images"] == [{"file": "02-7.png", "prompt": "a cow", "seed": 7}]


def test_old_images_are_not_scored_with_the_new(drawing, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png")
    assert generated_images(tmp_path).files == (tmp_path / "old.png",)
    new = module.generate("a cat", tmp_path, num=1)
    assert generated_images(tmp_path).files == tuple(new)
    assert generated_images(new[0]).files == tuple(new)


def test_images_that_were_sorted_out_are_not_missed_but_all_are(tmp_path):
    names = [tmp_path / f"00-{k}.png" for k in range(3)]
    for path in [*names, tmp_path / "other.png"]:
        Image.new("RGB", (8, 8)).save(path)
    write_list(tmp_path, names, ["a"] * 3, range(3))
    names[0].unlink()
    assert generated_images(tmp_path).files == tuple(names[1:])
    for path in names[1:]:
        path.unlink()
    with pytest.raises(InputError, match=r"images that generated\.json names are gone; delete it"):
        generated_images(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"made_by": "another"}', '{"made_by": "duolora generate"}', "[" * 9999])
def test_a_list_that_is_not_ours_is_neither_believed_nor_replaced(drawing, tmp_path, text):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / GENERATED).write_text(text)
    assert generated_images(tmp_path).files == (tmp_path / "a.png",)
    with pytest.raises(InputError, match="name another folder"):
        module.generate("a cat", tmp_path, num=1)
    assert (tmp_path / GENERATED).read_text() == text


def test_numbers_go_on_after_the_highest(tmp_path):
    assert first_number(tmp_path) == 0
    for name in ("00-5.png", "07-1.png", "99.png", "12-1.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert first_number(tmp_path) == 8
