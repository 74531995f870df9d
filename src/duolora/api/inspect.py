"""What is in a LoRA file, what two have in common, and what a merge did to its sources; never with a dense ΔW."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from duolora.errors import FileRefused, InputError
from duolora.lora.adapter import Adapter, check_fill
from duolora.lora.families import common
from duolora.lora.parts import CONTENT_RANKS, split_parts
from duolora.lora.read.file import read_adapter
from duolora.lora.read.header import read_header, weights_of
from duolora.lora.verify import inner, norm
from duolora.merging.mask_file import MaskFile, is_mask_file, read_masks
from duolora.model.architectures import PROJECTION, recognised
from duolora.model.blocks import blocks_of, role_in
from duolora.options import Plot, word
from duolora.paper.choices import Role
from duolora.paper.lowrank import LowRank, svd_basis
from duolora.progress import through, underway
from duolora.provenance import file_hash

Facts = dict[str, object]
ROLES: dict[str, Role] = {
    "down_blocks.2": "content", "mid_block": "content", "up_blocks.0": "content",
    "down_blocks.1": "style", "up_blocks.1": "style",
}  # fmt: skip
"""What SDXL's blocks are by resolution, for files whose metadata have no map of its own."""

DIALECTS = {
    "base_model.model.": "PEFT",
    "diffusion_model.": "ComfyUI",
    "lora_transformer_": "OneTrainer",
    "lora_": "kohya",
    "lycoris_": "LyCORIS",
    "text_encoder": "diffusers",
    "unet.": "diffusers",
    "transformer": "diffusers",
    "double_blocks.": "XLabs",
}
"""Whose names the keys of a file are, by how they begin."""


def inspect(file: str | Path, other: str | Path | None = None, plot: str | Path | None = None) -> Facts:
    """Facts about a LoRA file, or about the masks of a merge.

    Ranks and energy (the share of ‖ΔW‖²) are given for each block and role; of a merge also how much of each part is
    left; with a second file, the cosine between the two for each block, and for each part the cosine with it and the
    share of it that the part holds: ⟨part, other⟩ / ‖other‖², 1 where a source came through whole.

    Args:
        file: a LoRA in any dialect, or masks.
        other: another LoRA to compare it with.
        plot: an image to write: one row for each module, sorted by block; masks, or strengths of directions.

    Raises:
        DuoLoRAError: a file cannot be used.
    """
    if plot is not None:
        word("plot", Path(plot).suffix.lower(), get_args(Plot))
    path = Path(file).expanduser()
    weights = weights_of(path)
    if is_mask_file(path):
        if other is not None:
            raise InputError(f"{path}: holds masks only; rebuild the merge to compare it with {other}")
        stored = read_masks(path)
        facts, rows = _about_masks(stored), {k: _by_block(stored.masks[k]) for k in ("content", "style")}
        numbers = {kind: {name: mask.tolist() for name, mask in masks.items()} for kind, masks in rows.items()}
    else:
        adapter = read_adapter(path)
        facts = (
            _identity(adapter, weights)
            | _about(adapter, path)
            | ({} if other is None else {"other": _compared(adapter, path, Path(other))})
        )
        modules = {} if plot is None else _by_block(adapter.modules)
        spectra = ((name, svd_basis(lora)) for name, lora in through(modules.items(), "Singular values"))
        numbers = {"strength": {name: basis.up.square().sum(0).tolist() for name, basis in spectra}}
    if plot is not None:
        with underway("Plotting"):
            from duolora.api.plot import plotted

            facts["plot"] = str(plotted(numbers, Path(plot).expanduser()))
    return {"file": str(path), **facts, "sha256": file_hash(weights), "bytes": weights.stat().st_size}


def _identity(adapter: Adapter, weights: Path) -> Facts:
    """What people look for first: for which base it is, in whose names, how large, and its trigger words."""
    ranks = [lora.rank for lora in adapter.modules.values()]
    keys, _ = read_header(weights)
    prompt, title = adapter.metadata.get("prompt"), adapter.notes.get("modelspec.title")
    shapes = {name: (m.d_out, m.d_in) for name, m in adapter.modules.items() if PROJECTION.fullmatch(name)}
    base = recognised(shapes).name if adapter.families[0] == "SDXL" else " or ".join(adapter.families)
    base = "FLUX.1 Fill" if adapter.is_fill else base
    return {
        "base": adapter.metadata.get("base") or f"{base} (by its shapes)",
        "dialect": next((name for start, name in DIALECTS.items() if min(keys, default="").startswith(start)), "other"),
        "rank": [min(ranks), max(ranks)],
        "trigger_words": prompt,
        "training_tags": _tags(adapter.notes),
        "title": None if title == prompt else title,  # a file without a title has its prompt for one
        "source_files": _source_names(adapter.metadata),
    }


def _tags(notes: Mapping[str, str]) -> list[str]:
    """The commonest tags of the images that kohya's trainer saw, where trigger words may be found."""
    try:
        folders = json.loads(notes.get("ss_tag_frequency", "{}"))
        counts = Counter[str]()
        for folder in folders.values():
            counts.update({tag: int(count) for tag, count in folder.items()})
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return []
    return [tag.strip() for tag, _ in counts.most_common(10)]


