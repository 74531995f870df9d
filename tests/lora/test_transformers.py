"""LoRAs of other networks than SDXL's: recognised, read in every spelling, put together, and written back."""

import warnings

import diffusers
import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import lora_pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duolora.api.compose import compose
from duolora.api.convert import convert
from duolora.api.inspect import inspect
from duolora.api.merge import merge, options_of
from duolora.cli.common import verified
from duolora.errors import BaseMismatch, FileRefused, InputError, Notice
from duolora.lora.adapter import Adapter
from duolora.lora.families import FAMILIES, UNETS, fitting
from duolora.lora.parts import CONTENT_RANKS, split_parts
from duolora.lora.read.file import read_adapter
from duolora.lora.read.keys import adapter_from
from duolora.lora.verify import relative_error
from duolora.lora.write.file import write_adapter
from duolora.merging.inputs import architecture_of_files
from duolora.model.blocks import block_of, blocks_of
from duolora.paper.lowrank import LowRank
from tiny import tiny_sd15

H = 3072
"""FLUX's width: diffusers' converter of kohya's names knows no other."""
TINY = {
    "FLUX.1": lambda: FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    ),
    "Qwen-Image": lambda: QwenImageTransformer2DModel(
        in_channels=4, out_channels=1, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 2, 4),
    ),
    "Z-Image": lambda: ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
        axes_dims=[2, 2, 4], axes_lens=[8, 8, 8],
    ),
    "SD 3": lambda: SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    ),
}  # fmt: skip
"""Networks of the real classes."""


def lora(d_out: int, d_in: int, rank: int = 2, seed: int = 0, scale: float = 0.5) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(d_out, rank, generator=rng) / 4, torch.randn(rank, d_in, generator=rng) / 4, scale)


def of_network(network: nn.Module, seed: int = 0) -> Adapter:
    """A LoRA of all linear layers and 1×1 convolutions that are trained, with ranks that differ."""
    modules = {}
    for k, (name, layer) in enumerate(network.named_modules()):
        if isinstance(layer, nn.Linear):
            modules[name] = lora(*layer.weight.shape, 1 + k % 3, seed + k)
        elif isinstance(layer, nn.Conv2d) and name.endswith(("proj_in", "proj_out")):
            x = lora(*layer.weight.shape[:2], 2, seed + k)
            modules[name] = LowRank(x.up, x.down, x.scale, (1, 1))
    return Adapter(modules, {"prompt": "a sks cup in zwx style"})


def in_pipeline(family: str, network: nn.Module, path) -> dict[str, Tensor]:
    """What the layers of a real network gain once diffusers' own loader of the family has loaded a file."""
    loader = type(
        "Pipeline", (getattr(lora_pipeline, FAMILIES[family].loader),), {"hf_device_map": {}, "components": {}}
    )
    pipeline = loader()
    setattr(pipeline, FAMILIES[family].network, network)
    pipeline.text_encoder = pipeline.text_encoder_2 = None
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, LoraLayer)}
    return {n: m.get_delta_weight(m.active_adapters[0]).detach().flatten(1) for n, m in layers.items()}


def check_same(found: dict[str, Tensor], expected: dict[str, LowRank]) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one.delta(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*TINY, "SD 1.5"])
@pytest.mark.parametrize("format", ["diffusers", "kohya", "uniform"])
def test_a_file_has_its_strength_in_diffusers_own_network(tmp_path, family, format):
    """FLUX in kohya's names is in another test, at full width."""
    network = TINY[family]() if family in TINY else tiny_sd15(tmp_path).unet
    path = tmp_path / "lora.safetensors"
    adapter = of_network(network)
    assert adapter.families[0] == family
    if format == "kohya":
        if family in ("FLUX.1", "SD 3"):
            return
        adapter = Adapter({n: m for n, m in adapter.modules.items() if not n.startswith("all_")}, adapter.metadata)
    verification = write_adapter(path, adapter, torch.float32, format)
    assert verification.format == format and verification.diffusers < 1e-6
    back = read_adapter(path)
    assert back.families[0] == family
    check_same({n: m.delta() for n, m in back.modules.items()}, adapter.modules)
    check_same(in_pipeline(family, network, path), adapter.modules)


