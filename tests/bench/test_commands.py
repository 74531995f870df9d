"""`duolora bench` from end to end, tiny: tuning, what it chose in another table, a figure, and two smaller bases."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import command
from duolora.atelier.styles import STYLES
from duolora.bench import config
from duolora.bench.cells import cell as cells, pairs
from duolora.bench.config import read_config
from duolora.bench.tables.rows import TABLES
from duolora.cli import bench as cli
from duolora.training.distil import DistilRecipe

plain_draw = cells.sample_images


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick_training: None):
    monkeypatch.setattr(pairs, "COUNT", 1)
    monkeypatch.setattr(cells, "sample_images", lambda *a, **k: plain_draw(*a, **k | {"steps": 1}))
    monkeypatch.setattr(config, "DistilRecipe", partial(DistilRecipe, images=2, batch=1))

    def run(name: str, *arguments: str) -> str:
        asked = ["bench", name, "--out", str(tmp_path), "--pairs", "1", "--workers", "1", *arguments]
        done = command.run(*asked)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_tuned_settings_reach_other_tables(bench, tmp_path):
    rows = ["naive: default", "naive: content_weight 1 style_weight 0.5"]
    said = bench("tuning", *(word for row in rows for word in ("--row", row)))
    path = tmp_path / "tuning" / "tuned.json"
    best = json.loads(path.read_text())["best"]["naive"]
    assert best["row"] in rows
    assert best["row"] in said
    path.write_text(json.dumps({"best": {"naive": {"changes": {"style_weight": 0.25}}}}))
    bench("table1", "--dataset", "single", "--row", "naive", "--tuned", str(path))
    about = json.loads((tmp_path / "table1" / "run.json").read_text())
    assert about["rows"]["naive (tuned)"]["changes"] == {"style_weight": 0.25}
    results = [json.loads(p.read_text()) for p in (tmp_path / "cells").glob("single-*/*/result.json")]
    assert sorted(r["options"]["style_weight"] for r in results) == [0.25, 1.0]


def test_a_block_map_is_found_by_encoders(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cup in flat style\n\na green house\n")
    asked = ["bench", "figure3", "--out", tmp_path, "--prompts", tmp_path / "prompts.txt"]
    asked += ["--count", 3, "--sampling-steps", 1]
    encoders = ["--content-encoder", "atelier-content", "--style-encoder", "atelier-style"]
    done = command.run(*asked, *encoders)
    assert done.exit_code == 0, done.output
    made = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in made] == ["curves.png", "images.png", "block_map.json", "blocks.json"]
    (tmp_path / "prompts.txt").write_text("\n")
    done = command.run(*asked, *encoders)
    assert done.exit_code == 1 and "prompts.txt: expected a prompt on each line" in done.stderr


def test_a_table_is_run_again_from_its_folder(bench, tmp_path):
    bench("table1", "--dataset", "single", "--row", "naive", "--sample", "5", "--seed", "2")
    said = command.run("bench", "rerun", tmp_path / "table1", "--out", tmp_path / "again", "--workers", 1)
    assert said.exit_code == 0, said.output
    first, again = (next((root / "cells").glob("*/*/result.json")) for root in (tmp_path, tmp_path / "again"))
    assert again.relative_to(tmp_path / "again") == first.relative_to(tmp_path)
    kept = [json.loads(path.read_text()) for path in (first, again)]
    assert kept[0]["problem"] == kept[1]["problem"]
    assert kept[0]["seed"] == kept[1]["seed"] == 2
    assert kept[0]["truth"] == kept[1]["truth"]
    assert (first.parent / "images.png").read_bytes() == (again.parent / "images.png").read_bytes()
    configs = [(root / "table1" / "config.json").read_bytes() for root in (tmp_path, tmp_path / "again")]
    assert configs[0] == configs[1]
    refused = command.run("bench", "rerun", tmp_path)
    assert refused.exit_code == 1
    assert "config.json" in refused.output


def test_table_5_makes_its_bases_once(bench, tmp_path):
    said = bench("table5", "--row", "naive", "--steps", "1")
    assert "### like SSD-1B: several" in said
    assert "### like Segmind-Vega: several" in said
    bases = sorted((tmp_path / "bases").iterdir())
    assert [p.name.split("-")[1] for p in bases] == ["ssd1b", "vega"]
    stamps = [p.stat().st_mtime_ns for p in bases]
    bench("table5", "--row", "naive", "--steps", "1")
    assert [p.stat().st_mtime_ns for p in bases] == stamps
    loras = list((tmp_path / "on").glob("*/loras/*.safetensors"))
    assert len(loras) == 4
    assert len(list((tmp_path / "on").glob("*/cells/*/*/result.json"))) == 2


def test_the_whole_paper_by_one_command(bench, tmp_path, monkeypatch):
    sets = {"table1": ("single",), "table4": ("multi2",), "table9": ("several",)}
    some = {name: replace(TABLES[name], rows=TABLES[name].rows[:2], datasets=each) for name, each in sets.items()}
    monkeypatch.setattr(cli, "TABLES", some)
    monkeypatch.setattr(cli, "PAPER", (*some,))
    (tmp_path / "tuned.json").write_text(json.dumps({"best": {"naive": {"changes": {"style_weight": 0.5}}}}))
    asked = ["bench", "paper", "--out", tmp_path, "--pairs", 1, "--workers", 1, "--count", 1, "--sampling-steps", 1]
    done = command.run(*asked, "--tuned", tmp_path / "tuned.json", "--train", "rank=2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["page"] == str(tmp_path / "report.html")
    runs = {name: read_config(tmp_path / name) for name in some}
    assert {name: [row.label for row in run.table.rows] for name, run in runs.items()} == {
        "table1": ["base (no LoRA)", "content LoRA alone"],
        "table4": ["base (no LoRA)", "naive", "naive (tuned)"],
        "table9": ["base (no LoRA)", "0/0"],
    }
    assert {run.settings.training["rank"] for run in runs.values()} == {2}
    assert (tmp_path / "figure3" / "blocks.json").exists()
    page = (tmp_path / "report.html").read_text()
    assert all(TABLES[name].title in page for name in some)


def test_choices_for_the_whole_paper_are_checked_before_any_work(tmp_path):
    done = command.run("bench", "paper", "--out", tmp_path, "--train", "nosuch=1")
    assert done.exit_code == 1
    assert "nosuch" in done.stderr
    assert not any(tmp_path.iterdir())


def test_data_sets_beside_the_papers(bench, tmp_path):
    bench("table1", "--dataset", "random", "--dataset", "unseen", "--row", "floor", "--sample", "4")
    names = {case.pair.style for case in read_config(tmp_path / "table1").cases if case.dataset == "random"}
    assert names
    assert not names & {*STYLES}
