"""Every dialect, read by its own readers: the same ΔW in diffusers' pipeline, and the same images."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from duolora.cli.common import verified
from duolora.errors import DuoLoRAError
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.verify import relative_error
from duolora.lora.write.diffusers import diffusers_metadata, diffusers_tensors, stored_factors
from duolora.lora.write.file import FORMATS, write_adapter
from duolora.merging.export import export
from duolora.model.architectures import ARCHITECTURES
from duolora.model.base import lora_shapes
from duolora.model.blocks import target_modules
from duolora.paper.lowrank import LowRank
from tiny import narrow_unet, tiny_pipeline


def awkward(pipeline: StableDiffusionXLPipeline) -> Adapter:
    """Ranks 1 to 4 and strengths other than 1, on attention, feed-forward, convolutions and both text encoders."""
    shapes = lora_shapes(pipeline)
    targets = target_modules(pipeline.unet)[::7]
    others = [n for n in shapes if n.endswith(("ff.net.2", "proj_in", "0.conv1", "conv_shortcut", "samplers.0.conv"))]
    spoken = [n for n in shapes if n.startswith("text_encoder") and "layers.1" in n]
    modules = {}
    for k, name in enumerate([*targets, *others[::3], *spoken]):
        rng, (d_out, d_in), rank = torch.Generator().manual_seed(k), shapes[name], 1 + k % 4
        up, down = (torch.randn(s, generator=rng).half().float() for s in ((d_out, rank), (rank, d_in)))
        layer = None if name.startswith("text") else pipeline.unet.get_submodule(name)
        kernel = tuple(layer.kernel_size) if isinstance(layer, torch.nn.Conv2d) else None
        modules[name] = LowRank(up * 2**-4, down * 2**-4, (0.25, 1 / 3, 1.0, -0.7, 2)[k % 5], kernel)
    return Adapter(modules, {"prompt": "a sks cat"})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Adapter:
    """An awkward LoRA of the tiny pipeline."""
    return awkward(tiny_pipeline(tmp_path_factory.mktemp("awkward")))


@pytest.fixture(scope="module")
def silent(adapter) -> Adapter:
    """The same without its text encoders."""
    return Adapter({n: x for n, x in adapter.modules.items() if not n.startswith("text")}, adapter.metadata)


def weights(pipeline: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    parts = {"": pipeline.unet, "text_encoder.": pipeline.text_encoder, "text_encoder_2.": pipeline.text_encoder_2}
    return {f"{p}{k}": v.clone() for p, part in parts.items() for k, v in part.state_dict().items()}


def added(pipeline: StableDiffusionXLPipeline, path: Path) -> dict[str, torch.Tensor]:
    """What diffusers' `load_lora_weights` and `fuse_lora` add to the weights of the pipeline."""
    before = weights(pipeline)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return {k: v - before[k] for k, v in weights(pipeline).items()}


def key_of(name: str, change: dict[str, torch.Tensor]) -> str:
    """The weight of a module, in whose name some versions of transformers leave out `text_model.`"""
    return f"{name}.weight" if f"{name}.weight" in change else f"{name.replace('text_model.', '')}.weight"


@pytest.mark.parametrize(
    ("format", "architecture"), [*((f, None) for f in FORMATS), *(("kohya", name) for name in ARCHITECTURES)]
)
def test_diffusers_loads_each_format_at_its_exact_strength(tmp_path, format, architecture):
    pipeline = tiny_pipeline(tmp_path, architecture and narrow_unet(architecture))
    adapter, path = awkward(pipeline), tmp_path / "a.safetensors"
    verification = write_adapter(path, adapter, torch.float32, format)
    assert verification.error < 1e-6
    change = added(pipeline, path)
    for name, lora in adapter.modules.items():
        there = change.pop(key_of(name, change))
        torch.testing.assert_close(there.flatten(1), lora.delta(), rtol=1e-4, atol=1e-6)
    assert not any(value.any() for value in change.values())


HALF, OTHERS = torch.float16, (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("format", "dtype"), [*((f, HALF) for f in FORMATS), *(("kohya", d) for d in OTHERS)])
def test_the_verification_by_diffusers_is_what_its_pipeline_adds(adapter, tmp_path, format, dtype):
    """The stand-in networks of the verification, against a whole pipeline with weights."""
    pipeline, path = tiny_pipeline(tmp_path), tmp_path / "a.safetensors"
    rough = {n: replace(lora, up=lora.up * 1.0001) for n, lora in adapter.modules.items()}
    verification = write_adapter(path, Adapter(rough), dtype, format)
    change = added(pipeline, path)
    errors = []
    for name, lora in rough.items():
        there = change[key_of(name, change)].flatten(1)
        errors.append(float((there - lora.delta()).norm() / lora.delta().norm()))
    assert verification.unloadable == ""
    assert verification.diffusers == pytest.approx(max(errors), rel=0.02, abs=3e-5)
    with safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()["duolora_verification"])
    assert float(stored["diffusers"]) == pytest.approx(max(verification.diffusers, 1e-9), rel=0.5)


