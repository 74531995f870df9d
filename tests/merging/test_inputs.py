"""What goes into a merge: the first masks by the options' defaults."""

import warnings

import pytest
import torch

from duolora.errors import Notice
from duolora.lora.adapter import Adapter
from duolora.merging.inputs import Sources, first_masks, parted, tell_no_map
from duolora.merging.options import MergeOptions, options_of
from duolora.model.architectures import Architecture
from duolora.paper.lowrank import LowRank

RANK = 400


def test_first_masks_by_default_have_the_thresholds_of_table_8():
    lora = LowRank(torch.ones(2, RANK), torch.ones(RANK, 3))
    both = Sources({"x": lora}, {"x": lora}, {}, {}, {"x": "content"})
    m_c, m_s = first_masks(both, MergeOptions(init="ones"), torch.device("cpu"))
    v = torch.randn(RANK, generator=torch.Generator().manual_seed(0))
    v = (v - v.min()) / (v.max() - v.min())
    assert torch.equal(m_c["x"], (v > 0.0).float()) and torch.equal(m_s["x"], (v > 0.1).float())
    assert m_c["x"].sum() == RANK - 1 > m_s["x"].sum()


def test_singular_directions_are_sought_only_where_masks_act_on_them():
    adapter = Adapter({"x": LowRank(torch.randn(4, 2), torch.randn(2, 3))})
    without = ("naive", "split", "blora", "svd", "ties", "dare_ties", "ziplora")
    for method, same in (*((name, True) for name in without), ("ziprank", False), ("oneshot", False)):
        inside, _ = parted({"x"}, adapter, options_of(method))
        assert (inside["x"] is adapter.modules["x"]) == same
        torch.testing.assert_close(inside["x"].delta(), adapter.modules["x"].delta())


@pytest.mark.parametrize("method", ["duolora", "ziprank-prior", "oneshot"])
def test_of_a_transformer_no_map_is_known_which_is_said_where_it_matters(method):
    """Also where the default was typed; the roles would go without a word."""
    flux = Architecture("FLUX.1", {"transformer_blocks.0.attn.to_q": (8, 8)}, None)
    with pytest.warns(Notice, match=r"block_map: of FLUX\.1 no map is known, so neither LoRA leads anywhere"):
        tell_no_map(flux, options_of(method, block_map="resolution"))
    unet = Architecture("a UNet", {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (8, 8)}, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_no_map(unet, options_of(method))
        tell_no_map(flux, options_of(method, block_map="none"))
        tell_no_map(flux, options_of(method, block_map={"transformer_blocks.0": "content"}))
        tell_no_map(flux, options_of("ziplora"))
