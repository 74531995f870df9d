"""The demo's table and picture say what was measured."""

from pathlib import Path

import torch

from duolora.atelier.pairs import Pair
from duolora.atelier.recognisers import Verdict
from duolora.verbs.demo import Job, _row, comparison, table

PAIR = Pair("teapot", "red", "plain", "stitched", "house")
VERDICT = Verdict(
    object=["teapot", "teapot", "house", "cat"],
    look=["stitched", "flat", "stitched", "flat"],
    colour=["red", "red", "red", "blue"],
    pattern=["plain", "dotted", "plain", "plain"],
)


def test_shares_are_counted():
    row = _row(Job("naive", PAIR.merged_prompt, Path("x")), VERDICT, PAIR)
    assert (row.object, row.look, row.both, row.leak) == (0.5, 0.5, 0.25, 0.25)
    assert (row.colour, row.pattern) == (0.75, 0.75)


def test_colour_is_not_judged_where_the_look_hides_it():
    hidden = Pair("teapot", "red", "plain", "copper", "house")
    row = _row(Job("naive", ""), VERDICT, hidden)
    assert row.colour is None
    assert row.pattern is None
    assert "–" in table([row], hidden)


def test_table_has_a_line_for_each_row():
    rows = [_row(Job(n, "", masks=1234, kilobytes=5.0), VERDICT, PAIR) for n in ("naive", "duolora")]
    text = table(rows, PAIR)
    assert "| naive | 0.50 | 0.50 | 0.25 |" in text
    assert "1,234" in text
    assert "Atelier" in text


def test_comparison_grows_with_methods():
    drawn = {name: torch.zeros(3, 3, 64, 64) for name in ("a", "b", "c")}
    assert comparison(PAIR, drawn).height > comparison(PAIR, {"a": drawn["a"]}).height