def blocks(*names: str) -> Adapter:
    """A LoRA of FLUX's modules at full width."""
    wide, seen = (
        {"ff.net.0.proj": 4, "proj_mlp": 4, "norm1.linear": 6, "norm.linear": 3},
        {"ff.net.2": 4, "proj_out": 5},
    )

    def times(table: dict[str, int], name: str) -> int:
        return H * next((n for end, n in table.items() if name.endswith(end)), 1)

    return Adapter({n: lora(times(wide, n), times(seen, n), 1 + k % 2, k) for k, n in enumerate(names)})


FLUX = blocks(
    *(f"transformer_blocks.3.attn.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")),
    "transformer_blocks.3.ff.net.0.proj", "transformer_blocks.3.ff.net.2", "transformer_blocks.3.norm1.linear",
    *(f"single_transformer_blocks.7.{x}" for x in ("attn.to_q", "attn.to_v", "proj_mlp", "proj_out", "norm.linear")),
)  # fmt: skip


def fused(stem: str, d_out: int, d_in: int = H, rank: int = 2, alpha: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    """A layer of kohya's FLUX, and its ΔW."""
    x = lora(d_out, d_in, rank, len(stem), alpha / rank)
    keys = {f"{stem}.lora_down.weight": x.down, f"{stem}.lora_up.weight": x.up, f"{stem}.alpha": torch.tensor(alpha)}
    return keys, x.delta()


def test_flux_in_kohyas_names_has_one_layer_for_q_k_and_v(tmp_path):
    path = tmp_path / "flux.safetensors"
    verification = write_adapter(path, FLUX, torch.float32, "kohya")
    assert verification.format == "kohya" and verification.diffusers < 1e-6
    keys = load_file(path)
    assert keys["lora_unet_double_blocks_3_img_attn_qkv.lora_up.weight"].shape[0] == 3 * H
    assert keys["lora_unet_single_blocks_7_linear1.lora_up.weight"].shape[0] == 7 * H
    back = read_adapter(path)
    assert back.families == ("FLUX.1",)
    assert back.modules.keys() == FLUX.modules.keys()
    assert max(relative_error(x, back.modules[name]) for name, x in FLUX.modules.items()) < 1e-6


def test_one_down_for_q_k_and_v_is_stored_once(tmp_path):
    """So a file of kohya's that has been read is as large when it is written again."""
    keys, whole = fused("lora_unet_double_blocks_0_img_attn_qkv", 3 * H)
    save_file(keys, tmp_path / "in.safetensors")
    adapter = read_adapter(tmp_path / "in.safetensors")
    assert adapter.families == ("FLUX.1",)
    parts = [adapter.modules[f"transformer_blocks.0.attn.to_{side}"].delta() for side in "qkv"]
    torch.testing.assert_close(torch.cat(parts), whole)
    write_adapter(tmp_path / "out.safetensors", adapter, torch.float32, "kohya")
    again = load_file(tmp_path / "out.safetensors")
    assert again["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (2, H)


def test_spellings_of_flux_say_the_same():
    q, module = lora(H, H), "transformer_blocks.0.attn.to_out.0"
    bfl = "double_blocks.0.img_attn.proj"
    sides = {"A": ("lora_A", "lora_B"), "down": ("lora_down", "lora_up")}
    spelled = {
        f"transformer.{module}": "A", module: "A", "lora_transformer_transformer_blocks_0_attn_to_out_0": "down",
        f"diffusion_model.{bfl}": "A", f"diffusion_model.{bfl} ": "down",
        "lora_unet_double_blocks_0_img_attn_proj": "down", f"transformer.{module} ": "down",
    }  # fmt: skip
    for stem, how in spelled.items():
        down, up = (f"{stem.strip()}.{side}.weight" for side in sides[how])
        tensors = {down: q.down, up: q.up, f"{stem.strip()}.alpha": torch.tensor(1.0)}
        found = adapter_from(tensors, {}, stem)
        check_same({n: m.delta() for n, m in found.modules.items()}, {module: q})


def test_parts_of_a_merge_stay_known_where_diffusers_keeps_their_order(tmp_path):
    """It takes kohya's FLUX apart as it was, and gives q, k and v of Z-Image all directions of the three."""
    flux = {f"single_transformer_blocks.0.attn.to_{x}": lora(H, H, 3, seed) for seed, x in enumerate("qk")}
    z = {f"layers.0.attention.to_{x}": lora(16, 16, 3, seed) for seed, x in enumerate("qk")}
    for name, modules in {"flux": flux, "z": z}.items():
        path = tmp_path / f"{name}.safetensors"
        write_adapter(path, Adapter(modules, {CONTENT_RANKS: [1, 2]}), torch.float32, "kohya")
        back = read_adapter(path)
        assert {x.rank for x in back.modules.values()} == {3}
        if name == "flux":
            content, _ = split_parts(back, path)
            first = flux["single_transformer_blocks.0.attn.to_k"]
            expected = LowRank(first.up[:, :1], first.down[:1], first.scale)
            assert relative_error(expected, content.modules["single_transformer_blocks.0.attn.to_k"]) < 1e-6
        else:
            with pytest.raises(FileRefused, match="expected a merge whose header says which directions"):
                split_parts(back, path)


def test_xlabs_files_are_read():
    qkv, out = lora(3 * H, H, scale=1.0), lora(H, H, scale=1.0, seed=1)
    tensors = {
        "double_blocks.2.processor.qkv_lora1.down.weight": qkv.down,
        "double_blocks.2.processor.qkv_lora1.up.weight": qkv.up,
        "double_blocks.2.processor.proj_lora2.down.weight": out.down,
        "double_blocks.2.processor.proj_lora2.up.weight": out.up,
    }
    found = adapter_from(tensors, {}, "file").modules
    parts = torch.cat([found[f"transformer_blocks.2.attn.to_{side}"].delta() for side in "qkv"])
    torch.testing.assert_close(parts, qkv.delta())
    torch.testing.assert_close(found["transformer_blocks.2.attn.to_add_out"].delta(), out.delta())


def pair(stem: str, x: LowRank, sides: tuple[str, str] = ("lora_down", "lora_up")) -> dict[str, Tensor]:
    found = {f"{stem}.{sides[0]}.weight": x.down, f"{stem}.{sides[1]}.weight": x.up}
    return found | {f"{stem}.alpha": torch.tensor(x.scale * x.rank)}


OTHERS = {
    "Qwen of musubi": ("lora_unet_transformer_blocks_0_attn_add_k_proj", "transformer_blocks.0.attn.add_k_proj"),
    "Qwen's head": ("lora_unet_norm_out_linear", "norm_out.linear"),
    "Qwen of ai-toolkit": ("diffusion_model.transformer_blocks.59.attn.to_q", "transformer_blocks.59.attn.to_q"),
    "Z-Image of ai-toolkit": ("diffusion_model.layers.4.attention.to_out.0", "layers.4.attention.to_out.0"),
    "Z-Image's own": ("lora_unet_layers_4_attention_out", "layers.4.attention.to_out.0"),
    "Z-Image of kohya": ("lora_unet_noise_refiner_1_feed_forward_w2", "noise_refiner.1.feed_forward.w2"),
    "Wan's own": ("diffusion_model.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    "SD3 of OneTrainer": (
        "lora_transformer_transformer_blocks_30_ff_net_0_proj",
        "transformer_blocks.30.ff.net.0.proj",
    ),
    "LTX": ("diffusion_model.transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_q"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("sides", [("lora_down", "lora_up"), ("lora_A", "lora_B")])
def test_other_programs_names_and_strengths_are_read(case, sides):
    stem, module = OTHERS[case]
    one, second = lora(8, 8), lora(8, 8, seed=1)
    other = stem.replace("norm_out_linear", "transformer_blocks_1_img_mod_1")
    tensors = pair(stem, one, sides) | (pair(other, second, sides) if other != stem else {})
    found = adapter_from(tensors, {}, "file")
    torch.testing.assert_close(found.modules[module].delta(), one.delta())
    assert len(found.modules) == len(tensors) // 3


_ADD, _Z = "transformer_blocks.0.attn.add_{}_proj", "layers.0.attention.to_{}"
_OUT, _OF_QWEN = "transformer_blocks.0.attn.to_add_out", "transformer_blocks.0.txt_mod.1"
DOWN_UP, A_B = ("lora_down", "lora_up"), ("lora_A", "lora_B")
FOREIGN = {
    "kohya's FLUX.1": ("lora_unet_double_blocks_0_txt_attn_qkv", DOWN_UP, _ADD),
    "XLabs' FLUX.1": ("double_blocks.0.processor.qkv_lora2", ("down", "up"), _ADD),
    "BFL's FLUX.1": ("diffusion_model.double_blocks.0.txt_attn.qkv", A_B, _ADD),
    "ai-toolkit's FLUX.1": (f"transformer.{_OUT}", A_B, _OUT),
    "OneTrainer's FLUX.1": ("lora_transformer_transformer_blocks_0_attn_to_add_out", DOWN_UP, _OUT),
    "kohya's Z-Image": ("lora_unet_layers_0_attention_qkv", DOWN_UP, _Z),
    "ai-toolkit's Z-Image": ("diffusion_model.layers.0.attention.to_q", A_B, _Z.format("q")),
    "OneTrainer's Z-Image": ("lora_transformer_layers_0_attention_to_v", DOWN_UP, _Z.format("v")),
    "diffusers' Z-Image": ("transformer.layers.0.feed_forward.w1", A_B, "layers.0.feed_forward.w1"),
    "musubi's Qwen-Image": ("lora_unet_transformer_blocks_0_txt_mod_1", DOWN_UP, _OF_QWEN),
    "ai-toolkit's Qwen-Image": (f"diffusion_model.{_OF_QWEN}", A_B, _OF_QWEN),
    "OneTrainer's Qwen-Image": ("lora_transformer_transformer_blocks_0_txt_mod_1", DOWN_UP, _OF_QWEN),
    "diffusers' Qwen-Image": (f"transformer.{_OF_QWEN}", A_B, _OF_QWEN),
}  # fmt: skip
"""How programs spell a layer, and the module it is; braces are for q, k and v in one."""


@pytest.mark.parametrize("case", FOREIGN)
def test_other_programs_files_are_merged_and_written_back(tmp_path, case):
    """In diffusers' names and in kohya's; ΔW is both files', to our reader and to diffusers' converters."""
    (stem, sides, modules), family = FOREIGN[case], case.partition(" ")[2]
    names = [modules.format(side) for side in "qkv"] if "{}" in modules else [modules]
    paths, whole = [], 0
    for seed in (0, 1):
        x = lora(len(names) * 64, 64, seed=seed, scale=0.5 if sides == DOWN_UP else 1.0)
        tensors, whole = pair(stem, x, sides), whole + x.delta()
        if sides != DOWN_UP:
            del tensors[f"{stem}.alpha"]
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(tensors, paths[-1], {"modelspec.architecture": FAMILIES[family].kohya[1]})
    expected = dict(zip(names, whole.chunk(len(names)), strict=True))
    for format in ("diffusers", "kohya"):
        done = merge(
            *paths, tmp_path / f"{format}.safetensors", "naive", format=format, dtype="float32", progress=False
        )
        assert (done.verification.format, done.verification.diffusers < 1e-6) == (format, True)
        found = read_adapter(done.path)
        assert found.families[0] == family and found.modules.keys() == expected.keys()
        theirs = getattr(lora_pipeline, FAMILIES[family].loader).lora_state_dict(load_file(done.path))
        for name, delta in expected.items():
            torch.testing.assert_close(found.modules[name].delta(), delta, rtol=1e-4, atol=1e-5)
            up, down = (theirs[f"transformer.{name}.lora_{side}.weight"] for side in "BA")
            alpha = theirs.get(f"transformer.{name}.alpha", len(down))
            torch.testing.assert_close(up @ down * (alpha / len(down)), delta, rtol=1e-4, atol=1e-5)


def test_a_file_that_adds_nothing_is_refused_as_such(tmp_path):
    """As kohya's program saves it before the first step; one trained layer is enough."""
    tensors, expected = fused("lora_unet_double_blocks_0_img_attn_proj", H)
    untrained, _ = fused("lora_unet_single_blocks_0_linear2", H, 5 * H)
    tensors |= {key: torch.zeros_like(x) if "lora_up" in key else x for key, x in untrained.items()}
    path = tmp_path / "flux.safetensors"
    save_file(tensors, path)
    found = read_adapter(path).modules
    assert set(found) == {"transformer_blocks.0.attn.to_out.0"}
    torch.testing.assert_close(found["transformer_blocks.0.attn.to_out.0"].delta(), expected)
    save_file({key: torch.zeros_like(x) if "lora_up" in key else x for key, x in tensors.items()}, path)
    with pytest.raises(
        FileRefused, match=r"flux\.safetensors: the up matrices of all 2 modules are zero.*saved later$"
    ):
        read_adapter(path)


def test_diffusers_loses_layers_of_kohyas_flux_that_are_outside_of_blocks():
    """It gives them no prefix, and its loader takes only what has one; their alphas are not lost."""
    keys, _ = fused("lora_unet_double_blocks_0_img_attn_proj", H, alpha=2.0)
    outer, delta = fused("lora_unet_img_in", H, 64)
    theirs = lora_pipeline.FluxLoraLoaderMixin.lora_state_dict(dict(keys | outer))
    assert "x_embedder.lora_A.weight" in theirs
    assert not any(key.startswith("transformer.x_embedder") for key in theirs)
    torch.testing.assert_close(adapter_from(keys | outer, {}, "file").modules["x_embedder"].delta(), delta)


def test_diffusers_ignores_the_alpha_of_flux_final_layer():
    keys, delta = fused("lora_unet_final_layer_linear", 64, alpha=1.0)
    inner, _ = fused("lora_unet_double_blocks_0_img_attn_proj", H)
    theirs = lora_pipeline.FluxLoraLoaderMixin.lora_state_dict(dict(keys | inner))
    product = theirs["proj_out.lora_B.weight"] @ theirs["proj_out.lora_A.weight"]
    torch.testing.assert_close(product, 2 * delta)
    torch.testing.assert_close(adapter_from(keys | inner, {}, "file").modules["proj_out"].delta(), delta)


def test_diffusers_gives_onetrainers_feed_forwards_of_flux_one_name():
    """All of a block but its attention is written under the block's own name, the last over the others."""
    names = ("ff_net_0_proj", "ff_net_2", "norm1_linear")
    tensors = {}
    for k, name in enumerate(names):
        tensors |= pair(f"lora_transformer_transformer_blocks_0_{name}", lora(8, 8, seed=k))
    theirs = lora_pipeline.FluxLoraLoaderMixin.lora_state_dict(dict(tensors))
    assert set(theirs) == {f"transformer.transformer_blocks.0.lora_{side}.weight" for side in "AB"}
    found = adapter_from(tensors, {}, "file").modules
    assert set(found) == {f"transformer_blocks.0.{x}" for x in ("ff.net.0.proj", "ff.net.2", "norm1.linear")}


def test_diffusers_ignores_bfls_names_with_lora_a():
    """Without lora_down in them it takes them for its own, and loads nothing."""
    x = lora(H, H, scale=1.0)
    tensors = pair("diffusion_model.double_blocks.0.img_attn.proj", x, ("lora_A", "lora_B"))
    theirs = lora_pipeline.FluxLoraLoaderMixin.lora_state_dict(dict(tensors))
    assert not any(key.startswith("transformer.") for key in theirs)
    found = adapter_from(tensors, {}, "file").modules
    torch.testing.assert_close(found["transformer_blocks.0.attn.to_out.0"].delta(), x.delta())


def test_a_file_by_diffusers_own_script_is_read(tmp_path):
    """`save_lora_weights`, with a rank and an alpha of PEFT's."""
    network = TINY["FLUX.1"]()
    network.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "proj_mlp"], init_lora_weights=False))
    expected = {
        n: m.get_delta_weight("default").detach() for n, m in network.named_modules() if isinstance(m, LoraLayer)
    }
    diffusers.FluxPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=get_peft_model_state_dict(network),
        **_collate_lora_metadata({"transformer": network}),
    )  # fmt: skip
    found = read_adapter(tmp_path / "pytorch_lora_weights.safetensors").modules
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name].delta(), delta)


