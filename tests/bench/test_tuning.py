"""Tuning: every method has its settings, the best one is taken by the rule, and tables use it."""

import json
import warnings

import pytest

from duolora.bench.cells.cell import Cell
from duolora.bench.cells.pairs import suite
from duolora.bench.config import prepared
from duolora.bench.options import TableOptions
from duolora.bench.tables.rows import BLORA, TABLES, Row, Table, read_blocks, with_blora
from duolora.bench.tables.tuning import GRIDS, TUNING, check_judged, choose, tuned
from duolora.errors import InputError, Notice

GROUPED = Table(
    "t", (Row("floor"), *(Row(f"a {k}", "naive", {"style_weight": k}, group="naive") for k in (1.0, 0.5, 0.7)))
)


def line(row: str, both: float, style: float, pairs: int = 3) -> dict:
    return {"row": row, "pairs": pairs, "both": (both, 0, 1), "object": (0.5, 0, 1), "style": (style, 0, 1)}


def test_every_method_of_tables_1_and_3_is_tuned_from_its_default_on(tmp_path):
    rows = {row.label: row for name in ("table1", "table3") for row in TABLES[name].rows}
    assert {label for label, row in rows.items() if row.how in ("merge", "klora")} == set(GRIDS)
    for label, grid in GRIDS.items():
        assert grid[0] == {}
        assert len(grid) > 2
        (first, *others) = [row for row in TUNING.rows if row.group == label]
        case = suite()[0]
        folders = [Cell(tmp_path, case, row).folder for row in (first, *others)]
        assert folders[0] == Cell(tmp_path, case, rows[label]).folder, "the default's cell is that of the table"
        assert len(set(folders)) == len(grid)


@pytest.mark.parametrize(
    ("lines", "best"),
    [
        ((("a 1.0", 0.2, 0.9), ("a 0.5", 0.4, 0.1), ("a 0.7", 0.3, 0.9)), 0.5),
        ((("a 1.0", 0.4, 0.1), ("a 0.5", 0.4, 0.2), ("a 0.7", 0.3, 0.9)), 0.5),
        ((("a 1.0", 0.4, 0.1), ("a 0.5", 0.4, 0.1), ("a 0.7", 0.4, 0.1)), 1.0),
        ((("a 1.0", 0.4, 0.1), ("a 0.5", 0.9, 0.9, 2), ("a 0.7", 0.4, 0.0)), 1.0),
    ],
    ids=["both", "object and style", "the default", "failed on a pair"],
)
def test_the_rule(tmp_path, lines, best):
    text = choose(GROUPED, [line(*each) for each in lines], tmp_path / "tuned.json")
    chosen = json.loads((tmp_path / "tuned.json").read_text())["best"]["naive"]
    assert chosen["changes"] == {"style_weight": best}
    assert chosen["row"] in text


def test_the_rule_on_photos_and_settings_of_another_base(tmp_path):
    def photos(row: str, dino: float, style: float, name: str = "csd-s") -> dict:
        return {"row": row, "pairs": 3, "dino": (dino, 0, 1), "clip-i": (0.5, 0, 1), name: (style, 0, 1)}

    path = tmp_path / "tuned.json"
    for name in ("csd-s", "clip-i"):
        lines = [photos("a 1.0", 0.9, 0.1, name), photos("a 0.5", 0.4, 0.4, name), photos("a 0.7", 0.1, 0.9, name)]
        assert "DINO × CSD-s" in choose(GROUPED, lines, path, {"x/y": None})
        assert json.loads(path.read_text())["best"]["naive"]["changes"] == {"style_weight": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned(TABLES["table1"], path, {"x/y": "123"})
    with pytest.warns(Notice, match="chosen on x/y, and may not suit atelier"):
        tuned(TABLES["table1"], path)
    with pytest.raises(InputError, match="expected dino and one of csd-s, clip-i"):
        check_judged(["clip-i", "clip-t"])


def test_tables_use_the_best_settings(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"best": {"naive": {"changes": {"style_weight": 0.5}}, "DuoLoRA": {"changes": {}}}}))
    found = {row.label: row.changes for row in prepared(TABLES["table1"], tmp_path, TableOptions(tuned=path)).rows}
    assert found.pop("naive (tuned)") == {"style_weight": 0.5}
    assert found == {row.label: row.changes for row in TABLES["table1"].rows}
    some = prepared(TABLES["table1"], tmp_path, TableOptions(tuned=path, row=["naive", "oracle"])).rows
    assert [row.label for row in some] == ["naive", "naive (tuned)", "oracle"]
    own = tuned(Table("t", (Row("naive", "naive", {"style_weight": 0.9}),)), path)
    assert [row.changes for row in own.rows] == [{"style_weight": 0.9}]
    with pytest.raises(InputError, match="ablation"):
        tuned(TABLES["table8"], path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"tuned\.json"):
        tuned(TABLES["table1"], path)


def test_other_blocks_for_blora(tmp_path):
    content, style = ("down_blocks.1",), ("up_blocks.1.attentions.0",)
    here = with_blora(TABLES["table1"], content, style)
    there = {row.label: row for row in here.rows}
    filtered, both, own = (there[label] for label in ("B-LoRA (filter)", "B-LoRA", "B-LoRA (own block)"))
    assert filtered.changes == {"block_map": {"down_blocks.1": "content", "up_blocks.1.attentions.0": "style"}}
    assert not filtered.blocks
    assert both.blocks == {"content": content + style, "style": content + style}
    assert own.blocks == {"content": content, "style": style}
    assert with_blora(here, *BLORA) != here
    assert with_blora(TABLES["table1"], *BLORA) == TABLES["table1"]
    stronger = [row for row in with_blora(TUNING, content, style).rows if row.group == "B-LoRA"]
    assert all(row.blocks == both.blocks and row.changes["block_map"] for row in stronger)
    case = suite()[0]
    files = {job.path for row in (filtered, both, own) for job in Cell(tmp_path, case, row).needs()}
    assert len(files) == 6, "three ways to train, two LoRAs each"


def test_blocks_are_those_of_the_file_or_of_figure_3(tmp_path):
    (tmp_path / "figure3").mkdir()
    (tmp_path / "figure3" / "blocks.json").write_text('{"content": ["down_blocks.1"], "style": ["mid_block"]}')
    (tmp_path / "own.json").write_text('{"content": ["down_blocks.2"], "style": ["mid_block"]}')
    assert read_blocks(tmp_path / "own.json") == (("down_blocks.2",), ("mid_block",))
    for given, expected in ((None, "down_blocks.1"), (tmp_path / "own.json", "down_blocks.2")):
        row = next(
            r
            for r in prepared(TABLES["table1"], tmp_path, TableOptions(blora=given)).rows
            if r.label == "B-LoRA (own block)"
        )
        assert row.blocks["content"] == (expected,)
    with pytest.raises(InputError, match=r"none\.json"):
        read_blocks(tmp_path / "none.json")
