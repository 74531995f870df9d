"""One ordinary LoRA of two: folded with their masks, exactly, or combined without masks.

The latter are PEFT's own ways, applied to the true ΔW of each module, with scales and all.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from peft.utils.merge_utils import dare_ties, ties
from torch import Tensor

from duolora.lora.on_demand import OnDemand, one_by_one, outlines, sketched
from duolora.lora.parts import counted
from duolora.merging.inputs import Loras, Masks, Sources
from duolora.merging.options import Combine, MergeOptions
from duolora.paper import ziplora, ziprank
from duolora.paper.lowrank import LowRank, concatenate, svd_basis, total
from duolora.progress import through

Kind = Literal["content", "style"]
Side = tuple[Loras, Masks, Kind]
"""A LoRA, its masks, and which of the two weights and of the two policies for the rest are its own."""
Rest = tuple[Loras, Kind]
"""The modules of a LoRA that have no masks, and whose they are."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A merge as one ordinary LoRA."""

    modules: Loras
    content_ranks: list[int] | None = None
    """How many directions of each module are the content's (see `lora/parts.py`); None where there are no parts."""


def folded(both: Sources, m_c: Masks, m_s: Masks, options: MergeOptions) -> Folded:
    """The masked merge, each module folded whenever it is asked for; modules with nothing left are left out.

    Modules without masks go through by the policy `options.unmasked`.
    """
    sides: tuple[Side, Side] = (both.content, m_c, "content"), (both.style, m_s, "style")
    others: tuple[Rest, Rest] = (both.content_unmasked, "content"), (both.style_unmasked, "style")

    def parts(name: str) -> list[LowRank | None]:
        """What is left of a module in either LoRA."""
        if name in both.roles:
            return [_folded(name, [side], options) for side in sides]
        return [total(_unmasked(name, [other], options)) for other in others]

    found: dict[str, LowRank] = {}
    content: dict[str, LowRank] = {}
    for name in one_by_one(dict.fromkeys((*both.roles, *both.content_unmasked, *both.style_unmasked)), "Merging"):
        if (whole := total(here := parts(name))) is not None:
            found[name] = sketched(whole)
        if here[0] is not None:
            content[name] = sketched(here[0])

    def made(name: str) -> LowRank:
        """The module, of which something is left."""
        return concatenate([part for part in parts(name) if part is not None])

    return Folded(OnDemand(found, made), counted(found, content))


def folded_sides(names: Collection[str], sides: Sequence[Side], options: MergeOptions) -> dict[str, LowRank]:
    """The masked merge of any number of LoRAs; `names` are the modules in their order."""
    found = {name: _folded(name, sides, options) for name in through(names, "Folding")}
    return {name: lora for name, lora in found.items() if lora is not None}


def _folded(name: str, sides: Sequence[Side], options: MergeOptions) -> LowRank | None:
    here = [(_weighted(loras[name], kind, options), masks[name]) for loras, masks, kind in sides if name in loras]
    covering, gates = [lora for lora, _ in here], [mask.to(lora.up) for lora, mask in here]
    if options.masks in ("output", "input"):
        return ziplora.fold(covering, gates, options.masks)
    return ziprank.fold(covering, gates, options.threshold, options.binary)


def unmasked(both: Sources, options: MergeOptions) -> Loras:
    """The modules without masks, by the policy `options.unmasked`."""
    return unmasked_of([(both.content_unmasked, "content"), (both.style_unmasked, "style")], options)


def unmasked_of(sides: Sequence[Rest], options: MergeOptions) -> Loras:
    """The same of any number of LoRAs."""
    bare = [(outlines(loras), kind) for loras, kind in sides]
    names = dict.fromkeys(name for loras, _ in bare for name in loras)
    left = {name: concatenate(kept) for name in names if (kept := _unmasked(name, bare, options))}
    return OnDemand(left, lambda name: concatenate(_unmasked(name, sides, options)))


def _unmasked(name: str, sides: Sequence[Rest], options: MergeOptions) -> list[LowRank]:
    keep = {"sum": ("content", "style"), "content": ("content",), "style": ("style",), "drop": ()}[options.unmasked]
    return [_weighted(loras[name], kind, options) for loras, kind in sides if kind in keep and name in loras]


def _weighted(lora: LowRank, kind: Kind, options: MergeOptions) -> LowRank:
    weight = {"content": options.content_weight, "style": options.style_weight}[kind]
    return replace(lora, scale=lora.scale * weight)


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
            rank = options.rank or sum(lora.rank for lora in here)
            if len(here) == 1:
                yield name, here[0]
            elif options.combine == "svd":
                whole = svd_basis(concatenate(here))
                yield name, replace(whole, up=whole.up[:, :rank], down=whole.down[:rank])
            else:
                deltas = [lora.delta() for lora in here]
                yield name, best_of_rank(agreed(deltas, options.combine, options.density), rank)


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