def files(folder, adapters: dict[str, Adapter]) -> list:
    for name, adapter in adapters.items():
        write_adapter(folder / f"{name}.safetensors", adapter, torch.float32, "diffusers")
    return [folder / f"{name}.safetensors" for name in adapters]


@pytest.fixture
def flux_pair(tmp_path):
    network = TINY["FLUX.1"]()
    return files(tmp_path, {"content": of_network(network), "style": of_network(network, seed=99)})


@pytest.mark.parametrize("method", ["naive", "svd", "ties", "dare_ties"])
def test_merges_without_a_network_go_for_any(flux_pair, tmp_path, method):
    options = options_of(method, content_weight=0.75)
    done = merge(*flux_pair, tmp_path / "x.safetensors", method, options=options, dtype="float32", format="diffusers")
    content, style, merged = (read_adapter(path) for path in (*flux_pair, done.path))
    assert merged.families[0] == "FLUX.1" and merged.metadata["architecture"] == "FLUX.1"
    sums = {n: 0.75 * content.modules[n].delta() + style.modules[n].delta() for n in content.modules}
    whole = sums if method in ("naive", "svd") else {n: x for n, x in sums.items() if ".attn." not in n}
    for name, expected in whole.items():
        torch.testing.assert_close(merged.modules[name].delta(), expected, rtol=1e-4, atol=1e-5)
    assert ("transformer_blocks.0.attn.to_q" in whole) == (method in ("naive", "svd"))
    assert merged.modules.keys() == content.modules.keys()


