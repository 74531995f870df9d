"""The figures that show cells of a table: ranks of masks, and grids of the images that finished cells keep.

methods   Figures 5, 7, 9 and 10: for each pair its references, then each method's first image, of the same seed
prompts   Figure 8: for each pair its references, then the subject in the style as such, and somewhere
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.Image import Resampling
from torch import Tensor
from tqdm import tqdm

from duolora.bench.cells.cell import MASKS, SHEET, Cell
from duolora.bench.scaling import ALPHAS, groups_of, scaled
from duolora.bench.tables.rows import Figure
from duolora.errors import InputError
from duolora.merging.mask_file import read_masks
from duolora.model.base import Base
from duolora.model.blocks import block_of, block_roles, blocks_of
from duolora.model.image_files import read_image
from duolora.model.images import as_image, untiled
from duolora.model.sample import sample_images

PROMPTED = "prompts.png"
"""Figure 3's images of prompts that nothing classifies."""
SIDE = 128
THRESHOLD = 0.5
"""Entries above this count towards a mask's rank (Figure 4): half of where a mask of ones begins."""
SHOWN = 3
"""Images of each prompt in Figure 8."""


class Line(NamedTuple):
    """One row of a grid: what it is called, and its images by the names of their columns."""

    label: str
    images: dict[str, Image.Image]


def figure_of(kind: Figure, cells: Sequence[Cell], folder: Path) -> Path:
    """Write a table's figure from its finished cells into the folder.

    Raises:
        InputError: there are none that kept what is needed.
    """
    if kind == "ranks":
        return figure4(cells, folder)
    finished = [cell for cell in cells if cell.done and (cell.folder / SHEET).exists()]
    if not finished:
        raise InputError(f"{folder}: expected finished cells with images, found none; run the table again")
    folder.mkdir(parents=True, exist_ok=True)
    labelled({"methods": methods, "prompts": prompts}[kind](finished)).save(folder / SHEET)
    return folder / SHEET


def methods(cells: Sequence[Cell]) -> list[Line]:
    """A row for each pair, a column for each method."""
    lines: dict[str, Line] = {}
    for cell in cells:
        line = lines.setdefault(cell.problem.name, Line(cell.problem.title, _references(cell)))
        line.images[cell.row.label] = _rows(cell)[0][0]
    return list(lines.values())


def prompts(cells: Sequence[Cell]) -> list[Line]:
    """A row for each prompt of each pair."""
    lines = []
    for cell in cells:
        for prompt, images in zip(cell.result()["prompts"], _rows(cell), strict=True):
            shown = {f"image {k + 1}": image for k, image in enumerate(images[:SHOWN])}
            lines.append(Line(f"{cell.problem.title}: {prompt}", _references(cell) | shown))
    return lines


def figure3_of(
    folder: Path, base: Base, prompts: Sequence[str], blocks: Sequence[str], seed: int, sampling: Mapping[str, Any]
) -> Path:
    """Figure 3 of any base and prompts: a row for each group of blocks, or for those given, and a column for each α.

    Raises:
        InputError: a block has no attention.
    """
    lines = {
        (prompt, name): Line(f"{prompt}: {name}", {}) for prompt in prompts for name in groups_of(base.unet, blocks)
    }
    for name, group in tqdm(groups_of(base.unet, blocks).items(), "Figure 3"):
        for alpha in ALPHAS:
            with scaled(base.unet, group, alpha):
                generated = sample_images(base, prompts, [seed] * len(prompts), **sampling).clamp(-1, 1)
            for prompt, pixels in zip(prompts, generated, strict=True):
                lines[prompt, name].images[f"α = {alpha:g}"] = as_image(pixels)
    folder.mkdir(parents=True, exist_ok=True)
    labelled(list(lines.values())).save(folder / PROMPTED)
    return folder / PROMPTED


def labelled(lines: Sequence[Line]) -> Image.Image:
    """The rows as one sheet; an image that a row lacks is left white."""
    from matplotlib import get_data_path  # whose font has Greek letters, unlike Pillow's

    columns = list(dict.fromkeys(name for line in lines for name in line.images))
    gap, head, font = 4, 22, ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)
    sheet = Image.new("RGB", (len(columns) * (SIDE + gap), head + len(lines) * (SIDE + head + gap)), "white")
    brush = ImageDraw.Draw(sheet)
    for x, name in enumerate(columns):
        brush.text((x * (SIDE + gap) + 2, 3), name, "black", font)
    for y, line in enumerate(lines):
        top = head + y * (SIDE + head + gap)
        brush.text((2, top + 3), line.label, "black", font)
        for x, name in enumerate(columns):
            if name in line.images:
                image = line.images[name]  # its square about the centre, as the base sees it; pixel art stays sharp
                how = Resampling.NEAREST if max(image.size) < SIDE else Resampling.LANCZOS
                sheet.paste(ImageOps.fit(image, (SIDE, SIDE), how), (x * (SIDE + gap), top + head))
    return sheet


def _rows(cell: Cell) -> list[list[Image.Image]]:
    """The images of each prompt."""
    return untiled(read_image(cell.folder / SHEET), len(cell.result()["prompts"]))


def _references(cell: Cell) -> dict[str, Image.Image]:
    """The first image of each subject, and the style image."""
    parts = cell.loras()
    names = ["content"] if len(parts) == 1 else [f"content {k + 1}" for k in range(len(parts))]
    shown = {name: loras["content"].shown()[0] for name, loras in zip(names, parts, strict=True)}
    return shown | {"style": parts[0]["style"].shown()[0]}


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
        role = block_roles(cell.loaded.architecture, cell.options.block_map)
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
