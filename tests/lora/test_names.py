"""Names there and back, against every module of the exact architectures."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from duolora.lora.adapter import Adapter
from duolora.lora.names import from_kohya, from_sgm, is_module, kohya_names, sgm
from duolora.lora.write.kohya import kohya_tensors
from duolora.model.architectures import ARCHITECTURES, unet_config
from duolora.model.blocks import target_modules
from duolora.paper.lowrank import LowRank
from tiny import original_unet_keys


def layers(architecture: str) -> list[str]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(architecture, 8))
    return [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_has_one_name_in_each_spelling_and_comes_back(architecture):
    names = layers(architecture)
    assert [from_sgm(sgm(name)) for name in names] == names
    for spelled in (kohya_names(names), {n: f"lora_unet_{n.replace('.', '_')}" for n in names}):
        assert len(set(spelled.values())) == len(names)
        assert [from_kohya(stem) for stem in spelled.values()] == names
    assert all(is_module(name) for name in names)
    assert any("input_blocks_8_1" in stem for stem in kohya_names(names).values())


def test_where_blocks_may_have_one_layer_only_their_names_are_diffusers():
    one = ["down_blocks.1.attentions.0.proj_in", "up_blocks.0.attentions.1.proj_in"]
    assert kohya_names(one)[one[0]] == "lora_unet_down_blocks_1_attentions_0_proj_in"
    assert kohya_names([*one, "up_blocks.0.attentions.2.proj_in"])[one[0]] == "lora_unet_input_blocks_4_1_proj_in"


def test_a_few_blocks_of_sdxls_widths_have_sdxls_own_numbers():
    """As sd-scripts' merge_lora looks for them, in B-LoRAs too; narrower ones are of another UNet."""
    name = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
    for width, stem in ((1280, "lora_unet_output_blocks_1_1_"), (64, "lora_unet_up_blocks_0_attentions_1_")):
        modules = {name: LowRank(torch.ones(width, 2), torch.ones(2, width))}
        wide = {name.replace("attn1.to_q", "ff.net.0.proj"): LowRank(torch.ones(8 * width, 2), torch.ones(2, width))}
        assert all(key.startswith(stem) for key in kohya_tensors(Adapter(modules | wide), torch.float16))


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_x",
        "lora_te3_x",
        "lora_unet_input_blocks_4_7_proj_in",
        "x",
        "lora_unet_",
        "lora_unet_input_blocks_0_1_proj_in",
        "lora_unet_input_blocks_0_0_op",
        "lora_unet_output_blocks_12_1_proj_in",
    ],
)
def test_other_names_are_no_modules(stem):
    with pytest.raises(ValueError):
        from_kohya(stem)


def comfy_keys(sgm_paths: list[str]) -> set[str]:
    """Every key that ComfyUI's loader looks for, by its published rule for LoRAs in kohya's spelling.

    The map is built from the paths of the checkpoint's own modules: `lora_unet_` and the path with _ for every dot.
    """
    stems = {"lora_unet_" + path.replace(".", "_") for path in sgm_paths}
    return {f"{stem}{side}" for stem in stems for side in (".lora_up.weight", ".lora_down.weight", ".alpha")}


def test_comfyui_knows_every_key_of_our_kohya_file():
    """The original paths come from the tests' own table, never from ours; all 560 target modules of SDXL."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config("sdxl"))
    names, everything = (
        target_modules(unet),
        [n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)],
    )
    originals = original_unet_keys([f"{name}.weight" for name in everything], 3)
    known = comfy_keys([key.removesuffix(".weight") for key in originals])
    adapter = Adapter({n: LowRank(torch.ones(2, 1 + k % 3), torch.ones(1 + k % 3, 2)) for k, n in enumerate(names)})
    ours = set(kohya_tensors(adapter, torch.float16))
    assert len(names) == 560
    assert len(ours) == 3 * 560
    assert ours <= known
    assert not {key.replace("input_blocks", "down_blocks") for key in ours} <= known


def test_kohya_names_are_the_keys_of_the_original_checkpoint_with_underscores():
    """How ComfyUI makes its key map; the original keys come from a table of the tests' own."""
    names = layers("sdxl")
    keys = original_unet_keys([f"{name}.weight" for name in names], 3)
    assert kohya_names(names) == {
        name: f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
        for name, key in zip(names, keys, strict=True)
    }
