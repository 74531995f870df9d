"""The report, from a folder as the bench leaves it: nothing from outside, nothing unescaped, no number out of place."""

import json
import random
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from damage import CASES, DAMAGE, damaged, places
from duolora.bench.cells.cell import Cell
from duolora.bench.cells.pairs import suite
from duolora.bench.report.folders import run_folders
from duolora.bench.report.page import report
from duolora.bench.report.paper_numbers import PAPER, printed
from duolora.bench.report.plots import Point, frontier, scatter, spans
from duolora.bench.report.runs import mean_ranks, ranks_of, read_runs
from duolora.bench.tables.render import Result, summary, write_pairs
from duolora.bench.tables.rows import Row
from duolora.errors import FileRefused, InputError
from duolora.lora.adapter import Adapter
from duolora.lora.write.file import write_adapter
from duolora.model.files import SDXL
from duolora.paper.lowrank import LowRank

NAIVE = {"label": "naive", "method": "naive", "changes": {}, "how": "merge"}


def line(row, object_, style, joint, pairs=2, **more):
    values = {"object": object_, "style": style, "both": joint} if object_ else {}
    costs = dict.fromkeys(("trainable", "bytes", "seconds", "change")) | {"seconds": 1.5}
    return {"dataset": "several", "row": row, "pairs": pairs, **values, **costs, **more}


@pytest.fixture
def run(tmp_path):
    """A finished table 1: two rows, one pair with its cells."""
    from dataclasses import asdict

    folder = tmp_path / "out" / "table1"
    folder.mkdir(parents=True)
    case = suite()[0]
    lines = [
        line("base (no LoRA)", [0.0, 0.0, 0.0], [0.125, 0.0, 0.25], [0.0, 0.0, 0.0]),
        line("naive", [0.9, 0.8, 1.0], [0.5, 0.4, 0.6], [0.45, 0.3, 0.6]),
    ]
    (folder / "table.json").write_text(json.dumps(lines))
    about = {"table": "table1", "seed": 0, "cases": [case.name], "versions": {"torch": "9.9"}}
    about |= {"rows": {"base (no LoRA)": NAIVE | {"label": "", "how": "floor"}, "naive": NAIVE | {"label": ""}}}
    about |= {"cells": {"commit": {"0123456789ab": 1, "0123456789ab-dirty": 1}, "device": {"x86_64": 2}}}
    about |= {"failed": {"a-cell": "Traceback\nValueError: <script>alert(1)</script>"}}
    (folder / "run.json").write_text(json.dumps(about))
    cell = tmp_path / "out" / "cells" / case.name / "naive-12345678-0"
    cell.mkdir(parents=True)
    Image.new("RGB", (130, 64), "red").save(cell / "images.png")
    result = {
        "problem": asdict(case),
        "row": NAIVE | {"label": "of another table"},
        "seed": 0,
        "prompts": ["<b>thing</b>"],
    }
    (cell / "result.json").write_text(json.dumps(result | {"truth": {"object": 0.9, "colour": None}, "seconds": 1.5}))
    return folder


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.ids = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found += [given[k] for k in ("href", "src") if k in given and tag != "use" and given[k]]
        self.ids += [given["id"]] if "id" in given else []


def test_one_file_with_nothing_from_outside(run, tmp_path):
    out = report([run], tmp_path / "shown" / "report.html")
    text = out.read_text("utf-8")
    page = Links(text)
    assert len(page.ids) == len(set(page.ids)), "identifiers are unique, those of the plots too"
    for link in page.found:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:image/webp;base64,"):
            assert (out.parent / link).is_file(), "every cell links to its own files"
    assert "naive-12345678-0/result.json" in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text
    assert "<script>alert" not in text
    assert "<b>thing" not in text
    assert "0.80–1.00" in text
    assert "torch 9.9" in text
    assert "commit of cells" in text and "0123456789ab (1); 0123456789ab-dirty (1)" in text
    assert "device of cells" not in text


