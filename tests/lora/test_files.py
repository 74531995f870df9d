"""LoRA files: their strength in diffusers, their bytes, and what is refused."""

import io
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from duolora.errors import BaseMismatch, DuoLoRAError, FileRefused, InputError
from duolora.lora.adapter import Adapter
from duolora.lora.parts import split_parts
from duolora.lora.read.file import check_fits, read_adapter
from duolora.lora.verify import relative_error
from duolora.lora.write import file as writing
from duolora.lora.write.file import FORMATS, write_adapter
from duolora.paper.lowrank import LowRank
from tiny import tiny_pipeline

MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def fused_change(pipeline: StableDiffusionXLPipeline, path: Path) -> dict[str, torch.Tensor]:
    """What loading and fusing a file by diffusers' public functions adds to each weight of the UNet."""
    before = {k: v.clone() for k, v in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return {k: v - before[k] for k, v in pipeline.unet.state_dict().items()}


def assert_change(change: dict[str, torch.Tensor], modules: dict[str, LowRank], rtol: float = 1e-4) -> None:
    """Every module has its ΔW and no other weight has changed."""
    for name, lora in modules.items():
        torch.testing.assert_close(change.pop(f"{name}.weight"), lora.delta(), rtol=rtol, atol=1e-6)
    assert not any(value.any() for value in change.values())


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.metadata == other.metadata
    assert set(one.modules) == set(other.modules)
    for name, lora in one.modules.items():
        there = other.modules[name]
        assert lora.rank == there.rank
        assert there.scale == pytest.approx(lora.scale, rel=1e-12)
        assert torch.equal(lora.up, there.up)
        assert torch.equal(lora.down, there.down)


def refusal(path: Path) -> str:
    with pytest.raises(FileRefused) as caught:
        read_adapter(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_diffusers_loads_a_mixed_file_at_its_exact_strength(mixed, tmp_path):
    path = tmp_path / "mixed.safetensors"
    write_adapter(path, mixed, torch.float32, "diffusers")
    assert len({lora.rank for lora in mixed.modules.values()}) == 5
    assert_change(fused_change(tiny_pipeline(tmp_path), path), mixed.modules)


def test_a_file_without_its_header_has_its_strength_too(mixed, tmp_path):
    """Of a program that copies tensors only; diffusers before 0.40 still reads mixed ranks wrongly then."""
    path, bare = tmp_path / "mixed.safetensors", tmp_path / "bare.safetensors"
    write_adapter(path, mixed, torch.float32, "diffusers")
    save_file(load_file(path), bare)
    assert_change(fused_change(tiny_pipeline(tmp_path), bare), mixed.modules)


def test_modules_whose_names_end_alike_keep_their_own_rank(unet, tmp_path):
    """Of two names that differ in one number only, the rank of one must not be given to the other."""
    names = [f"mid_block.attentions.0.transformer_blocks.{k}.attn1.to_q" for k in (0, 1)]
    d_out, d_in = unet.get_submodule(names[0]).weight.shape
    modules = {n: LowRank(torch.randn(d_out, r), torch.randn(r, d_in), 0.5) for n, r in zip(names, (3, 7), strict=True)}
    path = tmp_path / "alike.safetensors"
    write_adapter(path, Adapter(modules), torch.float32, "diffusers")
    unet_before = {n: unet.get_submodule(n).weight.clone() for n in names}
    unet.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="unet")
    unet.fuse_lora()
    unet.unload_lora()
    for name, lora in modules.items():
        change = unet.get_submodule(name).weight - unet_before[name]
        torch.testing.assert_close(change, lora.delta(), rtol=1e-4, atol=1e-5)


def test_a_file_survives_being_read_and_written(mixed, tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_adapter(first, mixed)
    once = read_adapter(first)
    assert once.metadata == mixed.metadata
    assert all(relative_error(lora, once.modules[name]) < 1e-6 for name, lora in mixed.modules.items())
    write_adapter(second, once)
    assert first.read_bytes() == second.read_bytes()
    assert_same(once, read_adapter(second))


def test_bytes_depend_on_the_adapter_alone(mixed, tmp_path):
    paths = [tmp_path / f"{k}.safetensors" for k in range(6)]
    for path in paths[:-1]:
        write_adapter(path, mixed)
    backwards = Adapter(dict(reversed(mixed.modules.items())), dict(reversed(mixed.metadata.items())))
    write_adapter(paths[-1], backwards)
    assert len({path.read_bytes() for path in paths}) == 1
    write_adapter(paths[0], Adapter(mixed.modules, {"seed": 1}))
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_safetensors_itself_reads_what_we_lay_out(mixed, tmp_path):
    path = tmp_path / "a.safetensors"
    verification = write_adapter(path, mixed, torch.bfloat16, "diffusers")
    with safe_open(path, "pt") as file:
        assert set(file.metadata()) == {"format", "lora_adapter_metadata", "duolora", "duolora_verification"}
        assert json.loads(file.metadata()["duolora"]) == mixed.metadata
        for name, lora in mixed.modules.items():
            assert torch.equal(file.get_tensor(f"unet.{name}.lora_B.weight"), (lora.scale * lora.up).bfloat16())
    assert verification.size == path.stat().st_size


def test_what_reads_no_header_reads_the_strength(mixed, tmp_path):
    """diffusers 0.31 to 0.33, OneTrainer and ComfyUI take the factors of a diffusers file as they are."""
    path = tmp_path / "a.safetensors"
    write_adapter(path, mixed, torch.float32, "diffusers")
    tensors = load_file(path)
    for name, lora in mixed.modules.items():
        up, down = (tensors[f"unet.{name}.lora_{side}.weight"] for side in "BA")
        torch.testing.assert_close(up @ down, lora.delta())
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["unet.alpha_pattern"] == config["unet.rank_pattern"]
    assert config["unet.lora_alpha"] == config["unet.r"]
    assert not [key for key in config if "dropout" in key]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_known_of_tensors_is_forgotten_when_they_change(mixed, tmp_path, format):
    """Such as kohya's resize_lora.py, which mixes all directions and copies the header."""
    path, counts = tmp_path / "a.safetensors", [1] * len(mixed.modules)
    write_adapter(path, Adapter(mixed.modules, {"content_ranks": counts, "seed": 1}), format=format)
    ours = read_adapter(path)
    assert ours.metadata == {"content_ranks": counts, "seed": 1}
    assert ours.verification["dtype"] == "float16"
    split_parts(ours, path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    save_file(tensors, path, header)
    assert read_adapter(path).metadata == ours.metadata, "the same tensors, saved again"
    tensors[min(key for key in tensors if "lora_up" in key or "lora_B" in key)] *= -1
    save_file(tensors, path, header)
    changed = read_adapter(path)
    assert (changed.metadata, changed.verification) == ({"seed": 1}, {})
    with pytest.raises(FileRefused, match="nor rewritten by another program"):
        split_parts(changed, path)


def test_many_ranks_need_few_patterns(tmp_path):
    """PEFT tries each pattern on each module; one per module makes SDXL load half a minute longer."""
    modules = {
        f"down_blocks.2.attentions.0.transformer_blocks.{k}.attn1.to_q": LowRank(torch.ones(4, r), torch.ones(r, 4))
        for k in range(120)
        for r in [1 + k % 3]
    }
    path = tmp_path / "a.safetensors"
    write_adapter(path, Adapter(modules), format="diffusers")
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert len(config["unet.rank_pattern"]) == len(config["unet.alpha_pattern"]) == 2
    assert all(key.startswith("^") for key in config["unet.rank_pattern"])
    assert_same(Adapter(modules), read_adapter(path))


def test_the_verification_is_the_error_of_the_written_weights(mixed, tmp_path):
    rough = {n: LowRank(lora.up * 1.0001, lora.down, lora.scale) for n, lora in mixed.modules.items()}
    path = tmp_path / "a.safetensors"
    verification = write_adapter(path, Adapter(rough), torch.bfloat16)
    written = read_adapter(path).modules
    errors = [float((written[n].delta() - a.delta()).norm() / a.delta().norm()) for n, a in rough.items()]
    assert verification.error == pytest.approx(max(errors), rel=1e-3)
    assert verification.error > 1e-4
    assert verification.modules == len(rough)
    assert verification.ranks == (1, 5)
    assert write_adapter(path, mixed, torch.float16).error < 1e-6


def test_a_module_of_zero_strength_has_no_error(tmp_path):
    zero = LowRank(torch.zeros(4, 2), torch.randn(2, 4))
    assert write_adapter(tmp_path / "a.safetensors", Adapter({MODULE: zero})).error == 0


def broken_write(*args: object) -> None:
    raise OSError(28, "No space left on device")


def wrong_bytes(tensors, metadata):
    """The file as it should be, but of twice the strength."""
    doubled = {k: 2 * v if "lora_B" in k else v for k, v in tensors.items()}
    return GOOD_BYTES(doubled, metadata)


def cut_bytes(tensors, metadata):
    """The file without its last bytes, as a full disk leaves it."""
    *start, end = GOOD_BYTES(tensors, metadata)
    return [*start, end[:-8]]


GOOD_BYTES = writing.laid_out


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("target", "fault", "message"),
    [
        ("os.fsync", broken_write, "No space left on device"),
        ("duolora.lora.write.file.Path.replace", broken_write, "No space left on device"),
        ("duolora.lora.write.file.laid_out", wrong_bytes, "off by"),
        ("duolora.lora.write.file.laid_out", cut_bytes, "expected two within"),
    ],
)
def test_a_failed_write_changes_nothing(lora, tmp_path, monkeypatch, target, fault, message, old):
    path = tmp_path / "a.safetensors"
    if old:
        path.write_bytes(b"what was there before")
    monkeypatch.setattr(target, fault)
    with pytest.raises(DuoLoRAError, match=message):
        write_adapter(path, Adapter({MODULE: lora}), format="diffusers")
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if old else [])
    assert not old or path.read_bytes() == b"what was there before"


def test_an_interrupted_write_changes_nothing(lora, tmp_path, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(tmp_path / "a.safetensors", Adapter({MODULE: lora}))
    assert not list(tmp_path.iterdir())


def test_a_written_file_has_the_permissions_of_any_new_file(lora, tmp_path):
    write_adapter(tmp_path / "a.safetensors", Adapter({MODULE: lora}))
    (tmp_path / "b").write_bytes(b"")
    assert os.stat(tmp_path / "a.safetensors").st_mode == os.stat(tmp_path / "b").st_mode


def test_what_cannot_be_written_is_named(lora, tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    with pytest.raises(DuoLoRAError, match="nothing to write"):
        write_adapter(path, Adapter({}))
    with pytest.raises(DuoLoRAError, match=rf"{re.escape(MODULE)}.*too large for torch.float16"):
        write_adapter(path, Adapter({MODULE: replace(lora, up=lora.up * 1e6)}), format="diffusers")
    with pytest.raises(DuoLoRAError, match="off by.*write it in float32"):
        write_adapter(path, Adapter({MODULE: replace(lora, up=lora.up * 1e-14)}), format="diffusers")
    with pytest.raises(InputError, match="got a folder"):
        write_adapter(tmp_path, Adapter({MODULE: lora}))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DuoLoRAError, match="nothing was changed"):
        write_adapter(tmp_path / "file" / "a.safetensors", Adapter({MODULE: lora}))
    assert not [p for p in tmp_path.rglob("*") if p.name not in ("new", "file")]
    write_adapter(path, Adapter({MODULE: lora}))
    assert path.exists()


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.pth", "a.PT", "a.safetensors", "a"])
@pytest.mark.parametrize("how", ["pickle", "torch", "torch-old"])
def test_a_pickle_is_refused_unopened(tmp_path, name, how):
    path, marker = tmp_path / name, tmp_path / "marker"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(marker)))
    else:
        torch.save({"x": Malicious(marker)}, path, _use_new_zipfile_serialization=how == "torch")
    assert "pickle" in refusal(path)
    assert not marker.exists()
    data = io.BytesIO(path.read_bytes())
    pickle.load(data) if how == "pickle" else torch.load(data, weights_only=False)
    assert marker.exists(), "the trap has to be one"


