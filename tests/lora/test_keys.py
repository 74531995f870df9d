"""Names of keys: the same LoRA in every spelling, and what is no plain LoRA of an SDXL-shaped UNet."""

import json
import math
import re

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from duolora.errors import FileRefused
from duolora.lora.names import shapes_of
from duolora.lora.read.file import read_adapter
from duolora.lora.read.keys import adapter_from
from duolora.paper.lowrank import LowRank
from tiny import tiny_unet

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
SPELLINGS = {
    "new": (f"unet.{ATTENTION}.to_out.0.lora_A.weight", f"unet.{ATTENTION}.to_out.0.lora_B.weight"),
    "no prefix": (f"{ATTENTION}.to_out.0.lora_A.weight", f"{ATTENTION}.to_out.0.lora_B.weight"),
    "named": (f"unet.{ATTENTION}.to_out.0.lora_A.default.weight", f"unet.{ATTENTION}.to_out.0.lora_B.default.weight"),
    "legacy": (f"unet.unet.{ATTENTION}.to_out.0.lora.down.weight", f"unet.unet.{ATTENTION}.to_out.0.lora.up.weight"),
    "old": (f"unet.{ATTENTION}.to_out.0.lora.down.weight", f"unet.{ATTENTION}.to_out.0.lora.up.weight"),
    "oldest": (
        f"unet.{ATTENTION}.processor.to_out_lora.down.weight",
        f"unet.{ATTENTION}.processor.to_out_lora.up.weight",
    ),
    "kohya sgm": tuple(
        f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0.lora_{side}.weight" for side in ("down", "up")
    ),
    "kohya diffusers": tuple(
        f"lora_unet_{ATTENTION.replace('.', '_')}_to_out_0.lora_{side}.weight" for side in ("down", "up")
    ),
}
SGM = {
    "middle_block_1_transformer_blocks_9_attn2_to_k": "mid_block.attentions.0.transformer_blocks.9.attn2.to_k",
    "output_blocks_0_1_transformer_blocks_3_attn1_to_v": "up_blocks.0.attentions.0.transformer_blocks.3.attn1.to_v",
    "output_blocks_5_1_proj_in": "up_blocks.1.attentions.2.proj_in",
    "input_blocks_8_1_transformer_blocks_1_ff_net_0_proj": (
        "down_blocks.2.attentions.1.transformer_blocks.1.ff.net.0.proj"
    ),
    "input_blocks_1_0_emb_layers_1": "down_blocks.0.resnets.0.time_emb_proj",
    "label_emb_0_0": "add_embedding.linear_1",
}


def pair(stem: str, lora: LowRank, sides: tuple[str, str] = ("lora_down", "lora_up")) -> dict[str, torch.Tensor]:
    return {f"{stem}.{sides[0]}.weight": lora.down, f"{stem}.{sides[1]}.weight": lora.up}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_lora(lora, spelling):
    down, up = SPELLINGS[spelling]
    modules = adapter_from({down: lora.down, up: lora.up}, {}, "file").modules
    assert list(modules) == [f"{ATTENTION}.to_out.0"]
    torch.testing.assert_close(modules[f"{ATTENTION}.to_out.0"].delta(), lora.delta())
    header = {key: {"shape": list(factor.shape)} for key, factor in ((down, lora.down), (up, lora.up))}
    assert shapes_of(header) == {f"{ATTENTION}.to_out.0": (lora.d_out, lora.d_in)}


@pytest.mark.parametrize(("stem", "module"), SGM.items())
def test_original_names_are_modules_of_diffusers_unet(lora, stem, module):
    assert list(adapter_from(pair(f"lora_unet_{stem}", lora), {}, "file").modules) == [module]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [1.0, 4.0, 32.0, None])
def test_kohya_strength_is_alpha_over_rank(lora, alpha, dtype):
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = pair(stem, lora) | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha, dtype=dtype)})
    (found,) = adapter_from(tensors, {}, "file").modules.values()
    assert found.scale == (1.0 if alpha is None else alpha / 4)
    assert found.up.dtype == torch.float32