def test_compose_convert_and_inspect_go_for_any(flux_pair, tmp_path):
    both = compose(flux_pair, tmp_path / "both.safetensors", [1.0, -0.5], format="diffusers", dtype="float32")
    assert both.verification.diffusers < 1e-6
    with pytest.raises(FileRefused, match=r"both\.safetensors: expected a merge whose header says which directions"):
        convert(both.path, tmp_path / "parts.safetensors", "split")
    small = convert(both.path, tmp_path / "small.safetensors", "diffusers", "float32", rank=1)
    assert {lora.rank for lora in read_adapter(small.paths[0]).modules.values()} == {1}
    facts = inspect(small.paths[0], flux_pair[0])
    assert facts["base"] == "FLUX.1 (by its shapes)" and facts["dialect"] == "diffusers"
    assert list(facts["blocks"])[:3] == [
        "transformer_blocks.0",
        "single_transformer_blocks.0",
        "single_transformer_blocks.1",
    ]
    assert {block["role"] for block in facts["blocks"].values()} == {"neutral"}


def test_two_families_are_not_put_together(flux_pair, tmp_path):
    (other,) = files(tmp_path, {"z": of_network(TINY["Z-Image"]())})
    out = tmp_path / "x.safetensors"
    for way in (lambda: merge(flux_pair[0], other, out, "naive"), lambda: compose([flux_pair[0], other], out)):
        with pytest.raises(
            BaseMismatch, match=r"z\.safetensors is a LoRA for Z-Image, and .* for FLUX\.1; LoRAs of diff"
        ):
            way()
    with pytest.raises(BaseMismatch, match="for Z-Image"):
        inspect(flux_pair[0], other)
    assert not out.exists()


