"""Modules of a UNet: which carry masks, their blocks, and which LoRA leads in which (Sec. 3.3.1).

A level is a resolution of the UNet: `down_blocks.i` is on level i, the middle on the last, n − 1, and `up_blocks.j` on
level n − 1 − j. In SDXL at 1024 pixels, attention is on level 1 (64×64) and level 2 (32×32).

resolution    content on the lowest resolution that has attention, style on the next, whatever the image's size
literal       the paper's names: content in up_blocks.2, down_blocks.2, mid_block, style in up_blocks.1, down_blocks.1;
              up_blocks.2 of SDXL has no attention, and up_blocks.0 is left free
released      as `resolution`, but of the lowest resolution only the down block is content
blora         B-LoRA's two blocks: up_blocks.0.attentions.0 content, up_blocks.0.attentions.1 style
none          no LoRA leads anywhere; of transformers no map is known

Every other module is neutral.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from torch import nn

from duolora.errors import InputError
from duolora.lora.families import ATTENTION
from duolora.lora.names import TEXT_ENCODERS
from duolora.model.architectures import PROJECTION, Architecture
from duolora.options import word
from duolora.paper.choices import BlockMap, Role


def target_modules(unet: nn.Module) -> list[str]:
    """The names of the query, key, value and output projections of every attention, in the network's order."""
    return list(architecture_of(unet).shapes)


def architecture_of(network: Any, name: str = "") -> Architecture:
    """The attention projections of a UNet or a transformer, which may be on the meta device."""
    levels = network.config.get("down_block_types")
    pattern = ATTENTION if levels is None else PROJECTION
    shapes = {
        path: (m.out_features, m.in_features)
        for path, m in network.named_modules()
        if isinstance(m, nn.Linear) and pattern.fullmatch(path)
    }
    return Architecture(name, shapes, None if levels is None else len(levels))


def layer_shapes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """The shape (d_out, d_in) of the weight of every linear layer and convolution, as a matrix, by its path."""
    return {
        name: (m.out_features, m.in_features) if isinstance(m, nn.Linear) else (len(m.weight), m.weight[0].numel())
        for name, m in network.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    }


LITERAL: dict[str, Role] = {
    "up_blocks.2": "content", "down_blocks.2": "content", "mid_block": "content",
    "up_blocks.1": "style", "down_blocks.1": "style",
}  # fmt: skip
BLORA: dict[str, Role] = {"up_blocks.0.attentions.0": "content", "up_blocks.0.attentions.1": "style"}


def roles(unet: nn.Module, kind: str | Mapping[str, str] = "resolution") -> dict[str, Role]:
    """The role of every target module, in the network's order; works on the meta device (see `block_roles`)."""
    return block_roles(architecture_of(unet), kind)


def block_roles(architecture: Architecture, kind: str | Mapping[str, str] = "resolution") -> dict[str, Role]:
    """The role of every attention projection, in the network's order.

    Args:
        architecture: of an SDXL-shaped UNet.
        kind: the name of a map above (`BlockMap`), or a table {beginning of a module's path: role}; the longest match
            counts.

    Raises:
        InputError: there is no such map, a table names what the UNet does not have, or the map goes by levels of which
            nobody knows how many there are.
    """
    names = list(architecture.shapes)
    if not isinstance(kind, str):
        table = {prefix: _checked(prefix, role, names) for prefix, role in kind.items()}
        return {name: role_in(table, name) for name in names}
    if kind not in get_args(BlockMap):
        raise InputError(f"block map: expected one of {', '.join(get_args(BlockMap))} or a table, got {kind!r}")
    if kind == "none":
        return dict.fromkeys(names, "neutral")
    if names and not any(name.startswith(("down_blocks", "mid_block", "up_blocks")) for name in names):
        raise InputError(
            f"block map: {kind!r} goes by the blocks and levels of a UNet, which {architecture.name} has not; take "
            "block_map=none, a table, or a method without a map (naive, svd, ties, dare_ties)"
        )
    if kind in ("literal", "blora"):
        return {name: role_in(LITERAL if kind == "literal" else BLORA, name) for name in names}
    levels = architecture.levels
    if levels is None:
        raise InputError(
            f"block map: {kind!r} goes by the levels of the UNet, and the LoRA's modules are of none that we know; "
            "name the base, or a block map by names (literal, blora or a table)"
        )
    lowest = max((_level(name, levels) for name in names), default=0)
    by_level: dict[int, Role] = {lowest: "content", lowest - 1: "style"}
    found = {name: by_level.get(_level(name, levels), "neutral") for name in names}
    if kind == "released":
        return {n: "neutral" if r == "content" and not n.startswith("down_blocks") else r for n, r in found.items()}
    return found


