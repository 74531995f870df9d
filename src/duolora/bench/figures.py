"""Figures 3 and 4, on any base whose images Atelier's classifier knows: weight scaling, and ranks of the masks."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm

from duolora.atelier.captions import plain_caption
from duolora.atelier.classifier import classify, load_classifier
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.styles import BASE_STYLES
from duolora.bench.cells.cell import MASKS, SHEET, Cell
from duolora.errors import InputError
from duolora.merging.mask_file import read_masks
from duolora.model.base import Base
from duolora.model.blocks import block_of, blocks_of, roles, target_modules
from duolora.model.images import as_image, tiled
from duolora.model.sample import sample_images
from duolora.textfiles import write_json

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
Curves = dict[str, dict[str, list[float]]]
THRESHOLD = 0.5
"""Entries above this count towards a mask's rank (Figure 4): half of where a mask of ones begins."""


def figure3(
    out: Path,
    base: Base,
    alphas: Sequence[float] = ALPHAS,
    count: int = 34,
    seed: int = 0,
    progress: bool = True,
    blocks: Sequence[str] = (),
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> Curves:
    """How well object and style are recognised as blocks, or each group of them, are scaled by α.

    Writes curves and images.

    A group is content-dominant if turning it down loses the object and keeps the style, and style-dominant in the
    opposite case: so this says which block map is true of a base. The file `blocks.json` names the two attentions that
    are most so, for B-LoRA (`dominant`); not where blocks are given.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng, classifier = np.random.default_rng(seed), load_classifier()
    kinds = [str(rng.choice(BASE_OBJECTS)) for _ in range(count)]
    styles = [BASE_STYLES[k % len(BASE_STYLES)] for k in range(count)]
    prompts = [plain_caption(kind, style=style) for kind, style in zip(kinds, styles, strict=True)]
    groups, curves, sheet = groups_of(base, blocks), {}, []
    for name, group in tqdm(groups.items(), "Figure 3", disable=not progress):
        curves[name] = {"alpha": list(alphas), "object": [], "style": []}
        row = []
        for alpha in alphas:
            with scaled(base.unet, group, alpha):
                generated = sample_images(base, prompts, list(range(seed, seed + count)), **sampling).clamp(-1, 1)
            seen = classify(classifier, generated)
            for curve, got, asked in (("object", seen.object, kinds), ("style", seen.style, styles)):
                curves[name][curve].append(sum(a == b for a, b in zip(got, asked, strict=True)) / count)
            row.append(as_image(generated[0]))
        sheet.append(row)
    tiled(sheet).save(out / SHEET)
    write_json(out / "curves.json", curves)
    _plot_curves(curves, out / "curves.png")
    if not blocks:
        write_json(out / "blocks.json", dominant(curves))
    return curves


def groups_of(base: Base, blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is scaled together, by its name: the blocks, or else each group that is worth it.

    Raises:
        InputError: the base has no UNet.
    """
    if base.kind.network != "unet":
        raise InputError(f"{base.name}: expected a base with a UNet, whose blocks are scaled; got {base.kind.name}")
    return {", ".join(blocks): tuple(blocks)} if blocks else block_groups(base.unet)


def dominant(curves: Curves) -> dict[str, list[str]]:
    """The group that is most style-dominant and, of the others, the most content-dominant; of the smallest measured.

    By what is lost of the style on average over the α below 1, times its share in what is lost of style and object
    together, so that a group without any effect is neither; and the reverse.
    """

    def lost(name: str, what: str) -> float:
        whole = [v for a, v in zip(curves[name]["alpha"], curves[name][what], strict=True) if a == 1]
        less = [v for a, v in zip(curves[name]["alpha"], curves[name][what], strict=True) if a < 1]
        return float(np.mean(whole) - np.mean(less))

    blocks = [name for name in curves if not name.startswith("level")]
    finest = [n for n in blocks if not any(other.startswith(f"{n}.") for other in blocks)]

    def lean(name: str, to: str, other: str) -> float:
        mine, rest = max(lost(name, to), 0.0), max(lost(name, other), 0.0)
        return mine * mine / (mine + rest) if mine else 0.0

    style = max(finest, key=lambda name: lean(name, "style", "object"))
    content = max((n for n in finest if n != style), key=lambda name: lean(name, "object", "style"))
    return {"content": [content], "style": [style]}


def _plot_curves(curves: Curves, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, what in zip(axes, ("object", "style"), strict=True):
        for name, curve in curves.items():
            axis.plot(curve["alpha"], curve[what], marker="o", label=name, lw=2.5 if name.startswith("level") else 1)
        axis.set(title=f"{what} recognised", xlabel="α", ylim=(-0.03, 1.03))
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def ranks(masks: Mapping[str, Mapping[str, Tensor]], threshold: float) -> dict[str, dict[str, int]]:
    """For each adapter and module, how many entries of its mask exceed the threshold (Figure 4's rank)."""
    return {
        side: {name: int((mask.abs() > threshold).sum()) for name, mask in found.items()}
        for side, found in masks.items()
    }


def figure4(cells: Sequence[Cell], out: Path, threshold: float = THRESHOLD) -> Path:
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
        for side, found in ranks(read_masks(cell.folder / MASKS).masks, threshold).items():
            for name, rank in found.items():
                counts.setdefault((block_of(name), role[name], side), Counter())[rank] += 1
    out.mkdir(parents=True, exist_ok=True)
    order = list(blocks_of(f"{block}." for block, _, _ in counts))
    keys = sorted(counts, key=lambda key: (order.index(key[0]), key[1:]))
    with (out / "ranks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["block", "role", "adapter", "rank", "modules"])
        writer.writerows([*key, rank, number] for key in keys for rank, number in sorted(counts[key].items()))
    _plot_ranks({key: counts[key] for key in keys}, len(kept), threshold, out / "ranks.png")
    return out / "ranks.png"


def _plot_ranks(counts: Mapping[tuple[str, str, str], Counter[int]], merges: int, threshold: float, path: Path) -> None:
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
    figure.suptitle(f"entries above {threshold:g}, {merges} merges", fontsize=9)
    figure.savefig(path, dpi=130)


def block_groups(unet: UNet2DConditionModel) -> dict[str, tuple[str, ...]]:
    """Groups worth turning down: each resolution and each block that has attention, and each attention of several."""
    names = target_modules(unet)
    blocks = list(dict.fromkeys(name.partition(".attentions")[0] for name in names))
    levels = len(unet.config["down_block_types"])
    groups: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        kind, _, number = block.partition("_blocks.")
        level = levels - 1 if not number else int(number) if kind == "down" else levels - 1 - int(number)
        groups[f"level {level}"] = (*groups.get(f"level {level}", ()), block)
    for block in blocks:
        parts = dict.fromkeys(n.partition(".transformer_blocks")[0] for n in names if n.startswith(f"{block}."))
        groups |= {part: (part,) for part in ((block, *parts) if len(parts) > 1 else (block,))}
    return groups


@contextmanager
def scaled(
    unet: UNet2DConditionModel, blocks: Sequence[str], alpha: float, attention: Sequence[str] = ("attn1", "attn2")
) -> Iterator[None]:
    """Multiply by `alpha` what the attention of these blocks adds; on leaving the UNet is what it was.

    As the projection behind an attention is linear, this scales its weight (and bias). `attention` picks
    self-attention ("attn1"), cross-attention ("attn2") or both.

    Raises:
        InputError: a block has no attention.
    """
    handles = []
    try:
        for block in blocks:
            names = [
                name
                for name, _ in unet.named_modules()
                if f"{name}.".startswith(f"{block}.") and name.rpartition(".")[2] in attention
            ]
            if not names:
                raise InputError(f"{block}: expected a block of the UNet with attention, found none")
            for name in names:
                handles.append(unet.get_submodule(name).register_forward_hook(lambda _m, _x, out: alpha * out))
        yield
    finally:
        for handle in handles:
            handle.remove()
