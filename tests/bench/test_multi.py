"""Several things in one look: groups, crops, and judges that look at each place."""

import torch

from duolora.atelier.classifier import load_classifier
from duolora.atelier.data import as_input
from duolora.atelier.pairs import IDENTIFIERS
from duolora.atelier.scene import Scene, render, sample_thing
from duolora.bench.cells.multi import crops, group_truth, groups
from duolora.bench.cells.pairs import suite

SEVERAL = [case for case in suite() if case.dataset == "several"]
KINDS = {case.pair.kind for case in SEVERAL}


def test_groups_name_every_thing_differently():
    for number in (2, 3, 4):
        for group in groups(SEVERAL, number):
            identifiers = [case.pair.identifier for case in group.things]
            assert len(set(identifiers)) == number
            assert len({case.pair.kind for case in group.things}) == min(number, len(KINDS))
            assert len({(c.pair.kind, c.pair.colour, c.pair.pattern) for c in group.things}) == number
            assert len({(c.pair.look, c.pair.shown, c.style_seed) for c in group.things}) == 1
            assert all(word in group.prompt for word in identifiers)
    assert {case.pair.identifier for g in groups(SEVERAL, 2) for case in g.things} == set(IDENTIFIERS)


def test_judges_see_each_thing_at_its_place():
    import numpy as np

    judges, rng, shares = load_classifier(), np.random.default_rng(3), {}
    for number in (2, 3, 4):
        hits = []
        for k in range(12):
            (group, *_) = groups(SEVERAL, number)
            things = [case.pair for case in group.things]
            drawn = tuple(sample_thing(rng, number, i, (pair.kind,)) for i, pair in enumerate(things))
            picture = as_input(render(Scene(drawn, "flat", "", k % 3))[None])
            hits.append(group_truth(judges, picture, things)["object"])
            swapped = group_truth(judges, picture, things[::-1])["object"]
            assert number % 2 or swapped <= 0.5  # of four, two may be of one kind
        shares[number] = sum(hits) / len(hits)
    assert min(shares.values()) > 0.8, shares


def test_crops_are_about_their_places():
    picture = torch.full((1, 3, 32, 32), -1.0)
    picture[..., 16:, 16:] = 1.0
    means = [float(crop.mean()) for crop in crops(picture, 4)]
    assert means[3] > 0.8
    assert max(means[:3]) < -0.3
