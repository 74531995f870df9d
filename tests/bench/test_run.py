"""A table on Atelier, tiny: every kind of row, nothing run twice, failures reported and the others finished."""

from dataclasses import replace

import pytest

from duolora.bench import cells
from duolora.bench.pairs import suite
from duolora.bench.run import only_rows, run_table
from duolora.bench.tables import TABLES, Row, Table
from duolora.errors import InputError
from duolora.verbs import train

ROWS = (
    Row("floor", how="floor"),
    Row("content", how="content"),
    Row("style", how="style"),
    Row("naive", "naive"),
    Row("ziprank", "ziprank", {"steps": 1}),
    Row("broken", "ziprank", {"lr": -1.0}),
    Row("K-LoRA", how="klora"),
    Row("oracle", how="oracle"),
    Row("pair", how="pair"),
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "ATELIER_OPTIONS", train.TrainOptions(rank=2, steps=1, batch=1))
    monkeypatch.setattr(cells, "COUNT", 1)
    monkeypatch.setattr(cells, "draw", lambda *a, **k: cells_draw(*a, **k | {"steps": 2}))


cells_draw = cells.draw


def test_a_table_runs_once_and_reports_what_failed(tmp_path, quick):
    case = suite()[0]
    table = Table("A table", ROWS)
    ran = run_table("t", table, [case], tmp_path, workers=1, progress=False)
    assert [key.split("/")[-1].split("-")[0] for key in ran.failed] == ["ziprank"]
    assert "learning rate" in next(iter(ran.failed.values()))
    for row in ROWS:
        assert (f"| {row.label} |" in ran.text) is (row.label != "broken")
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert len(stamps) == len(ROWS) - 1
    assert {p.name.split("-")[0] for p in (tmp_path / "loras").iterdir()} == {"content", "style", "oracle"}
    good = replace(table, rows=tuple(row for row in ROWS if row.label != "broken"))
    again = run_table("again", good, [case], tmp_path, workers=1, progress=False)
    assert not again.failed
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")} == stamps


def test_rows_by_label():
    table = TABLES["table8"]
    assert [row.label for row in only_rows(table, ["ZipRank"]).rows] == ["ZipRank"]
    assert only_rows(table, []) == table
    with pytest.raises(InputError, match="magic"):
        only_rows(table, ["magic"])


def test_no_pairs_no_table(tmp_path):
    with pytest.raises(InputError, match="several"):
        run_table("table8", TABLES["table8"], [], tmp_path)


def test_every_row_of_every_table_has_valid_options(tmp_path):
    for table in TABLES.values():
        for row in table.rows:
            if row.how == "merge":
                assert cells.Cell(tmp_path, suite()[0], row).options
