"""Output and input masks (Definition 1): forward, fold and ZipLoRA's similarity penalty."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from duolora.paper import ziplora
from duolora.paper.lowrank import LowRank, concatenate
from duolora.paper.ziplora import fold, forward_input, forward_output, input_masked, output_masked, similarity

D_OUT, D_IN = 7, 5
double = {"dtype": torch.float64}
WIDTH = {"output": D_OUT, "input": D_IN}
FORWARD = {"output": forward_output, "input": forward_input}


def loras(ranks, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        LowRank(torch.randn(D_OUT, r, generator=g, **double), torch.randn(r, D_IN, generator=g, **double), 0.5 + k)
        for k, r in enumerate(ranks)
    ]


def test_definition_1_is_the_diagonal_matrix_outside_the_factors():
    torch.manual_seed(0)
    (lora,) = loras([3])
    n_out, n_in = torch.randn(D_OUT, **double), torch.randn(D_IN, **double)
    torch.testing.assert_close(output_masked(lora, n_out).delta(), torch.diag(n_out) @ lora.delta())
    torch.testing.assert_close(input_masked(lora, n_in).delta(), lora.delta() @ torch.diag(n_in))


@pytest.mark.parametrize("axis", ["output", "input"])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.lists(st.integers(1, 3), max_size=2), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_stacked_forward_equals_the_dense_masked_sum(axis, ranks, tokens, seed):
    parts = loras(ranks, seed)
    stacked = concatenate(parts)
    g = torch.Generator().manual_seed(seed)
    gate = torch.randn(3, len(ranks), WIDTH[axis], generator=g, **double)
    x = torch.randn(3, *tokens, D_IN, generator=g, **double)
    y = FORWARD[axis](x, stacked.up, stacked.down, tuple(ranks), gate)
    for b in range(3):
        masks = [torch.diag(n) for n in gate[b]]
        dense = sum(m @ p.delta() if axis == "output" else p.delta() @ m for m, p in zip(masks, parts, strict=True))
        torch.testing.assert_close(y[b], x[b] @ dense.T)


@pytest.mark.parametrize("axis", ["output", "input"])
def test_folded_equals_masked_forward(axis):
    torch.manual_seed(0)
    content, style = loras([3, 2])
    stacked = concatenate([content, style])
    gate = torch.randn(1, 2, WIDTH[axis], **double)
    x = torch.randn(1, 4, D_IN, **double)
    folded = fold([content, style], list(gate[0]), axis)
    torch.testing.assert_close(FORWARD[axis](x, stacked.up, stacked.down, (3, 2), gate), x @ folded.delta().T)
    assert folded.rank == 5


@pytest.mark.parametrize("axis", ["output", "input"])
def test_gate_of_one_and_zero_is_content_exactly(axis):
    g = torch.Generator().manual_seed(3)
    whole = [torch.randint(-4, 5, s, generator=g).float() for s in ((D_OUT, 3), (3, D_IN), (D_OUT, 2), (2, D_IN))]
    content, style = LowRank(whole[0], whole[1]), LowRank(whole[2], whole[3])
    stacked = concatenate([content, style])
    x = torch.randint(-4, 5, (2, 6, D_IN), generator=g).float()
    gate = torch.stack([torch.ones(2, WIDTH[axis]), torch.zeros(2, WIDTH[axis])], dim=1)
    gate[1] = 0
    y = FORWARD[axis](x, stacked.up, stacked.down, (3, 2), gate)
    assert torch.equal(y[0], x[0] @ content.delta().T)
    assert torch.equal(y[1], torch.zeros_like(y[1]))


@pytest.mark.parametrize("axis", ["output", "input"])
def test_fold_drops_nothing_but_adapters_without_any_entry(axis):
    content, style = loras([3, 2])
    small, none = torch.full((WIDTH[axis],), 1e-9, **double), torch.zeros(WIDTH[axis], **double)
    folded = fold([content, style], [small, none], axis)
    assert folded.rank == 3
    torch.testing.assert_close(folded.delta(), 1e-9 * content.delta(), atol=0, rtol=1e-9)
    assert fold([content, style], [none, none], axis) is None


def test_masks_get_a_gradient_in_float32_under_a_half_precision_network():
    torch.manual_seed(0)
    stacked = concatenate(loras([3, 2]))
    for axis, forward in FORWARD.items():
        gate = torch.rand(2, 2, WIDTH[axis], requires_grad=True)
        half = [v.to(torch.bfloat16) for v in (torch.randn(2, 4, D_IN), stacked.up, stacked.down)]
        y = forward(*half, (3, 2), gate)
        y.float().square().sum().backward()
        assert y.dtype == torch.bfloat16 and gate.grad.dtype == torch.float32 and (gate.grad != 0).any()


@pytest.mark.parametrize("kind", ["product", "cosine"])
def test_similarity_is_one_per_module_at_ones_and_symmetric(kind):
    torch.manual_seed(0)
    ones = [(torch.ones(n), torch.ones(n)) for n in (4, 9, 2)]
    assert similarity(ones, kind).item() == pytest.approx(3)
    pairs = [(torch.randn(n), torch.randn(n)) for n in (4, 9, 2)]
    swapped = [(m_s, m_c) for m_c, m_s in pairs]
    torch.testing.assert_close(similarity(pairs, kind), similarity(swapped, kind))
    torch.testing.assert_close(similarity(pairs, kind), sum(similarity([pair], kind) for pair in pairs))
    assert similarity([], kind).item() == 0


def test_similarity_kinds_differ_where_they_should():
    m_c, m_s = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    assert similarity([(m_c, m_s)], "product").item() == 1  # the absolute value is taken entry by entry
    assert similarity([(m_c, m_s)], "cosine").item() == pytest.approx(0, abs=1e-6)
    assert similarity([(3 * m_c, m_c)], "product").item() == 3
    assert similarity([(-3 * m_c, m_c)], "cosine").item() == pytest.approx(1)
    disjoint = [(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))]
    assert similarity(disjoint, "product").item() == similarity(disjoint, "cosine").item() == 0


def test_the_axes_have_different_masks():
    torch.manual_seed(0)
    (lora,) = loras([3])
    square = LowRank(lora.up[:D_IN], lora.down)
    n = torch.randn(D_IN, **double)
    by_output, by_input = (fold([square], [n], axis).delta() for axis in ("output", "input"))
    assert not torch.allclose(by_output, by_input)
    with pytest.raises(Exception, match="axis|literal|Literal|diagonal"):
        ziplora.fold([square], [n], "diagonal")
