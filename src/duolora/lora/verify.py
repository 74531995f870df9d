"""The verification of a file's strength: its ΔW compared with what was asked for, module by module, never densely."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from duolora.errors import DuoLoRAError
from duolora.lora.adapter import Adapter
from duolora.lora.on_demand import outlines
from duolora.paper.lowrank import LowRank
from duolora.progress import through

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 5e-3}
"""A file whose ΔW of any module is off by more than this is not written.

Half precision makes about 4e-4. bfloat16 has 8 bits: rounding each of two factors alone makes 2.3e-3.
"""


@dataclass(frozen=True)
class Verification:
    """What a written file holds, as found by reading it back."""

    error: float
    """The largest ‖ΔW_file − ΔW‖ / ‖ΔW‖ of any module, in the Frobenius norm."""
    modules: int
    ranks: tuple[int, int]
    """The lowest and the highest rank."""
    size: int
    """Bytes."""
    diffusers: float | None = None
    """The largest error once diffusers' own `load_lora_weights` has loaded the file; None where it has not."""
    unloadable: str = ""
    """Why diffusers does not load it, where it should and does not."""
    format: str = ""
    """In which format the file is."""
    network: str = "unet"
    """What pipelines call the network that the file is for: `unet` or `transformer`."""


def verify(asked: Adapter, found: Adapter, dtype: torch.dtype, path: object, size: int = 0) -> Verification:
    """Compare what a file gives its readers with what was asked for.

    Raises:
        DuoLoRAError: they cover other modules, or differ by more than `TOLERANCE`.
    """
    if set(asked.modules) != set(found.modules):
        raise DuoLoRAError(f"{path}: read back, it covers other modules than it should; nothing was written")
    errors = {
        name: relative_error(lora, found.modules[name]) for name, lora in through(asked.modules.items(), "Verifying")
    }
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= TOLERANCE[dtype]:
        raise DuoLoRAError(
            f"{path}: {worst} would be off by {errors[worst]:.2g} of its strength "
            f"(at most {TOLERANCE[dtype]} is accepted); nothing was written; write it in float32"
        )
    ranks = [lora.rank for lora in outlines(found.modules).values()]
    return Verification(errors[worst], len(ranks), (min(ranks), max(ranks)), size, network=asked.family.network)


def identical(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters hold the very same numbers, so that what is verified of one is verified of the other."""
    if set(one.modules) != set(other.modules):
        return False
    pairs = ((lora, other.modules[name]) for name, lora in through(one.modules.items(), "Reading back"))
    return all(
        (a.scale, a.kernel) == (b.scale, b.kernel) and torch.equal(a.up, b.up) and torch.equal(a.down, b.down)
        for a, b in pairs
    )


def relative_error(asked: LowRank, found: LowRank) -> float:
    """‖ΔW_found − ΔW_asked‖ / ‖ΔW_asked‖ without a dense product and, where ranks agree, without cancellation.

    U' D' − U D = (U' − U) D' + U (D' − D), with the scales folded into U. The differences are taken in float64, their
    products in float32 as long as the two terms do not cancel: that is exact to four digits, and many times faster.
    """
    if (asked.d_out, asked.d_in, asked.kernel) != (found.d_out, found.d_in, found.kernel):
        return float("inf")
    up, down = asked.scale * asked.up.detach().cpu().double(), asked.down.detach().cpu().double()
    up_, down_ = found.scale * found.up.double(), found.down.double()
    rank = max(asked.rank, found.rank)
    up, up_ = (_padded(x.T, rank).T for x in (up, up_))
    down, down_ = _padded(down, rank), _padded(down_, rank)
    terms = ((up_ - up, down_), (up, down_ - down))
    first, second = (_norm(u.float(), d.float()) for u, d in terms)
    between = _inner(*((u.float(), d.float()) for u, d in terms))
    squared = first**2 + 2 * between + second**2
    if not (squared > 1e-2 * (first + second) ** 2 or first == second == 0):
        squared = _norm(torch.cat([up_ - up, up], 1), torch.cat([down_, down_ - down])) ** 2
    size = _norm(up.float(), down.float()) or _norm(up, down)
    return math.sqrt(squared) / size if size else (0.0 if not squared else float("inf"))


def norm(lora: LowRank) -> float:
    """‖ΔW‖ in the Frobenius norm, in float64."""
    return _norm(lora.scale * lora.up.double(), lora.down.double())


def inner(one: LowRank, other: LowRank) -> float:
    """⟨ΔW₁, ΔW₂⟩ = tr((U₁ᵀU₂)(D₂D₁ᵀ)), in float64."""
    ups, downs = (one.up.double(), one.down.double()), (other.up.double(), other.down.double())
    return one.scale * other.scale * _inner(ups, downs)


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])


def _inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """⟨U₁ D₁, U₂ D₂⟩ = tr((U₁ᵀU₂)(D₂D₁ᵀ))."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def _norm(up: Tensor, down: Tensor) -> float:
    """‖up · down‖ in the Frobenius norm, from two Gram matrices: ‖U D‖² = tr(UᵀU · D Dᵀ)."""
    return float(((up.T @ up) * (down @ down.T).T).sum().clamp(min=0).sqrt())
