"""The renderer: reproducible, varied, held-out things held out, captions true."""

import re

import numpy as np
import pytest

from duolora.atelier.abstract import abstract
from duolora.atelier.captions import caption, describe, plain_caption, with_stray_word
from duolora.atelier.data import base_picture, judged_picture, vae_picture
from duolora.atelier.looks import BASE_LOOKS, HELD_OUT_LOOKS, KEEP_COLOUR, KEEP_PATTERN, LOOKS
from duolora.atelier.objects import BASE_OBJECTS, HELD_OUT_OBJECTS, OBJECTS
from duolora.atelier.pairs import Pair, sample_pair
from duolora.atelier.scene import COLOURS, PATTERNS, PLACES, SETTINGS, render, sample_scene, single


def test_the_world_is_large_enough():
    assert len(BASE_OBJECTS) >= 24
    assert len(BASE_LOOKS) >= 16
    assert len(HELD_OUT_OBJECTS) >= 4
    assert len(HELD_OUT_LOOKS) >= 4
    assert not set(BASE_OBJECTS) & set(HELD_OUT_OBJECTS)
    assert set(KEEP_COLOUR) | set(KEEP_PATTERN) <= set(LOOKS)


@pytest.mark.parametrize("make", [base_picture, vae_picture, judged_picture])
def test_a_seed_is_a_picture(make):
    for seed in (4, 5):
        first, second = make(seed), make(seed)
        assert np.array_equal(first[0], second[0])
        assert first[1] == second[1]
        assert first[0].shape == (64, 64, 3)
        assert first[0].dtype == np.uint8
    assert not np.array_equal(make(4)[0], make(5)[0])


def test_base_never_sees_what_is_held_out():
    for seed in range(400):
        scene = sample_scene(np.random.default_rng(seed))
        assert scene.look in BASE_LOOKS
        assert all(thing.kind in BASE_OBJECTS for thing in scene.things)


@pytest.mark.parametrize("look", LOOKS)
def test_each_look_changes_the_picture_and_keeps_the_thing(look):
    plain = render(single("house", "flat", 1)).astype(float)
    drawn = render(single("house", look, 1)).astype(float)
    assert look == "flat" or np.abs(drawn - plain).mean() > 8
    other = render(single("fish", look, 1)).astype(float)
    assert np.abs(drawn - other).mean() > 3


@pytest.mark.parametrize("kind", OBJECTS)
def test_each_object_stays_in_its_square_and_shows_its_colour(kind):
    for part in OBJECTS[kind]:
        assert all(-1 <= v <= 1 for point in part.points for v in point)
    red, blue = (render(single(kind, "flat", 3, colour=c, pattern="plain")).astype(int) for c in ("red", "blue"))
    changed = np.abs(red - blue).max(-1) > 60
    assert 0.02 < changed.mean() < 0.6


def test_patterns_differ():
    pictures = [render(single("envelope", "flat", 2, pattern=p)) for p in PATTERNS]
    assert len({p.tobytes() for p in pictures}) == len(PATTERNS)


def test_captions_say_what_is_drawn_and_nothing_else():
    for seed in range(400):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        words = set(re.findall(r"[a-z]+", caption(scene, rng)))
        assert words & set(OBJECTS) <= {t.kind for t in scene.things}
        assert words & set(COLOURS) <= {t.colour for t in scene.things}
        assert words & set(PATTERNS) - {"plain"} <= {t.pattern for t in scene.things}
        named = {look for look in LOOKS if set(re.findall(r"[a-z]+", look)) <= words}
        assert named <= {scene.look}
        assert len(scene.things) == 1 or any(place.split()[-1] in words for place, _, _ in PLACES[len(scene.things)])
        told = [s for s in SETTINGS if s and s in caption(scene, rng)]
        assert set(told) <= {scene.setting}


def test_captions_vary():
    scene = single("cat", "sepia", 1)
    assert len({caption(scene, np.random.default_rng(k)) for k in range(60)}) > 15
    assert len({describe(scene.things[0], np.random.default_rng(k)) for k in range(60)}) >= 3


def test_plain_caption_and_stray_word():
    assert (
        plain_caption("apple", "orange", "striped", "sepia", "on a hill")
        == "an orange striped apple on a hill in sepia style"
    )
    assert plain_caption("cat") == "a cat in flat style"
    strayed = with_stray_word("a cat", np.random.default_rng(0)).split()
    assert len(strayed) == 3
    assert [w for w in strayed if w in ("a", "cat")] == ["a", "cat"]


def test_numbers_of_things():
    counts = [len(sample_scene(np.random.default_rng(seed)).things) for seed in range(600)]
    assert set(counts) == {1, 2, 3, 4}


def test_pairs_have_a_known_kind_a_held_out_look_and_another_kind_in_the_style_picture():
    for seed in range(50):
        pair = sample_pair(seed)
        assert pair == sample_pair(seed)
        assert pair.kind in BASE_OBJECTS
        assert pair.look in HELD_OUT_LOOKS
        assert pair.style_scene().things[0].kind == pair.shown != pair.kind
        scenes = pair.content_scenes()
        assert {(s.things[0].kind, s.things[0].colour, s.things[0].pattern, s.look) for s in scenes} == {
            (pair.kind, pair.colour, pair.pattern, "flat")
        }
        assert len({render(s).tobytes() for s in scenes}) == len(scenes)


def test_prompts_name_neither_the_thing_nor_the_look():
    pair = Pair("teapot", "red", "plain", "copper", "house")
    for prompt in (pair.content_prompt, pair.style_prompt, pair.merged_prompt):
        assert "teapot" not in prompt
        assert "copper" not in prompt


def test_abstract_pictures_vary():
    assert len({abstract(seed).tobytes() for seed in range(20)}) == 20