def save_by_diffusers(path, adapters: dict[str, LoraConfig]) -> dict[str, torch.Tensor]:
    """Train nothing, save by diffusers, and return what its own loading and fusing adds to the weights."""
    unet = tiny_unet()
    ((name, config),) = adapters.items()
    unet.add_adapter(config, name)
    for key, weight in unet.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(weight, std=0.1)
    StableDiffusionXLPipeline.save_lora_weights(
        path.parent,
        get_peft_model_state_dict(unet, adapter_name=name),
        weight_name=path.name,
        **_collate_lora_metadata({"unet": unet}),
    )
    before = {k: v.clone() for k, v in tiny_unet().state_dict().items()}
    fresh = tiny_unet()
    fresh.load_lora_adapter(str(path.parent), weight_name=path.name, prefix="unet")
    fresh.fuse_lora()
    fresh.unload_lora()
    return {k.removesuffix(".weight"): v - before[k] for k, v in fresh.state_dict().items() if not v.equal(before[k])}


@pytest.mark.parametrize("rslora", [False, True])
def test_a_file_by_diffusers_has_the_strength_that_diffusers_gives_it(tmp_path, rslora):
    config = LoraConfig(
        r=4,
        lora_alpha=3,
        use_rslora=rslora,
        target_modules=["to_q", "to_k", "to_out.0", "ff.net.2"],
        rank_pattern={"attn2.to_q": 2, "^mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 5},
        alpha_pattern={"to_k": 9, "attn1.to_k": 7, r"up_blocks.*to_q": 0.5},
    )
    change = save_by_diffusers(tmp_path / "a.safetensors", {"default": config})
    modules = read_adapter(tmp_path / "a.safetensors").modules
    assert set(change) == set(modules)
    assert {lora.rank for lora in modules.values()} == {2, 4, 5}
    for name, lora in modules.items():
        torch.testing.assert_close(lora.delta(), change[name], rtol=1e-4, atol=1e-6)


def test_rslora_divides_by_the_root_of_the_rank(lora):
    config = json.dumps({"unet.r": 4, "unet.lora_alpha": 6, "unet.use_rslora": True})
    tensors = pair("unet.conv_in", lora, ("lora_A", "lora_B"))
    (found,) = adapter_from(tensors, {"lora_adapter_metadata": config}, "file").modules.values()
    assert found.scale == 6 / math.sqrt(4)


TEXT = "text_encoder.text_model.encoder.layers.0"
TEXT_SPELLINGS = {
    "new": (f"{TEXT}.self_attn.q_proj.lora_A.weight", f"{TEXT}.self_attn.q_proj.lora_B.weight"),
    "bare": tuple(f"text_encoder.encoder.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"),
    "old": tuple(f"{TEXT}.self_attn.q_proj.lora_linear_layer.{side}.weight" for side in ("down", "up")),
    "oldest": tuple(f"{TEXT}.self_attn.to_q_lora.{side}.weight" for side in ("down", "up")),
    "kohya": tuple(f"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_{s}.weight" for s in ("down", "up")),
}


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_every_spelling_of_a_text_encoder_is_the_same_lora(lora, spelling):
    down, up = TEXT_SPELLINGS[spelling]
    modules = adapter_from({down: lora.down, up: lora.up}, {}, "file").modules
    assert list(modules) == [f"{TEXT}.self_attn.q_proj"]
    torch.testing.assert_close(modules[f"{TEXT}.self_attn.q_proj"].delta(), lora.delta())


def test_a_convolution_is_a_lora_of_its_flat_weight():
    stem, module = "lora_unet_input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"
    down, up = torch.randn(4, 5, 3, 3), torch.randn(6, 4, 1, 1)
    tensors = pair(stem, LowRank(up[..., 0, 0], down.flatten(1)))
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    (found,) = adapter_from(tensors, {}, "file").modules.items()
    assert found[0] == module
    assert found[1].kernel == (3, 3)
    x = torch.randn(2, 5, 7, 7)
    expected = 0.5 * torch.conv2d(torch.conv2d(x, down, padding=1), up)
    torch.testing.assert_close(torch.conv2d(x, found[1].delta().reshape(6, 5, 3, 3), padding=1), expected)


def test_a_decomposed_convolution_is_multiplied_out():
    stem = "lora_unet_input_blocks_1_0_in_layers_2"
    down, mid, up = torch.randn(4, 5, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(6, 4, 1, 1)
    tensors = {f"{stem}.lora_{n}.weight": f for n, f in (("down", down), ("mid", mid), ("up", up))}
    (found,) = adapter_from(tensors, {}, "file").modules.values()
    x = torch.randn(2, 5, 7, 7)
    expected = torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid, padding=1), up)
    actual = torch.conv2d(x, found.delta().reshape(6, 5, 3, 3), padding=1)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(FileRefused, match=r"expected mid \(r, r, h, w\)"):
        adapter_from(tensors | {f"{stem}.lora_mid.weight": mid[:, :3]}, {}, "file")


