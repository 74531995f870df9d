"""One-shot masks: the same as dense least squares, Eq. 1 and the box kept exactly, any number of adapters."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st

from duolora.paper import oneshot
from duolora.paper.layer_prior import layer_prior as eq_1
from duolora.paper.oneshot import Problem, curvature, layer_prior, reconstruction

double = {"dtype": torch.float64}
seeds = st.integers(0, 9999)


def factors(seed, ranks=(3, 2), d_out=12, d_in=9, tokens=40):
    """Stacked factors, one teacher's inputs and gate for each adapter."""
    g = torch.Generator().manual_seed(seed)
    R = sum(ranks)
    up, down = torch.randn(d_out, R, generator=g, **double), torch.randn(R, d_in, generator=g, **double)
    x = torch.randn(len(ranks), d_in, tokens, generator=g, **double)
    owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    e = (owner == torch.arange(len(ranks))[:, None]).double()
    return up, down, x, e


def problem(up, down, x, e, sparsity=0.0, lam=0.0, lead=0, ridge=0.0, hinge=True, w=None):
    h = down @ x
    H_k = curvature(up, h @ h.mT)
    H, b = reconstruction(H_k[None], e[None], torch.ones(1, len(x), **double) if w is None else w[None], ridge)
    dominant = e[lead][None]
    return Problem(H, b, *layer_prior(dominant, 1 - dominant, sparsity, lam, hinge))


def solve(p, upper=1.5):
    return oneshot.solve(p, upper)


def objective(p, m):
    m = m[None]
    quadratic = torch.einsum("ni,nij,nj->n", m, p.H, m) - 2 * (p.b * m).sum(-1) + (p.c * m).sum(-1)
    return float(quadratic + p.lam * (p.a * m).sum(-1).relu())


def test_curvature_is_the_size_of_the_modules_error():
    up, down, x, e = factors(0)
    m = torch.rand(5, **double)
    error = up @ torch.diag(m - e[0]) @ down @ x[0]
    H = curvature(up, down @ x[0] @ x[0].T @ down.T)
    torch.testing.assert_close((m - e[0]) @ H @ (m - e[0]), (error**2).sum())


@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_equals_slow_dense_least_squares(seed, ranks):
    up, down, x, e = factors(seed, ranks, d_out=40, d_in=30)
    columns = [torch.stack([torch.outer(u, d) @ x_k for u, d in zip(up.T, down, strict=True)]) for x_k in x]
    A = torch.cat([c.flatten(1).T for c in columns])
    y = torch.cat([(up @ torch.diag(e_k) @ down @ x_k).flatten() for e_k, x_k in zip(e, x, strict=True)])
    expected = torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
    found = solve(problem(up, down, x, e), upper=1e9)[0]
    if (expected >= 0).all():
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    else:
        assert (found == 0).any()


def best_by_trying_everything(p, upper):
    """Every way in which entries may sit at a bound and the hinge may be off, on or at its kink; the best of them."""
    R, points = p.b.shape[1], []
    for bounds in product((None, 0.0, upper), repeat=R):
        free = [i for i in range(R) if bounds[i] is None]
        fixed = torch.tensor([0.0 if v is None else v for v in bounds], **double)
        for hinge in ("off", "on", "kink"):
            c = p.c[0] + (p.lam[0] * p.a[0] if hinge == "on" else 0)
            right = p.b[0] - c / 2 - p.H[0] @ fixed
            if hinge == "kink":
                a = p.a[0][free]
                H = torch.zeros(len(free) + 1, len(free) + 1, **double)
                H[:-1, :-1], H[:-1, -1], H[-1, :-1] = p.H[0][free][:, free], a / 2, a
                rhs = torch.cat([right[free], -(p.a[0] @ fixed)[None]])
            else:
                H, rhs = p.H[0][free][:, free], right[free]
            m = fixed.clone()
            m[free] = (torch.linalg.pinv(H) @ rhs)[: len(free)]
            if (m >= -1e-9).all() and (m <= upper + 1e-9).all():
                points.append(m.clamp(0, upper))
    return min(objective(p, m) for m in points)