def _source_names(metadata: Mapping[str, object]) -> list[str]:
    """The names of the files that it was made from, as far as the metadata name them."""
    files, sources = metadata.get("files"), metadata.get("sources")
    named = [each.get("name") for each in sources if isinstance(each, dict)] if isinstance(sources, list) else files
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _about(adapter: Adapter, path: Path) -> Facts:
    squares, directions = dict[str, float](), dict[str, int]()
    for name, lora in through(adapter.modules.items(), "Measuring"):
        of_each = svd_basis(lora).up.double().square().sum(0).square()
        most = int((of_each.cumsum(0) < 0.9 * float(of_each.sum())).sum()) + 1 if of_each.any() else 0
        squares[name], directions[name] = norm(lora) ** 2, most
    whole = sum(squares.values())
    blocks: dict[str, dict[str, Any]] = {}
    role, energy = _roles(adapter), dict.fromkeys(("content", "style", "neutral"), 0.0)
    for block, names in blocks_of(squares).items():
        here, those = sum(squares[name] for name in names), {role[name] for name in names}
        for name in names:
            energy[role[name]] += squares[name] / whole if whole else 0.0
        blocks[block] = {
            "role": those.pop() if len(those) == 1 else "mixed",
            "modules": len(names),
            "rank": [min(r := [adapter.modules[n].rank for n in names]), max(r)],
            "directions_for_90_percent": sum(directions[name] for name in names) / len(names),
            "norm": math.sqrt(here),
            "energy": here / whole if whole else 0.0,
        }
    facts: Facts = {
        "modules": len(squares),
        "norm": math.sqrt(whole),
        "verification": adapter.verification,
        "blocks": blocks,
        "energy_by_role": energy,
        "left_out": list(adapter.left_out),
        "metadata": {key: value for key, value in adapter.metadata.items() if key != CONTENT_RANKS},
    }
    if CONTENT_RANKS in adapter.metadata:
        parts = zip(("content", "style"), split_parts(adapter, path), strict=True)
        facts["parts"] = {kind: _sizes(part.modules) for kind, part in parts}
    return facts


def _sizes(modules: Mapping[str, LowRank]) -> dict[str, dict[str, float]]:
    """How many directions of each block are left, and how strong they are together."""
    return {
        block: {
            "directions": sum(modules[name].rank for name in names),
            "norm": math.sqrt(sum(norm(modules[name]) ** 2 for name in names)),
        }
        for block, names in blocks_of(modules).items()
    }


def _compared(adapter: Adapter, path: Path, other: Path) -> Facts:
    there = read_adapter(other)
    common([(path, adapter.families), (other, there.families)])
    check_fill([(path, adapter), (other, there)])
    facts: Facts = {"file": str(other), "metadata": there.metadata, "cosine": _cosines(adapter.modules, there.modules)}
    if CONTENT_RANKS in adapter.metadata:
        for kind, part in zip(("content", "style"), split_parts(adapter, path), strict=True):
            facts[f"cosine_of_{kind}_part"] = _cosines(part.modules, there.modules)
            facts[f"share_in_{kind}_part"] = _cosines(part.modules, there.modules, share=True)
    return facts


def _cosines(one: Mapping[str, LowRank], other: Mapping[str, LowRank], share: bool = False) -> dict[str, float | None]:
    """The cosine between two LoRAs over all modules and in each block; None where one of them is nothing.

    With `share`, ⟨one, other⟩ / ‖other‖² instead: how much of the other one is in the first.
    """
    for name in one.keys() & other.keys():
        if (one[name].d_out, one[name].d_in) != (other[name].d_out, other[name].d_in):
            raise FileRefused(f"{name}: expected one shape in both files, found two; they are for different bases")

    def cosine(names: Iterable[str]) -> float | None:
        """The cosine over these modules, taken as one vector."""
        names = list(names)
        product = sum(inner(one[n], other[n]) for n in names if n in one and n in other)
        pair = (other, other) if share else (one, other)
        sizes = [math.sqrt(sum(norm(loras[n]) ** 2 for n in names if n in loras)) for loras in pair]
        return product / (sizes[0] * sizes[1]) if all(sizes) else None

    everything = one.keys() | other.keys()
    blocks = {"all": everything, **blocks_of(everything)}
    return {block: cosine(names) for block, names in through(blocks.items(), "Comparing")}


def _about_masks(stored: MaskFile) -> Facts:
    blocks: dict[str, dict[str, dict[str, float]]] = {}
    for kind, masks in stored.masks.items():
        for block, names in blocks_of(masks).items():
            values = [v for name in names for v in masks[name].tolist()]
            mean, kept = sum(values) / len(values), sum(abs(v) > 1e-3 for v in values) / len(values)
            blocks.setdefault(block, {})[kind] = {"entries": len(values), "mean": mean, "kept": kept}
    return {"masks": blocks, "metadata": stored.metadata}


def _by_block(modules: Mapping[str, Any]) -> dict[str, Any]:
    return {name: modules[name] for names in blocks_of(modules).values() for name in names}


def _roles(adapter: Adapter) -> dict[str, Role]:
    """The role of each module, by the merge's own table or else by SDXL's."""
    said, ours = adapter.metadata.get("blocks"), ROLES if adapter.families[0] == "SDXL" else {}
    table = said if isinstance(said, dict) else ours
    known = {str(place): role for place, role in dict[Any, Any](table).items() if role in get_args(Role)}
    return {name: role_in(known, name) for name in adapter.modules}
