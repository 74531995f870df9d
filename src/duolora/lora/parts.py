"""The two parts of a merge: which directions of each module are the content's, and which the style's.

A merged module is [content | style] along its rank, exactly. Its metadata count the content's directions
(`content_ranks`, the modules in alphabetical order), so that parts can be separated and reweighted later.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from duolora.errors import FileRefused
from duolora.lora.adapter import Adapter
from duolora.paper.lowrank import LowRank
from duolora.progress import through

CONTENT_RANKS = "content_ranks"


def counted(merged: Mapping[str, LowRank], content: Mapping[str, LowRank]) -> list[int]:
    """What the metadata say of a merge whose content part is `content`."""
    return [content[name].rank if name in content else 0 for name in sorted(merged)]


def content_ranks(adapter: Adapter, file: object) -> dict[str, int]:
    """How many directions of each module, the first ones, are the content's.

    Raises:
        FileRefused: the file does not say so.
    """
    names, counts = sorted(adapter.modules), adapter.metadata.get(CONTENT_RANKS)
    if not isinstance(counts, list) or len(counts) != len(names):
        raise FileRefused(
            f"{file}: expected a merge whose header says which directions are the content's ({CONTENT_RANKS}), found "
            "none; give the file as `duolora merge` wrote it, neither squeezed nor composed nor rewritten by another "
            "program"
        )
    for name, count in zip(names, counts, strict=True):
        if type(count) is not int or not 0 <= count <= adapter.modules[name].rank:
            raise FileRefused(
                f"{file}: {CONTENT_RANKS}: {name}: expected 0 to {adapter.modules[name].rank}, found {count!r}; "
                "download the file again"
            )
    return dict(zip(names, counts, strict=True))


def split_parts(adapter: Adapter, file: object) -> tuple[Adapter, Adapter]:
    """The content part and the style part of a merge; their sum is the merge.

    Raises:
        FileRefused: the file does not say which is which.
    """
    counts = content_ranks(adapter, file)
    metadata = {key: value for key, value in adapter.metadata.items() if key != CONTENT_RANKS}
    parted = []
    for part in ("content", "style"):
        modules = {}
        for name, lora in through(adapter.modules.items(), f"The {part} part"):
            kept = slice(0, counts[name]) if part == "content" else slice(counts[name], lora.rank)
            if lora.up[:, kept].numel():
                modules[name] = replace(lora, up=lora.up[:, kept], down=lora.down[kept])
        said = metadata | {"part": part}
        parted.append(replace(adapter, modules=modules, metadata=said, left_out=(), verification={}))
    return parted[0], parted[1]


def reweighted(adapter: Adapter, content_weight: float, style_weight: float, file: object) -> Adapter:
    """The merge with other weights on its two parts; linear, and nothing is trained again.

    Raises:
        FileRefused: the file does not say which part is which.
    """
    counts = content_ranks(adapter, file)
    modules = {}
    for name, lora in through(adapter.modules.items(), "Reweighting"):
        weights = torch.full((lora.rank,), float(style_weight))
        weights[: counts[name]] = content_weight
        modules[name] = replace(lora, up=lora.up * weights)
    chosen = {"content": content_weight, "style": style_weight}
    return replace(adapter, modules=modules, metadata=adapter.metadata | {"weights": chosen})