@given(seeds, st.floats(0, 2), st.floats(0, 2), st.sampled_from([0.4, 1.0, 1.5]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_box_and_prior_are_solved_exactly(seed, sparsity, lam, upper, hinge):
    p = problem(*factors(seed, (2, 2), d_out=4, d_in=3), sparsity, lam, lead=seed % 2, hinge=hinge)
    m = solve(p, upper)[0]
    assert (m >= 0).all() and (m <= upper).all()
    assert objective(p, m) <= best_by_trying_everything(p, upper) + 1e-8


@given(seeds, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_kkt_conditions(seed, sparsity, lam):
    p = problem(*factors(seed, (5, 4, 3)), sparsity, lam)
    m = solve(p)[0]
    gradient = 2 * p.H[0] @ m - 2 * p.b[0] + p.c[0]
    excess = float(p.a[0] @ m)
    kink = abs(excess) <= 1e-7
    taus = torch.linspace(0, lam, 20001, **double) if kink else torch.tensor([lam * (excess > 0)], **double)
    g = gradient + taus[:, None] * p.a[0]
    broken = torch.where(m <= 0, -g.clamp(max=0), torch.where(m >= 1.5, g.clamp(min=0), g.abs()))
    assert broken.amax(-1).min() < (1e-3 if kink else 1e-6)


def test_prior_is_equation_1():
    dominant = torch.tensor([[1.0, 1, 0, 0, 0]], **double)
    for m in (torch.tensor([0.3, 0.2, 0.9, 0.1, 0.4], **double), torch.tensor([0.9, 0.8, 0.1, 0.2, 0.0], **double)):
        for hinge in (True, False):
            c, a, lam = layer_prior(dominant, 1 - dominant, 0.7, 1.3, hinge)
            ours = (c[0] @ m) + lam[0] * (a[0] @ m).relu()
            torch.testing.assert_close(ours, eq_1(m[:2], m[2:], "content", 1.3, "diag", hinge, 0.7))


@given(seeds, st.integers(1, 6), st.floats(0, 0.1))
@settings(max_examples=20, deadline=None)
def test_one_adapter_alone_keeps_all_of_itself(seed, rank, ridge):
    m = solve(problem(*factors(seed, (rank,)), ridge=ridge))
    torch.testing.assert_close(m, torch.ones_like(m))


@given(seeds, st.permutations(range(3)))
@settings(max_examples=20, deadline=None)
def test_permuting_adapters_permutes_masks(seed, order):
    ranks = (3, 2, 4)
    up, down, x, e = factors(seed, ranks)
    owner = e.argmax(0)
    index = torch.cat([torch.nonzero(owner == k)[:, 0] for k in order])
    plain = solve(problem(up, down, x, e, 0.2, 0.5, lead=1))[0]
    moved = problem(up[:, index], down[index], x[list(order)], e[list(order)][:, index], 0.2, 0.5, order.index(1))
    torch.testing.assert_close(solve(moved)[0], plain[index], rtol=0, atol=1e-6)


def test_modules_are_solved_apart():
    problems = [problem(*factors(seed, (3, 2)), 0.2, 0.5) for seed in range(4)]
    together = Problem(*(torch.cat([getattr(p, k) for p in problems]) for k in ("H", "b", "c", "a", "lam")))
    torch.testing.assert_close(solve(together), torch.cat([solve(p) for p in problems]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("sparsity", [0.5, 5.0])
def test_l1_shrinks_the_leading_mask(sparsity):
    up, down, x, e = factors(3)
    plain, sparse = (solve(problem(up, down, x, e, s))[0] for s in (0.0, sparsity))
    assert (sparse @ e[0]) < (plain @ e[0])
    assert sparsity < 5 or (sparse @ e[0]) == 0


def test_a_module_without_effect_keeps_the_plain_sum():
    up, down, x, e = factors(0)
    m = solve(problem(0 * up, down, x, e))
    torch.testing.assert_close(m, torch.ones_like(m))


def test_ridge_pulls_towards_the_plain_sum():
    up, down, x, e = factors(1)
    weak, strong = (solve(problem(up, down, x, e, ridge=r))[0] for r in (0.0, 1e3))
    assert (strong - 1).abs().max() < 1e-2 < (weak - 1).abs().max()
