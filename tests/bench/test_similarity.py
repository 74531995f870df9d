"""Atelier's similarities: right images score high, wrong ones low, several subjects are scored place by place."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from duolora.atelier.pairs import Pair, rendered
from duolora.atelier.scene import Scene, render, sample_item
from duolora.atelier.styles import HELD_OUT_STYLES, KEEP_COLOUR, KEEP_PATTERN
from duolora.bench.cells.cell import Cell
from duolora.bench.cells.multi import groups
from duolora.bench.cells.pairs import suite
from duolora.bench.cells.scores import similarities, words_of
from duolora.bench.tables.rows import FLOOR
from duolora.model.images import tiled, untiled

PAIR = Pair("robot", "red", "striped", "woodcut", "house")


def generated(pair: Pair, style: str, seed: int) -> list[Image.Image]:
    scenes = [replace(scene, style=style, setting="") for scene in pair.content_scenes(4, seed)]
    return [Image.fromarray(np.asarray(p)) for p in rendered(scenes)]


def test_each_score_follows_what_it_is_for():
    content, style = generated(PAIR, "flat", 1), [Image.fromarray(rendered([PAIR.style_scene(1)])[0])]
    other = Pair("snail", "red", "striped", "woodcut", "house")
    merged, flat, wrong = (
        similarities(images, content, style, words_of(PAIR))
        for images in (generated(PAIR, "woodcut", 2), generated(PAIR, "flat", 2), generated(other, "woodcut", 2))
    )
    assert merged["atelier-style"] > flat["atelier-style"] + 0.2
    assert merged["atelier-content"] > wrong["atelier-content"] + 0.2
    assert merged["atelier-text"] > max(flat["atelier-text"], wrong["atelier-text"])
    leaked = similarities(style, content, style, words_of(PAIR))
    assert leaked["atelier-leakage"] == pytest.approx(1, abs=1e-3)
    assert merged["atelier-leakage"] < 0.6


def test_words_say_only_what_the_style_keeps():
    for style in HELD_OUT_STYLES:
        words = words_of(Pair("robot", "red", "striped", style, "house"))
        assert ("red" in words.split()) is (style in KEEP_COLOUR)
        assert ("striped" in words) is (style in KEEP_PATTERN)


def test_sheets_come_apart_as_they_were_put_together():
    images = [Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)) for k in range(6)]
    first, second = untiled(tiled([images[:3], images[3:]]), 2)
    apart = first + second
    assert [np.asarray(a).tolist() for a in apart] == [np.asarray(a).tolist() for a in images]


def shown_together(pairs: list[Pair]) -> Image.Image:
    rng = np.random.default_rng(4)
    subjects = [
        replace(sample_item(rng, len(pairs), place, (pair.kind,)), colour=pair.colour, pattern=pair.pattern)
        for place, pair in enumerate(pairs)
    ]
    return Image.fromarray(render(Scene(tuple(subjects), pairs[0].style, "", 0)))


def test_groups_are_scored_place_by_place(tmp_path):
    (group, *_) = groups([case for case in suite() if case.dataset == "several"], 2)
    cell = Cell(tmp_path, group, FLOOR)
    both, swapped = (
        shown_together([case.pair for case in subjects]) for subjects in (group.subjects, group.subjects[::-1])
    )
    right, wrong = (group.scores(cell, [image])["similarity"]["atelier-content"] for image in (both, swapped))
    assert right > wrong
