"""Pickled checkpoints become safetensors, and nothing in them is executed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from command import run
from duolora.errors import FileRefused, InputError
from duolora.metrics.encoders import load_embedder
from duolora.metrics.pickled import convert


@pytest.fixture
def published(dino, tmp_path):
    """A folder as the hub's main branch has it: config and `pytorch_model.bin` only."""
    folder = tmp_path / "dino-vits16"
    shutil.copytree(dino, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_pickled_folder_is_the_same_network(published, dino, tmp_path):
    given = ["checkpoints", "convert", "dino", str(published), "--out", str(tmp_path / "made"), "--json"]
    done = run(*given)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"path": str(tmp_path / "made")}
    modes = {file.stat().st_mode for file in (tmp_path / "made").iterdir()}
    assert len(modes) == 1, "whoever reads one file reads all"
    here, there = (load_embedder("dino", place, "cpu").card.fingerprint for place in (dino, tmp_path / "made"))
    assert here == there
    with pytest.raises(InputError, match="expected the name of a new folder"):
        convert("dino", published, tmp_path / "made")


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_what_is_refused_is_named_as_it_was_given(clip, tmp_path):
    folder = tmp_path / "clip-vit-base-patch32"
    folder.mkdir()
    shutil.copyfile(clip / "config.json", folder / "config.json")
    torch.save(load_file(clip / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(FileRefused, match="its tokenizer has .* tokens") as refused:
        convert("clip", folder, tmp_path / "made")
    assert str(refused.value).startswith(f"{folder}: ")
    assert not (tmp_path / "made").exists()


def test_code_is_never_run(published, tmp_path):
    torch.save({"weight": Evil(tmp_path / "ran")}, published / "pytorch_model.bin")
    with pytest.raises(FileRefused, match="expected weights and nothing else"):
        convert("dino", published, tmp_path / "made")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "made").exists()
    with pytest.raises(InputError, match="expected a folder with pytorch_model.bin"):
        convert("clip", tmp_path / "nowhere", tmp_path / "made")
