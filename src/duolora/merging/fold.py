"""Folding: masks and LoRAs become one ordinary LoRA, exactly."""

from dataclasses import replace

from duolora.merging.sources import Loras, Masks, Sources
from duolora.methods import MergeOptions
from duolora.paper import ziplora, ziprank
from duolora.paper.lowrank import LowRank, total


def folded(both: Sources, m_c: Masks, m_s: Masks, options: MergeOptions) -> Loras:
    """The masked merge as one ordinary LoRA; modules with nothing left are left out."""
    sides = ((both.content, m_c, options.content_weight), (both.style, m_s, options.style_weight))
    out = {}
    for name in both.roles:
        here = [(_times(loras[name], weight), masks[name]) for loras, masks, weight in sides if name in loras]
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
    sides = {"content": (both.content_rest, options.content_weight), "style": (both.style_rest, options.style_weight)}
    keep = {"sum": ("content", "style"), "content": ("content",), "style": ("style",), "drop": ()}[options.rest]
    found: dict[str, list[LowRank]] = {}
    for loras, weight in (sides[kind] for kind in keep):
        for name, lora in loras.items():
            found.setdefault(name, []).append(_times(lora, weight))
    return {name: left for name, loras in found.items() if (left := total(loras)) is not None}


def _times(lora: LowRank, weight: float) -> LowRank:
    return replace(lora, scale=lora.scale * weight)
