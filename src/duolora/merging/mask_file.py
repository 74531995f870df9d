"""A merge as masks only: about 0.3 MB for SDXL, from which it is rebuilt with its two source files."""

import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from duolora.errors import FileRefused
from duolora.lora.adapter import Adapter, embeddings_of
from duolora.lora.families import common
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.file import read_adapter, source_hash
from duolora.lora.read.header import MASKS, METADATA, json_object, read_header
from duolora.lora.read.notes import notes_of
from duolora.lora.read.stored import read_tensors
from duolora.lora.write.atomic import Stage, check_writable, whole_files
from duolora.lora.write.layout import header_json, laid_out
from duolora.merging.fold import folded
from duolora.merging.inputs import Masks, Sources, parted
from duolora.merging.options import Basis, MaskAxis, MergeOptions, Unmasked
from duolora.paper.choices import Role

KINDS = ("content", "style")


@dataclass(frozen=True, eq=False)
class MaskFile:
    """Masks by kind and module, and the metadata of the merge, with the hashes of its two sources."""

    masks: dict[str, Masks]
    metadata: dict[str, object]
    notes: dict[str, str] = field(default_factory=dict)
    """What people wrote about the two sources (see `lora.read.notes`)."""


def is_mask_file(path: Path) -> bool:
    """Whether a sound .safetensors file says that it holds masks only."""
    return os.path.isfile(path) and MASKS in read_header(path)[1]


def write_masks(path: Path, found: MaskFile) -> int:
    """Write the masks, in float32 one after another; returns the size of the file.

    Raises:
        DuoLoRAError: it cannot be written; nothing is changed.
    """
    with whole_files() as stage:
        return staged_masks(stage, path, found).stat().st_size


def staged_masks(stage: Stage, path: Path, found: MaskFile) -> Path:
    """Write a draft of the masks, which takes its name when the stage ends well; returns where the draft is."""
    check_writable(path)
    table = {kind: {name: mask.numel() for name, mask in sorted(found.masks[kind].items())} for kind in KINDS}
    each = {kind: [found.masks[kind][name].detach().float().cpu() for name in table[kind]] for kind in KINDS}
    flat = {kind: torch.cat([torch.zeros(0), *masks]) for kind, masks in each.items()}
    kept = {key: value for key, value in found.metadata.items() if key != CONTENT_RANKS}
    header = found.notes | {"format": "pt", MASKS: header_json(table), METADATA: header_json(kept)}
    draft = stage(path, laid_out(flat, header))
    read_masks(draft)
    return draft


def read_masks(path: Path) -> MaskFile:
    """The masks in a file.

    Raises:
        FileRefused: it is damaged, or holds something else.
    """
    _, metadata = read_header(path)
    if MASKS not in metadata:
        raise FileRefused(f"{path}: expected masks only, as `duolora merge --format masks` writes them, found none")
    tensors, table = read_tensors(path), json_object(metadata, MASKS, str(path))
    masks = {kind: _parted_masks(table.get(kind), tensors.get(kind), f"{path}: {kind}") for kind in KINDS}
    return MaskFile(masks, json_object(metadata, METADATA, str(path)), notes_of(metadata))


def _parted_masks(sizes: Any, flat: Tensor | None, where: str) -> Masks:
    """Masks by module, from one after another, once it is certain that they are as long as said."""
    if flat is None or not isinstance(sizes, dict) or not all(type(n) is int and n > 0 for n in sizes.values()):
        raise FileRefused(f"{where}: expected masks and their sizes, found none; download the file again")
    if flat.dtype != torch.float32 or flat.shape != (sum(sizes.values()),):
        raise FileRefused(
            f"{where}: expected {sum(sizes.values())} numbers, found {tuple(flat.shape)}; download it again"
        )
    return dict(zip(sizes, flat.split(list(sizes.values())), strict=True)) if sizes else {}


def rebuilt(
    stored: MaskFile, content: Path, style: Path, content_weight: float = 1.0, style_weight: float = 1.0
) -> Adapter:
    """The merge that the masks make of their two sources; the weights multiply those of the merge.

    Raises:
        FileRefused: a source is another file than the one that was merged, or the metadata are damaged.
    """
    sides = {}
    for kind, path in zip(KINDS, (content, style), strict=True):
        adapter = read_adapter(path)
        expected, found = stored.metadata.get(kind), source_hash(path)
        if found != expected:
            raise FileRefused(
                f"{path}: expected the {kind} LoRA of the merge, SHA-256 {str(expected)[:12]}…, found {found[:12]}…; "
                "give the very file that was merged"
            )
        sides[kind] = adapter
    options = _options(stored.metadata, content_weight, style_weight)
    for kind, adapter in sides.items():
        if missing := stored.masks[kind].keys() - adapter.modules.keys():
            count = len(stored.masks[kind])
            found = f"expected all {count} modules that have masks, found {count - len(missing)}"
            raise FileRefused(f"{kind} LoRA: {found}")
    (of_content, content_unmasked), (of_style, style_unmasked) = (
        parted(stored.masks[kind], adapter, options) for kind, adapter in sides.items()
    )
    names: dict[str, Role] = {name: "neutral" for kind in KINDS for name in stored.masks[kind]}
    both = Sources(of_content, of_style, content_unmasked, style_unmasked, names)
    merged = folded(both, stored.masks["content"], stored.masks["style"], options)
    families = common((path, sides[kind].families) for kind, path in zip(KINDS, (content, style), strict=True))
    said, embeddings = stored.metadata | {CONTENT_RANKS: merged.content_ranks}, embeddings_of(*sides.values())
    return Adapter(merged.modules, said, notes=stored.notes, families=families, embeddings=embeddings)


def _options(metadata: Mapping[str, object], content_weight: float, style_weight: float) -> MergeOptions:
    found: Any = metadata.get("options")
    known = {f.name for f in fields(MergeOptions)}
    if not isinstance(found, dict) or not {"masks", "basis", "threshold", "binary", "unmasked"} <= set(found):
        raise FileRefused(
            "masks: expected the options of the merge in their metadata, found none; download the file again"
        )
    options = {key: value for key, value in found.items() if key in known}
    for name, choices in (("masks", MaskAxis), ("basis", Basis), ("unmasked", Unmasked), ("binary", None)):
        if options[name] not in (get_args(choices) if choices else (True, False)):
            raise _wrong_option(name, options[name])
    for name, weight in (("content_weight", content_weight), ("style_weight", style_weight), ("threshold", 1.0)):
        value = options.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise _wrong_option(name, value)
        options[name] = weight * float(value)
    return MergeOptions(**options)


def _wrong_option(name: str, value: object) -> FileRefused:
    return FileRefused(
        f"masks: {name} of the merge: found {reprlib.repr(value)}, which it cannot be; download it again"
    )