def test_prompts_have_their_own_images_and_a_cell_weighs_little(run, tmp_path):
    """A cell of 25 prompts and 4 seeds, noise at 128 pixels."""
    cell = next((run.parent / "cells").glob("*/*"))
    noise = np.random.default_rng(0).integers(0, 255, (25 * 130 - 2, 4 * 130 - 2, 3), np.uint8)
    Image.fromarray(noise).save(cell / "images.png")
    result = json.loads((cell / "result.json").read_text())
    asked = {"prompts": [f"prompt {k}" for k in range(25)], "texts": [f"text {k}" for k in range(25)]}
    (cell / "result.json").write_text(json.dumps(result | asked))
    out = report([run], tmp_path / "report.html")
    text = out.read_text("utf-8")
    shown = re.findall(r'alt="naive: (prompt \d+)"', text)
    assert shown == [f"prompt {k}" for k in range(25) for _ in range(4)], "all prompts, and each image opens by itself"
    assert "<q>text 3</q> and 21 more" in text
    assert out.stat().st_size < 400_000


def test_titles_name_the_run_and_row_names_stay_in_place(run, tmp_path):
    text = report([run], tmp_path / "report.html").read_text("utf-8")
    name = f"{run.parent.name}/{run.name}"
    assert f"<title>DuoLoRA: {name}</title>" in text and f"<small>{name}</small></h2>" in text
    assert ".n, .row { position: sticky;" in text
    assert "<title>mine</title>" in report([run], tmp_path / "report.html", "mine").read_text("utf-8")


def test_cells_find_their_rows_in_whatever_table_they_ran_first(run):
    (found,) = read_runs([run])
    assert [cell.row for cell in found.cells] == ["naive"]
    (again,) = read_runs([run.parent])
    assert again.folder == run


def paper_like(run, base):
    lines = [line("DuoLoRA", None, None, None, dino=[0.4, 0.3, 0.5], **{"csd-s": [0.3, 0.2, 0.4], "object": [1, 1, 1]})]
    (run / "table.json").write_text(json.dumps(lines))
    known = {"published": SDXL} if base == "my-copy/" else {}
    (run / "run.json").write_text(json.dumps({"table": "table1", "seed": 0, "cases": [], "bases": [base]} | known))


@pytest.mark.parametrize("base, shown", [("my-copy/", True), (SDXL, True), ("sdxl", False), ("sdxl/", False),
                                         ("atelier", False), ("somebody/else", False)])  # fmt: skip
def test_the_papers_numbers_stand_beside_the_papers_base_only(run, tmp_path, base, shown):
    paper_like(run, base)
    text = report([run], tmp_path / "report.html").read_text("utf-8")
    assert text.count('title="printed in the paper"') == (2 if shown else 0), "DINO and CSD-s, never `object`"
    assert ("cannot be compared with the paper" in text) is (base == "atelier")


def test_printed_numbers():
    assert printed("table1", SDXL, "everyday", "DuoLoRA") == {
        "dino": 0.61, "clip-i": 0.62, "clip-t": 0.316, "csd-s": 0.37
    }  # fmt: skip
    assert printed("table1", "segmind/SSD-1B", "several", "ZipLoRA")["csd-s"] == 0.46
    assert printed("table1", "atelier", "several", "ZipLoRA") == {}
    from duolora.bench.tables.rows import TABLES

    for table, rows in PAPER.items():
        assert rows.keys() <= {row.label for row in TABLES[table].rows}, table
        assert {d for row in rows.values() for d in row} <= set(TABLES[table].datasets), table


def test_curves_alone_are_a_run(tmp_path):
    curve = {"alpha": [0.0, 1.0], "object": [0.1, 0.9], "style": [0.5, 0.6]}
    (tmp_path / "curves.json").write_text(json.dumps({"level 1": curve, "mid_block": curve}))
    text = report([tmp_path], tmp_path / "report.html").read_text("utf-8")
    assert text.count("<svg") == 2
    assert "mid_block" in text


