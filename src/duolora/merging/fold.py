"""Folding: masks and LoRAs become one ordinary LoRA, exactly."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from duolora.lora.parts import counted
from duolora.merging.inputs import Loras, Masks, Sources
from duolora.merging.options import MergeOptions
from duolora.paper import ziplora, ziprank
from duolora.paper.lowrank import LowRank, total
from duolora.progress import through

Kind = Literal["content", "style"]
Side = tuple[Loras, Masks, Kind]
"""A LoRA, its masks, and which of the two weights and of the two policies for the rest are its own."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A merge as one ordinary LoRA."""

    modules: Loras
    content_ranks: list[int] | None = None
    """How many directions of each module are the content's (see `lora/parts.py`); None where there are no parts."""


def folded(both: Sources, m_c: Masks, m_s: Masks, options: MergeOptions) -> Folded:
    """The masked merge, each part folded once; modules with nothing left are left out.

    Modules without masks go through by the policy `options.unmasked`.
    """
    parts = [
        folded_sides(both.roles, [(loras, masks, kind)], options) | unmasked_of([(others, kind)], options)
        for loras, masks, others, kind in _sides(both, m_c, m_s)
    ]
    names = dict.fromkeys((*both.roles, *parts[0], *parts[1]))
    found = {name: total([part.get(name) for part in parts]) for name in through(names, "Merging")}
    modules = {name: lora for name, lora in found.items() if lora is not None}
    return Folded(modules, counted(modules, parts[0]))


def _sides(both: Sources, m_c: Masks, m_s: Masks) -> list[tuple[Loras, Masks, Loras, Kind]]:
    return [(both.content, m_c, both.content_unmasked, "content"), (both.style, m_s, both.style_unmasked, "style")]


def folded_sides(names: Collection[str], sides: Sequence[Side], options: MergeOptions) -> Loras:
    """The masked merge of any number of LoRAs; `names` are the modules in their order."""
    weights = {"content": options.content_weight, "style": options.style_weight}
    out = {}
    for name in through(names, "Folding"):
        here = [(_times(loras[name], weights[kind]), masks[name]) for loras, masks, kind in sides if name in loras]
        covering, gates = [lora for lora, _ in here], [mask.to(lora.up) for lora, mask in here]
        if options.masks in ("output", "input"):
            left = ziplora.fold(covering, gates, options.masks)
        else:
            left = ziprank.fold(covering, gates, options.threshold, options.binary)
        if left is not None:
            out[name] = left
    return out


def unmasked(both: Sources, options: MergeOptions) -> Loras:
    """The modules without masks, by the policy `options.unmasked`."""
    return unmasked_of([(both.content_unmasked, "content"), (both.style_unmasked, "style")], options)


def unmasked_of(sides: Sequence[tuple[Loras, Kind]], options: MergeOptions) -> Loras:
    """The same of any number of LoRAs."""
    weights = {"content": options.content_weight, "style": options.style_weight}
    keep = {"sum": ("content", "style"), "content": ("content",), "style": ("style",), "drop": ()}[options.unmasked]
    found: dict[str, list[LowRank]] = {}
    for loras, kind in sides:
        for name, lora in loras.items() if kind in keep else ():
            found.setdefault(name, []).append(_times(lora, weights[kind]))
    return {name: left for name, loras in found.items() if (left := total(loras)) is not None}


def _times(lora: LowRank, weight: float) -> LowRank:
    return replace(lora, scale=lora.scale * weight)
