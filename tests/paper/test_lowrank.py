"""Properties of a LoRA's factors: its singular basis, its sums and what pruning leaves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from duolora.paper.lowrank import LowRank, concatenate, gated, prune, svd_basis, total

sizes = st.integers(1, 12)


def random_lora(d_out, r, d_in, scale=1.0, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    up = torch.randn(d_out, r, generator=g, dtype=dtype)
    return LowRank(up, torch.randn(r, d_in, generator=g, dtype=dtype), scale)


@given(sizes, sizes, sizes, st.sampled_from([1.0, 0.25, -2.0]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_svd_basis_keeps_delta_and_is_orthogonal_balanced_and_sorted(d_out, r, d_in, scale, seed):
    lora = random_lora(d_out, r, d_in, scale, seed)
    basis = svd_basis(lora)
    assert basis.scale == 1.0
    assert basis.rank == min(r, d_out, d_in)
    torch.testing.assert_close(basis.delta(), lora.delta())
    sigma = torch.linalg.svdvals(lora.delta())[: basis.rank]
    torch.testing.assert_close(basis.up.T @ basis.up, torch.diag(sigma))
    torch.testing.assert_close(basis.down @ basis.down.T, torch.diag(sigma))


def test_svd_basis_does_not_depend_on_the_factoring():
    lora = random_lora(9, 4, 7, 0.5)
    g = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = LowRank(lora.up @ g, torch.linalg.solve(g, lora.down), lora.scale)
    one, two = svd_basis(lora), svd_basis(other)
    torch.testing.assert_close(one.up, two.up)
    torch.testing.assert_close(one.down, two.down)
    assert (one.up.gather(0, one.up.abs().argmax(0, keepdim=True)) > 0).all()


def test_svd_basis_is_idempotent_deterministic_and_free_of_gradient():
    lora = random_lora(6, 3, 5)
    lora.up.requires_grad_()
    lora.down.requires_grad_()
    basis = svd_basis(lora)
    assert not basis.up.requires_grad and not basis.down.requires_grad
    assert torch.equal(basis.up, svd_basis(lora).up)
    torch.testing.assert_close(svd_basis(basis).up, basis.up)


def test_svd_basis_keeps_the_rank_of_a_deficient_lora():
    lora = random_lora(8, 4, 8)
    lora = LowRank(lora.up, lora.down * torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)[:, None])
    basis = svd_basis(lora)
    assert basis.rank == 4
    torch.testing.assert_close(basis.delta(), lora.delta())
    assert basis.up.isfinite().all() and basis.down[2:].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2]
)
def test_svd_basis_of_a_half_precision_lora_is_at_least_float32(dtype, wide):
    lora = random_lora(16, 4, 16, dtype=dtype)
    basis = svd_basis(lora)
    assert basis.up.dtype == basis.down.dtype == wide
    exact = lora.up.double() @ lora.down.double()
    assert (basis.delta() - exact).norm() / exact.norm() < 1e-6


@given(sizes, sizes, st.lists(sizes, min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_concatenation_is_the_sum(d_out, d_in, ranks, seed):
    loras = [random_lora(d_out, r, d_in, 0.5 + k, seed + k) for k, r in enumerate(ranks)]
    one = concatenate(loras)
    assert one.rank == sum(ranks) and one.scale == 1.0
    torch.testing.assert_close(one.delta(), sum(lora.delta() for lora in loras))
    torch.testing.assert_close(total([None, *loras, None]).delta(), one.delta())


def test_nothing_adds_up_to_nothing():
    assert total([None, None]) is None
    with pytest.raises(ValueError, match="at least one LoRA"):
        concatenate([])


def test_a_convolution_stays_one():
    """So do its sums, and those of another kernel, or of a linear layer of the same size, are refused."""
    lora = random_lora(4, 2, 18)
    conv, other = replace(lora, kernel=(3, 3)), replace(lora, kernel=(1, 9))
    for made in (svd_basis(conv), concatenate([conv, conv]), total([conv, None]), prune(conv, torch.ones(2))):
        assert made.kernel == (3, 3)
    assert svd_basis(lora).kernel is concatenate([lora, lora]).kernel is None
    for wrong in (other, lora):
        with pytest.raises(ValueError, match="one kernel, got kernels"):
            concatenate([conv, wrong])


def test_prune_keeps_exactly_the_directions_above_the_threshold():
    lora = random_lora(5, 4, 6, 0.5)
    mask = torch.tensor([0.2, -0.3, 0.1, 0.0])
    kept = prune(lora, mask, 0.1)
    assert torch.equal(kept.up, lora.up[:, :2]) and torch.equal(kept.down, lora.down[:2]) and kept.scale == 0.5
    assert prune(lora, mask).rank == 3
    assert prune(lora, mask, 0.3) is None


def test_gates_act_per_sample_on_the_last_axis():
    torch.manual_seed(0)
    h, gate = torch.randn(2, 3, 4), torch.randn(2, 4)
    for b in range(2):
        for token in range(3):
            torch.testing.assert_close(gated(h, gate)[b, token], h[b, token] * gate[b])
    assert gated(h.bfloat16(), gate).dtype == torch.bfloat16


@pytest.mark.parametrize(("up", "down"), [((4, 2), (3, 5)), ((4,), (4, 5)), ((4, 2, 1), (1, 5))])
def test_factors_that_do_not_fit_are_refused(up, down):
    """Checked past the annotations, which refuse them first, but only under test."""
    with pytest.raises(ValueError, match="same r"):
        LowRank.__post_init__(SimpleNamespace(up=torch.zeros(up), down=torch.zeros(down)))


def test_shape_properties():
    lora = random_lora(5, 2, 7)
    assert (lora.d_out, lora.rank, lora.d_in) == (5, 2, 7)
    assert lora.delta().shape == (5, 7)