def test_a_file_that_diffusers_would_load_at_another_strength_is_not_written(silent, tmp_path, monkeypatch):
    """A header that we understand and diffusers does not: alphas that only our own reader finds."""

    def hidden(adapter: Adapter, dtype: torch.dtype):
        tensors, metadata = diffusers_tensors(adapter, dtype), diffusers_metadata(adapter)
        return tensors, {"lora_adapter_metadata": metadata["lora_adapter_metadata"].replace("unet.", "")}

    monkeypatch.setitem(FORMATS, "diffusers", hidden)
    with pytest.raises(DuoLoRAError, match="diffusers"):
        write_adapter(tmp_path / "a.safetensors", silent, format="diffusers")
    assert [p.name for p in tmp_path.glob("*.safetensors")] == []


def test_what_diffusers_does_not_load_of_a_kohya_file_is_said(adapter, tmp_path):
    """A text encoder's `q_proj` without its `out_proj`."""
    modules = {n: x for n, x in adapter.modules.items() if not n.endswith("out_proj")}
    verification = write_adapter(tmp_path / "a.safetensors", Adapter(modules), format="kohya")
    assert verification.diffusers is None
    assert verification.unloadable
    assert "diffusers does not load it" in verified(verification)


def test_a_text_encoder_without_attention_loads_too(adapter, tmp_path):
    pipeline, path = tiny_pipeline(tmp_path), tmp_path / "a.safetensors"
    modules = {n: lora for n, lora in adapter.modules.items() if ".self_attn." not in n}
    assert any("mlp" in name for name in modules)
    for format in FORMATS:
        write_adapter(path, Adapter(modules), torch.float32, format)
        change = added(pipeline, path)
        for name, lora in modules.items():
            there = change[key_of(name, change)].flatten(1)
            torch.testing.assert_close(there, lora.delta(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_draws_the_same_images(adapter, tmp_path, format):
    def drawn(pipeline):
        rng = torch.Generator().manual_seed(1)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline("a cat", num_inference_steps=3, generator=rng, output_type="pt", height=16, width=16).images

    pipeline, path = tiny_pipeline(tmp_path), tmp_path / "a.safetensors"
    write_adapter(path, adapter, torch.float32, format)
    bare = drawn(pipeline)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    live = drawn(pipeline)
    pipeline.unload_lora_weights()
    state = {**{f"unet.{k}": v for k, v in pipeline.unet.named_parameters()}}
    for encoder in ("text_encoder", "text_encoder_2"):
        state |= {f"{encoder}.{k}": v for k, v in getattr(pipeline, encoder).named_parameters()}
    for name, lora in adapter.modules.items():
        key = key_of(name if name.startswith("text") else f"unet.{name}", state)
        state[key].data += lora.delta().reshape(state[key].shape)
    torch.testing.assert_close(live, drawn(pipeline), rtol=0, atol=2e-4)
    assert not torch.allclose(bare, live, atol=1e-2)


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [*((*pair, HALF) for pair in product(FORMATS, FORMATS)), *(("kohya", "diffusers", dtype) for dtype in OTHERS)],
)
def test_there_and_back_is_the_same_lora(adapter, tmp_path, first, second, dtype):
    write_adapter(tmp_path / "1.safetensors", adapter, dtype, first)
    once = read_adapter(tmp_path / "1.safetensors")
    write_adapter(tmp_path / "2.safetensors", once, dtype, second)
    write_adapter(tmp_path / "3.safetensors", read_adapter(tmp_path / "2.safetensors"), dtype, first)
    back = read_adapter(tmp_path / "3.safetensors")
    assert back.metadata == adapter.metadata
    limit = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 5e-3}[dtype]
    assert set(back.modules) == set(adapter.modules)
    assert all(relative_error(adapter.modules[n], back.modules[n]) < limit for n in back.modules)


@pytest.mark.parametrize("format", FORMATS)
def test_no_file_has_both_alphas_and_adapter_metadata(adapter, tmp_path, format):
    write_adapter(tmp_path / "0.safetensors", adapter, format=format)
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        alphas = any(key.endswith(".alpha") for key in file.keys())  # noqa: SIM118
        assert alphas != ("lora_adapter_metadata" in file.metadata())
        stored = json.loads(file.metadata()["duolora_verification"])
    assert stored["dtype"] == "float16"
    assert float(stored["error"]) <= 2e-3


