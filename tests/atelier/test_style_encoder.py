"""The style encoder: one style is near itself on every object, and apart from styles that it was never shown."""

import numpy as np
import pytest
import torch

from duolora.atelier.data import as_input
from duolora.atelier.family import improvised
from duolora.atelier.objects import OBJECTS
from duolora.atelier.pairs import sample_style, style_named
from duolora.atelier.scene import render, sample_scene
from duolora.atelier.style_encoder import StyleEncoder, in_style, load_style_encoder
from duolora.atelier.styles import HELD_OUT_STYLES
from duolora.bench.cells.scores import seen
from recipes.atelier.style_encoder import batch_of, contrast, neighbour


def images_in(style, count, seed):
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, tuple(OBJECTS), ("flat",)) for _ in range(count)]
    return as_input(np.stack([render(scene, style) for scene in scenes]))


@pytest.mark.parametrize("names", [HELD_OUT_STYLES[:12], [sample_style(np.random.default_rng(k)) for k in range(12)]])
def test_styles_that_it_was_never_shown_are_told_apart(names):
    network = load_style_encoder()
    shown = {name: images_in(style_named(name), 12, k) for k, name in enumerate(names)}
    right = np.array([[np.mean(in_style(network, shown[x], style_named(y))) for x in names] for y in names])
    own, others = np.diag(right), right[~np.eye(len(names), dtype=bool)]
    assert own.mean() > 0.9
    assert others.mean() < 0.05


def test_a_style_without_a_name_is_recognised_where_the_classifier_has_no_answer():
    name = sample_style(np.random.default_rng(5))
    found = seen(torch.cat([images_in(style_named(name), 8, 1), images_in(style_named("sepia"), 8, 1)]), name).style
    assert found[:8].count(name) >= 7
    assert found[8:] == ["other"] * 8


def test_a_neighbour_differs_in_one_step():
    rng = np.random.default_rng(0)
    for seed in range(40):
        style = improvised(seed)
        assert 1 <= len({*style.steps} ^ {*neighbour(style, rng).steps}) <= 2


def test_the_loss_is_least_where_styles_are_apart():
    styles = torch.arange(6) // 2
    apart = torch.eye(3)[styles]
    mixed = torch.eye(3)[torch.arange(6) % 3]
    assert contrast(apart, styles, 0.1) < 0.01 < contrast(mixed, styles, 0.1)


def test_a_batch_is_the_same_for_a_seed_and_trains_an_encoder():
    (pixels, styles), (again, _) = batch_of(3), batch_of(3)
    assert (pixels == again).all()
    assert len(styles.unique()) * 5 == len(pixels)
    network = StyleEncoder()
    found = network(as_input(pixels[:40]))
    assert torch.allclose(found.norm(dim=1), torch.ones(40), atol=1e-5)
    contrast(found, styles[:40], 0.07).backward()
    assert all(p.grad is not None for p in network.parameters())
