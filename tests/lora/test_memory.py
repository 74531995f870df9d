"""Large files cost little more memory than they have bytes."""

import gc
import weakref

import pytest
import torch
from safetensors.torch import load

from duolora.api import compose as verb
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import DTYPES, read_adapter, read_tensors
from duolora.lora.write.file import write_adapter
from duolora.lora.write.layout import laid_out
from duolora.paper.lowrank import LowRank

MODULE = "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"


def some(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(6).reshape(2, 3).to(dtype)


def test_a_file_is_laid_out_without_a_copy_and_safetensors_reads_it(tmp_path):
    tensors = {str(dtype): some(dtype) for dtype in DTYPES.values()} | {"": torch.zeros(0, 3), "one": torch.tensor(2.0)}
    pieces = laid_out(tensors, {"b": "1", "a": "é"})
    (tmp_path / "x").write_bytes(b"".join(pieces))
    for found in (load((tmp_path / "x").read_bytes()), read_tensors(tmp_path / "x")):
        assert found.keys() == tensors.keys()
        assert all(found[k].dtype == v.dtype and found[k].shape == v.shape for k, v in tensors.items())
        assert all(torch.equal(found[key].float(), value.float()) for key, value in tensors.items())
    tensors["torch.float64"].fill_(7)
    assert torch.frombuffer(b"".join(pieces[2:])[:48], dtype=torch.float64).eq(7).all(), "the pieces are the tensors"


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """Mapped memory would end the whole process."""
    from duolora.errors import FileRefused
    from duolora.lora.read import file

    path = tmp_path / "a.safetensors"
    write_adapter(path, Adapter({MODULE: LowRank(torch.ones(8, 2), torch.ones(2, 8))}))
    header = file.read_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    monkeypatch.setattr(file, "read_header", lambda _: header)
    with pytest.raises(FileRefused, match="it has become shorter"):
        read_adapter(path)


def test_sources_are_let_go_before_their_sum_is_written(tmp_path, monkeypatch):
    held, counts = [], []
    for name in "ab":
        write_adapter(tmp_path / f"{name}.safetensors", Adapter({MODULE: LowRank(torch.ones(8, 2), torch.ones(2, 8))}))

    def read(path, **given):
        found = read_adapter(path, **given)
        assert found.modules[MODULE].up.dtype == torch.float16, "as stored, and made wide module by module"
        held.append(weakref.ref(found))
        return found

    def write(*given):
        gc.collect()
        counts.append(sum(each() is not None for each in held))
        return write_adapter(*given)

    monkeypatch.setattr(verb, "read_adapter", read)
    monkeypatch.setattr(verb, "write_adapter", write)
    verb.compose([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "c.safetensors", [1.0, 1.0])
    assert counts == [0] and len(held) == 2
    assert torch.allclose(read_adapter(tmp_path / "c.safetensors").modules[MODULE].delta(), torch.full((8, 8), 4.0))
