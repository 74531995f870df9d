"""Damaged metadata of a mask file is refused, whatever it holds."""

import pytest
import torch

from duolora.errors import FileRefused
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import source_hash
from duolora.lora.write.file import write_adapter
from duolora.merging.mask_file import MaskFile, read_masks, rebuilt, write_masks
from duolora.paper.lowrank import LowRank

MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SOUND = {"masks": "rank", "basis": "svd", "threshold": 0, "binary": False, "unmasked": "sum"}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.safetensors"
    write_adapter(path, Adapter({MODULE: LowRank(torch.ones(4, 2), torch.ones(2, 3))}))
    return path


def again(source, tmp_path, **changes):
    metadata = {"content": source_hash(source), "style": source_hash(source), "options": SOUND | changes}
    masks = {kind: {MODULE: torch.ones(2)} for kind in ("content", "style")}
    write_masks(tmp_path / "m.safetensors", MaskFile(masks, metadata))
    stored: MaskFile = read_masks(tmp_path / "m.safetensors")
    return rebuilt(stored, source, source)


@pytest.mark.parametrize(
    ("name", "value"),
    [("unmasked", "zzz"), ("unmasked", [1]), ("masks", ["x"]), ("basis", {}), ("binary", "no"), ("threshold", "x"),
     ("threshold", None), ("content_weight", "abc"), ("style_weight", [1]), ("style_weight", None),
     ("content_weight", 10**400), ("content_weight", True)],
)  # fmt: skip
def test_impossible_options_are_refused(source, tmp_path, name, value):
    assert MODULE in again(source, tmp_path).modules
    with pytest.raises(FileRefused, match=f"{name} of the merge: found"):
        again(source, tmp_path, **{name: value})
