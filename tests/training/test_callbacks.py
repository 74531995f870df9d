"""Watching a training or a merge: all is told, nothing is changed, and event files can be read back."""

import sys
from dataclasses import replace

import pytest
import torch

from command import run
from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.errors import InputError
from duolora.model.images import load_image
from duolora.training.callbacks import SavedPreviews, event_log

OPTIONS = TrainOptions(rank=2, steps=12, batch=1, lr=1e-2)
pytestmark = pytest.mark.usefixtures("few_steps")


class Notebook:
    previews = 6

    def __init__(self):
        self.told, self.seen, self.shown = [], [], {}

    def losses(self, done, of, terms):
        self.told.append((done, of, dict(terms)))

    def masks(self, done, masks):
        self.seen.append(
            (done, {half: torch.cat([m.clone() for m in found.values()]) for half, found in masks.items()})
        )

    def preview(self, done, images):
        self.shown[done] = images


def test_training_is_told_and_not_touched(base, photos, tmp_path):
    book = Notebook()
    train(photos, "a cat", tmp_path / "a.safetensors", base, OPTIONS, progress=False, callback=book)
    train(photos, "a cat", tmp_path / "b.safetensors", base, OPTIONS, progress=False)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert [(done, of) for done, of, _ in book.told] == [(1, 12), (11, 12)]
    assert book.told[0][2]["loss"] > 0
    assert list(book.shown) == [6, 12]
    assert not torch.equal(book.shown[6], book.shown[12]), "previews follow the training"


def test_a_merge_is_told_and_not_touched(base, loras, photos, tmp_path):
    book, options = Notebook(), options_of("duolora", steps=12)
    where = (photos, photos)
    paths = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for path, callback in zip(paths, (book, None), strict=True):
        merge(*loras, path, "duolora", base, *where, options=options, progress=False, callback=callback)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [done for done, _, _ in book.told] == [1, 11, 12]
    assert {"loss", "reconstruction", "cycle", "layer_prior"} == book.told[0][2].keys()
    assert set(book.seen[0][1]) == {"content", "style"}
    assert not torch.equal(book.seen[0][1]["style"], book.seen[-1][1]["style"]), "masks as they are now"
    assert list(book.shown) == [6, 12]


def test_previews_are_written_as_files_and_passed_on(base, folder, photos, tmp_path):
    out, book = tmp_path / "a.safetensors", Notebook()
    training = ["--base", folder, "--rank", 2, "--steps", 6, "--batch", 1]
    done = run("train", "--images", photos, "--prompt", "a cat", "--out", out, "--preview-every", 4, *training)
    assert done.exit_code == 0, done.output
    names = ["000004-0.png", "000004-1.png", "000006-0.png", "000006-1.png"]
    assert [path.name for path in sorted((tmp_path / "a.previews").iterdir())] == names
    train(photos, "a cat", out, base, OPTIONS, progress=False, callback=SavedPreviews(tmp_path / "b", 6, book))
    assert list(book.shown) == [6, 12] and [done for done, _, _ in book.told] == [1, 11]
    shown = load_image(tmp_path / "b" / "000012-0.png", base.resolution)
    assert (shown - book.shown[12][0].clamp(-1, 1)).abs().max() < 0.01


def test_a_watcher_can_stop_the_work(base, photos, tmp_path):
    class Impatient(Notebook):
        def losses(self, done, of, terms):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(photos, "a cat", tmp_path / "a.safetensors", base, OPTIONS, progress=False, callback=Impatient())
    assert not any(name.startswith("lora") for name in dict(base.unet.named_modules()))


def test_event_files_can_be_read_back(base, loras, photos, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = options_of("ziprank", steps=11)
    with event_log(tmp_path / "events", previews=11) as log:
        out = tmp_path / "x.safetensors"
        merge(
            *loras,
            out,
            "ziprank",
            base,
            photos,
            photos,
            options=replace(options, calibration_images=1),
            progress=False,
            callback=log,
        )
    found = EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    tags = found.Tags()
    assert {"loss/loss", "loss/reconstruction", "masks/content mean"} <= set(tags["scalars"])
    assert [event.step for event in found.Scalars("loss/loss")] == [1, 11]
    assert set(tags["histograms"]) == {"masks/content", "masks/style"}
    assert any(tag.startswith("preview") for tag in tags["images"])


def test_without_the_package_or_a_place(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'duolora\[logs\]'"), event_log(tmp_path):
        pass
    with event_log(None) as log:
        assert log is None