def test_bundled_embeddings_are_left_out_and_named(lora):
    tensors = pair("lora_unet_input_blocks_4_1_proj_in", lora)
    tensors["bundle_emb.sks.string_to_param.*"] = torch.ones(1, 8)
    adapter = adapter_from(tensors, {}, "file")
    assert list(adapter.modules) == ["down_blocks.1.attentions.0.proj_in"]
    assert adapter.left_out == ("bundle_emb.sks",)


def test_trigger_words_of_another_program_become_the_prompt(lora):
    tensors = pair("unet.time_embedding.linear_1", lora, ("lora_A", "lora_B"))
    assert adapter_from(tensors, {"modelspec.trigger_phrase": "sks cup"}, "file").metadata == {"prompt": "sks cup"}
    ours = {"modelspec.trigger_phrase": "sks cup", "duolora": '{"seed": 1}'}
    assert adapter_from(tensors, ours, "file").metadata == {"seed": 1}
    assert adapter_from(tensors, {}, "file").metadata == {}


ZERO = torch.zeros(1)
UNET = "input_blocks.4.1.transformer_blocks.1.attn2.to_k"
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"
MODULE = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
LAYOUTS = {
    "kohya": (f"lora_unet_{UNET.replace('.', '_')}", *(f"lora_te{k}_{CLIP.replace('.', '_')}" for k in (1, 2))),
    "OMI": (f"unet.{UNET}", f"clip_l.{CLIP}", f"clip_g.{CLIP}"),
    "ComfyUI": (f"diffusion_model.{UNET}", *(f"text_encoders.clip_{k}.transformer.{CLIP}" for k in "lg")),
    "diffusers": (f"unet.{MODULE}", f"text_encoder.{CLIP}", f"text_encoder_2.{CLIP}"),
    "LyCORIS": (f"lycoris_{MODULE.replace('.', '_')}",),
    "bare": (UNET,),
    "twice": (f"unet.unet.{UNET}",),
}


