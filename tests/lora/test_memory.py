"""Large files cost little more memory than they have bytes."""

import gc
import weakref
from io import BytesIO

import pytest
import torch
from safetensors.torch import load

from duolora.api.compose import compose
from duolora.api.convert import convert
from duolora.api.merge import merge
from duolora.errors import DuoLoRAError
from duolora.lora import on_demand
from duolora.lora.adapter import Adapter
from duolora.lora.on_demand import OnDemand, in_float32, mapped, outlines, renamed, spooled
from duolora.lora.read.file import read_adapter
from duolora.lora.read.stored import DTYPES, read_tensors
from duolora.lora.write import file as writer
from duolora.lora.write.diffusers_check import error_in_diffusers
from duolora.lora.write.file import write_adapter
from duolora.lora.write.kohya import has_kohya_names
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
    from duolora.lora.read import file, stored

    path = tmp_path / "a.safetensors"
    write_adapter(path, Adapter({MODULE: LowRank(torch.ones(8, 2), torch.ones(2, 8))}))
    header = stored.read_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    for module in (file, stored):
        monkeypatch.setattr(module, "read_header", lambda _: header)
    with pytest.raises(FileRefused, match="it has become shorter"):
        read_adapter(path)


@pytest.mark.parametrize("verb, total", [("compose", 6.0), ("convert", 2.0), ("naive", 4.0), ("svd", 4.0)])
def test_a_file_is_written_module_by_module(tmp_path, monkeypatch, verb, total):
    """No more than one module of the sources is in memory at once, and none of the file's while diffusers loads it."""
    alive, most = weakref.WeakSet(), []
    for name in "abc":
        write_adapter(tmp_path / f"{name}.safetensors", Adapter(several(5)), format="diffusers")
    init = LowRank.__post_init__

    def counted(self):
        init(self)
        if self.up.device.type != "meta":
            alive.add(self)
            most.append(len(alive))

    def error(path, meant, dtype, ours):
        gc.collect()
        assert not alive
        return error_in_diffusers(path, meant, dtype, ours)

    monkeypatch.setattr(LowRank, "__post_init__", counted)
    monkeypatch.setattr(writer, "error_in_diffusers", error)
    out = tmp_path / "all.safetensors"
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    if verb == "compose":
        compose(files, out, [1.0, 1.0, 1.0])
    elif verb == "convert":
        convert(files[0], out)
    else:
        merge(files[0], files[1], out, verb, progress=False)
    assert 5 <= max(most) <= 5 + 3 * 3, "the five that diffusers loads; of one, three sources thrice"
    assert torch.allclose(read_adapter(out).modules[MODULE].delta(), torch.full((8, 8), total), rtol=1e-3)


def several(count: int) -> dict[str, LowRank]:
    """Modules of ones."""
    names = [MODULE, *(MODULE.replace("attn1.to_q", f"attn2.to_{side}") for side in ("q", "k", "v", "out.0"))]
    return {name: LowRank(torch.ones(8, 2), torch.ones(2, 8)) for name in names[:count]}


def test_names_are_found_without_making_the_modules():
    lora, made = LowRank(torch.ones(8, 2), torch.ones(2, 8)), []
    modules = OnDemand({MODULE.replace("1", str(k)): lora for k in range(9)}, lambda name: made.append(name) or lora)
    assert has_kohya_names(Adapter(modules, families=("SDXL",)))
    assert len(made) < 5  # beartype looks at one in each call


def test_modules_on_demand_are_those_of_the_file(tmp_path):
    write_adapter(tmp_path / "a.safetensors", Adapter(several(5)), format="diffusers")
    eager, lazy = (read_adapter(tmp_path / "a.safetensors", as_stored=stored).modules for stored in (False, True))
    assert isinstance(lazy, OnDemand) and list(lazy) == list(eager) and len(lazy) == 5
    assert all(lora.up.device.type == "meta" for lora in outlines(lazy).values())
    for name, lora in mapped(renamed(lazy, {f"new {name}": name for name in lazy}), in_float32).items():
        same = eager[name.removeprefix("new ")]
        assert (lora.scale, lora.kernel) == (same.scale, same.kernel)
        assert torch.equal(lora.up, same.up) and torch.equal(lora.down, same.down)
    assert lazy[MODULE].up.dtype == torch.float16 and lazy[MODULE] is not lazy[MODULE]
    with pytest.raises(KeyError):
        lazy["nothing"]


def test_modules_that_take_long_are_made_once_and_come_back_as_they_were(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    given = {
        "a": LowRank(torch.randn(4, 2, generator=rng), torch.randn(2, 6, generator=rng), 0.5),
        "b": LowRank(torch.randn(6, 3, generator=rng).T[:, :2], torch.randn(2, 18, generator=rng).half(), 2.0, (3, 3)),
    }
    kept = spooled(iter(given.items()))
    for name in ("b", "a", "b"):
        assert torch.equal(kept[name].up, given[name].up) and torch.equal(kept[name].down, given[name].down.float())
        assert (kept[name].scale, kept[name].kernel) == (given[name].scale, given[name].kernel)

    class Full(BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_demand, "TemporaryFile", Full)
    with pytest.raises(DuoLoRAError, match="No space left on device; free some space there, or name another place by"):
        spooled(given.items())
