"""Figure 3's curves: one for each group of blocks, with files to look at."""

import pytest

from duolora.bench import figures
from duolora.bench.figures import figure3
from duolora.networks.bases import load_base


def test_curves_and_pictures(tmp_path, monkeypatch):
    plain = figures.draw
    monkeypatch.setattr(figures, "draw", lambda *a, **k: plain(*a, **k | {"steps": 1}))
    curves = figure3(tmp_path, load_base("atelier"), alphas=(0.0, 1.0), count=2, progress=False)
    assert {"level 1", "level 2", "mid_block"} <= curves.keys()
    for curve in curves.values():
        assert curve["alpha"] == [0.0, 1.0]
        assert all(0 <= share <= 1 for share in curve["object"] + curve["look"])
    at_one = {(curve["object"][1], curve["look"][1]) for curve in curves.values()}
    assert len(at_one) == 1, "α = 1 is the base itself, whatever is scaled"
    for name in ("curves.json", "curves.png", "pictures.png"):
        assert (tmp_path / name).stat().st_size > 100


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_ranks_count_what_is_above_the_threshold(threshold):
    import torch

    masks = {"content": {"x": torch.tensor([0.0, 0.4, -0.9])}, "style": {"x": torch.ones(2)}}
    found = figures.ranks(masks, threshold)
    assert found == {"content": {"x": 2 if threshold == 0 else 1}, "style": {"x": 2}}