def test_flux_fill_and_flux_are_not_put_together(tmp_path):
    """Their networks differ in the inputs of one layer; a LoRA that leaves it alone may be for either."""
    attention = {f"transformer_blocks.0.attn.to_{x}": lora(3072, 3072) for x in "qk"}
    inputs = {"fill": 384, "dev": 64}
    pair = files(tmp_path, {k: Adapter(attention | {"x_embedder": lora(3072, n)}) for k, n in inputs.items()})
    (either,) = files(tmp_path, {"either": Adapter(attention)})
    out = tmp_path / "x.safetensors"
    said = r"fill\.safetensors is a LoRA for FLUX\.1 Fill .*384 inputs.*, and .*dev\.safetensors for FLUX\.1; "
    for way in (merge, compose, inspect):
        given = {merge: (*pair, out, "naive"), compose: (pair, out), inspect: pair}[way]
        with pytest.raises(BaseMismatch, match=said):
            way(*given)
    assert not out.exists()
    with pytest.warns(Notice, match=r"fill\.safetensors is a LoRA for FLUX\.1 Fill; .*either.* does not say"):
        merge(pair[0], either, out, "naive")
    assert inspect(out)["base"] == "FLUX.1 Fill (by its shapes)"
    assert "Fill" not in inspect(pair[1])["base"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        merge(pair[1], either, out, "naive", format="diffusers")


def test_a_file_of_sdxl_and_one_of_flux_are_not_put_together(flux_pair, tmp_path):
    names = ("down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", "mid_block.attentions.0.proj_in")
    (other,) = files(tmp_path, {"xl": Adapter({names[0]: lora(640, 2048), names[1]: lora(1280, 1280)})})
    for pair_ in ((flux_pair[0], other), (other, flux_pair[0])):
        with pytest.raises(
            BaseMismatch, match=r"is a LoRA for (SDXL|FLUX\.1), and .* for (FLUX\.1|SDXL); LoRAs of diff"
        ):
            merge(*pair_, tmp_path / "x.safetensors", "naive")


def test_what_needs_the_network_or_its_levels_says_so(flux_pair, tmp_path):
    out = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"the LoRAs are for FLUX\.1, and ziprank trains masks"):
        merge(*flux_pair, out, "ziprank")
    for method in ("split", "blora"):
        with pytest.raises(InputError, match=r"goes by the blocks and levels of a UNet, which FLUX\.1 has not"):
            merge(*flux_pair, out, method)


