"""A LoRA of one module: ΔW = scale · up · down (Sec. 3.2).

The paper writes ΔW = A·B with A our `up`. PEFT calls that one `lora_B`, so nothing here is named A or B.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank update of one weight, ΔW = scale · up @ down; `scale` is alpha / r.

    A convolution's weight counts as the matrix (outputs, channels · height · width), with its `kernel` set.
    """

    up: Float[Tensor, "d_out r"]
    down: Float[Tensor, "r d_in"]
    scale: float = 1.0
    kernel: tuple[int, int] | None = None
    """Height and width, of a convolution; None for a linear layer."""

    def __post_init__(self) -> None:
        """Refuse factors that cannot be multiplied."""
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            shapes = f"up {tuple(self.up.shape)} and down {tuple(self.down.shape)}"
            raise ValueError(f"expected up (d_out, r) and down (r, d_in) with the same r, got {shapes}")

    @property
    def rank(self) -> int:
        """Number of directions r."""
        return self.up.shape[1]

    @property
    def d_in(self) -> int:
        """Number of inputs of the module."""
        return self.down.shape[1]

    @property
    def d_out(self) -> int:
        """Number of outputs of the module."""
        return self.up.shape[0]

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """The dense ΔW; for small modules and for checks, since nothing else needs it."""
        return self.scale * (self.up @ self.down)


@torch.no_grad()
def svd_basis(lora: LowRank) -> LowRank:
    """The same ΔW in its singular directions, ΔW = U Σ Vᵀ (Sec. 3.2), from two thin QRs and one r×r SVD.

    up = U √Σ and down = √Σ Vᵀ, so upᵀup = down downᵀ = Σ, largest direction first, with the scale folded in. A rank
    mask depends on how a LoRA is factored; here it acts on singular directions, as in the paper. Signs are fixed by
    making the largest entry of each column of U positive. Directions of (near) zero strength are kept, so the rank
    stays, except that it cannot exceed min(d_out, d_in). Computed in float64 (float32 where the device has no
    float64), returned in float32 or wider, and free of gradients.
    """
    exact = torch.float32 if lora.up.device.type == "mps" else torch.float64
    q_up, r_up = torch.linalg.qr(lora.up.to(exact))
    q_down, r_down = torch.linalg.qr(lora.down.to(exact).T)
    u, s, v_t = torch.linalg.svd(lora.scale * (r_up @ r_down.T), full_matrices=False)
    u, v_t = q_up @ u, v_t @ q_down.T
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(exact)
    wide = torch.promote_types(lora.up.dtype, torch.float32)
    up, down = u * sign * s.sqrt(), s.sqrt()[:, None] * v_t * sign.T
    return LowRank(up.to(wide), down.to(wide), kernel=lora.kernel)


def concatenate(loras: Sequence[LowRank]) -> LowRank:
    """The exact sum of LoRAs of one module: up' = [s₁up₁ | s₂up₂ | …], down' = [down₁ ; down₂ ; …], scale 1.

    Raises:
        ValueError: there is nothing to add up, or linear layers and convolutions are mixed.
    """
    if not loras:
        raise ValueError("expected at least one LoRA to concatenate, got none")
    if len(kernels := {lora.kernel for lora in loras}) > 1:
        raise ValueError(f"expected LoRAs of one module, with one kernel, got kernels {kernels}")
    return LowRank(
        torch.cat([lora.scale * lora.up for lora in loras], dim=1),
        torch.cat([lora.down for lora in loras], dim=0),
        kernel=loras[0].kernel,
    )


def prune(lora: LowRank, mask: Float[Tensor, " r"], threshold: float = 0.0) -> LowRank | None:
    """The directions of `lora` whose |mask| exceeds `threshold`, as they are; None when no direction is left."""
    kept = mask.abs() > threshold
    if not kept.any():
        return None
    return replace(lora, up=lora.up[:, kept], down=lora.down[kept])


def total(loras: Sequence[LowRank | None]) -> LowRank | None:
    """The exact sum of what is left of several LoRAs; None when nothing is left of any."""
    left = [lora for lora in loras if lora is not None]
    return concatenate(left) if left else None


def gated(h: Float[Tensor, "batch *tokens n"], gate: Float[Tensor, "batch n"]) -> Float[Tensor, "batch *tokens n"]:
    """The product g ⊙ h along the last axis, each sample with its own gate, in the dtype of h."""
    return h * gate.to(h.dtype).reshape(len(gate), *(1,) * (h.ndim - 2), -1)