@pytest.mark.parametrize("file", ["table.json", "run.json", "curves.json", "result.json"])
def test_damaged_results_are_one_line_or_a_page(run, tmp_path, file):
    """Any value of any file is another one."""
    if file == "curves.json":
        (run / "table.json").unlink()
        curve = {"alpha": [0.0, 1.0], "object": [0.1, 0.9], "style": [0.5, 0.6]}
        (run / file).write_text(json.dumps({"level 1": curve}))
    (path,) = [*run.glob(file), *(run.parent / "cells").glob(f"*/*/{file}")]
    whole, refused = json.loads(path.read_text()), 0
    cases = [(place, damage) for place in places(whole) for damage in DAMAGE]
    for place, damage in random.Random(0).sample(cases, min(CASES // 100, len(cases))):
        path.write_text(damaged(whole, place, damage))
        try:
            report([run], tmp_path / "report.html")
        except (FileRefused, InputError) as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error)
    assert refused


def test_a_damaged_cell_is_one_line_or_stands_in_its_table(run, tmp_path):
    """A table that is run again takes what cells have measured."""
    (path,), rng, refused = [*(run.parent / "cells").glob("*/*/result.json")], random.Random(0), 0
    cell = Cell(run.parent, suite()[0], Row(**NAIVE))
    whole = json.loads(path.read_text()) | {"truth": {"object": 0.9, "both": 0.5, "colour": None}}
    whole |= {"similarity": {"dino": 0.5}, "trainable": 7, "encoders": {"dino": {}}, "scoring": {}}
    cell.folder.mkdir()
    for _ in range(CASES // 10):
        (cell.folder / "result.json").write_text(damaged(whole, rng.choice([*places(whole, 2)]), rng.choice(DAMAGE)))
        try:
            found = [Result("several", "p", "naive", cell.result())]
        except FileRefused as error:
            refused += 1
            assert "\n" not in str(error) and str(cell.folder) in str(error)
        else:
            write_pairs(found, tmp_path / "pairs.csv")
            assert len(summary(["naive"], found)) == 1
    assert 0 < refused < CASES // 10


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_ranks_are_read_in_either_spelling(tmp_path, format):
    names = [f"down_blocks.1.attentions.{k}.transformer_blocks.0.attn1.to_q" for k in (0, 1)]
    modules = {name: LowRank(torch.randn(8, 3), torch.randn(3, 8)) for name in names}
    write_adapter(tmp_path / "a.safetensors", Adapter(modules, {"content_ranks": [1, 2]}), format=format)
    found = ranks_of(tmp_path / "a.safetensors")
    assert {half: sum(found[half].values()) for half in found} == {"content": 1.5, "style": 1.5}


def test_runs_are_found_in_the_folder_of_all_benchmarks(run, tmp_path):
    other = tmp_path / "out" / "on" / "sdxl-12345678" / "table1"
    other.parent.mkdir(parents=True)
    shutil.copytree(run, other)
    assert run_folders([tmp_path / "out"]) == [run, other]


def test_a_folder_without_a_run_and_a_damaged_one(tmp_path):
    with pytest.raises(InputError, match=r"table\.json"):
        report([tmp_path], tmp_path / "report.html")
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(FileRefused, match="run the benchmark again"):
        report([tmp_path], tmp_path / "report.html")
    (tmp_path / "table.json").write_text('[{"dataset": "several"}]')
    with pytest.raises(FileRefused, match="dataset, row"):
        report([tmp_path], tmp_path / "report.html")


def test_the_frontier_is_what_nothing_beats():
    def point(number, x, y, competes=True):
        return Point(number, (x, x, x), (y, y, y), competes)

    found = frontier([point(1, 0.9, 0.1), point(2, 0.5, 0.5), point(3, 0.4, 0.4), point(4, 1, 1, False)])
    assert [p.number for p in found] == [2, 1]
    assert spans([9, 4, 5, 7, 6, 1]) == "1, 4–7, 9"
    assert spans([2, 1]) == "1, 2"


def test_a_block_that_was_dropped_counts_as_no_rank():
    one = {"content": {"mid_block": 4.0}, "style": {"mid_block": 2.0}}
    assert mean_ranks([one, {"content": {}, "style": {}}]) == {
        "content": {"mid_block": 2.0}, "style": {"mid_block": 1.0}
    }  # fmt: skip


def test_ticks_of_time_are_plain_numbers():
    """Also where all merges take about as long, and a logarithmic axis has none or all of a decade's minor ticks."""
    for high in (25.0, 2500.0):
        points = [Point(k, (x, x, x), (0.5, 0.4, 0.6), True) for k, x in enumerate((18.0, 20.0, high))]
        ticks = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", scatter(points, "s", "y", "t", True))]
        across = [text for text in ticks if re.fullmatch(r"[\d.]+", text) and float(text) > 1.05]
        assert 2 <= len(across) <= 8, ticks
        assert "×" not in "".join(ticks)
