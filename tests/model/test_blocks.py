"""The full-size UNets on the meta device: what they count, and which role each block has."""

from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel

from duolora.errors import InputError
from duolora.model.architectures import ARCHITECTURES, unet_config
from duolora.model.blocks import by_block, formatted, layer_shapes, role_in, roles, target_modules
from recipes.atelier.architecture import new_unet
from tiny import tiny_inputs, tiny_unet


@cache
def meta(name: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**unet_config(name))


def blocks(found: dict[str, str]) -> dict[str, set[str]]:
    """Role → the blocks that have it."""
    table: dict[str, set[str]] = {}
    for name, role in found.items():
        table.setdefault(role, set()).add(name.partition(".attentions")[0])
    return table


@pytest.mark.parametrize(
    ("name", "counts", "parameters"),
    [
        ("sdxl", (560, 71_680, 1_331_200, 1_571_840), 2.567e9),
        ("ssd-1b", (272, 34_816, 614_400, 739_328), 1.331e9),
        ("segmind-vega", (120, 15_360, 256_000, 314_880), 0.745e9),
    ],
)
def test_full_size_counts_are_those_of_the_paper(name, counts, parameters):
    shapes, names = layer_shapes(meta(name)), target_modules(meta(name))
    outputs, inputs = (sum(shapes[each][axis] for each in names) for axis in (0, 1))
    assert (len(names), 2 * 64 * len(names), 2 * outputs, 2 * inputs) == counts
    assert sum(p.numel() for p in meta(name).parameters()) == pytest.approx(parameters, rel=5e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_narrow_unets_have_the_modules_of_the_wide_ones_and_run(name):
    narrow = UNet2DConditionModel(**unet_config(name, width=8))
    assert target_modules(narrow) == target_modules(meta(name))
    assert sum(p.numel() for p in narrow.parameters()) < 3e6
    inputs = tiny_inputs(1)
    inputs["encoder_hidden_states"] = torch.randn(1, 5, 32)
    inputs["added_cond_kwargs"]["text_embeds"] = torch.randn(1, 32)
    with torch.no_grad():
        assert narrow(**inputs)[0].shape == inputs["sample"].shape


def test_architectures_are_named_in_refusals():
    with pytest.raises(InputError, match="expected one of sdxl, ssd-1b, segmind-vega, got 'sd15'"):
        unet_config("sd15")
    with pytest.raises(InputError, match="even number of channels, got 7"):
        unet_config("sdxl", 7)


MIDDLE = {"sdxl": {"mid_block"}, "ssd-1b": set(), "segmind-vega": set()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resolution_gives_content_the_lowest_level_and_style_the_next(name):
    found = roles(meta(name))
    assert list(found) == target_modules(meta(name))
    assert blocks(found) == {
        "content": {"down_blocks.2", "up_blocks.0"} | MIDDLE[name],
        "style": {"down_blocks.1", "up_blocks.1"},
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_literal_released_and_blora_differ_as_they_should(name):
    unet, middle = meta(name), MIDDLE[name]
    style = {"down_blocks.1", "up_blocks.1"}
    assert blocks(roles(unet, "literal")) == {
        "content": {"down_blocks.2"} | middle,
        "style": style,
        "neutral": {"up_blocks.0"},
    }
    released = blocks(roles(unet, "released"))
    assert released == {"content": {"down_blocks.2"}, "style": style, "neutral": {"up_blocks.0"} | middle}
    blora = roles(unet, "blora")
    for module, role in blora.items():
        first, second = (module.startswith(f"up_blocks.0.attentions.{k}.") for k in (0, 1))
        assert role == ("content" if first else "style" if second else "neutral")
    assert set(blora.values()) == {"content", "style", "neutral"}


def test_small_unets_of_sdxls_shape_have_sdxls_map():
    assert blocks(roles(tiny_unet())) == {
        "content": {"down_blocks.2", "mid_block", "up_blocks.0"},
        "style": {"down_blocks.1", "up_blocks.1"},
    }


def test_ateliers_two_levels_are_sdxls_two_with_attention():
    assert blocks(roles(new_unet())) == {
        "content": {"down_blocks.1", "mid_block", "up_blocks.0"},
        "style": {"down_blocks.0", "up_blocks.1"},
    }


def test_levels_are_counted_from_the_lowest_that_has_attention():
    """Stable Diffusion 1's shape: four levels, on the last of which only the middle has attention."""
    kind, plain = "CrossAttn{}Block2D", "{}Block2D"
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            down_block_types=[k.format("Down") for k in (kind, kind, kind, plain)],
            up_block_types=[k.format("Up") for k in (plain, kind, kind, kind)],
            block_out_channels=(32, 32, 32, 32),
        )
    assert blocks(roles(unet)) == {
        "content": {"mid_block"},
        "style": {"down_blocks.2", "up_blocks.1"},
        "neutral": {"down_blocks.0", "down_blocks.1", "up_blocks.2", "up_blocks.3"},
    }


def test_roles_do_not_depend_on_the_training_resolution():
    assert roles(tiny_unet(sample_size=8)) == roles(tiny_unet(sample_size=64))


def test_a_users_table_goes_by_the_longest_beginning():
    unet = meta("sdxl")
    table = {"up_blocks": "style", "up_blocks.0.attentions.1": "content", "mid_block": "content"}
    found = roles(unet, table)
    assert found["up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q"] == "style"
    assert found["up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"] == "content"
    assert found["down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q"] == "neutral"
    ones = roles(unet, {"mid_block.attentions.0.transformer_blocks.1": "style"})
    assert {name.split(".")[4] for name, role in ones.items() if role == "style"} == {"1"}
    assert set(roles(unet, {}).values()) == {"neutral"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"up_blocks.2": "style"}, r"up_blocks\.2: expected the beginning.*down_blocks\.1"),
        ({"up_blocks.0": "both"}, "up_blocks.0: expected one of content, style, neutral, got 'both'"),
        ("sdxl", "expected one of resolution, literal, released, blora, none or a table, got 'sdxl'"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(kind, message):
    with pytest.raises(InputError, match=message):
        roles(meta("sdxl"), kind)


def test_the_map_is_printed_by_block_and_finer_where_a_block_is_mixed():
    unet = meta("sdxl")
    lines = [line.split() for line in formatted(roles(unet)).splitlines()]
    assert [line[0] for line in lines] == ["down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1", "mid_block"]
    assert sum(int(line[2]) for line in lines) == 560
    for kind in ("resolution", "literal", "blora", "none", {"mid_block.attentions.0.transformer_blocks.0": "style"}):
        found = roles(unet, kind)
        assert {name: role_in(by_block(found), name) for name in found} == found
    mixed = formatted(roles(unet, "blora"))
    assert ["up_blocks.0.attentions.1", "style", "80", "modules"] in [line.split() for line in mixed.splitlines()]
    assert formatted({}) == ""
