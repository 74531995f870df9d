"""All files of one export are put in place together, or none of them is."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from duolora.errors import DuoLoRAError, FileRefused
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.atomic import part_paths, whole_files
from duolora.merging.export import export
from duolora.merging.mask_file import MaskFile
from duolora.paper.lowrank import LowRank

MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def halved(weak: float = 1.0, content: int = 2) -> Adapter:
    """A merge of one module, two directions of which are weaker by a factor."""
    rng = torch.Generator().manual_seed(0)
    up = torch.cat([torch.randn(32, 2, generator=rng), weak * torch.randn(32, 2, generator=rng)], 1)
    return Adapter({MODULE: LowRank(up, torch.randn(4, 32, generator=rng))}, {"content_ranks": [content]})


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("old", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("fault", ["second verification", "second name"])
def test_a_half_that_fails_leaves_neither(tmp_path, monkeypatch, old, fault):
    out = tmp_path / "x.safetensors"
    for k in old:
        part_paths(out)[k].write_bytes(b"what was there")
    before, replaced, calls = state(tmp_path), Path.replace, []

    def full(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return replaced(path, target)

    if fault == "second name":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DuoLoRAError, match="No space left" if fault == "second name" else "would be off by"):
        export(out, halved(1e-14 if fault == "second verification" else 1.0), "split")
    assert state(tmp_path) == before


def test_masks_that_cannot_be_rebuilt_are_not_left_behind(tmp_path):
    out, stored = tmp_path / "x.safetensors", MaskFile({"content": {}, "style": {}}, {})
    with pytest.raises(FileRefused):
        export(out, halved(), "masks", masks=stored, sources=(tmp_path / "a", tmp_path / "b"))
    assert state(tmp_path) == {}


@pytest.mark.parametrize("content", [0, 4])
@pytest.mark.parametrize("format", ["split", "split-diffusers"])
def test_there_are_always_two_parts(tmp_path, format, content):
    """An old style half beside a new content half would be taken for its partner."""
    out, whole = tmp_path / "x.safetensors", halved(content=content)
    part_paths(out)[0 if content == 0 else 1].write_bytes(b"of another merge")
    done = export(out, whole, format, torch.float32)
    assert sorted(state(tmp_path)) == sorted(path.name for path in done.paths)
    deltas = [read_adapter(path).modules[MODULE].delta() for path in done.paths]
    torch.testing.assert_close(sum(deltas), whole.modules[MODULE].delta())
    assert not deltas[0 if content == 0 else 1].any()
    with safe_open(done.paths[0], "pt") as file:
        assert any("lora_down" in key for key in file.keys()) == (format == "split")  # noqa: SIM118


def test_drafts_of_killed_runs_are_removed_and_those_of_others_are_not(tmp_path):
    out = tmp_path / "x.safetensors"
    left = tmp_path / ".x.0123abcd.tmp.safetensors"
    left.write_bytes(b"half a file")
    with whole_files() as stage:
        mine = stage(out, [b"mine"])
        assert not left.exists()
        with whole_files() as other:
            other(out, [b"theirs"])
            assert mine.exists()
    assert state(tmp_path) == {"x.safetensors": b"mine"}
