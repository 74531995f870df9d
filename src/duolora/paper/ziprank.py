"""ZipRank: merging with masks over the rank (Definition 2).

    ΔW_rank = up · diag(m) · down

The paper has m in {0, 1} and trains it with Adam; here m is real-valued, and may be made binary when folded.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from duolora.paper.lowrank import LowRank, gated, prune, total


def masked(lora: LowRank, m: Float[Tensor, " r"]) -> LowRank:
    """One rank-masked adapter, ΔW = scale · up · diag(m) · down (Definition 2); the gradient reaches m."""
    return replace(lora, up=lora.up * m)


def forward(
    x: Float[Tensor, "batch *tokens d_in"],
    up: Float[Tensor, "d_out R"],
    down: Float[Tensor, "R d_in"],
    gate: Float[Tensor, "batch R"],
) -> Float[Tensor, "batch *tokens d_out"]:
    """What stacked adapters add to a module's output, U (g ⊙ (D x)), each sample with its own gate g.

    U = [s₁up₁ | s₂up₂ | …] and D = [down₁ ; down₂ ; …] as `concatenate` makes them. The gate (1, 0) is the content
    teacher, (0, 1) the style teacher, (0, 0) the base, (m_c, m_s) the merged student. Runs in the dtype of x; the gate
    may be wider.
    """
    return linear(gated(linear(x, down), gate), up)


@torch.no_grad()
def fold(
    loras: Sequence[LowRank], masks: Sequence[Float[Tensor, " _"]], threshold: float = 0.0, binary: bool = False
) -> LowRank | None:
    """The masked merge as one plain LoRA, exactly: [s_c up_c diag(m_c) | s_s up_s diag(m_s)] · [down_c ; down_s].

    Directions with |m| ≤ `threshold` are dropped, so the rank differs by module; None when none is left. With
    `binary`, the others enter in full, as the printed m ∈ {0, 1} has it.
    """
    parts = zip(loras, masks, strict=True)
    return total([prune(masked(x, torch.ones_like(m) if binary else m), m, threshold) for x, m in parts])
