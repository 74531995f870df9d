"""One-shot merge: the rank masks of every module as a small convex problem (ours; not in the paper).

The reconstruction terms of Sec. 3.4, taken module by module, are a quadratic in the stacked mask m (R,) of the
adapters:

    Σ_k w_k ‖U diag(m) D X_k − U diag(e_k) D X_k‖² = Σ_k w_k (m − e_k)ᵀ H_k (m − e_k)
    H_k = (UᵀU) ∘ (D X_k)(D X_k)ᵀ

with X_k the module's inputs under teacher k, e_k that teacher's own gate, ∘ the elementwise product. No product is
wider than R×R. Eq. 1 adds a linear term and a hinge, and masks stay in a box:

    min  mᵀ H m − 2 bᵀ m + cᵀ m + λ max(0, aᵀ m)    over  0 ≤ m ≤ upper
    H = Σ_k w_k H_k,    b = Σ_k w_k H_k e_k

There are as many adapters and teachers as you like. All modules of one R are solved together, in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from duolora.paper.layer_prior import equation_1

TOLERANCE = 1e-9
BISECTIONS = 60
ITERATIONS = 20_000


@dataclass(frozen=True, eq=False)
class Problem:
    """The problems of n modules with R directions each, as above; every field is float64."""

    H: Float[Tensor, "n R R"]
    b: Float[Tensor, "n R"]
    c: Float[Tensor, "n R"]
    a: Float[Tensor, "n R"]
    lam: Float[Tensor, " n"]


def curvature(up: Float[Tensor, "d_out R"], gram: Float[Tensor, "*teachers R R"]) -> Float[Tensor, "*teachers R R"]:
    """H_k = (UᵀU) ∘ (D X_k)(D X_k)ᵀ, float64; `gram` is the second factor."""
    up = up.double()
    return (up.mT @ up) * gram.double()


def reconstruction(
    H_k: Float[Tensor, "n K R R"], e: Float[Tensor, "n K R"], w: Float[Tensor, "n K"], ridge: float = 0.0
) -> tuple[Float[Tensor, "n R R"], Float[Tensor, "n R"]]:
    """H and b of the weighted teachers, divided by the mean of H's diagonal, so that priors mean the same everywhere.

    `ridge` adds ridge · ‖m − 1‖², a pull towards the plain sum, which decides where the teachers leave it open; a
    module in which no teacher moves anything keeps the plain sum even without it.
    """
    H = (w[..., None, None] * H_k).sum(1)
    b = (w[..., None] * (H_k @ e[..., None])[..., 0]).sum(1)
    size = H.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None]
    alive = size > 0
    H, b = H / size.where(alive, torch.ones_like(size))[..., None], b / size.where(alive, torch.ones_like(size))
    pull = torch.where(alive, ridge, max(ridge, TOLERANCE))
    return H + torch.diag_embed(pull.expand_as(b)), b + pull


def layer_prior(
    dominant: Float[Tensor, "n R"], other: Float[Tensor, "n R"], sparsity: float, lam: float, hinge: bool
) -> tuple[Float[Tensor, "n R"], Float[Tensor, "n R"], Float[Tensor, " n"]]:
    """c, a and λ of Eq. 1 for masks ≥ 0: sparsity · ‖m_dom‖₁ + λ max(0, ‖m_other‖₁ − ‖m_dom‖₁).

    `dominant` and `other` are ones on the directions of the adapters that may and may not lead in a module, and zero
    in neutral modules. Norms of masks ≥ 0 are linear, so Eq. 1 of these gives the coefficients. Without `hinge` the
    difference counts where it is negative, too, and is part of c.
    """
    a = other - dominant
    c = equation_1(dominant, dominant, other, 0.0 if hinge else lam, False, sparsity)
    return c, a, torch.full_like(a[:, 0], lam if hinge else 0.0)


def _projected(v: Tensor, step: Tensor, p: Problem, upper: float) -> Tensor:
    """Proximal step: argmin_m Σ_i (m_i − v_i)² / (2 step_i) + λ max(0, aᵀm) in the box.

    It is clip(v − τ step a, 0, upper) with the τ in [0, λ] at which aᵀm has the right sign; found by halving, because
    aᵀm falls with τ.
    """

    def at(tau: Tensor) -> Tensor:
        return (v - tau[:, None] * step * p.a).clamp(0, upper)

    low, high = torch.zeros_like(p.lam), p.lam
    free = at(low)
    if bool(((free * p.a).sum(-1) <= 0).logical_or(p.lam == 0).all()):
        return free
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = (at(middle) * p.a).sum(-1) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    inactive = (free * p.a).sum(-1) <= 0
    return torch.where(inactive[:, None], free, at(high))


def solve(p: Problem, upper: float) -> Float[Tensor, "n R"]:
    """The masks of all n modules, by accelerated proximal gradient steps with restarts.

    Each direction has its own step, 1 / (2 L H_ii) with L the largest eigenvalue of H scaled to a unit diagonal. In the
    SVD basis H is diagonal within each adapter, so L is hardly above 1 and tens of iterations are enough. Stops
    when no entry moves by more than `TOLERANCE` in a step.
    """
    diagonal = p.H.diagonal(dim1=-2, dim2=-1)
    diagonal = diagonal.clamp(min=TOLERANCE * float(diagonal.max()) if diagonal.numel() else 1.0)
    root = diagonal.rsqrt()
    L = torch.linalg.eigvalsh(root[:, :, None] * p.H * root[:, None, :]).amax(-1).clamp(min=1.0)
    step = 0.5 / (L[:, None] * diagonal)
    m = y = torch.ones_like(p.b).clamp(0, upper)
    age = torch.ones_like(p.lam)
    for _ in range(ITERATIONS):
        gradient = 2 * (p.H @ y[..., None])[..., 0] - 2 * p.b + p.c
        new = _projected(y - step * gradient, step, p, upper)
        turned = ((y - new) * (new - m) / step).sum(-1) > 0
        if float((new - y).abs().max()) <= TOLERANCE:
            return new
        older = torch.where(turned, torch.ones_like(age), age)
        age = (1 + (1 + 4 * older**2).sqrt()) / 2
        push = torch.where(turned, torch.zeros_like(age), (older - 1) / age)
        m, y = new, new + push[:, None] * (new - m)
    return m
