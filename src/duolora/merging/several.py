"""Any number of LoRAs in one, their masks in closed form: two subjects in one style, one in two styles, and so on.

The paper names it as its own limitation that it merges two (Sec. 5); the one-shot merge has no such limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.merging.closed_form import Part, one_shot
from duolora.merging.fold import Kind, folded_sides, unmasked_of
from duolora.merging.inputs import Loras, parted, roles_of
from duolora.merging.learn import latents_of
from duolora.merging.options import MergeOptions
from duolora.model.base import Base


@dataclass(frozen=True, eq=False)
class Taught:
    """A LoRA of a merge, what brings it out, what it is for, and its images; None generates some with it."""

    adapter: Adapter
    prompt: str
    kind: Kind = "content"
    images: str | Path | None = None


def merged_at_once(base: Base, taught: Sequence[Taught], options: MergeOptions, progress: bool = False) -> Loras:
    """One LoRA of all; modules outside the attention layers go by the policy `options.unmasked`.

    `kind` says where a LoRA leads, for `off_role` and the layer prior, and which of `content_weight` and
    `style_weight` is its own.

    Raises:
        InputError: an option does not fit, such as masks on another dimension than the rank.
    """
    if options.masks != "rank":
        raise InputError(f"masks: many LoRAs at once need 'rank', got {options.masks!r}")
    architecture = base.architecture
    sides = [parted(architecture.shapes, each.adapter, options) for each in taught]
    generated = [(loras, each.prompt, each.images) for each, (loras, _) in zip(taught, sides, strict=True)]
    latents = latents_of(base, generated, options, progress)
    parts = [Part(loras, each.kind, x, each.prompt) for each, (loras, _), x in zip(taught, sides, latents, strict=True)]
    found_roles = roles_of(architecture, options)
    masks = one_shot(base, parts, found_roles, options, progress)
    folding = [(loras, m, each.kind) for each, (loras, _), m in zip(taught, sides, masks, strict=True)]
    covered = [name for name in found_roles if any(name in loras for loras, _ in sides)]
    others = [(unmasked, each.kind) for each, (_, unmasked) in zip(taught, sides, strict=True)]
    return {**folded_sides(covered, folding, options), **unmasked_of(others, options)}
