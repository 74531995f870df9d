"""How many directions of each part are left in a merged file, block by block (Figure 4), from its header alone."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.header import METADATA, json_object, read_header
from duolora.lora.read.spelling import module_of
from duolora.model.blocks import blocks_of

Ranks = dict[str, dict[str, float]]
_DOWN = re.compile(r"\.(?:lora_A|lora_down)\.weight$")


def metadata_of(path: Path) -> dict[str, Any]:
    """The merge's metadata in a file's header; empty where there are none."""
    return json_object(read_header(path)[1], METADATA, str(path))


def ranks_of(path: Path) -> Ranks | None:
    """Mean rank in each block, {"content": {block: rank}, …}; None for a file that does not part content from style.

    A file in diffusers' or kohya's format, as `duolora merge` writes it.
    """
    entries, metadata = read_header(path)
    counts = json_object(metadata, METADATA, str(path)).get(CONTENT_RANKS)
    downs = {key: _DOWN.sub("", key) for key in entries if _DOWN.search(key)}
    ranks = {module_of(stem): entries[key]["shape"][0] for key, stem in downs.items()}
    if not isinstance(counts, list) or len(counts) != len(ranks):
        return None
    content = dict(zip(sorted(ranks), counts, strict=True))
    blocks = {block: names for block, names in blocks_of(ranks).items() if "_block" in block}
    return {
        "content": {block: mean(content[n] for n in names) for block, names in blocks.items()},
        "style": {block: mean(ranks[n] - content[n] for n in names) for block, names in blocks.items()},
    }


def mean_ranks(found: Iterable[Mapping[str, Mapping[str, float]]]) -> Ranks:
    """The mean over several files; a block that a file does not have counts as rank 0."""
    files = list(found)
    blocks = list(dict.fromkeys(block for one in files for block in one["content"]))
    return {part: {b: mean(one[part].get(b, 0.0) for one in files) for b in blocks} for part in ("content", "style")}