def test_a_header_whose_length_looks_like_a_pickle_is_read(lora, tmp_path):
    """A safetensors file may begin with the bytes 0x80 0x02: a header of 640 bytes."""
    path = tmp_path / "a.safetensors"
    for extra in range(1000):
        save_file(
            {f"unet.{MODULE}.lora_A.weight": lora.down, f"unet.{MODULE}.lora_B.weight": lora.up},
            path,
            {"x": extra * "x"},
        )
        if path.read_bytes().startswith(b"\x80\x02"):
            break
    assert path.read_bytes().startswith(b"\x80\x02")
    assert set(read_adapter(path).modules) == {MODULE}


def test_missing_folder_and_damaged_files_are_refused(lora, tmp_path):
    path = tmp_path / "a.safetensors"
    assert "nothing there" in refusal(path)
    assert "folder" in refusal(tmp_path)
    write_adapter(path, Adapter({MODULE: lora}))
    whole = path.read_bytes()
    for damaged in (b"", b"\x00" * 7, whole[:-1], whole[:100], whole + b"x", b"version https://git-lfs", b"{}" * 99):
        path.write_bytes(damaged)
        assert "download it again" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["lora_A", "lora_B"])
def test_values_that_are_not_finite_are_refused(lora, tmp_path, key, value):
    path = tmp_path / "a.safetensors"
    write_adapter(path, Adapter({MODULE: lora}), format="diffusers")
    tensors = load_file(path)
    tensors[f"unet.{MODULE}.{key}.weight"][1, 1] = value
    save_file(tensors, path)
    assert f"unet.{MODULE}.{key}.weight holds NaN or infinite" in refusal(path)


def test_an_adapter_must_fit_its_base(lora, tmp_path):
    path, adapter = tmp_path / "a.safetensors", Adapter({MODULE: lora})
    check_fits(adapter, {MODULE: (6, 5), "other": (1, 1)}, path)
    with pytest.raises(BaseMismatch, match=rf"a\.safetensors: {re.escape(MODULE)}: expected \(7, 5\).*found \(6, 5\)"):
        check_fits(adapter, {MODULE: (7, 5)}, path)
    with pytest.raises(BaseMismatch, match=rf"{re.escape(MODULE)}: expected a layer of the base.*another base"):
        check_fits(adapter, {"other": (6, 5)}, path)
