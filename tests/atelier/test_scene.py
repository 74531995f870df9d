"""The renderer: reproducible, varied, held-out objects and styles held out, captions true."""

import re

import numpy as np
import pytest

from duolora.atelier.captions import caption, describe, plain_caption, with_stray_word
from duolora.atelier.classifier import ANSWERS
from duolora.atelier.data import base_image
from duolora.atelier.objects import BASE_OBJECTS, HELD_OUT_OBJECTS, OBJECTS
from duolora.atelier.pairs import Pair, sample_pair
from duolora.atelier.scene import (
    COLOURS,
    PATTERNS,
    PLACES,
    SETTINGS,
    SIZE,
    render,
    sample_scene,
    single,
    sprite,
    window,
)
from duolora.atelier.styles import BASE_STYLES, HELD_OUT_STYLES, KEEP_COLOUR, KEEP_PATTERN, STYLES
from recipes.atelier.abstract import abstract
from recipes.atelier.data import base_poses, classifier_image, posed, vae_image


def test_the_world_is_large_enough():
    assert len(BASE_OBJECTS) >= 24
    assert len(BASE_STYLES) >= 16
    assert len(HELD_OUT_OBJECTS) >= 4
    assert len(HELD_OUT_STYLES) >= 36
    assert not set(BASE_OBJECTS) & set(HELD_OUT_OBJECTS)
    assert set(KEEP_COLOUR) | set(KEEP_PATTERN) <= set(STYLES)


@pytest.mark.parametrize("make", [base_image, vae_image, classifier_image])
def test_a_seed_is_an_image(make):
    for seed in (4, 5):
        first, second = make(seed), make(seed)
        assert np.array_equal(first[0], second[0])
        assert first[1] == second[1]
        assert first[0].shape == (SIZE, SIZE, 3)
        assert first[0].dtype == np.uint8
    assert not np.array_equal(make(4)[0], make(5)[0])


def test_base_never_sees_what_is_held_out():
    for seed in range(400):
        scene = sample_scene(np.random.default_rng(seed))
        assert scene.style in BASE_STYLES
        assert all(item.kind in BASE_OBJECTS for item in scene.objects)


@pytest.mark.parametrize("style", STYLES)
def test_each_style_changes_the_image_and_keeps_the_object(style):
    plain = render(single("house", "flat", 1)).astype(float)
    shown = render(single("house", style, 1)).astype(float)
    assert style == "flat" or np.abs(shown - plain).mean() > 8
    other = render(single("fish", style, 1)).astype(float)
    assert np.abs(shown - other).mean() > 3


@pytest.mark.parametrize("style", STYLES)
def test_no_texture_repeats_within_a_cell(style):
    """The VAE's cells are 2×2 pixels: a texture of period 2 makes them all alike, and no decoder can tell its phase.

    A texture would show as rows and columns that equal those two further on but not the next.
    """
    image = render(single("star", style, 2, x=16, y=16, size=20)).astype(int)
    corner = image[2:8, 2:8]
    for axis in (0, 1):
        flat = np.moveaxis(corner, axis, 0)
        assert not (np.array_equal(flat[:-2], flat[2:]) and not np.array_equal(flat[:-1], flat[1:]))


@pytest.mark.parametrize("kind", OBJECTS)
def test_each_object_stays_in_its_square_and_shows_its_colour(kind):
    for part in (*OBJECTS[kind],):
        assert all(-1 <= v <= 1 for point in part.points for v in point)
    red, blue = (render(single(kind, "flat", 3, colour=c, pattern="plain")).astype(int) for c in ("red", "blue"))
    changed = np.abs(red - blue).max(-1) > 60
    assert 0.02 < changed.mean() < 0.6


def test_sprites_differ_and_mirror():
    found = {sprite(kind, 20, False).tobytes() for kind in (*OBJECTS, *(f"thing-{n}" for n in range(40)))}
    assert len(found) == len(OBJECTS) + 40
    assert np.array_equal(sprite("key", 20, True), sprite("key", 20, False)[:, ::-1])


