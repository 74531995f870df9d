"""Training that diverges stops at once, says why, and leaves the last good checkpoint."""

from dataclasses import replace

import pytest
import torch

from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.errors import DuoLoRAError, FileRefused
from duolora.training.checkpoint import check_loss, load_checkpoint, save_checkpoint

OPTIONS = TrainOptions(rank=2, steps=230, batch=1, lr=1e12)


class Counting:
    """A callback that notes how far a run came."""

    previews = 0

    def __init__(self):
        self.steps = []

    def losses(self, done, of, terms):
        self.steps.append(done)

    def masks(self, done, masks): ...

    def preview(self, done, images): ...


def test_a_run_that_diverges_stops_at_once_and_names_the_learning_rate(base, photos, tmp_path):
    seen = Counting()
    with pytest.raises(
        DuoLoRAError, match=r"step \d+: the loss is (nan|inf).*lower learning rate than 1e\+12, by --lr"
    ):
        train(photos, "a sks cat", tmp_path / "x.safetensors", base, OPTIONS, progress=False, callback=seen)
    assert seen.steps == [1]
    assert not list(tmp_path.iterdir())
    train(photos, "a sks cat", tmp_path / "x.safetensors", base, replace(OPTIONS, lr=1e-3, steps=2), progress=False)


def test_a_merge_that_diverges_stops_too_and_names_its_own_option(base, loras, photos, tmp_path):
    options = options_of("ziprank-prior", steps=60, lr=1e30)
    with pytest.raises(DuoLoRAError, match=r"step \d: the loss is (nan|inf).*learning rate than 1e\+30.*--set lr=… in"):
        merge(
            *loras, tmp_path / "x.safetensors", "ziprank-prior", base, photos, photos, options=options, progress=False
        )
    assert not list(tmp_path.iterdir())


def state(value: float):
    parameter = torch.nn.Parameter(torch.full((3,), value))
    return parameter, torch.optim.Adam([parameter], lr=0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_good_checkpoint_is_never_replaced_by_a_spoilt_one(tmp_path, bad):
    path = tmp_path / "c.safetensors"
    parameter, optimiser = state(1.0)
    save_checkpoint(path, {"v": parameter}, optimiser, 100)
    whole = path.read_bytes()
    spoilt, its_optimiser = state(bad)
    with pytest.raises(DuoLoRAError, match=r"step 200: .*diverged.*lower learning rate than 0\.5, by --lr"):
        save_checkpoint(path, {"v": spoilt}, its_optimiser, 200)
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_spoilt_checkpoint_is_not_resumed(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    spoilt, optimiser = state(float("nan"))
    monkeypatch.setattr("duolora.training.checkpoint.check_values", lambda *_: None)
    save_checkpoint(path, {"v": spoilt}, optimiser, 100)
    with pytest.raises(FileRefused, match="NaN or infinite values.*delete it"):
        load_checkpoint(path, {"v": state(1.0)[0]}, state(1.0)[1], 100)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_losses_are_checked(loss):
    check_loss(torch.tensor(1.0), state(0.0)[1], 0)
    with pytest.raises(DuoLoRAError, match="step 7: the loss is"):
        check_loss(torch.tensor(loss), state(0.0)[1], 6)