def test_kohya_header_says_what_programs_look_for(adapter, tmp_path):
    write_adapter(tmp_path / "look.safetensors", adapter, format="kohya")
    with safe_open(tmp_path / "look.safetensors", "pt") as file:
        header = file.metadata()
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["modelspec.title"] == header["modelspec.trigger_phrase"] == "a sks cat"
    assert "ss_output_name" not in header, "A1111 calls a LoRA by it, whatever the file is called later"
    assert (header["ss_network_dim"], header["ss_network_module"]) == ("Dynamic", "networks.lora")
    data = (tmp_path / "look.safetensors").read_bytes()
    import hashlib

    start = 8 + int.from_bytes(data[:8], "little")
    assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data[start:]).hexdigest()


def test_the_header_names_the_alpha_of_convolutions(adapter, tmp_path):
    """One alpha serves the whole file; kohya's resize_lora.py takes the convolutions' from here."""
    write_adapter(tmp_path / "a.safetensors", adapter, format="kohya")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        said = json.loads(file.metadata()["ss_network_args"])
        alphas = {float(file.get_tensor(key)) for key in file.keys() if key.endswith(".alpha")}  # noqa: SIM118
    assert alphas == {float(said["conv_alpha"])}
    assert said["conv_dim"] != said["conv_alpha"]


def test_a_line_says_where_a_format_does_not_work(silent, tmp_path):
    lines = {f: verified(write_adapter(tmp_path / "a.safetensors", silent, format=f)).splitlines()[1:] for f in FORMATS}
    assert "diffusers 0.32" in lines["kohya"][0] and "--format uniform" in lines["kohya"][0]
    assert all("ComfyUI and Forge load about half" in lines[f][0] for f in ("diffusers", "uniform"))
    alike = Adapter({n: x for n, x in silent.modules.items() if x.rank == 2})
    assert len(verified(write_adapter(tmp_path / "a.safetensors", alike, format="kohya")).splitlines()) == 1


def test_peft_itself_loads_a_folder_at_its_strength(silent, tmp_path):
    pipeline, out = tiny_pipeline(tmp_path), tmp_path / "peft"
    done = export(out, silent, "peft", torch.float32)
    assert done.verification.error < 1e-6
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert read_adapter(out).metadata == silent.metadata
    before = weights(pipeline)
    merged = PeftModel.from_pretrained(pipeline.unet, str(out)).merge_and_unload()
    for name, lora in silent.modules.items():
        there = merged.get_submodule(name).weight - before[f"{name}.weight"]
        torch.testing.assert_close(there.flatten(1), lora.delta(), rtol=1e-4, atol=1e-6)


def test_a_folder_of_peft_is_of_the_unet(adapter, tmp_path):
    with pytest.raises(DuoLoRAError, match="of one model, the UNet"):
        export(tmp_path / "peft", adapter, "peft")
    assert not (tmp_path / "peft").exists()


def test_a_prompt_that_is_no_unicode_is_written_all_the_same(silent, tmp_path):
    """JSON can say lone surrogates, and safetensors refuses a header that has one."""
    odd = replace(silent, metadata={"prompt": "a sks \ud800 cat"})
    write_adapter(tmp_path / "a.safetensors", odd, format="kohya")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "a sks ? cat"


def test_uniform_needs_no_header(adapter, tmp_path):
    """What an old reader does: no alphas, no metadata, scale 1, one rank."""
    write_adapter(tmp_path / "a.safetensors", adapter, torch.float32, "uniform")
    tensors = load_file(tmp_path / "a.safetensors")
    ranks = {v.shape[0] for k, v in tensors.items() if "lora_A" in k}
    assert ranks == {4}
    for name, lora in adapter.modules.items():
        key = name if name.startswith("text") else f"unet.{name}"
        up, down = (tensors[f"{key}.lora_{side}.weight"].flatten(1) for side in "BA")
        torch.testing.assert_close(up @ down, lora.delta(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("strength", "scale"), [(1e-3, 1 / 256), (1e-6, 1.0), (1.0, 1.0)])
def test_weak_directions_keep_their_strength_in_float16(strength, scale):
    rng = torch.Generator().manual_seed(0)
    up, down = strength * torch.randn(64, 16, generator=rng), torch.randn(16, 48, generator=rng) / 7
    lora = LowRank(up * scale, down)
    a, b = stored_factors(lora, torch.float16)
    meant = lora.up.double() @ lora.down.double()
    assert float((a.double() @ b.double() - meant).norm() / meant.norm()) < 6e-4
    kept = stored_factors(lora, torch.float32)
    assert torch.equal(kept[0], lora.up)
    nothing = stored_factors(LowRank(torch.zeros(4, 2), torch.ones(2, 4)), torch.float16)
    assert not nothing[0].any()
