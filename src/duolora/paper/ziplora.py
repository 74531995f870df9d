"""ZipLoRA: merging with masks over the outputs (Definition 1) or, as ZipLoRA's authors have it, over the inputs.

    output:  ΔW_out = diag(n) · up · down,  n (d_out,)
    input:   ΔW_in = up · down · diag(n),   n (d_in,)

Its rank stays r, and its masks grow with the network's width, which is what ZipRank does away with.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from duolora.paper.choices import MaskSide, Similarity
from duolora.paper.lowrank import LowRank, gated, total


def output_masked(lora: LowRank, n: Float[Tensor, " d_out"]) -> LowRank:
    """One output-masked adapter, ΔW = scale · diag(n) · up · down (Definition 1)."""
    return replace(lora, up=n[:, None] * lora.up)


def input_masked(lora: LowRank, n: Float[Tensor, " d_in"]) -> LowRank:
    """One input-masked adapter, ΔW = scale · up · down · diag(n) (ZipLoRA's columns)."""
    return replace(lora, down=lora.down * n)


def forward_output(
    x: Float[Tensor, "batch *tokens d_in"],
    up: Float[Tensor, "d_out R"],
    down: Float[Tensor, "R d_in"],
    ranks: Sequence[int],
    gate: Float[Tensor, "batch K d_out"],
) -> Float[Tensor, "batch *tokens d_out"]:
    """What K stacked adapters of the given `ranks` add to a module's output, Σ_k n_k ⊙ (U_k D_k x), n per sample.

    U = [s₁up₁ | s₂up₂ | …] and D = [down₁ ; down₂ ; …] as `concatenate` makes them.
    """
    h = torch.split(linear(x, down), list(ranks), -1)
    parts = [gated(linear(h[k], up_k), gate[:, k]) for k, up_k in enumerate(torch.split(up, list(ranks), 1))]
    return sum(parts[1:], parts[0])


def forward_input(
    x: Float[Tensor, "batch *tokens d_in"],
    up: Float[Tensor, "d_out R"],
    down: Float[Tensor, "R d_in"],
    ranks: Sequence[int],
    gate: Float[Tensor, "batch K d_in"],
) -> Float[Tensor, "batch *tokens d_out"]:
    """What K stacked adapters of the given `ranks` add to a module's output, Σ_k U_k D_k (n_k ⊙ x), n per sample."""
    h = [linear(gated(x, gate[:, k]), down_k) for k, down_k in enumerate(torch.split(down, list(ranks), 0))]
    return linear(torch.cat(h, dim=-1), up)


@torch.no_grad()
def fold(loras: Sequence[LowRank], masks: Sequence[Float[Tensor, " _"]], axis: MaskSide) -> LowRank | None:
    """The masked merge as one plain LoRA of rank r_c + r_s, exactly.

    An entry of these masks is no direction, so none is dropped, however small; only an adapter whose mask is all zeros
    is left out. None when all are.
    """
    apply = {"output": output_masked, "input": input_masked}[axis]
    return total([apply(lora, n) if n.any() else None for lora, n in zip(loras, masks, strict=True)])


def similarity(pairs: Sequence[tuple[Float[Tensor, " _"], Float[Tensor, " _"]]], kind: Similarity) -> Float[Tensor, ""]:
    """ZipLoRA's penalty on masks that overlap, Σ_modules |m_c · m_s|, before its weight λ.

    product:  Σ mean_i |m_c,i m_s,i|, as ziplora-pytorch computes it
    cosine:   Σ |⟨m_c, m_s⟩| / (‖m_c‖ ‖m_s‖), as ZipLoRA's text calls it

    Either is 1 a module for masks of ones. 0 without modules.
    """
    measure = {"product": _mean_product, "cosine": _cosine}[kind]
    return torch.stack([measure(m_c, m_s) for m_c, m_s in pairs]).sum() if pairs else torch.zeros(())


def _mean_product(m_c: Tensor, m_s: Tensor) -> Tensor:
    return (m_c * m_s).abs().mean()


def _cosine(m_c: Tensor, m_s: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(m_c, m_s, dim=0).abs()
