"""Any number of LoRAs in one, their masks in closed form: two things in one look, one thing in two looks, and so on.

The paper names it as its own limitation that it merges two (Sec. 5); the one-shot merge has no such limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from duolora.adapters.adapter import Adapter
from duolora.errors import InputError
from duolora.merging.learn import latents_of
from duolora.merging.oneshot import Part, Parts, one_shot
from duolora.merging.sources import Loras, Masks, parted
from duolora.methods import MergeOptions
from duolora.networks.bases import Base
from duolora.networks.block_map import roles
from duolora.paper import ziprank
from duolora.paper.lowrank import total

Kind = Literal["content", "style"]


@dataclass(frozen=True, eq=False)
class Taught:
    """A LoRA of a merge, what brings it out, what it is for, and its pictures; None draws some with it."""

    adapter: Adapter
    prompt: str
    kind: Kind = "content"
    images: str | Path | None = None


def merged_at_once(
    base: Base, taught: Sequence[Taught], merged_prompt: str, options: MergeOptions, progress: bool = False
) -> tuple[Loras, list[Masks]]:
    """One LoRA of all, and the masks of each in their order.

    Modules outside the attention layers have no masks and are summed. `kind` and `merged_prompt` count with options
    that ask for them: `off_role`, `mixed` and the layer prior.

    Raises:
        InputError: an option does not fit, such as masks on another dimension than the rank.
    """
    if options.masks != "rank":
        raise InputError(f"masks: many LoRAs at once need 'rank', got {options.masks!r}")
    sides = [parted(base, each.adapter, options) for each in taught]
    drawn = [(loras, each.prompt, each.images) for each, (loras, _) in zip(taught, sides, strict=True)]
    latents = latents_of(base, drawn, options, progress)
    parts = [Part(loras, each.kind, x, each.prompt) for each, (loras, _), x in zip(taught, sides, latents, strict=True)]
    masks = one_shot(base, Parts(tuple(parts), merged_prompt), roles(base.unet, options.block_map), options, progress)
    found: Loras = {}
    for name in dict.fromkeys(name for loras, _ in sides for name in loras):
        here = [(loras[name], m[name]) for (loras, _), m in zip(sides, masks, strict=True) if name in loras]
        left = ziprank.fold([a for a, _ in here], [m.to(a.up) for a, m in here], options.threshold, options.binary)
        if left is not None:
            found[name] = left
    for name in dict.fromkeys(name for _, rest in sides for name in rest):
        summed = total([rest[name] for _, rest in sides if name in rest])
        if summed is not None:
            found[name] = summed
    return found, masks
