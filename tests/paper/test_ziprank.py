"""Rank masks (Definition 2): the masked forward, the teachers in its gates, and the folded LoRA."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from duolora.paper.lowrank import LowRank, concatenate, svd_basis
from duolora.paper.ziplora import output_masked
from duolora.paper.ziprank import fold, forward, masked

R_C, R_S, D_OUT, D_IN = 3, 2, 7, 5
double = {"dtype": torch.float64}


def loras(seed=0, r_c=R_C, r_s=R_S):
    g = torch.Generator().manual_seed(seed)
    sizes = ((r_c, 0.5), (r_s, 2.0))
    return [
        LowRank(torch.randn(D_OUT, r, generator=g, **double), torch.randn(r, D_IN, generator=g, **double), scale)
        for r, scale in sizes
    ]


def test_definition_2_is_the_diagonal_matrix_between_the_factors():
    content, _ = loras()
    m = torch.tensor([1.0, 0.0, -0.5], **double)
    torch.testing.assert_close(masked(content, m).delta(), 0.5 * content.up @ torch.diag(m) @ content.down)


def test_binary_mask_in_the_svd_basis_is_the_truncated_svd():
    content = svd_basis(loras()[0])
    u, s, v_t = torch.linalg.svd(content.delta())
    best = u[:, :2] @ torch.diag(s[:2]) @ v_t[:2]
    torch.testing.assert_close(masked(content, torch.tensor([1.0, 1.0, 0.0], **double)).delta(), best)


@given(st.integers(1, D_IN), st.integers(0, 6), st.floats(0, 4), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_at_one_budget_rank_masks_err_no_more_than_output_masks(rank, kept, decay, seed):
    """Theorem 1, in numbers: the best k directions against the best k outputs, with real or {0, 1} masks alike."""
    g = torch.Generator().manual_seed(seed)
    up, down = torch.randn(D_OUT, rank, generator=g, **double), torch.randn(rank, D_IN, generator=g, **double)
    lora = svd_basis(LowRank(up * torch.exp(-decay * torch.arange(rank)), down))
    delta = lora.delta()
    by_rank = masked(lora, (torch.arange(rank) < kept).double()).delta()
    loudest = delta.norm(dim=1).argsort(descending=True)[:kept]
    by_output = output_masked(lora, torch.zeros(D_OUT, **double).index_fill(0, loudest, 1.0)).delta()
    assert (delta - by_rank).norm() <= (delta - by_output).norm() + 1e-9


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(1, 3), max_size=2), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_folded_equals_masked_forward_for_every_sample(r_c, r_s, tokens, seed):
    content, style = loras(seed, r_c, r_s)
    stacked = concatenate([content, style])
    g = torch.Generator().manual_seed(seed)
    gate = torch.randn(4, r_c + r_s, generator=g, **double)
    x = torch.randn(4, *tokens, D_IN, generator=g, **double)
    y = forward(x, stacked.up, stacked.down, gate)
    for b in range(4):
        folded = fold([content, style], [gate[b, :r_c], gate[b, r_c:]])
        torch.testing.assert_close(y[b], x[b] @ folded.delta().T)


def test_gates_give_the_teachers_exactly():
    """In whole numbers, so that the sums have no rounding and equality is exact."""
    g = torch.Generator().manual_seed(3)
    whole = [
        torch.randint(-4, 5, s, generator=g).float() for s in ((D_OUT, R_C), (R_C, D_IN), (D_OUT, R_S), (R_S, D_IN))
    ]
    content, style = LowRank(whole[0], whole[1], 2.0), LowRank(whole[2], whole[3], 0.5)
    stacked = concatenate([content, style])
    x = torch.randint(-4, 5, (3, 6, D_IN), generator=g).float()
    gate = torch.tensor([[1.0] * R_C + [0.0] * R_S, [0.0] * R_C + [1.0] * R_S, [0.0] * (R_C + R_S)])
    y = forward(x, stacked.up, stacked.down, gate)
    assert torch.equal(y[0], x[0] @ content.delta().T)
    assert torch.equal(y[1], x[1] @ style.delta().T)
    assert torch.equal(y[2], torch.zeros_like(y[2]))


def test_pruning_drops_directions_and_says_by_how_much_it_differs():
    content, style = loras()
    m_c, m_s = torch.tensor([1.0, 1e-4, 0.5], **double), torch.tensor([0.0, 2.0], **double)
    exact, pruned = (fold([content, style], [m_c, m_s], threshold) for threshold in (0.0, 1e-3))
    assert (exact.rank, pruned.rank) == (4, 3)
    lost = 0.5 * 1e-4 * torch.outer(content.up[:, 1], content.down[1])
    torch.testing.assert_close(exact.delta() - pruned.delta(), lost)


def test_binary_fold_takes_the_surviving_directions_in_full():
    content, style = loras()
    m_c, m_s = torch.tensor([0.7, 0.05, -0.4], **double), torch.tensor([0.0, 0.2], **double)
    one = fold([content, style], [m_c, m_s], threshold=0.1, binary=True)
    want = fold([content, style], [torch.tensor([1.0, 0, 1], **double), torch.tensor([0.0, 1], **double)])
    assert torch.equal(one.delta(), want.delta())


def test_nothing_left_folds_to_nothing_and_one_half_may_vanish():
    content, style = loras()
    none_c, none_s = torch.zeros(R_C, **double), torch.zeros(R_S, **double)
    assert fold([content, style], [none_c, none_s]) is None
    torch.testing.assert_close(fold([content, style], [none_c, none_s + 1]).delta(), style.delta())


def test_swapping_content_and_style_folds_to_the_same_update():
    content, style = loras()
    m_c, m_s = torch.tensor([0.7, 0.05, -0.4], **double), torch.tensor([0.3, 0.2], **double)
    one, two = fold([content, style], [m_c, m_s]), fold([style, content], [m_s, m_c])
    torch.testing.assert_close(one.delta(), two.delta())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_network_with_float32_masks(dtype):
    torch.manual_seed(0)
    content, style = loras()
    stacked = concatenate([content, style])
    gate = torch.rand(2, R_C + R_S, requires_grad=True)
    y = forward(torch.randn(2, 4, D_IN).to(dtype), stacked.up.to(dtype), stacked.down.to(dtype), gate)
    y.float().square().sum().backward()
    assert y.dtype == dtype and gate.grad.dtype == torch.float32 and (gate.grad != 0).all()


def test_gradient_of_the_gate_is_the_slow_formula():
    torch.manual_seed(0)
    content, style = loras()
    stacked = concatenate([content, style])
    gate = torch.rand(2, R_C + R_S, **double).requires_grad_()
    x, seen = torch.randn(2, 4, D_IN, **double), torch.randn(2, 4, D_OUT, **double)
    (forward(x, stacked.up, stacked.down, gate) * seen).sum().backward()
    for b in range(2):
        for i in range(R_C + R_S):
            direction = torch.outer(stacked.up[:, i], stacked.down[i])
            torch.testing.assert_close(gate.grad[b, i], (seen[b] * (x[b] @ direction.T)).sum())
