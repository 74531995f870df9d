"""The figures that show cells of a table: ranks of masks, and grids of the pictures that finished cells keep.

methods   Figures 5, 7, 9 and 10: for each pair its references, then each method's first picture, of the same seed
prompts   Figure 8: for each pair its references, then the thing in the look as such, and somewhere
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from duolora.bench.cells.cell import Cell, jobs_of
from duolora.bench.cells.jobs import LoraJob, references
from duolora.bench.cells.multi import GroupCell
from duolora.bench.figures import figure4
from duolora.bench.tables.rows import Figure
from duolora.errors import InputError
from duolora.model.image_files import picture_files, read_image
from duolora.model.images import untiled

SIDE = 128
SHOWN = 3
"""Pictures of each prompt in Figure 8."""


def figure_of(kind: Figure, cells: Sequence[object], folder: Path) -> Path:
    """Draw a table's figure from its finished cells into the folder.

    Raises:
        InputError: there are none that kept what is needed.
    """
    known = [cell for cell in cells if isinstance(cell, Cell | GroupCell)]
    if kind == "ranks":
        return figure4([cell for cell in known if isinstance(cell, Cell)], folder)
    return {"methods": methods, "prompts": prompts}[kind](known, folder / "pictures.png")


class Line(NamedTuple):
    """One row of a grid: what it is called, and its pictures by the names of their columns."""

    label: str
    images: dict[str, Image.Image]


def methods(cells: Sequence[Cell | GroupCell], path: Path) -> Path:
    """A row for each pair, a column for each method.

    Raises:
        InputError: no cell is finished, or no pictures are kept.
    """
    lines: dict[str, Line] = {}
    for cell in _drawn(cells):
        line = lines.setdefault(cell.folder.parent.name, Line(_title(cell), _references(cell)))
        line.images[cell.row.label] = _rows(cell)[0][0]
    return _saved(list(lines.values()), path)


def prompts(cells: Sequence[Cell | GroupCell], path: Path) -> Path:
    """A row for each prompt of each pair.

    Raises:
        InputError: no cell is finished, or no pictures are kept.
    """
    lines = []
    for cell in _drawn(cells):
        for prompt, images in zip(cell.result().get("prompts", [""]), _rows(cell), strict=True):
            shown = {f"picture {k + 1}": image for k, image in enumerate(images[:SHOWN])}
            lines.append(Line(f"{_title(cell)}: {prompt}", _references(cell) | shown))
    return _saved(lines, path)


def labelled(lines: Sequence[Line]) -> Image.Image:
    """The rows as one sheet; a picture that a row lacks is left white."""
    columns = list(dict.fromkeys(name for line in lines for name in line.images))
    gap, head, font = 4, 22, ImageFont.load_default(13)
    sheet = Image.new("RGB", (len(columns) * (SIDE + gap), head + len(lines) * (SIDE + head + gap)), "white")
    brush = ImageDraw.Draw(sheet)
    for x, name in enumerate(columns):
        brush.text((x * (SIDE + gap) + 2, 3), name, "black", font)
    for y, line in enumerate(lines):
        top = head + y * (SIDE + head + gap)
        brush.text((2, top + 3), line.label, "black", font)
        for x, name in enumerate(columns):
            if name in line.images:
                image = line.images[name].resize((SIDE, SIDE), Image.Resampling.NEAREST)
                sheet.paste(image, (x * (SIDE + gap), top + head))
    return sheet


def _saved(lines: Sequence[Line], path: Path) -> Path:
    if not lines:
        raise InputError(f"{path}: expected finished cells with pictures, found none; run the table again")
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled(lines).save(path)
    return path


def _drawn(cells: Sequence[Cell | GroupCell]) -> list[Cell | GroupCell]:
    return [cell for cell in cells if cell.done and (cell.folder / "pictures.png").exists()]


def _rows(cell: Cell | GroupCell) -> list[list[Image.Image]]:
    """The pictures of each prompt."""
    count = len(cell.result().get("prompts", [""]))
    return untiled(read_image(cell.folder / "pictures.png"), count)


def _title(cell: Cell | GroupCell) -> str:
    things = [cell.case.pair] if isinstance(cell, Cell) else [case.pair for case in cell.group.things]
    return f"{' and '.join(pair.kind for pair in things)}, {things[0].look}"


def _references(cell: Cell | GroupCell) -> dict[str, Image.Image]:
    """The first picture of each thing, and the style picture."""
    if isinstance(cell, Cell):
        jobs = jobs_of(cell)
        return {"content": _first(jobs["content"]), "style": _first(jobs["style"])}
    both = cell.loras()
    things = {f"content {k + 1}": _first(content) for k, (content, _) in enumerate(both)}
    return things | {"style": _first(both[0][1])}


def _first(job: LoraJob) -> Image.Image:
    return read_image(picture_files(references(job))[0])
