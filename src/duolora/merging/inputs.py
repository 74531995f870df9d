"""What a merge is made from: the two LoRAs, the prompts that bring them out, and the images that they are shown."""

import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from duolora.errors import BaseMismatch, InputError, Notice
from duolora.lora.adapter import Adapter
from duolora.lora.families import ATTENTION, common
from duolora.lora.on_demand import OnDemand, one_by_one, outlines, renamed, spooled
from duolora.merging.options import MaskAxis, MergeOptions, no_prompt
from duolora.model.architectures import Architecture, recognised
from duolora.model.base import Base
from duolora.model.blocks import block_roles, blocks_of
from duolora.model.images import load_images
from duolora.model.mount import Mount
from duolora.model.sample import guidance_of, sample_images
from duolora.paper.choices import BlockMap, Role
from duolora.paper.constyle import Prompts
from duolora.paper.layer_prior import initial_masks
from duolora.paper.lowrank import LowRank, svd_basis
from duolora.progress import say

Loras = Mapping[str, LowRank]
Masks = dict[str, Tensor]
Images = str | Path | None
CALIBRATION_STEPS = 15
"""Denoising steps of a calibration image, which is seen under noise (`docs/log.md`, 2026-11-28)."""


@dataclass(frozen=True, eq=False)
class Sources:
    """What is merged: the modules that may have masks, in the basis in which masks act, and all others as they came.

    `roles` has every module that either LoRA covers and that may have masks, in the network's order.
    """

    content: Loras
    style: Loras
    content_unmasked: Loras
    style_unmasked: Loras
    roles: dict[str, Role]


def sources(architecture: Architecture, content: Adapter, style: Adapter, options: MergeOptions) -> Sources:
    """The two adapters, sorted by whether a module may have masks."""
    sides = (parted(architecture.shapes, each, options) for each in (content, style))
    (of_content, content_unmasked), (of_style, style_unmasked) = sides
    found = roles_of(architecture, options)
    covered = {name: role for name, role in found.items() if name in of_content or name in of_style}
    return Sources(of_content, of_style, content_unmasked, style_unmasked, covered)


def map_of(architecture: Architecture, options: MergeOptions) -> BlockMap | Mapping[str, str]:
    """The block map that a merge goes by. Of transformers no map is known, so none is the default there."""
    unet = any(".attentions." in name for name in architecture.shapes)
    by_default = options.block_map == MergeOptions.block_map and not unet and options.asks_network
    return "none" if by_default else options.block_map


def tell_no_map(architecture: Architecture, options: MergeOptions) -> None:
    """Warn where the default map is none, and the merge would go by it: of a transformer no map is known."""
    uses = options.lambda_layer_prior or options.begins_in_part or options.neutral != 1
    if map_of(architecture, options) != options.block_map and (uses or (options.is_one_shot and options.off_role != 1)):
        warnings.warn(
            f"block_map: of {architecture.name} no map is known, so neither LoRA leads anywhere, as with "
            "block_map=none; `bench figure3` finds a map (--set block_map=FILE)",
            Notice, stacklevel=3,
        )  # fmt: skip


def roles_of(architecture: Architecture, options: MergeOptions) -> dict[str, Role]:
    """The role of every module that may have masks."""
    if not (options.needs_roles or architecture.levels is not None):
        return dict.fromkeys(architecture.shapes, "neutral")
    return block_roles(architecture, map_of(architecture, options))


def architecture_of_files(content: Adapter, style: Adapter) -> Architecture:
    """The architecture of two LoRAs, from the names and shapes of their modules alone.

    Raises:
        BaseMismatch: they are for different families, or have a module in different shapes.
    """
    families = common([("the content LoRA", content.families), ("the style LoRA", style.families)])
    shapes: dict[str, tuple[int, int]] = {}
    for name, lora in (*outlines(content.modules).items(), *outlines(style.modules).items()):
        shape = (lora.d_out, lora.d_in)
        if shapes.setdefault(name, shape) != shape:
            raise BaseMismatch(
                f"{name}: expected one shape in both files, found {shapes[name]} (outputs, inputs) in the content LoRA "
                f"and {shape} in the style LoRA; they were made for different bases"
            )
    blocks = blocks_of(filter(ATTENTION.fullmatch, shapes))
    attention = {name: shapes[name] for names in blocks.values() for name in names}
    return recognised(attention) if families[0] == "SDXL" else Architecture(families[0], attention, None)


