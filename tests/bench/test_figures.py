"""Figures: curves for each group of blocks, ranks of masks by block, and grids of images."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from duolora.bench import grids, scaling
from duolora.bench.cells.cell import Cell
from duolora.bench.cells.multi import groups
from duolora.bench.cells.pairs import suite
from duolora.bench.grids import SHOWN, SIDE, Line, figure3_of, figure4, figure_of, labelled
from duolora.bench.scaling import ALPHAS, block_map, by_classifier, dominant, figure3
from duolora.bench.tables.rows import TABLES, read_blocks
from duolora.errors import InputError
from duolora.merging.mask_file import MaskFile, write_masks
from duolora.model.base import load_base
from duolora.model.blocks import target_modules
from duolora.model.images import tiled

SEVERAL = [case for case in suite() if case.dataset == "several"]
DUOLORA = TABLES["figure4"].rows[0]


def finished(cell: Cell, shades: tuple[int, ...], prompts: int) -> None:
    """A result and a sheet of flat images: a row for each prompt, a column for each shade."""
    cell.folder.mkdir(parents=True)
    (cell.folder / "result.json").write_text(json.dumps({"prompts": [f"prompt {k}" for k in range(prompts)]}))
    images = [Image.fromarray(np.full((64, 64, 3), shade, np.uint8)) for shade in shades]
    tiled([images] * prompts).save(cell.folder / "images.png")


def test_curves_and_images(tmp_path, monkeypatch):
    plain = scaling.sample_images
    monkeypatch.setattr(scaling, "sample_images", lambda *a, **k: plain(*a, **k | {"steps": 1}))
    curves = figure3(tmp_path, load_base("atelier"), by_classifier(2, 0), (0.0, 1.0), progress=False)
    assert {"level 0", "level 1", "mid_block"} <= curves.keys()
    for curve in curves.values():
        assert curve["alpha"] == [0.0, 1.0]
        assert all(0 <= share <= 1 for share in curve["object"] + curve["style"])
    at_one = {(curve["object"][1], curve["style"][1]) for curve in curves.values()}
    assert len(at_one) == 1, "α = 1 is the base itself, whatever is scaled"
    for name in ("curves.json", "curves.png", "images.png"):
        assert (tmp_path / name).stat().st_size > 100
    content, style = read_blocks(tmp_path / "blocks.json")
    assert content != style
    assert {*content, *style} <= curves.keys()


def test_labels_have_greek_letters():
    sheets = [labelled([Line("", {f"{letter} = 1": Image.new("RGB", (9, 9))})]) for letter in "αλ"]
    assert sheets[0].tobytes() != sheets[1].tobytes()


def test_images_of_any_prompt_with_any_blocks_turned_down(tmp_path, monkeypatch):
    plain, seen = grids.sample_images, []
    monkeypatch.setattr(grids, "sample_images", lambda *a, **k: (seen.append(k), plain(*a, **k | {"steps": 1}))[1])
    base, prompts = load_base("atelier"), ["a red cat", "a blue house"]
    path = figure3_of(tmp_path, base, prompts, ["mid_block", "down_blocks.1"], 0, {"steps": 9})
    assert seen == [{"steps": 9}] * len(ALPHAS)
    with Image.open(path) as sheet:
        assert sheet.size == (len(ALPHAS) * (SIDE + 4), 22 + 2 * (SIDE + 26))
    with pytest.raises(InputError, match="expected a block of the network with attention"):
        figure3_of(tmp_path, base, prompts, ["up_blocks.9"], 0, {})


def test_the_dominant_blocks_are_the_finest_that_lose_much_of_one_subject():
    def curve(object_: float, style: float) -> dict[str, list[float]]:
        return {"alpha": [0.0, 1.0], "object": [object_, 1.0], "style": [style, 1.0]}

    curves = {
        "level 1": curve(0.0, 1.0),
        "up_blocks.0": curve(0.0, 1.0),
        "up_blocks.0.attentions.0": curve(0.4, 0.9),
        "up_blocks.0.attentions.1": curve(0.9, 0.8),
        "down_blocks.1": curve(0.9, 0.3),
        "mid_block": curve(0.1, 0.1),
        "down_blocks.2": curve(1.0, 1.0),
    }
    assert dominant(curves) == {"content": "up_blocks.0.attentions.0", "style": "down_blocks.1"}
    groups = {name: (name,) for name in curves} | {"mid_block": ("mid_block.0", "mid_block.1")}
    assert block_map(curves, groups) == {
        "up_blocks.0.attentions.0": "content", "up_blocks.0.attentions.1": "neutral", "down_blocks.1": "style",
        "mid_block.0": "neutral", "mid_block.1": "neutral", "down_blocks.2": "neutral",
    }  # fmt: skip


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_ranks_count_what_is_above_the_threshold(threshold):
    masks = {"content": {"x": torch.tensor([0.0, 0.4, -0.9])}, "style": {"x": torch.ones(2)}}
    found = grids.ranks(masks, threshold)
    assert found == {"content": {"x": 2 if threshold == 0 else 1}, "style": {"x": 2}}


def test_ranks_by_block_over_many_merges(tmp_path):
    cells = [Cell(tmp_path, case, DUOLORA) for case in SEVERAL[:2]]
    names = target_modules(load_base("atelier").unet)
    with pytest.raises(InputError, match="masks"):
        figure4(cells, tmp_path / "figure4")
    for cell, rank in zip(cells, (1, 3), strict=True):
        content = {name: torch.tensor([1.0, 0.9, -0.8, 0.1][:4]) * (torch.arange(4) < rank) for name in names}
        style = {name: torch.ones(4) if name.startswith("down_blocks.0") else torch.zeros(4) for name in names}
        cell.folder.mkdir(parents=True)
        write_masks(cell.folder / "masks.safetensors", MaskFile({"content": content, "style": style}, {}))
    assert figure_of("ranks", cells, tmp_path / "figure4").stat().st_size > 1000
    with (tmp_path / "figure4" / "ranks.csv").open() as file:
        rows = [(r["block"], r["role"], r["adapter"], int(r["rank"]), int(r["modules"])) for r in csv.DictReader(file)]
    lowest = sum(name.startswith("down_blocks.1") for name in names)
    assert ("down_blocks.1", "content", "content", 1, lowest) in rows
    assert ("down_blocks.1", "content", "content", 3, lowest) in rows
    assert ("down_blocks.1", "content", "style", 0, 2 * lowest) in rows
    assert next(r for r in rows if r[0] == "down_blocks.0" and r[2] == "style")[3] == 4
    assert sum(r[4] for r in rows) == 2 * 2 * len(names)


def test_a_column_for_each_method(tmp_path):
    table, (group, *_) = TABLES["figure9"], groups(SEVERAL, 2)
    cells = [Cell(tmp_path, group, row) for row in table.rows]
    with pytest.raises(InputError, match="none"):
        figure_of("methods", cells, tmp_path)
    for cell, shade in zip(cells, (40, 80, 120), strict=True):
        finished(cell, (shade, 0), 1)
    sheet = np.asarray(Image.open(figure_of("methods", cells, tmp_path)))
    columns = [sheet[-SIDE // 2, k * (SIDE + 4) + SIDE // 2].tolist() for k in range(6)]
    assert columns[3:] == [[40] * 3, [80] * 3, [120] * 3], "behind two subjects and the style"
    assert sheet.shape[1] == 6 * (SIDE + 4)


def test_a_row_for_each_prompt(tmp_path):
    cells = [Cell(tmp_path, case, DUOLORA) for case in SEVERAL[:2]]
    finished(cells[0], (10, 20, 30, 40), 2)
    sheet = np.asarray(Image.open(figure_of("prompts", cells, tmp_path)))
    assert sheet.shape[1] == (2 + SHOWN) * (SIDE + 4)
    rows = [np.flatnonzero((sheet[:, 2 * (SIDE + 4) + SIDE // 2] == shade).all(-1)).size for shade in (10, 20)]
    assert rows == [2 * SIDE, 0], "the first image twice, of the one cell that is finished"
