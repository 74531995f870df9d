"""Folding: masks and LoRAs become one ordinary LoRA, exactly."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from duolora.merging.inputs import Loras, Masks, Sources
from duolora.merging.options import MergeOptions
from duolora.paper import ziplora, ziprank
from duolora.paper.lowrank import LowRank, total

Kind = Literal["content", "style"]
Side = tuple[Loras, Masks, Kind]
"""A LoRA, its masks, and which of the two weights and of the two policies for the rest are its own."""


def folded(both: Sources, m_c: Masks, m_s: Masks, options: MergeOptions) -> Loras:
    """The masked merge as one ordinary LoRA; modules with nothing left are left out."""
    sides: list[Side] = [(both.content, m_c, "content"), (both.style, m_s, "style")]
    return folded_sides(both.roles, sides, options)


def folded_sides(names: Iterable[str], sides: Sequence[Side], options: MergeOptions) -> Loras:
    """The same of any number of LoRAs with their masks; `names` are the modules in their order."""
    weights = {"content": options.content_weight, "style": options.style_weight}
    out = {}
    for name in names:
        here = [(_times(loras[name], weights[kind]), masks[name]) for loras, masks, kind in sides if name in loras]
        covering, gates = [lora for lora, _ in here], [mask.to(lora.up) for lora, mask in here]
        if options.masks in ("output", "input"):
            left = ziplora.fold(covering, gates, options.masks)
        else:
            left = ziprank.fold(covering, gates, options.threshold, options.binary)
        if left is not None:
            out[name] = left
    return out


def rest(both: Sources, options: MergeOptions) -> Loras:
    """The modules without masks, by the policy `options.rest`."""
    return rest_of([(both.content_rest, "content"), (both.style_rest, "style")], options)


def rest_of(sides: Sequence[tuple[Loras, Kind]], options: MergeOptions) -> Loras:
    """The same of any number of LoRAs."""
    weights = {"content": options.content_weight, "style": options.style_weight}
    keep = {"sum": ("content", "style"), "content": ("content",), "style": ("style",), "drop": ()}[options.rest]
    found: dict[str, list[LowRank]] = {}
    for loras, kind in sides:
        for name, lora in loras.items() if kind in keep else ():
            found.setdefault(name, []).append(_times(lora, weights[kind]))
    return {name: left for name, loras in found.items() if (left := total(loras)) is not None}


def _times(lora: LowRank, weight: float) -> LowRank:
    return replace(lora, scale=lora.scale * weight)
