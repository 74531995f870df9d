"""Figure 4: ranks of the masks, by block, over many merges."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from duolora.bench.cells.cell import MASKS, Cell
from duolora.errors import InputError
from duolora.merging.mask_file import read_masks
from duolora.model.blocks import block_of, blocks_of, roles

THRESHOLD = 0.5
"""Entries above this count towards a mask's rank (Figure 4): half of where a mask of ones begins."""


def ranks(masks: Mapping[str, Mapping[str, Tensor]], threshold: float) -> dict[str, dict[str, int]]:
    """For each adapter and module, how many entries of its mask exceed the threshold (Figure 4's rank)."""
    return {
        side: {name: int((mask.abs() > threshold).sum()) for name, mask in found.items()}
        for side, found in masks.items()
    }


def figure4(cells: Sequence[Cell], out: Path) -> Path:
    """How often each rank occurs in each block, in the content and in the style masks of many merges.

    Writes `ranks.png`, a panel for each block, and `ranks.csv`: block, its role, adapter, rank, and how many modules of
    all merges have that rank.

    Raises:
        InputError: none of the cells kept masks.
    """
    kept = [cell for cell in cells if (cell.folder / MASKS).exists()]
    if not kept:
        raise InputError(f"{out}: expected finished cells with masks, found none; run a row that trains masks")
    counts: dict[tuple[str, str, str], Counter[int]] = {}
    for cell in kept:
        role = roles(cell.loaded.unet, cell.options.block_map)
        for side, found in ranks(read_masks(cell.folder / MASKS).masks, THRESHOLD).items():
            for name, rank in found.items():
                counts.setdefault((block_of(name), role[name], side), Counter())[rank] += 1
    out.mkdir(parents=True, exist_ok=True)
    order = list(blocks_of(f"{block}." for block, _, _ in counts))
    keys = sorted(counts, key=lambda key: (order.index(key[0]), key[1:]))
    with (out / "ranks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["block", "role", "adapter", "rank", "modules"])
        writer.writerows([*key, rank, number] for key in keys for rank, number in sorted(counts[key].items()))
    _plot_ranks({key: counts[key] for key in keys}, len(kept), out / "ranks.png")
    return out / "ranks.png"


def _plot_ranks(counts: Mapping[tuple[str, str, str], Counter[int]], merges: int, path: Path) -> None:
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(key[:2] for key in counts))
    figure = Figure(figsize=(3.2 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    most = max(max(found) for found in counts.values())
    for axis, (block, role) in zip(axes[0], panels, strict=True):
        for k, side in enumerate(("content", "style")):
            found = counts.get((block, role, side), Counter())
            whole = max(1, sum(found.values()))
            bars = [found[rank] / whole for rank in range(most + 1)]
            axis.bar([rank + 0.4 * k - 0.2 for rank in range(most + 1)], bars, 0.4, label=side)
        axis.set(title=f"{block}\n({role})", xlabel="rank")
    axes[0][0].set_ylabel("share of modules")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"entries above {THRESHOLD:g}, {merges} merges", fontsize=9)
    figure.savefig(path, dpi=130)
