"""The benchmark's pairs: fixed, and tuning apart from testing."""

import json
from dataclasses import asdict, replace

import pytest

from duolora.atelier.objects import BASE_OBJECTS, HELD_OUT_OBJECTS
from duolora.atelier.pairs import VISIBLE, style_named, visibility
from duolora.atelier.styles import HELD_OUT_STYLES, KEEP_COLOUR, STYLES
from duolora.bench.cells.cell import Cell
from duolora.bench.cells.pairs import case_of, sample_suite, suite
from duolora.bench.tables.rows import TABLES, Row
from duolora.errors import InputError


def test_the_shipped_pairs_are_those_of_the_rule():
    assert suite() == sample_suite(0)
    assert sample_suite(1) != sample_suite(0)


@pytest.mark.parametrize("seed", range(6))
def test_tuning_shares_nothing_with_testing(seed):
    cases = sample_suite(seed)
    tuning = [c for c in cases if c.dataset == "tuning"]
    testing = [c for c in cases if c.dataset not in ("tuning", "ceiling")]
    assert len([c for c in testing if c.dataset in TABLES["table1"].datasets]) == 48
    assert len({c.name for c in cases}) == len(cases)
    for names in ({"kind", "shown"}, {"style"}):
        ours, theirs = ({getattr(c.pair, name) for c in those for name in names} for those in (tuning, testing))
        assert not ours & theirs
    assert not {c.content_seed for c in tuning} & {c.content_seed for c in testing}
    assert not {c.style_seed for c in tuning} & {c.style_seed for c in testing}


def test_the_ceiling_is_of_every_held_out_object_and_style():
    cases = [c for c in sample_suite(0) if c.dataset == "ceiling"]
    assert sorted(c.pair.style for c in cases) == sorted(HELD_OUT_STYLES)
    assert {c.pair.kind for c in cases} == set(HELD_OUT_OBJECTS)
    assert not {c.content_seed for c in cases} & {c.content_seed for c in sample_suite(0) if c.dataset != "ceiling"}


@pytest.mark.parametrize("seed", range(3))
def test_a_subject_of_a_known_kind_is_told_by_what_its_style_keeps(seed):
    for case in sample_suite(seed):
        pair = case.pair
        named = pair.kind in BASE_OBJECTS
        assert named is (case.dataset not in ("unseen", "ceiling"))
        assert pair.merged_prompt == f"a sks {pair.kind if named else 'thing'} in zwx style"
        listed = pair.style in STYLES
        assert listed is (case.dataset != "random")
        keeps_colour = pair.style in KEEP_COLOUR if listed else style_named(pair.style).keeps_colour
        assert ("colour" in pair.identity) is keeps_colour
        assert pair.colour != pair.shown_colour


@pytest.mark.parametrize("seed", range(6))
def test_the_style_image_shows_another_subject(seed):
    assert all((c.pair.kind == c.pair.shown) is (c.dataset == "paired") for c in sample_suite(seed))


def test_random_styles_are_new_for_each_seed_and_leave_objects_visible():
    first, second = ({c.pair.style for c in sample_suite(seed) if c.dataset == "random"} for seed in (0, 1))
    assert len(first) == len(second) == 12
    assert not first & second
    assert min(visibility(style_named(name)) for name in first) > VISIBLE


@pytest.mark.parametrize("style", ["family-", "family-x", "oil", "family--3"])
def test_a_style_that_is_none_is_refused_with_its_name(tmp_path, style):
    entry = asdict(suite()[0])
    (tmp_path / "pairs.json").write_text(json.dumps([entry | {"pair": entry["pair"] | {"style": style}}]))
    with pytest.raises(InputError, match=rf"pairs\.json.*got '{style}'"):
        suite(tmp_path / "pairs.json")


def test_crossed_pairs_need_no_new_images():
    cases = sample_suite(0)
    known = {(c.pair.kind, c.pair.colour, c.pair.pattern, c.content_seed) for c in cases if c.dataset == "single"}
    styles = {(c.pair.style, c.pair.shown, c.style_seed) for c in cases if c.dataset == "several"}
    for c in cases:
        if c.dataset == "crossed":
            assert (c.pair.kind, c.pair.colour, c.pair.pattern, c.content_seed) in known
            assert (c.pair.style, c.pair.shown, c.style_seed) in styles


def test_manifest_there_and_back(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps([asdict(case) for case in sample_suite(3, size=2)]))
    assert suite(tmp_path / "pairs.json") == sample_suite(3, size=2)
    (tmp_path / "bad.json").write_text('[{"dataset": "x"}]')
    with pytest.raises(InputError, match=r"bad\.json"):
        suite(tmp_path / "bad.json")
    nameless = {"dataset": "x", "pair": {"style": 5}}
    (tmp_path / "bad.json").write_text(json.dumps([nameless]))
    with pytest.raises(InputError, match="family-SEED, got '5'"):
        suite(tmp_path / "bad.json")


def test_the_papers_captions_name_nothing_but_identifiers(tmp_path):
    ours = suite()[0]
    theirs = replace(ours, pair=replace(ours.pair, captions="paper"))
    row = Row("DuoLoRA", "duolora")
    assert theirs.pair.content_prompt == "a sks thing in vkt style"
    assert theirs.pair.style_prompt == "a ohw thing in zwx style"
    assert theirs.asked(row)[0] == theirs.parts[0].prompt == "a sks thing in zwx style"
    assert theirs.pair.class_prompt == ours.pair.class_prompt, "of the style LoRA alone any of that kind is asked for"
    cells = [Cell(tmp_path, case, row) for case in (ours, theirs)]
    assert "captions" not in str(ours.about(row))
    assert len({cell.folder for cell in cells}) == 2
    assert len({job.path for cell in cells for job in cell.needs()}) == 4
    assert case_of(asdict(theirs)) == theirs
