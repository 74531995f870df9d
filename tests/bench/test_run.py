"""A table on Atelier, tiny: every kind of row, nothing run twice, failures reported and the others finished."""

import csv
import json
from dataclasses import replace

import pytest
from PIL import Image

from duolora.adapters.files import read_adapter
from duolora.bench import cells, jobs
from duolora.bench.cells import Cell, loras_of, prompts_of
from duolora.bench.config import CONFIG, Config, read_config, write_config
from duolora.bench.pairs import sample_suite, suite
from duolora.bench.render import SIMILARITY, TRUTH
from duolora.bench.run import cells_of, only_rows, root_of, run_table
from duolora.bench.tables import FLOOR, ORACLE, TABLES, TOLD, Row, Table, blora_rows
from duolora.bench.tuning import TUNING
from duolora.errors import InputError
from duolora.networks.bases import load_base
from duolora.verbs import train

ROWS = (
    Row("floor", how="floor"),
    Row("content", how="content"),
    Row("style", how="style"),
    TOLD,
    Row("naive", "naive"),
    Row("ziprank", "ziprank", {"steps": 1}),
    Row("broken", "ziprank", {"lr": -1.0}),
    blora_rows()[2],
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
    ran = run_table(Config("t", table, (case,)), tmp_path, workers=1, progress=False)
    assert [key.split("/")[-1].split("-")[0] for key in ran.failed] == ["ziprank"]
    assert "lr: expected" in next(iter(ran.failed.values()))
    for row in ROWS:
        assert (f"| {row.label} |" in ran.text) is (row.label != "broken")
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert len(stamps) == len(ROWS) - 1
    assert {p.name.split("-")[0] for p in (tmp_path / "loras").iterdir()} == {"content", "style", "oracle"}
    for _, cell in ran.cells:
        assert cell.done is (cell.row.label != "broken")
        assert (cell.folder / "masks.safetensors").exists() is (cell.row.label == "ziprank")
        if cell.done:
            assert set(cell.result()["similarity"]) == set(SIMILARITY)
        if cell.row.blocks:
            modules = {job.kind: set(read_adapter(job.path).modules) for job in cell.needs()}
            assert all(name.startswith("up_blocks.0.attentions.0") for name in modules["content"])
            assert all(name.startswith("up_blocks.0.attentions.1") for name in modules["style"])
            assert modules["content"]
            assert modules["style"]
    with (ran.folder / "pairs.csv").open() as file:
        assert [line["device"] for line in csv.DictReader(file)] == ["cpu"] * len(stamps)
    good = replace(table, rows=tuple(row for row in ROWS if row.label != "broken"))
    again = run_table(Config("again", good, (case,)), tmp_path, workers=1, progress=False)
    assert not again.failed
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")} == stamps


def test_a_config_is_read_back_as_the_same_cells(tmp_path):
    """Of every table, with several bases, B-LoRA's blocks and other pairs than the shipped ones."""
    for name, table in (TABLES | {"tuning": TUNING}).items():
        config = Config(name, table, tuple(sample_suite(7)), 3, {"one": "atelier", "two": "owner/name"})
        write_config(tmp_path / name, config)
        found = read_config(tmp_path / name)
        assert (found.name, found.cases, found.seed, found.bases) == (name, config.cases, 3, config.bases)
        before, after = (cells_of(c.table, c.cases, tmp_path, c.seed) for c in (config, found))
        assert [cell.folder for cell in before] == [cell.folder for cell in after]
        assert [[job.path for job in cell.needs()] for cell in before] == [
            [job.path for job in cell.needs()] for cell in after
        ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"table": {"rows": [{"what": 1}], "datasets": []}}'])
def test_no_config_no_table(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(InputError, match=r"config\.json: expected a table's config"):
        read_config(tmp_path)


def test_cells_that_cannot_be_completed_are_counted(tmp_path):
    table, cases = Table("t", (FLOOR,)), [case for case in suite() if case.dataset == "several"][:3]
    for k, cell in enumerate(cells_of(table, cases, tmp_path)):
        cell.folder.mkdir(parents=True)
        old = {"truth": dict.fromkeys(TRUTH, 0.5), "prompts": ["a"]}
        (cell.folder / "result.json").write_text(json.dumps(old))
        if k == 1:
            Image.new("RGB", (64, 64)).save(cell.folder / "pictures.png")
        if k == 2:
            (cell.folder / "pictures.png").write_text("no picture")
    ran = run_table(Config("t", table, tuple(cases)), tmp_path, workers=1, progress=False)
    assert "pictures are gone or damaged: 2 cells" in ran.text
    assert [why.splitlines()[-1] for why in ran.failed.values() if "not a readable picture" in why]
    assert ran.lines[0]["pairs"] == 3
    assert ran.lines[0]["atelier-text"] is not None


def test_another_base_has_its_own_folder(tmp_path, folder):
    root = root_of(tmp_path, str(folder))
    assert root_of(tmp_path, "atelier") == tmp_path
    assert root.parent == tmp_path / "on"
    assert root != root_of(tmp_path, "owner/name")
    cells_there = cells_of(Table("t", ROWS[:4]), suite(), root, base=str(folder))
    assert all(cell.folder.is_relative_to(root) for cell in cells_there)
    assert {job.base for cell in cells_there for job in cell.needs()} == {str(folder)}


def test_groups_have_a_floor_and_an_oracle_of_their_own(tmp_path):
    table = Table("t", (FLOOR, Row("naive", "naive"), ORACLE), ("multi2",))
    floor, naive, oracle = (
        next(cell for cell in cells_of(table, suite(), tmp_path) if cell.row == row) for row in table.rows
    )
    assert not floor.needs()
    assert len({job.path for job in naive.needs()}) == 3
    assert [job.kind for job in oracle.needs()] == ["oracle", "oracle"]
    prompts = [job.prompt for job in oracle.needs()]
    assert len(set(prompts)) == len({job.path for job in oracle.needs()}) == 2


def test_who_is_only_told_the_kind_has_the_style_lora_alone(tmp_path):
    (case,) = [c for c in suite() if c.dataset == "several"][:1]
    told, merged = (Cell(tmp_path, case, row) for row in (TOLD, Row("naive", "naive")))
    assert list(loras_of(told)) == ["style"]
    assert set(loras_of(merged)) == {"content", "style"}
    for asked, mixed in zip(prompts_of(told), prompts_of(merged), strict=True):
        assert asked == mixed.replace(f"a {case.pair.identifier} ", "a ")
        assert case.pair.kind in asked


def test_rows_by_label():
    table = TABLES["table8"]
    assert [row.label for row in only_rows(table, ["ZipRank"]).rows] == ["ZipRank"]
    assert only_rows(table, []) == table
    with pytest.raises(InputError, match="magic"):
        only_rows(table, ["magic"])


def test_no_pairs_no_table(tmp_path):
    with pytest.raises(InputError, match="several"):
        run_table(Config("table8", TABLES["table8"], ()), tmp_path)


def test_every_row_of_every_table_has_valid_options(tmp_path):
    for table in (*TABLES.values(), TUNING):
        for row in table.rows:
            if row.how == "merge":
                assert cells.Cell(tmp_path, suite()[0], row).options


def test_an_option_that_is_off_is_not_in_the_name_of_a_folder(tmp_path):
    case = suite()[0]
    plain, off, on = (Cell(tmp_path, case, Row("", "ziprank", {"pool": pool})) for pool in (0, 0, 4))
    assert "pool" not in plain.asked and plain.asked["lr"] == 0.01
    assert plain.folder == off.folder != on.folder


@pytest.mark.parametrize(
    ("base", "dtype"), [("atelier", "float32"), ("bases/atelier-vega-9", "float32"), ("x/y", "auto")]
)
def test_the_family_of_atelier_is_measured_in_float32_on_any_device(monkeypatch, base, dtype):
    asked, made = {}, load_base()

    def loaded(name, **how):
        asked[name] = how
        return made

    monkeypatch.setattr(jobs, "load_base", loaded)
    jobs.shared_base.__wrapped__(base)
    assert asked == {base: {"dtype": dtype}}
