"""Ctrl-C ends a step, leaves a checkpoint and says so; the same call goes on from it to the same result."""

import os
import signal
from threading import Thread

import pytest
import typer

from duolora.api.train import train
from duolora.cli.common import one_line
from duolora.training.checkpoint import interruptible
from duolora.training.options import TrainOptions


def press():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def handled():
    """Python's own handler, also where the tests were started in the background, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_press_is_noted_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as asked:
        assert not asked.is_set()
        press()
        assert asked.is_set()
        press()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_of_a_page_takes_no_signals():
    def work():
        with interruptible() as asked:
            assert signal.getsignal(signal.SIGINT) is before
            done.append(asked.is_set())

    done, before = [], signal.getsignal(signal.SIGINT)
    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert done == [False]


def test_a_command_says_what_was_kept(capsys):
    with pytest.raises(typer.Exit) as left, one_line():
        raise KeyboardInterrupt("stopped after 3 of 9 steps; the same command goes on from there")
    assert left.value.exit_code == 130
    assert "stopped after 3 of 9 steps" in capsys.readouterr().err


class Pressing:
    """A callback that presses Ctrl-C at the first step."""

    previews = 0

    def losses(self, done, of, terms):
        if done == 1:
            press()

    def masks(self, done, masks):
        """Nothing."""

    def preview(self, done, images):
        """Nothing."""


@pytest.mark.parametrize("save_every", [1, 100])
def test_a_stopped_training_goes_on_to_the_same_bytes(base, photos, tmp_path, save_every):
    options, out = TrainOptions(rank=1, steps=4, batch=1, lr=1e-2), tmp_path / "stopped.safetensors"
    with pytest.raises(KeyboardInterrupt, match="stopped after 1 of 4 steps; the same command goes on"):
        train(photos, "a sks cat", out, base, options, False, callback=Pressing(), save_every=save_every)
    assert len(list(tmp_path.glob(".stopped.*.ckpt.safetensors"))) == 1
    assert not out.exists()
    done = train(photos, "a sks cat", out, base, options, False, save_every=save_every)
    whole = train(photos, "a sks cat", tmp_path / "whole.safetensors", base, options, False)
    assert out.read_bytes() == whole.path.read_bytes() and done.losses == whole.losses
    assert "losses" not in repr(done)
    assert not list(tmp_path.glob(".*"))
