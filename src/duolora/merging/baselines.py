"""Merges without masks: PEFT's own ways to combine, applied to the true ΔW of each module, with scales and all."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from peft.utils.merge_utils import dare_ties, ties
from torch import Tensor

from duolora.lora.on_demand import one_by_one
from duolora.merging.inputs import Sources
from duolora.merging.options import Combine, MergeOptions
from duolora.paper.lowrank import LowRank, concatenate, svd_basis


def combined(both: Sources, options: MergeOptions) -> Iterator[tuple[str, LowRank]]:
    """One LoRA for every module that either of the two covers; what only one covers is taken as it is, reweighted.

    svd        the sum, cut to `rank` singular directions
    ties       the largest `density` of each ΔW, their majority sign elected, the agreeing entries added
    dare_ties  the same after dropping entries at random and scaling the others up
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        for name in one_by_one(both.roles, "Merging"):
            sides = ((both.content, options.content_weight), (both.style, options.style_weight))
            here = [replace(s[name], scale=s[name].scale * weight) for s, weight in sides if name in s]
            yield name, here[0] if len(here) == 1 else _combined(here, options)


def _combined(loras: Sequence[LowRank], options: MergeOptions) -> LowRank:
    rank = options.rank or sum(lora.rank for lora in loras)
    if options.combine == "svd":
        return cut(svd_basis(concatenate(loras)), rank)
    return best_of_rank(agreed([lora.delta() for lora in loras], options.combine, options.density), rank)


def agreed(deltas: Sequence[Float[Tensor, "d_out d_in"]], how: Combine, density: float) -> Float[Tensor, "d_out d_in"]:
    """PEFT's `ties` or `dare_ties` of dense updates; the weights are in the updates already."""
    weights = torch.ones(len(deltas), device=deltas[0].device)
    merge = {"ties": ties, "dare_ties": dare_ties}[how]
    both: Tensor = merge(list(deltas), weights, density)
    return both


def best_of_rank(delta: Float[Tensor, "d_out d_in"], rank: int) -> LowRank:
    """The LoRA of that rank that is nearest to a dense update (Eckart-Young).

    Its shorter side's directions are eigenvectors of ΔW·ΔWᵀ, which take a fraction of an SVD's time.
    """
    if delta.shape[0] > delta.shape[1]:
        turned = best_of_rank(delta.T, rank)
        return LowRank(turned.down.T, turned.up.T)
    exact = delta.double()
    u = torch.linalg.eigh(exact @ exact.T).eigenvectors.flip(1)[:, :rank]
    v = u.T @ exact
    root = v.norm(dim=1).sqrt().clamp(min=torch.finfo(v.dtype).tiny)
    return LowRank((u * root).float(), (v / root[:, None]).float())


def cut(lora: LowRank, rank: int) -> LowRank:
    """The first `rank` directions."""
    return replace(lora, up=lora.up[:, :rank], down=lora.down[:rank])
