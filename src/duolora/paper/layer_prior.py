"""Layer priors: how the masks begin (Sec. 3.3.2) and which one may be larger (Eq. 1, Algorithm 1).

Low-resolution layers of the UNet make the content and the next higher ones style (Sec. 3.3.1). A layer's `Role` says
which of the two masks is the dominant one there; which layer has which role is decided elsewhere, from the network.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from duolora.paper.choices import Init, Norm, Reduction, Role


def _scaled(v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The vector brought to [0, 1] by its own smallest and largest entry; ones where all entries are equal."""
    span = v.max() - v.min()
    return (v - v.min()) / span if span > 0 else torch.ones_like(v)


def initial_masks(
    r_c: int,
    r_s: int,
    role: Role,
    T_content: float,
    T_style: float,
    kind: Init,
    generator: torch.Generator,
) -> tuple[Float[Tensor, " r_c"], Float[Tensor, " r_s"]]:
    """The first content and style mask of one layer (Sec. 3.3.2), float32 on the CPU.

    v ~ N(0, 1), scaled to [0, 1];  m_dominant = 1[v > T_style],  m_other = 1[v > T_content];  neutral layers: all ones.

    With T_content ≥ T_style (the paper's pair is 0.1 and 0.0, Table 7) and r_c = r_s the dominant mask has at least as
    many ones, because both masks threshold the same v. Where r_c ≠ r_s, v is as long as the longer mask and the shorter
    one takes its leading entries, so each has about the same *share* of ones as it would have at equal ranks, but a
    longer mask may have more of them though it does not lead. The paper adds "defaulting to all ones when ranks are
    equal". The LoRAs' ranks cannot be meant, as all of its LoRAs have rank 64 and no mask would have a zero; we read
    it as layers where neither leads, and equal ranks change nothing here.

    `kind="values"` keeps v where it passes instead of a one, "all-ones" is the initialisation that the paper argues
    against, and "split" is a hard split by role: ones for the dominant mask, zeros for the other. One vector is sampled
    from `generator` whatever the role and kind, so one layer's role changes no other layer's masks.
    """
    v = _scaled(torch.randn(max(r_c, r_s), generator=generator))
    if role == "neutral" or kind == "all-ones":
        return torch.ones(r_c), torch.ones(r_s)
    if kind == "split":
        return torch.full((r_c,), float(role == "content")), torch.full((r_s,), float(role == "style"))
    T_c, T_s = {"content": (T_style, T_content), "style": (T_content, T_style)}[role]
    entries = {"ones": torch.ones_like(v), "values": v}[kind]
    return (entries * (v > T_c))[:r_c], (entries * (v > T_s))[:r_s]


def nuclear_norm(m: Float[Tensor, " n"], kind: Norm) -> Float[Tensor, ""]:
    """Nuclear norm ‖m‖_* of a mask: of diag(m), which is ‖m‖₁, or ("vector") of m as an n×1 matrix, which is ‖m‖₂."""
    order = {"diag": 1, "vector": 2}[kind]
    norm: Tensor = torch.linalg.vector_norm(m, order)
    return norm


def equation_1(
    l1: Float[Tensor, "*layers"],
    dominant: Float[Tensor, "*layers"],
    other: Float[Tensor, "*layers"],
    lam: float,
    hinge: bool,
    sparsity: float,
) -> Float[Tensor, "*layers"]:
    """Eq. 1 from norms, of each layer: sparsity · ‖m_dominant‖₁ + λ max(0, ‖m_other‖_* − ‖m_dominant‖_*).

    `l1` is ‖m_dominant‖₁; `dominant` and `other` are the nuclear norms. `sparsity` is 1 in the paper (Table 8 leaves
    terms out). Without `hinge` the difference counts also where it is negative, which rewards a larger dominant mask.
    """
    excess = other - dominant
    return sparsity * l1 + lam * (excess.relu() if hinge else excess)


def layer_prior(
    m_c: Float[Tensor, " n_c"],
    m_s: Float[Tensor, " n_s"],
    role: Role,
    lam: float,
    norm: Norm,
    hinge: bool,
    sparsity: float,
) -> Float[Tensor, ""]:
    """Layer-prior loss of one layer (Eq. 1, Algorithm 1).

    content:  ‖m_c‖₁ + λ max(0, ‖m_s‖_* − ‖m_c‖_*)
    style:    ‖m_s‖₁ + λ max(0, ‖m_c‖_* − ‖m_s‖_*)
    neutral:  0
    """
    if role == "neutral":
        return m_c.new_zeros(())
    dominant, other = {"content": (m_c, m_s), "style": (m_s, m_c)}[role]
    norms = nuclear_norm(dominant, norm), nuclear_norm(other, norm)
    return equation_1(dominant.abs().sum(), *norms, lam, hinge, sparsity)


def layer_prior_loss(
    masks: Sequence[tuple[Float[Tensor, " _"], Float[Tensor, " _"], Role]],
    lam: float,
    norm: Norm,
    hinge: bool,
    reduction: Reduction,
    sparsity: float,
) -> Float[Tensor, ""]:
    """Layer-prior loss L_layer_prior of a network whose layers have the masks (m_c, m_s, role).

    The paper doesn't say how layers combine: "mean" is over the layers with a role (neutral ones have no prior, so they
    don't count), and "sum" over the same. Without any such layer the loss is 0.
    """
    losses = [layer_prior(m_c, m_s, role, lam, norm, hinge, sparsity) for m_c, m_s, role in masks if role != "neutral"]
    return _reduced(torch.stack(losses) if losses else torch.zeros(0), reduction)


def layer_prior_loss_of_sums(
    c: Float[Tensor, " n"],
    s: Float[Tensor, " n"],
    content_leads: Bool[Tensor, " n"],
    lam: float,
    hinge: bool,
    reduction: Reduction,
    sparsity: float,
) -> Float[Tensor, ""]:
    """The same loss, with norm "diag", from c = ‖m_c‖₁ and s = ‖m_s‖₁ of n layers that have a role, all at once."""
    dominant, other = torch.where(content_leads, c, s), torch.where(content_leads, s, c)
    return _reduced(equation_1(dominant, dominant, other, lam, hinge, sparsity), reduction)


def _reduced(losses: Float[Tensor, " n"], reduction: Reduction) -> Float[Tensor, ""]:
    return {"mean": losses.mean, "sum": losses.sum}[reduction]() if len(losses) else torch.zeros(())
