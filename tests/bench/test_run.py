"""A table on Atelier, tiny: every kind of row, nothing run twice, failures reported and the others finished."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from duolora.api.choose import choose
from duolora.api.refine import refine
from duolora.bench.cells import cell as cells, lora, pairs
from duolora.bench.cells.cell import Cell
from duolora.bench.cells.pairs import sample_suite, suite
from duolora.bench.cells.scores import Scoring
from duolora.bench.config import CONFIG, Config, config_of, marked, prepared, read_config, write_config
from duolora.bench.options import TableOptions
from duolora.bench.report.runs import read_runs
from duolora.bench.run import cells_of, folder_for, run_table
from duolora.bench.tables.render import SIMILARITY
from duolora.bench.tables.rows import CLASS_PROMPT, TABLES, Row, Table, blora_rows, matched
from duolora.bench.tables.tuning import TUNING
from duolora.errors import InputError
from duolora.lora.read.file import read_adapter
from duolora.merging.options import METHODS
from duolora.model.defaults import BaseChoice, read_defaults

ROWS = (
    Row("floor", how="floor"),
    Row("content", how="content"),
    Row("style", how="style"),
    CLASS_PROMPT,
    Row("naive", "naive"),
    Row("ziprank", "ziprank", {"steps": 1}),
    Row("broken", "ziprank", {"lr": -1.0}),
    blora_rows()[2],
    Row("K-LoRA", how="klora"),
    Row("best of two", how="chosen"),
    Row("refined", how="refined"),
    Row("oracle", how="oracle"),
    Row("pair", how="pair"),
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, quick_training: None) -> None:
    monkeypatch.setattr(pairs, "COUNT", 1)
    monkeypatch.setattr(cells, "CANDIDATES", ("naive", "split"))
    monkeypatch.setattr(cells, "choose", lambda *a, **k: choose(*a, **k | {"steps": 1, "num": 2}))
    monkeypatch.setattr(cells, "refine", lambda *a, **k: refine(*a, **k | {"steps": 1, "num": 2, "keep": 3}))
    monkeypatch.setattr(cells, "sample_images", lambda *a, **k: cells_draw(*a, **k | {"steps": 2}))


cells_draw = cells.sample_images


def test_a_table_runs_once_and_reports_what_failed(tmp_path, quick):
    case = suite()[0]
    table = Table("A table", ROWS)
    ran = run_table(Config("t", table, (case,)), tmp_path, workers=1, progress=False)
    assert [key.split("/")[-1].split("-")[0] for key in ran.failed] == ["ziprank"]
    assert next(iter(ran.failed.values())).startswith("lr: expected")
    for row in ROWS:
        assert (f"| {row.label} |" in ran.text) is (row.label != "broken")
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert len(stamps) == len(ROWS) - 1
    assert {p.name.split("-")[0] for p in (tmp_path / "loras").iterdir()} == {"content", "style", "oracle"}
    for _, cell in ran.cells:
        assert cell.done is (cell.row.label != "broken")
        if cell.row.how == "chosen":
            scores = (found := cell.result())["scores"]
            assert max(scores, key=scores.get) == found["chosen"]
            assert replace(cell, scoring=Scoring(("clip-t",))).folder != cell.folder
            assert [*sorted(path.name for path in cell.folder.glob("*.safetensors"))] == ["merged.safetensors"]
        if cell.row.how == "refined":
            assert sum(cell.result()["kept"].values()) == 3
            assert {path.name for path in cell.folder.iterdir()} == {
                "merged.safetensors", "cost.json", "images.png", "result.json"
            }  # fmt: skip
            assert cell.result()["seconds"] > 0
        masks = cell.folder / "masks.safetensors"
        assert masks.exists() is (cell.row.label == "ziprank")
        if masks.exists():
            assert cell.result()["storage"] == masks.stat().st_size > 4 * cell.result()["trainable"]
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
    made = json.loads((ran.folder / "run.json").read_text())
    assert made["cells"]["commit"] == {str(made["commit"] or "not recorded"): len(stamps)}
    change_how_two_cells_were_made(*list(stamps)[:2])
    run_table(Config("again", good, (case,)), tmp_path, workers=1, progress=False)
    found = json.loads((again.folder / "run.json").read_text())["cells"]
    assert found["commit"]["0123456789ab-dirty"] == found["device"]["a GPU"] == 1
    assert found["versions"]["not recorded"] == found["device"]["cpu"] == 1
    assert all(sum(counts.values()) == len(stamps) for counts in found.values())


def change_how_two_cells_were_made(one, other):
    """The first at another commit and elsewhere, the second by a version that did not record it."""
    result = json.loads(one.read_text())
    one.write_text(json.dumps(result | {"commit": "0123456789ab-dirty", "hardware": {"device": "a GPU"}}))
    result = json.loads(other.read_text())
    assert {"commit", "versions", "hardware"} <= result.keys()
    other.write_text(json.dumps({k: v for k, v in result.items() if k not in ("commit", "versions", "hardware")}))


def test_cells_of_a_lora_that_failed_are_not_run_and_say_which(tmp_path, quick, monkeypatch):
    train_lora = lora.Lora.train

    def train_content(self: lora.Lora) -> None:
        if self.kind == "style":
            raise InputError("prompt: too long")
        train_lora(self)

    monkeypatch.setattr(lora.Lora, "train", train_content)
    rows = (Row("base (no LoRA)", how="floor"), Row("content", how="content"), Row("naive", "naive"))
    ran = run_table(Config("t", Table("A table", rows), (suite()[0],)), tmp_path, workers=1, progress=False)
    (style, why), (cell, after) = ran.failed.items()
    assert (style.split("-")[0], why) == ("style", "prompt: too long")
    assert (cell.split("/")[-1].split("-")[0], after) == ("naive", f"not run, since the LoRA {style} failed")
    assert [cell.done for _, cell in ran.cells] == [True, True, False]


def test_a_cell_that_is_killed_goes_on_with_the_images_that_it_has(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(pairs, "COUNT", 3)
    monkeypatch.setattr(cells, "images_at_once", lambda *_: 2)
    whole, stopped = (Cell(tmp_path / name, suite()[0], Row("naive", "naive")) for name in ("whole", "stopped"))
    for cell in (whole, stopped):
        for job in cell.needs():
            job.train()
    whole.run()
    sampled, asked = cells.sample_images, []

    def sample(base, prompts, seeds, **how):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(seeds)
        return sampled(base, prompts, seeds, **how)

    monkeypatch.setattr(cells, "CANDIDATES", ("naive", "split"))
    monkeypatch.setattr(cells, "choose", lambda *a, **k: choose(*a, **k | {"steps": 1, "num": 2}))
    monkeypatch.setattr(cells, "refine", lambda *a, **k: refine(*a, **k | {"steps": 1, "num": 2, "keep": 3}))
    monkeypatch.setattr(cells, "sample_images", sample)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert not stopped.done and stopped.images == 6
    assert len([*(stopped.folder / "images").iterdir()]) == 4
    kept = {path: path.stat().st_mtime_ns for path in stopped.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(cells, "CANDIDATES", ("naive", "split"))
    monkeypatch.setattr(cells, "choose", lambda *a, **k: choose(*a, **k | {"steps": 1, "num": 2}))
    monkeypatch.setattr(cells, "refine", lambda *a, **k: refine(*a, **k | {"steps": 1, "num": 2, "keep": 3}))
    monkeypatch.setattr(cells, "sample_images", lambda *a, **k: (asked.append(a[2]), sampled(*a, **k))[1])
    monkeypatch.setattr(cells, "merge", None)  # the merge is there
    stopped.run()
    assert asked[2:] == [stopped.problem.noise_seeds(0)[1:]], "the last two of six images"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items() if path.exists())
    assert stopped.done and not (stopped.folder / "images").exists()
    for name in ("images.png", "merged.safetensors"):
        assert (stopped.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert stopped.result()["truth"] == whole.result()["truth"]
    assert stopped.result()["bytes"] == whole.result()["bytes"]


def test_chosen_settings_have_loras_and_cells_of_their_own(tmp_path, quick, monkeypatch):
    used = []
    monkeypatch.setattr(cells, "CANDIDATES", ("naive", "split"))
    monkeypatch.setattr(cells, "choose", lambda *a, **k: choose(*a, **k | {"steps": 1, "num": 2}))
    monkeypatch.setattr(cells, "refine", lambda *a, **k: refine(*a, **k | {"steps": 1, "num": 2, "keep": 3}))
    monkeypatch.setattr(cells, "sample_images", lambda *a, **k: (used.append(k), cells_draw(*a, **k | {"steps": 1}))[1])
    asked = {"out": tmp_path, "pairs": 1, "dataset": ["single"], "row": ["naive"]}
    plain = config_of("table1", TABLES["table1"], TableOptions(**asked))
    chosen = TableOptions(**asked, train=["rank=1", "lr=5e-5"], sampling_steps=7, guidance=2.0, base_dtype="float32")
    other = config_of("table1", TABLES["table1"], chosen)
    assert other.settings.said() == {
        "training": {"rank": 1, "lr": 5e-5}, "steps": 7, "guidance": 2.0, "dtype": "float32"
    }  # fmt: skip
    first, second = (run_table(config, tmp_path, 1, progress=False) for config in (plain, other))
    assert used == [{}, {"steps": 7, "guidance": 2.0}]
    assert second.folder != first.folder, "a table with other settings replaces none"
    files = [job.path for _, cell in second.cells for job in cell.needs()]
    ranks = [{lora.rank for lora in read_adapter(path).modules.values()} for path in files]
    assert ranks == [{1}, {1}]
    assert len(list((tmp_path / "loras").iterdir())) == 4
    assert read_config(second.folder) == marked(other)
    shown = read_runs([first.folder, second.folder])
    assert [run.cells[0].result["settings"] for run in shown] == [{}, other.settings.said()]
    for wrong, why in (
        ("rang=1", "--train: expected one of rank"),
        ("rank=x", "rank=x: expected"),
        ("rank=999", "rank:"),
    ):
        with pytest.raises(InputError, match=why):
            config_of("table1", TABLES["table1"], TableOptions(**asked, train=[wrong]))


def test_a_config_is_read_back_as_the_same_cells(tmp_path):
    """Of every table, with several bases, B-LoRA's blocks and other pairs than the shipped ones."""
    cases = tuple(sample_suite(7, size=4))
    for name, table in (TABLES | {"tuning": TUNING}).items():
        config = Config(name, table, cases, 3, {"one": "atelier", "two": "owner/name"})
        write_config(tmp_path / name, config)
        found = read_config(tmp_path / name)
        assert (found.name, found.cases, found.seed, found.bases) == (name, config.cases, 3, config.bases)
        before, after = (cells_of(c, tmp_path) for c in (config, found))
        assert [cell.folder for cell in before] == [cell.folder for cell in after]
        assert [[job.path for job in cell.needs()] for cell in before] == [
            [job.path for job in cell.needs()] for cell in after
        ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"table": {"rows": [{"what": 1}], "datasets": []}}'])
