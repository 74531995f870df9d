"""Several subjects in one style: groups, crops, and a classifier that looks at each place."""

from pathlib import Path

import numpy as np
import pytest
import torch

from duolora.atelier.data import as_input
from duolora.atelier.pairs import IDENTIFIERS
from duolora.atelier.scene import Scene, render, sample_item
from duolora.bench.cells.multi import crops, group_truth, groups
from duolora.bench.cells.pairs import suite
from duolora.bench.config import Config
from duolora.bench.run import cells_of
from duolora.bench.tables.rows import FLOOR, TABLES
from duolora.errors import InputError

SEVERAL = [case for case in suite() if case.dataset == "several"]
KINDS = {case.pair.kind for case in SEVERAL}


def test_groups_name_every_subject_differently():
    for number in (2, 3, 4):
        for group in groups(SEVERAL, number):
            identifiers = [case.pair.identifier for case in group.subjects]
            assert len(set(identifiers)) == number
            assert len({case.pair.kind for case in group.subjects}) == min(number, len(KINDS))
            assert len({(c.pair.kind, c.pair.colour, c.pair.pattern) for c in group.subjects}) == number
            assert len({(c.pair.style, c.pair.shown, c.style_seed) for c in group.subjects}) == 1
            assert all(word in group.asked(FLOOR)[0] for word in identifiers)
    assert {case.pair.identifier for g in groups(SEVERAL, 2) for case in g.subjects} == set(IDENTIFIERS)


def test_too_few_subjects_are_one_line():
    for cases in ((), tuple(SEVERAL[:3])):
        with pytest.raises(InputError, match=r"expected pairs of multi4 \(4 different subjects\), got none"):
            cells_of(Config("figure10", TABLES["figure10"], cases), Path("x"))


def test_the_classifier_sees_each_subject_at_its_place():
    rng, shares = np.random.default_rng(3), {}
    for number in (2, 3, 4):
        subjects = [case.pair for case in groups(SEVERAL, number)[0].subjects]
        scenes = [[sample_item(rng, number, i, (pair.kind,)) for i, pair in enumerate(subjects)] for _ in range(12)]
        images = as_input(np.stack([render(Scene(tuple(s), "flat", "", k % 3)) for k, s in enumerate(scenes)]))
        shares[number] = group_truth(images, subjects)["object"]
        swapped = group_truth(images, subjects[::-1])["object"]
        assert number % 2 or swapped <= 0.5  # of four, two may be of one kind
    assert min(shares.values()) > 0.8, shares


def test_crops_are_about_their_places():
    image = torch.full((1, 3, 32, 32), -1.0)
    image[..., 16:, 16:] = 1.0
    means = [float(crop.mean()) for crop in crops(image, 4)]
    assert means[3] > 0.8
    assert max(means[:3]) < -0.3