def test_families_that_names_do_not_tell_apart_are_all_named(tmp_path):
    q = {"transformer_blocks.0.attn.to_q": lora(16, 16)}
    adapter = Adapter(q)
    assert adapter.families == ("FLUX.1", "FLUX.2", "Qwen-Image", "SD 3", "Krea 2")
    assert Adapter({"transformer_blocks.0.attn.to_q": lora(1536, 4)}).families == ("SD 3",)
    said = {"modelspec.architecture": "Qwen-Image/lora"}
    assert adapter_from(pair("transformer.transformer_blocks.0.attn.to_q", q[next(iter(q))]), said, "x").families == (
        "Qwen-Image",
    )
    with pytest.warns(
        Notice, match=r"written in diffusers' names, since kohya's are not certain for a LoRA of FLUX\.1 or"
    ):
        assert write_adapter(tmp_path / "x.safetensors", adapter).format == "diffusers"


STRANGE = {
    "LoKr": ({"diffusion_model.layers.0.attention.to_q.lokr_w1": torch.ones(2, 2)}, "makes it a LoKr"),
    "control LoRA": ({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(2)}, "makes it a control LoRA"),
    "BFL's control LoRA": (
        {
            "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(2),
            "double_blocks.0.img_attn.proj.lora_B.bias": torch.ones(2),
        },
        "makes it a control LoRA",
    ),
    "control LoRA of diffusers' script": (
        pair("transformer.x_embedder", lora(H, 128), A_B),
        "x_embedder with 128 inputs, where FLUX.1 has 64, makes it a control LoRA",
    ),
    "control LoRA of Stability": ({"lora_controlnet": torch.ones(0)}, "makes it a control LoRA"),
    "T5": ({"lora_te3_encoder_block_0_layer_0.lora_down.weight": torch.ones(2, 2)}, "belongs to the T5 text encoder"),
    "no such module": (pair("transformer.transformer_blocks.0.attn.to_z", lora(8, 8)), "attn.to_z is not a module of"),
    "half": (
        {"transformer.proj_out.lora_A.weight": torch.ones(2, 8)},
        "proj_out: expected a down and an up.*found down",
    ),
    "UNet": (pair("unet.mid_block.attentions.0.proj_in", lora(8, 8)), "belongs to a UNet, and .* to a transformer"),
    "vector": ({"transformer.proj_out.lora_A.weight": torch.ones(2)}, "expected 2 or 4 sizes over 0"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_no_plain_lora_is_refused_in_one_line(case):
    tensors, message = STRANGE[case]
    sound = pair("transformer.single_transformer_blocks.0.attn.to_q", lora(8, 8))
    with pytest.raises(FileRefused, match=message) as caught:
        adapter_from(sound | tensors, {}, "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["double_blocks.0.txt_attn.norm.key_norm.scale", "layers.0.attention.norm_q.weight"])
def test_a_whole_transformer_is_no_lora(key):
    with pytest.raises(
        FileRefused, match="belongs to a whole model; expected a LoRA; a whole model goes in as the base"
    ):
        adapter_from({key: torch.ones(2), "proj_out.weight": torch.ones(2, 2)}, {}, "file")


def test_the_first_layer_of_flux_2_is_no_control_loras():
    shapes = {"transformer_blocks.0.attn.to_q": (H, H), "x_embedder": (H, 128)}
    assert fitting(shapes) == ("FLUX.2",)
    assert fitting(shapes | {"x_embedder": (H, 64)})[0] == "FLUX.1"


def test_what_is_said_of_a_file_holds_for_a_transformer(tmp_path, recwarn):
    """Where it works; and nothing of parts of a layer of kohya's that only diffusers looks for."""
    path = tmp_path / "x.safetensors"
    adapter = blocks("transformer_blocks.0.attn.add_k_proj", "single_transformer_blocks.0.attn.to_q")
    assert "for diffusers only" not in verified(write_adapter(path, adapter, torch.float32, "diffusers"))
    assert write_adapter(path, adapter, torch.float32, "kohya").diffusers < 1e-6
    assert not recwarn.list


def test_blocks_of_two_files_stand_in_the_networks_order():
    names = (
        "single_transformer_blocks.2.attn.to_q",
        "transformer_blocks.10.attn.to_q",
        "transformer_blocks.9.attn.to_k",
    )
    found = architecture_of_files(blocks(names[0], names[1]), blocks(names[2]))
    assert [*found.shapes] == [names[2], names[1], names[0]]


CLASSES = {
    "FLUX.1": "FluxTransformer2DModel",
    "FLUX.2": "Flux2Transformer2DModel",
    "Qwen-Image": "QwenImageTransformer2DModel",
    "Z-Image": "ZImageTransformer2DModel",
    "SD 3": "SD3Transformer2DModel",
    "AuraFlow": "AuraFlowTransformer2DModel",
    "HunyuanVideo": "HunyuanVideoTransformer3DModel",
    "Sana": "SanaTransformer2DModel",
    "LTX-Video": "LTXVideoTransformer3DModel",
    "CogVideoX": "CogVideoXTransformer3DModel",
    "CogView 4": "CogView4Transformer2DModel",
    "Mochi 1": "MochiTransformer3DModel",
    "Cosmos": "CosmosTransformer3DModel",
    "Lumina 2": "Lumina2Transformer2DModel",
    "Wan": "WanTransformer3DModel",
    "Kandinsky 5": "Kandinsky5Transformer3DModel",
    "Krea 2": "Krea2Transformer2DModel",
    "ERNIE-Image": "ErnieImageTransformer2DModel",
}


@pytest.mark.parametrize("family", CLASSES)
def test_the_table_has_all_layers_of_diffusers_own_network(family):
    with torch.device("meta"):
        network = getattr(diffusers, CLASSES[family])()
    linear = {n: tuple(m.weight.shape) for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    assert family in fitting(linear)
    assert [*blocks_of(linear)] == sorted(dict.fromkeys(map(block_of, linear)), key="other".__eq__)
    assert hasattr(lora_pipeline, FAMILIES[family].loader)


def test_every_family_is_in_a_test():
    assert set(FAMILIES) == {*CLASSES, *UNETS, "HiDream"}