def by_block(found: Mapping[str, Role]) -> dict[str, Role]:
    """The role of each block, or of each attention, or module, where they differ within: a table for `block_roles`."""
    return {place: role for (place, role), _ in _places(found).items()}


def formatted(found: Mapping[str, Role]) -> str:
    """A line for each block, or for each attention where they differ in a block: its role and how many modules."""
    places = _places(found)
    width = max((len(place) for place, _ in places), default=0)
    return "\n".join(f"{place:{width}}  {role:7}  {len(names):3} modules" for (place, role), names in places.items())


def _places(found: Mapping[str, Role]) -> dict[tuple[str, Role], list[str]]:
    """Modules that stand together and have one role, by where and which: the largest such places."""

    def attention(name: str) -> str:
        """Its path: two parts more than the block's."""
        return ".".join(name.split(".")[: block_of(name).count(".") + 3])

    places: dict[str, set[Role]] = {}
    for name, role in found.items():
        for place in (block_of(name), attention(name)):
            places.setdefault(place, set()).add(role)
    lines: dict[tuple[str, Role], list[str]] = {}
    for name, role in found.items():
        place = next((at for at in (block_of(name), attention(name)) if len(places[at]) == 1), name)
        lines.setdefault((place, role), []).append(name)
    return lines


def _level(name: str, levels: int) -> int:
    found = re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if found is None:
        return levels - 1
    return int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])


def _begins(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def role_in(table: Mapping[str, Role], name: str) -> Role:
    """The role that a table {beginning of a module's path: role} gives to a module: the longest match counts."""
    fitting = [prefix for prefix in table if _begins(name, prefix)]
    return table[max(fitting, key=len)] if fitting else "neutral"


def _checked(prefix: str, role: str, names: list[str]) -> Role:
    """The role that a user's table gives to a block, once it is certain that there are such a role and such a block."""
    known: Role = word(f"block map: {prefix}", role, get_args(Role))
    if not any(_begins(name, prefix) for name in names):
        raise InputError(
            f"block map: {prefix}: expected the beginning of an attention module's path, such as "
            f"{block_of(names[0]) if names else 'down_blocks.1'}; the UNet has no such"
        )
    return known


_BLOCKS = ("blocks", "layers", "noise_refiner", "context_refiner")
"""How the lists of a network's blocks end."""


def block_of(module: str) -> str:
    """The block that a module belongs to, such as `down_blocks.1` or `layers.7`; `other` outside of blocks."""
    parts = module.split(".")
    if parts[0] in TEXT_ENCODERS or parts[0] == "mid_block":
        return parts[0]
    return ".".join(parts[:2]) if parts[0].endswith(_BLOCKS) and len(parts) > 2 else "other"


def blocks_of(modules: Iterable[str]) -> dict[str, list[str]]:
    """The modules of each block, from the network's first block to its last."""
    order = ["down_blocks", "mid_block", "up_blocks", "joint_transformer_blocks", "transformer_blocks"]
    order += ["single_transformer_blocks", "noise_refiner", "context_refiner", "layers"]
    last = ["other", *TEXT_ENCODERS]
    found: dict[str, list[str]] = {}
    for name in sorted(modules):
        found.setdefault(block_of(name), []).append(name)
    kinds = {block.partition(".")[0] for block in found}
    ordered = [*order, *sorted(kinds - {*order, *last}), *last]

    def place(block: str) -> tuple[int, int]:
        kind, _, number = block.partition(".")
        return ordered.index(kind), int(number or 0)

    return {block: found[block] for block in sorted(found, key=place)}
