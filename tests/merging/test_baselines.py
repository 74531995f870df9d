"""Merges by PEFT's ways, on the true updates."""

import pytest
import torch
from hypothesis import given, strategies as st

from duolora.merging.fold import agreed, best_of_rank, combined
from duolora.merging.inputs import Sources
from duolora.merging.options import MergeOptions
from duolora.paper.lowrank import LowRank, svd_basis


def lora(seed: int, rank: int = 3, scale: float = 0.5) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(10, rank, generator=rng), torch.randn(rank, 8, generator=rng), scale)


@pytest.fixture
def both() -> Sources:
    content, style = {"x": svd_basis(lora(0)), "c": lora(1)}, {"x": svd_basis(lora(2)), "s": lora(3)}
    return Sources(content, style, {}, {}, {"x": "content", "c": "neutral", "s": "style"})


def test_svd_of_full_rank_is_the_weighted_sum(both):
    out = dict(combined(both, MergeOptions(combine="svd", content_weight=0.3)))
    expected = 0.3 * both.content["x"].delta() + both.style["x"].delta()
    torch.testing.assert_close(out["x"].delta(), expected)
    torch.testing.assert_close(out["c"].delta(), 0.3 * both.content["c"].delta())
    assert out["s"].delta().equal(both.style["s"].delta())


def test_svd_cuts_to_the_nearest_of_its_rank(both):
    out = dict(combined(both, MergeOptions(combine="svd", rank=2)))["x"]
    u, s, v = torch.linalg.svd(both.content["x"].delta() + both.style["x"].delta())
    assert out.rank == 2
    torch.testing.assert_close(out.delta(), u[:, :2] @ s[:2].diag() @ v[:2])


def test_ties_keeps_the_largest_and_elects_signs():
    x = torch.tensor([[4.0, -3.0, 0.1, 0.2]])
    y = torch.tensor([[3.0, 5.0, 0.1, -0.3]])
    torch.testing.assert_close(agreed([x, y], "ties", 0.5), torch.tensor([[3.5, 5.0, 0.0, 0.0]]))


@given(st.integers(0, 50))
def test_agreeing_updates_at_full_density_are_averaged(seed):
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) + 0.1
    torch.testing.assert_close(agreed([x, 3 * x], "ties", 1.0), 2 * x)


def test_the_same_seed_drops_the_same(both):
    def drawn(seed: int) -> torch.Tensor:
        return dict(combined(both, MergeOptions(combine="dare_ties", seed=seed)))["x"].delta()

    assert drawn(1).equal(drawn(1))
    assert not drawn(1).equal(drawn(2))


def test_density_matters(both):
    few, many = (dict(combined(both, MergeOptions(combine="ties", density=d)))["x"].delta() for d in (0.2, 0.9))
    assert not torch.allclose(few, many)


def test_best_of_rank_is_exact_where_it_can_be():
    delta = lora(5, rank=2).delta()
    torch.testing.assert_close(best_of_rank(delta, 2).delta(), delta)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_best_of_rank_is_nearest_and_balanced(rows, columns, rank, known):
    lora = LowRank(torch.randn(rows, known), torch.randn(known, columns))
    s = torch.linalg.svdvals(lora.delta().double())
    kept = best_of_rank(lora.delta(), rank)
    torch.testing.assert_close((lora.delta() - kept.delta()).norm().double(), s[rank:].norm(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kept.up.norm(dim=0), kept.down.norm(dim=1), atol=1e-4, rtol=1e-3)