def test_objects_stand_on_even_pixels_inside_the_image():
    for seed in range(300):
        scene = sample_scene(np.random.default_rng(seed), numbers=(0.5, 0.3, 0.0, 0.2))
        for item in scene.objects:
            for at in (item.x - item.size // 2, item.y - item.size // 2):
                assert len(scene.objects) > 1 or at % 2 == 0
                assert 0 <= at <= SIZE - item.size


def test_a_window_is_about_its_place():
    for number, places in PLACES.items():
        for k, (_, x, y) in enumerate(places):
            rows, columns = window(number, k)
            assert rows.shape == (SIZE, 1)
            assert columns.shape == (SIZE,)
            assert 0 <= rows.min() < y < rows.max() < SIZE
            assert 0 <= columns.min() < x < columns.max() < SIZE


def test_patterns_differ():
    images = [render(single("envelope", "flat", 2, pattern=p)) for p in PATTERNS]
    assert len({p.tobytes() for p in images}) == len(PATTERNS)


def test_poses_keep_what_the_caption_says():
    """Posed anew, a scene fits the same words: what may change is in no caption."""
    for seed in range(60):
        scene = sample_scene(np.random.default_rng(seed))
        other = posed(scene, np.random.default_rng(seed + 1))
        assert caption(scene, np.random.default_rng(2)) == caption(other, np.random.default_rng(2))
    images, _ = base_poses(10, 6)
    assert np.array_equal(images[0], base_image(10)[0])
    assert len({image.tobytes() for image in images}) > 1


def test_captions_say_what_is_shown_and_nothing_else():
    for seed in range(400):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        words = set(re.findall(r"[a-z]+", caption(scene, rng)))
        assert words & set(OBJECTS) <= {t.kind for t in scene.objects}
        assert words & set(COLOURS) <= {t.colour for t in scene.objects}
        assert words & set(PATTERNS) - {"plain"} <= {t.pattern for t in scene.objects}
        named = {style for style in BASE_STYLES if set(re.findall(r"[a-z]+", style)) <= words}
        assert named <= {scene.style}
        assert len(scene.objects) == 1 or any(place.split()[-1] in words for place, _, _ in PLACES[len(scene.objects)])
        told = [s for s in SETTINGS if s and s in caption(scene, rng)]
        assert set(told) <= {scene.setting}


def test_captions_vary():
    scene = single("cat", "sepia", 1)
    assert len({caption(scene, np.random.default_rng(k)) for k in range(60)}) > 15
    assert len({describe(scene.objects[0], np.random.default_rng(k)) for k in range(60)}) >= 3


def test_objects_without_a_name_are_called_things():
    for seed in range(40):
        scene = single(f"thing-{seed}", "flat", seed)
        assert "thing" in caption(scene, np.random.default_rng(seed)).replace("thing-", "")


def test_plain_caption_and_stray_word():
    assert (
        plain_caption("apple", "orange", "striped", "sepia", "on a hill")
        == "an orange striped apple on a hill in sepia style"
    )
    assert plain_caption("cat") == "a cat in flat style"
    strayed = with_stray_word("a cat", np.random.default_rng(0)).split()
    assert len(strayed) == 3
    assert [w for w in strayed if w in ("a", "cat")] == ["a", "cat"]


def test_numbers_of_objects():
    counts = [len(sample_scene(np.random.default_rng(seed)).objects) for seed in range(600)]
    assert set(counts) == {1, 2, 3, 4}


def test_the_truth_is_in_range_and_hides_what_styles_hide():
    truths = np.array([classifier_image(seed)[1] for seed in range(100)])
    for column, words in enumerate(ANSWERS.values()):
        assert truths[:, column].max() < len(words)
    assert (truths[:, :2] >= 0).all()
    assert (truths[:, 0] == len(ANSWERS["object"]) - 1).any()
    assert (truths[:, 1] == len(ANSWERS["style"]) - 1).any()
    assert (truths[:, 2] == -100).any()


def test_pairs_have_a_known_kind_a_held_out_style_and_another_kind_in_the_style_image():
    for seed in range(50):
        pair = sample_pair(seed)
        assert pair == sample_pair(seed)
        assert pair.kind in BASE_OBJECTS
        assert pair.style in HELD_OUT_STYLES
        assert pair.style_scene().objects[0].kind == pair.shown != pair.kind
        scenes = pair.content_scenes()
        assert {(s.objects[0].kind, s.objects[0].colour, s.objects[0].pattern, s.style) for s in scenes} == {
            (pair.kind, pair.colour, pair.pattern, "flat")
        }
        assert len({render(s).tobytes() for s in scenes}) == len(scenes)


def test_prompts_name_neither_the_object_nor_the_style():
    pair = Pair("teapot", "red", "plain", HELD_OUT_STYLES[0], "house")
    for prompt in (pair.content_prompt, pair.style_prompt, pair.merged_prompt):
        assert "teapot" not in prompt
        assert HELD_OUT_STYLES[0] not in prompt


def test_abstract_images_vary():
    assert len({abstract(seed).tobytes() for seed in range(20)}) == 20
