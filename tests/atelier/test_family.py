"""The family of styles: reproducible, no two alike, described truly, and the held-out members not among the named."""

from dataclasses import replace

import numpy as np
import pytest

from duolora.atelier.captions import improvised_caption
from duolora.atelier.data import base_image
from duolora.atelier.family import PAINTS, improvise, improvised
from duolora.atelier.pairs import style_named
from duolora.atelier.scene import paint, render, sample_scene, single
from duolora.atelier.styles import BASE_STYLES, HELD_OUT_SEEDS, HELD_OUT_STYLES, STYLES
from recipes.atelier.held_out import APART, images


def style_of(seed):
    return improvise(np.random.default_rng(seed))


def test_a_seed_is_a_style_and_styles_differ():
    house = single("house", "flat", 1)
    rendered = [render(house, style_of(seed)) for seed in range(40)]
    assert np.array_equal(rendered[7], render(house, style_of(7)))
    assert len({p.tobytes() for p in rendered}) >= 39
    plain = render(house).astype(float)
    assert np.mean([np.abs(p.astype(float) - plain).mean() > 8 for p in rendered]) > 0.85


def described(image):
    """Colours and roughness of an image: means and spreads of its channels and of its neighbours' differences."""
    rows, columns = np.abs(np.diff(image.astype(float), axis=0)), np.abs(np.diff(image.astype(float), axis=1))
    parts = [image.mean((0, 1)), image.std((0, 1)), rows.mean((0, 1)), columns.mean((0, 1))]
    return np.concatenate(parts)


def test_one_style_is_one_style_on_every_object():
    """A house in a style resembles a fish in that style more than one in another; by chance in 1 of 30."""
    house, fish = (single(k, "flat", 1, colour="red", pattern="plain") for k in ("house", "fish"))
    on_house, on_fish = (np.stack([described(render(s, style_of(k))) for k in range(30)]) for s in (house, fish))
    distance = np.abs(on_house[:, None] - on_fish[None]).sum(-1)
    assert np.mean(distance.argmin(1) == np.arange(30)) > 0.6


def test_most_styles_leave_enough_of_the_object():
    """A house and a fish in one style are different images."""
    house, fish = single("house", "flat", 1), single("fish", "flat", 1)
    apart = [
        np.abs(render(house, style_of(k)).astype(float) - render(fish, style_of(k)).astype(float)).mean() > 3
        for k in range(60)
    ]
    assert np.mean(apart) > 0.9


def test_words_name_what_the_steps_do():
    styles = [style_of(seed) for seed in range(150)]
    for style in styles:
        assert len(style.words) == len(style.steps)
        assert all(style.words)
    framed = [style for style in styles if style.words[-1].endswith("frame")]
    assert framed
    for style in framed:
        colour = np.array(PAINTS[style.words[-1].split()[1]]) * 255
        assert np.abs(render(single("key", "flat", 1), style)[0, 5] - colour).max() < 45


def test_what_a_style_keeps_is_to_be_seen():
    """Styles that keep colours render a red and a blue star differently; those that go by tone alone hardly do."""
    red, blue = (single("star", "flat", 1, colour=c, pattern="plain") for c in ("red", "blue"))
    kept, lost = [], []
    for seed in range(50):
        style = style_of(seed)
        change = np.abs(render(red, style).astype(float) - render(blue, style).astype(float)).mean()
        (kept if style.keeps_colour else lost).append(change)
    assert np.mean(kept) > 4 * np.mean(lost)


def test_captions_say_the_style_by_a_word_or_by_its_features():
    texts = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        scene, style = sample_scene(rng), improvise(rng)
        text = improvised_caption(scene, style.words, rng)
        assert "style" in text or any(word in text for word in style.words)
        texts.append(text)
    assert 0.4 < np.mean(["style" in t for t in texts]) < 0.95
    assert any("style" in t and "with" in t for t in texts)


def test_base_images_are_half_improvised_and_name_no_style_that_is_held_out():
    texts = [base_image(seed)[1] for seed in range(80)]
    assert not any(name in text for name in HELD_OUT_STYLES for text in texts)
    named = [any(f"{k} style" in t or f"of {k}" in t or f"{k} picture" in t for k in BASE_STYLES) for t in texts]
    assert sum(named[1::2]) <= 2  # a meaningless word may be a style's name by chance
    assert sum(named[::2]) > 24


def test_held_out_styles_can_be_told_apart():
    rendered = [images(style) for style in STYLES.values()]
    for k, name in enumerate(STYLES):
        if name in HELD_OUT_STYLES:
            assert min(np.abs(rendered[k] - other).mean() for other in rendered[:k]) > APART


def test_held_out_styles_are_members_of_the_family():
    scene = single("cat", "flat", 3)
    for name, seed in HELD_OUT_SEEDS.items():
        assert np.array_equal(render(replace(scene, style=name)), render(scene, improvised(seed)))


@pytest.mark.parametrize("seed", range(20))
def test_values_stay_in_range_before_bytes(seed):
    image = style_of(seed)(paint(single("cat", "flat", seed)))
    assert image.shape == (32, 32, 3)
    assert np.isfinite(image).all()
    assert image.min() > -0.5
    assert image.max() < 1.6


@pytest.mark.parametrize("name", ["family-20", "family-0020", "family-5", "family-01234", "family-٣٠٠"])
def test_a_style_has_one_name(name):
    """Else a style is in two cells, and the classifier knows it by one of its names only."""
    usual = {"family-5": "family-005", "family-01234": "family-1234", "family-٣٠٠": "family-SEED"}
    with pytest.raises(ValueError, match=usual.get(name, "expected family-020")):
        style_named(name)
    assert style_named("family-1234") is improvised(1234)