def parted(targets: Container[str], adapter: Adapter, options: MergeOptions) -> tuple[Loras, Loras]:
    """The modules that may have masks, in the basis in which rank masks act, and all others as they came."""
    inside, outside = (
        renamed(adapter.modules, {name: name for name in adapter.modules if (name in targets) is masked})
        for masked in (True, False)
    )
    if options.basis == "svd" and options.selects_directions and options.combine == "masks":
        turned = ((name, svd_basis(lora)) for name, lora in one_by_one(inside.items(), "Singular directions"))
        inside = spooled(turned) if isinstance(inside, OnDemand) else dict(turned)
    return inside, outside


def first_masks(both: Sources, options: MergeOptions, device: torch.device) -> tuple[Masks, Masks]:
    """The content and style masks as they begin (Sec. 3.3.2); a LoRA has none where it covers nothing."""
    if options.init == "oneshot":
        raise InputError(f"init: oneshot needs rank masks, got masks={options.masks!r}; set masks=rank or another init")
    rng = torch.Generator().manual_seed(options.seed)
    m_c, m_s = {}, {}
    for name, role in both.roles.items():
        n_c, n_s = (_width(outlines(loras).get(name), options.masks) for loras in (both.content, both.style))
        first = initial_masks(n_c, n_s, role, options.T_content, options.T_style, options.init, rng)
        share = options.neutral if role == "neutral" else 1.0
        m_c[name], m_s[name] = (share * m.to(device) for m in first)
    return {n: m for n, m in m_c.items() if n in both.content}, {n: m for n, m in m_s.items() if n in both.style}


def _width(lora: LowRank | None, axis: MaskAxis) -> int:
    if lora is None:
        return 0
    return {"none": lora.rank, "rank": lora.rank, "output": lora.d_out, "input": lora.d_in}[axis]


def prompts_of(
    adapters: Mapping[str, Adapter], content: str | None = None, style: str | None = None, merged: str | None = None
) -> Prompts:
    """The three prompts: as given, or from the files' own metadata.

    Raises:
        InputError: a prompt is neither given nor in its file.
    """
    found = {k: given or adapters[k].metadata.get("prompt") for k, given in (("content", content), ("style", style))}
    chosen = {kind: prompt for kind, prompt in found.items() if isinstance(prompt, str) and prompt.strip()}
    if missing := [kind for kind in found if kind not in chosen]:
        raise InputError(no_prompt(missing))
    return Prompts(**chosen, merged=merged or merged_prompt_of(chosen["content"], chosen["style"]))


def merged_prompt_of(content: str, style: str) -> str:
    """The content's subject in the style's words.

    "a sks cup in flat style" and "a house in zwx style" make "a sks cup in zwx style".
    """
    subject, _, _ = content.partition(" in ")
    _, found, ending = style.rpartition(" in ")
    return f"{subject} in {ending}" if found else f"{content}, {style}"


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the masks are trained on: latents of content and of style images, and the three prompts."""

    x_c: Tensor
    x_s: Tensor
    prompts: Prompts


def calibration(
    base: Base, both: Sources, options: MergeOptions, prompts: Prompts, images: tuple[Images, Images], progress: bool
) -> Calibration:
    """The latents of the given images or, where there are none, of images that each LoRA generates from its prompt."""
    taught = ((both.content, prompts.content, images[0]), (both.style, prompts.style, images[1]))
    x_c, x_s = latents_of(base, taught, options, progress)
    base.release_encoders()
    return Calibration(x_c, x_s, prompts)


def latents_of(
    base: Base, taught: Sequence[tuple[Loras, str, Images]], options: MergeOptions, progress: bool
) -> list[Tensor]:
    """For each LoRA with its prompt the latents of its images; those without any are generated with it."""
    seeds = range(options.seed, options.seed + options.calibration_images)
    found, missing = [], sum(images is None for _, _, images in taught)
    if missing:
        say(
            f"No images are given for {missing} of {len(taught)} LoRAs: generating {len(seeds)} calibration images "
            f"with each of those, {missing * len(seeds)} in all of {base.resolution} pixels, in "
            f"{CALIBRATION_STEPS} steps each at guidance {guidance_of(base):g} (--set calibration_images=N)",
            progress,
        )
    with Mount(base.unet, [loras for loras, _, _ in taught], "rank", base.device) as plain:
        for own, (_, prompt, images) in zip(plain.owned().split(1), taught, strict=True):
            if images is not None:
                found.append(base.encode_images(load_images(images, base.resolution)))
            else:
                with plain.gating(own):
                    prompts = [prompt] * len(seeds)
                    generated = sample_images(base, prompts, list(seeds), steps=CALIBRATION_STEPS, progress=progress)
                found.append(base.encode_images(generated))
    return found
