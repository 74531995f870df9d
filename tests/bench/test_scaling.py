"""Weight scaling: what it multiplies, and that it leaves no trace."""

import pytest
import torch

from duolora.bench.figures import block_groups, scaled
from duolora.errors import InputError
from tiny import tiny_inputs, tiny_unet


@torch.no_grad()
def test_one_changes_nothing_and_zero_removes_attention():
    unet, inputs = tiny_unet(), tiny_inputs()
    plain = unet(**inputs)[0]
    with scaled(unet, ["mid_block"], 1.0):
        assert torch.equal(unet(**inputs)[0], plain)
    with scaled(unet, ["mid_block"], 0.0):
        off = unet(**inputs)[0]
    assert not torch.allclose(off, plain)
    assert torch.equal(unet(**inputs)[0], plain)
    for name, parameter in unet.named_parameters():
        if name.startswith("mid_block") and "to_out.0" in name:
            parameter.zero_()
    torch.testing.assert_close(unet(**inputs)[0], off)


@torch.no_grad()
def test_scaling_is_scaling_the_projection():
    unet, inputs = tiny_unet(), tiny_inputs()
    with scaled(unet, ["up_blocks.0"], 0.3, ("attn2",)):
        hooked = unet(**inputs)[0]
    for name, parameter in unet.named_parameters():
        if name.startswith("up_blocks.0") and "attn2.to_out.0" in name:
            parameter.mul_(0.3)
    torch.testing.assert_close(unet(**inputs)[0], hooked)


def test_groups_cover_all_blocks_with_attention():
    groups = block_groups(tiny_unet())
    assert set(groups["level 2"]) == {"down_blocks.2", "mid_block", "up_blocks.0"}
    assert set(groups["level 1"]) == {"down_blocks.1", "up_blocks.1"}
    assert groups["mid_block"] == ("mid_block",)
    assert groups["up_blocks.0.attentions.1"] == ("up_blocks.0.attentions.1",)
    assert "mid_block.attentions.0" not in groups, "it is all of its block"
    assert "down_blocks.0" not in groups


def test_blocks_without_attention_are_refused():
    with pytest.raises(InputError, match=r"down_blocks\.0"), scaled(tiny_unet(), ["down_blocks.0"], 0.5):
        pass