def test_no_config_no_table(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(InputError, match=r"config\.json: expected a table's config"):
        read_config(tmp_path)


def test_a_narrower_table_does_not_replace_a_finished_one(tmp_path):
    table, pairs = TABLES["table1"], tuple(suite()[:3])
    wide, folder = Config("table1", table, pairs[:2]), tmp_path / "table1"
    assert folder_for(wide, folder) == folder
    write_config(folder, wide)
    assert folder_for(wide, folder) == folder
    assert folder_for(replace(wide, cases=pairs), folder) == folder, "with more pairs it is replaced"
    narrow = replace(wide, table=replace(table, rows=table.rows[:2]))
    few = replace(wide, cases=pairs[:1])
    beside = {folder_for(narrow, folder), folder_for(few, folder), folder_for(replace(wide, cases=pairs[1:]), folder)}
    assert len(beside) == 3 and all(place.name.startswith("table1-") for place in beside)
    others = [
        replace(wide, table=replace(table, datasets=table.datasets[:1])),
        replace(wide, seed=1),
        replace(wide, table=replace(table, rows=tuple(replace(r, changes={"lr": 0.5}) for r in table.rows))),
        replace(wide, scoring=Scoring(("dino",), {})),
    ]
    assert folder not in {folder_for(each, folder) for each in others[:3]}, "other sets, seeds or options are another"
    write_config(folder, replace(others[3], scoring=Scoring(("dino", "csd-s"), {})))
    assert folder_for(others[3], folder) != folder, "with fewer metrics"
    write_config(folder, wide)
    assert folder_for(few, folder) in beside, "the same table has the same place"


def test_row_names_can_stand_in_a_list():
    tables = {**TABLES, "tuning": TUNING, "blora": Table("", blora_rows(("a",), ("b",)))}
    wrong = {row.label for name, table in tables.items() for row in table.rows if {*row.label} & {*",;|"}}
    assert not wrong
    lists = [[row.label for row in table.rows] for table in TABLES.values()]
    assert all(matched(label.upper(), dict.fromkeys(labels, "")) == label for labels in lists for label in labels)


def test_rows_are_named_in_any_case_or_by_their_methods(tmp_path):
    def rows(*labels):
        return [row.label for row in prepared(TABLES["table1"], tmp_path, TableOptions(row=list(labels))).rows]

    assert rows("duolora", "ZIPLORA") == ["ZipLoRA", "DuoLoRA"]
    assert rows("ziprank-prior") == ["ZipRank + layer prior"]
    assert rows("oracle", "floor", "class", "klora") == [
        "base (no LoRA)",
        "style LoRA (class prompt)",
        "K-LoRA",
        "oracle",
    ]
    assert rows("B-LoRA, own block", "style lora class prompt") == ["style LoRA (class prompt)", "B-LoRA (own block)"]
    for method in METHODS:
        (label,) = rows(method)
        assert {row.label: row.method for row in TABLES["table1"].rows}[label] == method
    with pytest.raises(InputError, match="rows: expected some of .*DuoLoRA.*; got 'nosuch'"):
        rows("nosuch")


def test_atelier_is_measured_in_float32_on_any_device():
    """By its own folder's word, so that a card's figures are those of a CPU; other bases go by the device."""
    assert read_defaults("atelier").dtype == "float32"
    assert read_defaults("x/y").dtype == "auto"
    assert lora.shared_base(BaseChoice("atelier")).dtype == torch.float32
