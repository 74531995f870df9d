"""First masks (Sec. 3.3.2) and the layer-prior loss (Eq. 1, Algorithm 1)."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from duolora.paper import layer_prior as paper
from duolora.paper.layer_prior import layer_prior_loss_of_sums, nuclear_norm

FLIPPED = {"content": "style", "style": "content", "neutral": "neutral"}
entries = st.floats(-3, 3, width=32)
vectors = st.lists(entries, min_size=1, max_size=8).map(torch.tensor)
roles = st.sampled_from(["content", "style", "neutral"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def initial_masks(r_c, r_s, role, T_content=0.1, T_style=0.0, kind="ones", *, generator):
    return paper.initial_masks(r_c, r_s, role, T_content, T_style, kind, generator)


def layer_prior(m_c, m_s, role, lam=1.0, norm="diag", hinge=True, sparsity=1.0):
    return paper.layer_prior(m_c, m_s, role, lam, norm, hinge, sparsity)


def layer_prior_loss(masks, lam=1.0, norm="diag", hinge=True, reduction="mean", sparsity=1.0):
    return paper.layer_prior_loss(masks, lam, norm, hinge, reduction, sparsity)


def slow_prior(m_c, m_s, role, lam, norm, hinge):
    """Eq. 1 as it is written, with the nuclear norm of a real matrix."""
    if role == "neutral":
        return torch.tensor(0.0)
    if role == "style":
        m_c, m_s = m_s, m_c

    def star(m):
        return torch.linalg.matrix_norm(torch.diag(m) if norm == "diag" else m[:, None], "nuc")

    sparsity = sum(abs(v) for v in m_c.tolist())
    excess = star(m_s) - star(m_c)
    return sparsity + lam * (max(excess, torch.tensor(0.0)) if hinge else excess)


@given(vectors, vectors, roles, st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from(["diag", "vector"]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_equation_1_against_the_slow_formula_and_its_mirror(m_c, m_s, role, lam, norm, hinge):
    fast = layer_prior(m_c, m_s, role, lam, norm, hinge)
    torch.testing.assert_close(fast, slow_prior(m_c, m_s, role, lam, norm, hinge), atol=1e-4, rtol=1e-4)
    assert torch.equal(fast, layer_prior(m_s, m_c, FLIPPED[role], lam, norm, hinge))


@given(vectors)
@settings(max_examples=40, deadline=None)
def test_nuclear_norms_of_a_mask(m):
    torch.testing.assert_close(nuclear_norm(m, "diag"), m.abs().sum())
    torch.testing.assert_close(nuclear_norm(m, "vector"), m.square().sum().sqrt())


def test_hinge_is_silent_while_the_dominant_mask_is_larger():
    m_c, m_s = torch.ones(4), torch.full((4,), 0.5)
    assert layer_prior(m_c, m_s, "content").item() == 4
    assert layer_prior(m_c, m_s, "style").item() == 2 + (4 - 2)
    assert layer_prior(m_c, m_s, "content", hinge=False).item() == 4 - 2


def test_gradient_shrinks_the_dominant_mask_and_the_other_only_above_it():
    for small, expected in ((0.5, 0.0), (2.0, 1.0)):
        m_c = torch.ones(4, requires_grad=True)
        m_s = torch.full((4,), small, requires_grad=True)
        layer_prior(m_c, m_s, "content").backward()
        assert torch.equal(m_s.grad, torch.full((4,), expected))
        assert torch.equal(m_c.grad, torch.full((4,), 1.0 - expected))


@pytest.mark.parametrize("norm", ["diag", "vector"])
def test_gradient_is_finite_at_zero_masks(norm):
    m_c, m_s = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    layer_prior(m_c, m_s, "style", norm=norm, hinge=False).backward()
    assert m_c.grad.isfinite().all() and m_s.grad.isfinite().all()


def test_network_loss_sums_or_averages_over_layers_with_a_role():
    g = seeded()
    layers = [(torch.randn(4, generator=g), torch.randn(3, generator=g), role) for role in ("content", "style")]
    neutral = (torch.ones(4), torch.ones(3), "neutral")
    each = [layer_prior(*layer) for layer in layers]
    for reduction, expected in (("sum", each[0] + each[1]), ("mean", (each[0] + each[1]) / 2)):
        torch.testing.assert_close(layer_prior_loss(layers, reduction=reduction), expected)
        torch.testing.assert_close(layer_prior_loss([*layers, neutral], reduction=reduction), expected)
    swapped = [(m_s, m_c, FLIPPED[role]) for m_c, m_s, role in layers]
    assert torch.equal(layer_prior_loss(layers), layer_prior_loss(swapped))
    assert layer_prior_loss([neutral]).item() == layer_prior_loss([]).item() == 0


def test_network_loss_passes_its_options_on():
    layers = [(torch.ones(4), torch.full((4,), 2.0), "content")]
    assert layer_prior_loss(layers).item() == 8
    assert layer_prior_loss(layers, lam=0.0).item() == 4
    assert layer_prior_loss(layers, norm="vector").item() == 4 + (4 - 2)
    mirrored = [(torch.full((4,), 2.0), torch.ones(4), "content")]
    assert layer_prior_loss(mirrored, hinge=False).item() == 8 - 4


@given(
    st.integers(1, 40), st.integers(1, 40), roles, st.sampled_from(["ones", "values", "all-ones"]), st.integers(0, 99)
)
@settings(max_examples=80, deadline=None)
def test_initial_masks_have_their_shape_range_and_mirror(r_c, r_s, role, kind, seed):
    m_c, m_s = initial_masks(r_c, r_s, role, kind=kind, generator=seeded(seed))
    assert m_c.shape == (r_c,) and m_s.shape == (r_s,)
    assert all(0 <= v <= 1 for v in [*m_c.tolist(), *m_s.tolist()])
    if kind != "values":
        assert set(m_c.tolist()) | set(m_s.tolist()) <= {0.0, 1.0}
    swapped = initial_masks(r_s, r_c, FLIPPED[role], kind=kind, generator=seeded(seed))
    assert torch.equal(m_c, swapped[1]) and torch.equal(m_s, swapped[0])


@given(st.integers(2, 64), st.sampled_from([(0.1, 0.0), (0.75, 0.5), (1.0, 0.75)]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_dominant_mask_contains_the_other(rank, thresholds, seed):
    m_c, m_s = initial_masks(rank, rank, "content", *thresholds, generator=seeded(seed))
    assert (m_c >= m_s).all()
    assert m_c.sum() >= 1  # the largest entry is 1, above any T_style < 1
    if thresholds == (1.0, 0.75):
        assert m_s.sum() == 0


def test_masks_of_different_length_are_the_beginning_of_those_of_the_longer():
    """So the longer mask may have more ones though it does not lead."""
    for r_c, r_s in ((4, 40), (40, 4)):
        whole = initial_masks(40, 40, "content", 0.5, 0.3, generator=seeded(3))
        m_c, m_s = initial_masks(r_c, r_s, "content", 0.5, 0.3, generator=seeded(3))
        assert torch.equal(m_c, whole[0][:r_c]) and torch.equal(m_s, whole[1][:r_s])
        assert (m_s.sum() > m_c.sum()) == (r_s > r_c)


def test_thresholds_decide_how_many_ones():
    rank = 1000
    v = torch.randn(rank, generator=seeded(5))
    v = (v - v.min()) / (v.max() - v.min())
    m_c, m_s = initial_masks(rank, rank, "content", 0.6, 0.4, generator=seeded(5))
    assert m_c.sum() == (v > 0.4).sum() and m_s.sum() == (v > 0.6).sum() and m_s.sum() < m_c.sum()
    m_c, m_s = initial_masks(rank, rank, "style", 0.6, 0.4, kind="values", generator=seeded(5))
    torch.testing.assert_close(m_s, torch.where(v > 0.4, v, 0.0))
    torch.testing.assert_close(m_c, torch.where(v > 0.6, v, 0.0))


def test_neutral_layers_and_all_ones():
    for role, kind in (("neutral", "ones"), ("neutral", "values"), ("content", "all-ones")):
        m_c, m_s = initial_masks(5, 4, role, kind=kind, generator=seeded())
        assert torch.equal(m_c, torch.ones(5)) and torch.equal(m_s, torch.ones(4))


def test_a_hard_split_leaves_the_dominant_mask_only():
    for role, ones in (("content", (1, 0)), ("style", (0, 1)), ("neutral", (1, 1))):
        m_c, m_s = initial_masks(5, 4, role, kind="split", generator=seeded())
        assert torch.equal(m_c, torch.full((5,), float(ones[0]))) and torch.equal(m_s, torch.full((4,), float(ones[1])))


def test_masks_are_determined_by_the_generator_and_not_by_other_layers_roles():
    def second(first_role, kind="ones", seed=1):
        g = seeded(seed)
        initial_masks(32, 32, first_role, kind=kind, generator=g)
        return initial_masks(32, 32, "content", 0.5, 0.3, generator=g)[0]

    assert torch.equal(second("content"), second("content"))
    assert torch.equal(second("content"), second("neutral"))
    assert torch.equal(second("content"), second("style", "all-ones"))
    assert not torch.equal(second("content"), second("content", seed=2))


@pytest.mark.parametrize(("hinge", "reduction"), [(True, "mean"), (False, "sum")])
def test_sums_of_all_layers_give_the_same_loss(hinge, reduction):
    g = torch.Generator().manual_seed(0)
    roles = ["content", "style", "neutral", "style"]
    masks = [(torch.randn(3, generator=g), torch.randn(2, generator=g), role) for role in roles]
    led = [(m_c.abs().sum(), m_s.abs().sum(), role == "content") for m_c, m_s, role in masks if role != "neutral"]
    c, s, leads = (torch.tensor(column) for column in zip(*led, strict=True))
    found = layer_prior_loss_of_sums(c, s, leads, 0.7, hinge, reduction, 0.3)
    torch.testing.assert_close(found, layer_prior_loss(masks, 0.7, "diag", hinge, reduction, 0.3))


def test_lambda_decides_whether_the_masks_march_down_or_hold_each_other_up():
    """By the prior alone (weight 0.1, Adam 0.01, 100 steps); Lemma 1 takes λ → ∞."""
    ends = []
    for lam in (1.0, 2.0, 10.0, 100.0):
        masks = torch.ones(2, 64, requires_grad=True)
        optimiser = torch.optim.Adam([masks], lr=0.01)
        for _ in range(100):
            optimiser.zero_grad()
            (0.1 * layer_prior(*masks, "content", lam, "diag", hinge=True, sparsity=1.0)).backward()
            optimiser.step()
        ends.append(float(masks.detach().mean()))
        assert (masks[0].sum() - masks[1].sum()).abs() < 2.5, "both go together at any λ"
    assert ends == sorted(ends)
    assert ends[0] < 0.35
    assert ends[2] > 0.7