@pytest.mark.parametrize("sides", [("lora_down", "lora_up"), ("lora_A", "lora_B")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_trainers_is_the_same_lora(layout, sides):
    loras = [LowRank(torch.randn(6, 4), torch.randn(4, 5)) for _ in range(3)]
    names = [MODULE, f"text_encoder.{CLIP}", f"text_encoder_2.{CLIP}"]
    tensors: dict[str, torch.Tensor] = {}
    for stem, lora in zip(LAYOUTS[layout], loras, strict=False):
        tensors |= pair(stem, lora, sides) | {f"{stem}.alpha": torch.tensor(2.0)}
    found = adapter_from(tensors, {}, "file").modules
    assert list(found) == sorted(names[: len(LAYOUTS[layout])])
    for name, lora in zip(names, loras, strict=True):
        if name in found:
            torch.testing.assert_close(found[name].delta(), lora.delta() / 2)


@pytest.mark.parametrize(
    "stem", ["unet.input_blocks.4.7.proj_in", "clip_l.x", "lycoris_x", "text_encoders.t5.x", "out.3"]
)
def test_layouts_with_other_modules_are_refused(lora, stem):
    with pytest.raises(FileRefused, match="is not a module of SDXL"):
        adapter_from(pair(stem, lora), {}, "file")


OF_SDXL = {
    "text of width 2048": (
        f"unet.{ATTENTION.replace('attn1', 'attn2')}.to_k",
        LowRank(torch.ones(8, 2), torch.ones(2, 2048)),
    ),
    "a second block": (f"unet.{ATTENTION.replace('blocks.0.attn1', 'blocks.1.attn1')}.to_q", None),
    "sizes": ("unet.add_embedding.linear_1", None),
    "a second text encoder": (f"text_encoder_2.{CLIP}", None),
}
SAYS_SD = [
    {"ss_base_model_version": "sd_v1"},
    {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
    {"ss_base_model_version": "sd_v2", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
]


@pytest.mark.parametrize("header", SAYS_SD)
@pytest.mark.parametrize("shape", OF_SDXL)
def test_shapes_say_what_a_lora_is_for_whatever_its_header_says(lora, shape, header):
    stem, other = OF_SDXL[shape]
    found = adapter_from(pair(stem, other or lora), header, "file")
    assert (len(found.modules), found.families) == (1, ("SDXL",))


@pytest.mark.parametrize("header", SAYS_SD)
def test_where_shapes_say_nothing_a_header_without_contradiction_does(lora, header):
    found = adapter_from(pair(f"unet.{ATTENTION}.to_q", lora), header, "file")
    said = ["SDXL" if len(header) > 1 else "SD 1.5" if "sd_v1" in header.values() else "SD 2"]
    assert list(found.families) == said
    assert adapter_from(pair(f"unet.{ATTENTION}.to_q", lora), {}, "file").families == ("SDXL", "SD 1.5", "SD 2")


def test_differences_of_biases_are_left_out_and_named(lora):
    """ComfyUI's "Extract and Save Lora" writes them beside the factors."""
    adapter = adapter_from(pair(f"diffusion_model.{UNET}", lora) | {f"diffusion_model.{UNET}.diff_b": ZERO}, {}, "file")
    assert list(adapter.modules) == [MODULE]
    assert adapter.left_out == ("differences of biases (.diff_b)",)


TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
NEW = f"unet.{ATTENTION}.to_q"
TWO_NETWORKS = "belongs to a UNet, and .* to a transformer; expected a LoRA of one network"
FOREIGN = {
    "DoRA of kohya": ({f"{TO_K}.dora_scale": ZERO}, {}, "dora_scale makes it a DoRA.*convert"),
    "DoRA of diffusers": ({f"{NEW}.lora_magnitude_vector": ZERO}, {}, "a DoRA"),
    "DoRA in the header": ({}, {"lora_adapter_metadata": '{"unet.use_dora": true}'}, "a DoRA"),
    "LoHa": ({"lora_unet_x.hada_w1_a": ZERO}, {}, r"lora_unet_x\.hada_w1_a makes it a LoHa"),
    "LoKr": ({"lora_unet_x.lokr_w1": ZERO}, {}, "a LoKr"),
    "LoKr of diffusers": ({f"{NEW}.lokr_w1": ZERO}, {}, "a LoKr"),
    "biases": ({f"{NEW}.lora_B.bias": ZERO}, {}, "a LoRA with biases"),
    "FLUX": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": ZERO}, {}, TWO_NETWORKS),
    "FLUX of kohya": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": ZERO}, {}, TWO_NETWORKS),
    "SD3": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": ZERO}, {}, TWO_NETWORKS),
    "PixArt": ({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": ZERO}, {}, TWO_NETWORKS),
    "Wan": ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": ZERO}, {}, TWO_NETWORKS),
    "Qwen": ({"transformer_blocks.0.attn.to_q.lora_A.weight": ZERO}, {}, TWO_NETWORKS),
    "Cascade": (
        {"lora_prior_unet_x.lora_up.weight": ZERO},
        {},
        "belongs to Stable Cascade, of which diffusers loads no",
    ),
    "T5": ({"lora_te3_encoder_block_0.lora_down.weight": ZERO}, {}, "belongs to the T5 text encoder"),
    "no module": ({"unet.foo.bar.lora_A.weight": ZERO}, {}, r"unet\.foo\.bar is not a module of SDXL"),
    "no such level": ({f"{NEW.replace('_blocks.1', '_blocks.7')}.lora_A.weight": ZERO}, {}, "is not a module of SDXL"),
    "no such number": ({"lora_unet_input_blocks_0_1_proj_in.lora_up.weight": ZERO}, {}, "is not a module of SDXL"),
    "no level -1": ({"lora_unet_input_blocks_0_0_op.lora_up.weight": ZERO}, {}, "is not a module of SDXL"),
    "Arabic digits": ({f"{NEW.replace('_blocks.1', '_blocks.١')}.lora_A.weight": ZERO}, {}, "is not a module of SDXL"),
    "motion": ({"unet.down_blocks.0.motion_modules.0.proj_in.lora_A.weight": ZERO}, {}, "is not a module of SDXL"),
    "complex alpha": ({f"{NEW}.alpha": torch.zeros(1, dtype=torch.complex64)}, {}, "expected one number.*complex"),
    "infinite metadata": ({}, {"duolora": '{"x": 1e400}'}, "duolora in its header is not JSON"),
    "checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": ZERO}, {}, "whole model.*as the base"),
    "weights": ({"a.weight": ZERO}, {}, "is not a key of a plain LoRA"),
    "PEFT folder": ({"base_model.model.x.lora_A.weight": ZERO}, {}, "PEFT's name.*save_lora_weights"),
    "GLoRA": ({"lora_unet_conv_in.a1.weight": ZERO}, {}, "a1.weight makes it a GLoRA; expected a plain LoRA"),
    "(IA)³": ({"lora_unet_conv_in.on_input": ZERO}, {}, r"on_input makes it an \(IA\)³"),
    "differences": ({"lora_unet_conv_in.diff": ZERO}, {}, "diff makes it a file of whole differences"),
    "norms": ({"lora_unet_conv_norm_out.w_norm": ZERO}, {}, "w_norm makes it a file of whole differences"),
    "ziplora-pytorch": ({f"{NEW}.lora.weight": ZERO}, {}, "a merge by ziplora-pytorch.*--method ziplora"),
    "unknown key": ({f"{NEW}.lora_C.weight": ZERO}, {}, "lora_C.weight is not a key of a plain LoRA"),
    "stray alpha": ({f"unet.{ATTENTION}.to_v.alpha": ZERO}, {}, "found only an alpha.*download the file again"),
    "no number": ({f"{NEW}.alpha": torch.zeros(2)}, {}, "alpha: expected one number"),
    "two strengths": ({f"{NEW}.alpha": ZERO}, {"lora_adapter_metadata": '{"unet.lora_alpha": 1}'}, "found both"),
    "half a pair": (
        {f"unet.{ATTENTION}.to_v.lora_A.weight": torch.ones(4, 5)},
        {},
        "to_v: .*found down; .*download the file again",
    ),
    "no alpha": ({}, {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'}, "expected finite numbers.*'x'"),
    "no pattern": (
        {},
        {"lora_adapter_metadata": '{"unet.alpha_pattern": {"(": 1}}'},
        r"has missing \)",
    ),
    "no table": ({}, {"lora_adapter_metadata": '{"unet.alpha_pattern": [1]}'}, "expected alphas under names"),
    "no JSON": ({}, {"lora_adapter_metadata": "{"}, "lora_adapter_metadata in its header is not JSON"),
    "no object": ({}, {"duolora": "[]"}, "duolora in its header: expected an object, got list"),
    "twice": ({f"{NEW}.lora.down.weight": torch.ones(4, 5)}, {}, "a second time"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused_and_named(lora, case):
    tensors, metadata, message = FOREIGN[case]
    with pytest.raises(FileRefused, match=message) as caught:
        adapter_from(pair(NEW, lora, ("lora_A", "lora_B")) | tensors, metadata, "file.safetensors")
    assert str(caught.value).startswith("file.safetensors: ")


def test_a_whole_model_or_an_empty_file_is_no_lora():
    with pytest.raises(FileRefused, match="expected keys of a LoRA, found none among 1, such as conv_in.weight"):
        adapter_from({"conv_in.weight": ZERO}, {}, "file")
    with pytest.raises(FileRefused, match="found none among 0"):
        adapter_from({}, {}, "file")


@pytest.mark.parametrize(("width", "family"), [(768, "SD 1.5"), (1024, "SD 2")])
@pytest.mark.parametrize(
    "module", ["mid_block.attentions.0", "down_blocks.1.attentions.1", "down_blocks.0.attentions.0"]
)
def test_older_bases_are_told_by_the_width_of_their_text_in_one_layer(module, width, family):
    stem = f"lora_unet_{module.replace('.', '_')}_transformer_blocks_0_attn2_to_v"
    found = adapter_from(pair(stem, LowRank(torch.ones(640, 4), torch.ones(4, width))), {}, "file")
    assert found.families == (family,)
    narrow = adapter_from(pair(stem, LowRank(torch.ones(96, 4), torch.ones(4, width))), {}, "file")
    assert narrow.families[0] == "SDXL"


def test_projections_of_older_bases_are_convolutions(lora):
    """Those of Stable Diffusion 1 are in its UNet; Stable Diffusion 2 has linear layers there, as SDXL."""
    tensors = pair("lora_unet_down_blocks_0_attentions_0_proj_in", lora)
    kernels = {}
    for width in (768, 1024):
        text = pair(TO_K, LowRank(torch.ones(320, 4), torch.ones(4, width)))
        found = adapter_from(tensors | text, {}, "file")
        kernels[width] = found.modules["down_blocks.0.attentions.0.proj_in"].kernel
    assert kernels == {768: (1, 1), 1024: None}


def test_a_shortcut_is_a_convolution_however_it_was_saved():
    stem = "lora_unet_input_blocks_4_0_skip_connection"
    two = pair(stem, LowRank(torch.ones(6, 4), torch.ones(4, 5)))
    four = {key: value[..., None, None] for key, value in two.items()}
    found = [adapter_from(tensors, {}, "file").modules for tensors in (two, four)]
    assert [x["down_blocks.1.resnets.0.conv_shortcut"].kernel for x in found] == [(1, 1), (1, 1)]
    emb = pair("lora_unet_input_blocks_4_0_emb_layers_1", LowRank(torch.ones(6, 4), torch.ones(4, 5)))
    found = [adapter_from(t, {}, "file").modules for t in (emb, {k: v[..., None, None] for k, v in emb.items()})]
    assert [x["down_blocks.1.resnets.0.time_emb_proj"].kernel for x in found] == [None, None]


@pytest.mark.parametrize(("up", "down"), [((6, 3), (4, 5)), ((6, 4, 1, 1), (4, 5)), ((6, 4, 3, 3), (4, 5, 3, 3))])
def test_factors_that_do_not_fit_are_refused(up, down):
    tensors = {f"{NEW}.lora_A.weight": torch.ones(down), f"{NEW}.lora_B.weight": torch.ones(up)}
    with pytest.raises(FileRefused, match=re.escape(f"got {up} and {down}")):
        adapter_from(tensors, {}, "file")


@pytest.mark.parametrize("shape", [(6,), (6, 0), (0, 4), (1, 2, 3), (1, 1, 1, 1, 1)])
def test_factors_of_impossible_shapes_are_refused(shape):
    tensors = {f"{NEW}.lora_A.weight": torch.ones(4, 5), f"{NEW}.lora_B.weight": torch.ones(shape)}
    with pytest.raises(FileRefused, match=rf"lora_B.weight: expected 2 or 4 sizes over 0, got {re.escape(str(shape))}"):
        adapter_from(tensors, {}, "file")
