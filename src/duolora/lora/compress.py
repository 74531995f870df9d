"""Smaller files: directions left out, and the error that this makes, known exactly."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from duolora.errors import FileRefused, Notice
from duolora.lora.adapter import Adapter
from duolora.lora.on_demand import outlines
from duolora.lora.parts import CONTENT_RANKS, content_ranks
from duolora.lora.verify import norm, relative_error
from duolora.options import check_smaller
from duolora.paper.lowrank import LowRank, prune, svd_basis
from duolora.progress import through


@dataclass(frozen=True)
class Lost:
    """What a smaller adapter has lost."""

    errors: dict[str, float]
    """‖ΔW' − ΔW‖ / ‖ΔW‖ of each module; 1 where nothing is left of it."""
    whole: float
    """The same of all modules together."""


def squeezed(adapter: Adapter, rank: int | None = None, energy: float | None = None) -> Adapter:
    """The best adapter of at most this rank, or of the least rank that keeps this share of each ‖ΔW‖² (Eckart-Young).

    Raises:
        InputError: the rank or the share is impossible.
    """
    check_smaller(None, energy, rank)
    highest = max(lora.rank for lora in outlines(adapter.modules).values())
    if rank is not None and rank >= highest:
        warnings.warn(f"rank: {rank} leaves nothing out, since the file's highest is {highest}", Notice, stacklevel=2)

    def cut(lora: LowRank) -> LowRank | None:
        """The strongest directions of a module, by SVD; None where none is left."""
        basis = svd_basis(lora)
        squares = basis.up.double().square().sum(0).square()
        kept = min(_count(squares, energy), rank or basis.rank)
        return replace(basis, up=basis.up[:, :kept], down=basis.down[:kept]) if kept else None

    metadata = {key: value for key, value in adapter.metadata.items() if key != CONTENT_RANKS}
    return _smaller(replace(adapter, metadata=metadata | {"squeezed": {"rank": rank, "energy": energy}}), cut)


def pruned(adapter: Adapter, threshold: float) -> Adapter:
    """The adapter without the directions that have at most `threshold` of the strength of their module's strongest.

    Directions stay as they are, so the parts of a merge stay apart.

    Raises:
        InputError: the threshold is no share.
    """
    check_smaller(threshold, None, None)
    modules = through(adapter.modules.items(), "Measuring")
    kept = {name: _relative(lora) > threshold for name, lora in modules}
    small = _smaller(adapter, lambda lora: prune(lora, _relative(lora), threshold))
    try:
        counts = content_ranks(adapter, "")
    except FileRefused:
        return small
    left = [int(kept[name][: counts[name]].sum()) for name in sorted(small.modules)]
    return replace(small, metadata=small.metadata | {CONTENT_RANKS: left})


def lost(adapter: Adapter, small: Adapter) -> Lost:
    """How far a smaller adapter is from the one that it was made of."""
    errors, missing, size = {}, 0.0, 0.0
    for name, lora in through(adapter.modules.items(), "Measuring"):
        left, here = small.modules.get(name), norm(lora) ** 2
        errors[name] = relative_error(lora, left) if left else 1.0
        missing, size = missing + errors[name] ** 2 * here, size + here
    return Lost(errors, (missing / size) ** 0.5 if size else 0.0)


def _smaller(adapter: Adapter, smaller: Callable[[LowRank], LowRank | None]) -> Adapter:
    cut = {name: smaller(lora) for name, lora in through(adapter.modules.items(), "Compressing")}
    return replace(adapter, modules={name: left for name, left in cut.items() if left is not None})


def _count(squares: Float[Tensor, " r"], energy: float | None) -> int:
    """How many directions, from the strongest on, have this share of all energy; those without any don't count."""
    some = int((squares > 0).sum())
    if energy is None or not some:
        return some
    share = squares.cumsum(0) / squares.sum()
    return min(some, int((share < energy - 1e-12).sum()) + 1)


def _relative(lora: LowRank) -> Float[Tensor, " r"]:
    """The strength of each direction, as a share of the strongest."""
    strengths = abs(lora.scale) * lora.up.norm(dim=0) * lora.down.norm(dim=1)
    return strengths / strengths.max().clamp(min=torch.finfo(strengths.dtype).tiny)
