"""Tables from results: means, intervals, and the gap closed between floor and oracle."""

import csv

import pytest

from duolora.bench.tables.render import (
    SIMILARITY,
    Result,
    gap_closed,
    interval,
    pooled,
    render,
    summary,
    write_pairs,
)


def result(both: float, **cost: float) -> dict:
    return {
        "truth": dict.fromkeys(("object", "style", "both", "leak"), both) | {"colour": None, "pattern": both}
    } | cost


SCORED = {"similarity": dict.fromkeys(SIMILARITY, 0.4)}
RESULTS = [
    Result("several", "p", "base (no LoRA)", result(0.0)),
    Result("several", "q", "base (no LoRA)", result(0.2)),
    Result(
        "several",
        "p",
        "naive",
        result(0.25, trainable=0, storage=350_000, bytes=1000, seconds=0.5, change=0.0) | SCORED,
    ),
    Result("several", "q", "naive", result(0.75, trainable=0, bytes=3000, seconds=1.5, change=0.0)),
    Result("several", "p", "oracle", result(0.8)),
    Result("several", "q", "oracle", result(1.0)),
]
LABELS = ["base (no LoRA)", "naive", "missing", "oracle"]


def test_interval_holds_the_mean_and_narrows_with_pairs():
    few, many = interval([0.0, 1.0]), interval([0.0, 1.0] * 50)
    assert few[0] == many[0] == 0.5
    assert few[1] <= many[1] <= 0.5 <= many[2] <= few[2]
    assert interval([0.3, 0.3]) == pytest.approx((0.3, 0.3, 0.3))


def test_summary_averages_over_pairs():
    naive = next(line for line in summary(LABELS, RESULTS) if line["row"] == "naive")
    assert naive["pairs"] == 2
    assert naive["both"][0] == pytest.approx(0.5)
    assert naive["colour"] is None
    assert (naive["bytes"], naive["storage"]) == (2000, 350_000)
    assert naive["gap"][0] == pytest.approx((0.5 - 0.1) / (0.9 - 0.1))
    assert naive["atelier-style"][0] == 0.4, "the other pair's images are gone"
    assert next(line for line in summary(LABELS, RESULTS) if line["row"] == "oracle")["atelier-style"] is None


def test_all_data_sets_together_are_of_rows_that_are_whole():
    other = [Result("single", "r", row, result(0.6)) for row in ("base (no LoRA)", "oracle")]
    assert pooled([*RESULTS, *other]) == [
        Result("all", pair, row, measured) for _, pair, row, measured in [*RESULTS, *other] if row != "naive"
    ]


def test_the_gap_is_resampled_over_the_same_pairs():
    share, low, high = gap_closed([0.2, 0.4, 0.1], [0.0, 0.0, 0.0], [0.4, 0.8, 0.2])
    assert (share, low, high) == pytest.approx((0.5, 0.5, 0.5)), "every gap is half closed, so any sample of pairs is"
    share, low, high = gap_closed([0.0, 0.8] * 10, [0.0, 0.0] * 10, [0.8, 0.8] * 10)
    assert low < share < high
    assert gap_closed([0.1], [0.2], [0.2]) is None
    assert gap_closed([0.1, 0.0], [0.0, 0.0], [0.2, 0.0])[1:] == (None, None), "one sample in four has no gap at all"


def test_the_gap_needs_the_same_pairs():
    shifted = [r._replace(pair="other") if r.row == "oracle" else r for r in RESULTS]
    assert all(line["gap"] is None for line in summary(LABELS, shifted))


def test_rows_are_compared_pair_by_pair():
    """Pairs differ by 0.6 and the rows by 0.1 on each: no resample of pairs can lose that."""
    both = {"ZipLoRA": (0.1, 0.7), "better": (0.2, 0.8), "elsewhere": (0.9,)}
    found = [
        Result("several", pair, row, result(value))
        for row, values in both.items()
        for pair, value in zip("pq" if len(values) == 2 else "r", values, strict=True)
    ]
    lines = summary(list(both), found)
    assert all("lead_naive" not in line for line in lines), "there is no such row"
    leads = {line["row"]: line["lead"] for line in lines}
    assert leads["better"] == pytest.approx((0.1, 0.1, 0.1))
    assert leads["ZipLoRA"] == (0, 0, 0)
    assert leads["elsewhere"] is None


def test_each_pair_can_be_looked_up(tmp_path):
    write_pairs(RESULTS, tmp_path / "pairs.csv")
    with (tmp_path / "pairs.csv").open() as file:
        lines = {(line["pair"], line["row"]): line for line in csv.DictReader(file)}
    assert len(lines) == len(RESULTS)
    assert float(lines["q", "naive"]["both"]) == 0.75
    assert lines["p", "naive"]["atelier-style"] == "0.4"
    assert lines["q", "naive"]["atelier-style"] == lines["q", "naive"]["colour"] == ""
    assert "dino" not in lines["q", "naive"], "nobody measured it"


def test_files_hold_every_row(tmp_path):
    text = render("A table", summary(LABELS, RESULTS), tmp_path)
    assert "| naive | 2 |" in text
    assert "| masks | masks, kB | mean change |" in text
    assert "| 0 | 350.0 | 0.000 | 2 | 1.0 |" in text
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["base (no LoRA)", "naive", "oracle"]
    assert float(rows[1]["both"]) == pytest.approx(0.5)
    assert float(rows[1]["gap_low"]) <= float(rows[1]["gap"]) <= float(rows[1]["gap_high"])
    assert float(rows[1]["atelier-content"]) == pytest.approx(0.4)
    assert rows[0]["atelier-content"] == ""
    assert "Atelier leakage" in text
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_one_pair_has_no_interval(tmp_path):
    one = [r for r in RESULTS if r.pair == "p"]
    assert "| naive | 1 | 0.25 | " in render("t", summary(LABELS, one), tmp_path)
    assert "| naive | 2 | 0.50 (0.25–0.75) | " in render("t", summary(LABELS, RESULTS), tmp_path)
