"""Atelier's similarities of a cell's pictures: right pictures score high, wrong ones low, old cells are completed."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from duolora.atelier.looks import HELD_OUT_LOOKS, KEEP_COLOUR, KEEP_PATTERN
from duolora.atelier.pairs import Pair, pictures
from duolora.atelier.scene import Scene, render, sample_thing
from duolora.bench.cells.multi import GroupCell, group_similarity, groups
from duolora.bench.cells.pairs import suite
from duolora.bench.cells.similarity import similarities, words_of
from duolora.bench.tables.rows import FLOOR
from duolora.model.images import tiled, untiled

PAIR = Pair("robot", "red", "striped", "woodcut", "house")


def drawn(pair: Pair, look: str, seed: int) -> list[Image.Image]:
    scenes = [replace(scene, look=look, setting="") for scene in pair.content_scenes(4, seed)]
    return [Image.fromarray(np.asarray(p)) for p in pictures(scenes)]


def test_each_score_follows_what_it_is_for():
    content, style = drawn(PAIR, "flat", 1), [Image.fromarray(pictures([PAIR.style_scene(1)])[0])]
    other = Pair("snail", "red", "striped", "woodcut", "house")
    merged, flat, wrong = (
        similarities(images, content, style, words_of(PAIR))
        for images in (drawn(PAIR, "woodcut", 2), drawn(PAIR, "flat", 2), drawn(other, "woodcut", 2))
    )
    assert merged["atelier-style"] > flat["atelier-style"] + 0.2
    assert merged["atelier-content"] > wrong["atelier-content"] + 0.2
    assert merged["atelier-text"] > max(flat["atelier-text"], wrong["atelier-text"])
    leaked = similarities(style, content, style, words_of(PAIR))
    assert leaked["atelier-leakage"] == pytest.approx(1, abs=1e-3)
    assert merged["atelier-leakage"] < 0.6


def test_words_say_only_what_the_look_keeps():
    for look in HELD_OUT_LOOKS:
        words = words_of(Pair("robot", "red", "striped", look, "house"))
        assert ("red" in words.split()) is (look in KEEP_COLOUR)
        assert ("striped" in words) is (look in KEEP_PATTERN)


def test_sheets_come_apart_as_they_were_put_together():
    images = [Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)) for k in range(6)]
    first, second = untiled(tiled([images[:3], images[3:]]), 2)
    apart = first + second
    assert [np.asarray(a).tolist() for a in apart] == [np.asarray(a).tolist() for a in images]


def shown_together(pairs: list[Pair]) -> Image.Image:
    rng = np.random.default_rng(4)
    things = [
        replace(sample_thing(rng, len(pairs), place, (pair.kind,)), colour=pair.colour, pattern=pair.pattern)
        for place, pair in enumerate(pairs)
    ]
    return Image.fromarray(render(Scene(tuple(things), pairs[0].look, "", 0)))


def test_groups_are_scored_place_by_place(tmp_path):
    (group, *_) = groups([case for case in suite() if case.dataset == "several"], 2)
    cell = GroupCell(tmp_path, group, FLOOR)
    both, swapped = (shown_together([case.pair for case in things]) for things in (group.things, group.things[::-1]))
    assert group_similarity(cell, [both])["atelier-content"] > group_similarity(cell, [swapped])["atelier-content"]
