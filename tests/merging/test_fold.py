"""Folding: each module's masks and weights, by the arithmetic of the paper's files."""

from dataclasses import replace

import pytest
import torch

from duolora.merging.fold import folded
from duolora.merging.inputs import Sources
from duolora.merging.options import MergeOptions
from duolora.paper.lowrank import LowRank

D_OUT, D_IN, RANK = 5, 4, 3
WIDTH = {"none": RANK, "rank": RANK, "output": D_OUT, "input": D_IN}


def lora(seed: int) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(D_OUT, RANK, generator=rng), torch.randn(RANK, D_IN, generator=rng), 0.5)


@pytest.fixture
def both() -> Sources:
    roles = {"both": "content", "c": "neutral", "s": "style"}
    return Sources({"both": lora(0), "c": lora(1)}, {"both": lora(2), "s": lora(3)}, {}, {}, roles)


def masks_of(both: Sources, axis: str):
    rng = torch.Generator().manual_seed(9)
    return [{n: torch.rand(WIDTH[axis], generator=rng) for n in loras} for loras in (both.content, both.style)]


def by_definition(one: LowRank, mask: torch.Tensor, axis: str) -> torch.Tensor:
    if axis == "output":
        return torch.diag(mask) @ one.delta()
    if axis == "input":
        return one.delta() @ torch.diag(mask)
    return one.scale * one.up @ torch.diag(mask) @ one.down


@pytest.mark.parametrize("axis", ["none", "rank", "output", "input"])
def test_folded_is_the_weighted_sum_of_what_the_definitions_say(both, axis):
    m_c, m_s = masks_of(both, axis)
    out = folded(both, m_c, m_s, MergeOptions(masks=axis, content_weight=0.3, style_weight=-2.0)).modules
    for name in both.roles:
        expected = torch.zeros(D_OUT, D_IN)
        for loras, masks, weight in ((both.content, m_c, 0.3), (both.style, m_s, -2.0)):
            if name in loras:
                expected += weight * by_definition(loras[name], masks[name], axis)
        torch.testing.assert_close(out[name].delta(), expected)


@pytest.mark.parametrize("axis", ["output", "input"])
def test_threshold_and_binary_are_for_rank_masks_only(both, axis):
    m_c, m_s = masks_of(both, axis)
    plain = MergeOptions(masks=axis, threshold=0.0)
    exact, other = (folded(both, m_c, m_s, o).modules for o in (plain, replace(plain, threshold=0.5, binary=True)))
    assert all(torch.equal(exact[name].delta(), other[name].delta()) for name in both.roles)


def test_a_threshold_drops_directions_and_modules(both):
    m_c, m_s = masks_of(both, "rank")
    m_c["both"], m_s["both"] = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0.1, 0.6, -0.7])
    m_c["c"] = torch.full((RANK,), 0.5)
    out = folded(both, m_c, m_s, MergeOptions(threshold=0.5)).modules
    assert out["both"].rank == 3 and "c" not in out
    full = folded(both, m_c, m_s, MergeOptions(threshold=0.5, binary=True)).modules
    expected = by_definition(both.content["both"], torch.tensor([0.0, 1, 0]), "rank")
    expected += by_definition(both.style["both"], torch.tensor([0.0, 1, 1]), "rank")
    torch.testing.assert_close(full["both"].delta(), expected)
