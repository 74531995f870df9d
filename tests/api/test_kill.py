"""kill −9 at random moments: the old file or the new one, never half of one; training goes on to the same bytes."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.verify import relative_error
from duolora.lora.write.file import write_adapter
from duolora.merging import learn
from duolora.model.base import load_base
from duolora.paper.lowrank import LowRank
from processes import FORKED

KILLS = int(os.environ.get("DUOLORA_KILLS", "4"))
"""At how many moments the writer is killed; 20 and more in the long run.

Training and merging are killed at a quarter as many; in the long run merging at all of them, into one file and into
two.
"""
OPTIONS = TrainOptions(rank=2, steps=15, batch=1, lr=1e-3)
SAVE_EVERY = 3


def one_of(number: int) -> Adapter:
    rng = torch.Generator().manual_seed(number)
    names = [f"down_blocks.1.attentions.0.transformer_blocks.{k}.attn1.to_q" for k in range(40)]
    return Adapter({n: LowRank(torch.randn(64, 8, generator=rng), torch.randn(8, 64, generator=rng)) for n in names})


def write_forever(path: Path) -> None:
    torch.set_num_threads(1)
    adapters = [one_of(0), one_of(1)]
    for k in range(1_000_000):
        write_adapter(path, adapters[k % 2], torch.float32)


def train_once(photos: Path, out: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    train(photos, "a cat", out, load_base(folder), OPTIONS, progress=False, save_every=SAVE_EVERY)


def merge_once(loras: tuple[Path, Path], photos: Path, out: Path, folder: Path, format: str) -> None:
    torch.set_num_threads(1)
    learn.SAVE_EVERY = SAVE_EVERY
    options = options_of("ziprank-prior", steps=9)
    base = load_base(folder)
    merge(*loras, out, "ziprank-prior", base, photos, photos, options=options, progress=False, format=format)


def killed(process, after: float) -> None:
    process.join(after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def waited(path: Path, process) -> None:
    while not path.exists() and process.is_alive():
        time.sleep(0.01)


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path, rng, adapters = tmp_path / "a.safetensors", random.Random(0), [one_of(0), one_of(1)]
    for _ in range(KILLS):
        process = FORKED.Process(target=write_forever, args=(path,))
        process.start()
        waited(path, process)
        killed(process, rng.uniform(0, 0.4))
        found = read_adapter(path)
        errors = [max(relative_error(a.modules[n], found.modules[n]) for n in a.modules) for a in adapters]
        assert min(errors) < 1e-6


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_killed_training_goes_on_to_the_same_bytes(folder, photos, tmp_path):
    started = time.perf_counter()
    runs = [tmp_path / "whole" / "a.safetensors", tmp_path / "parts" / "a.safetensors"]
    process = FORKED.Process(target=train_once, args=(photos, runs[0], folder))
    process.start()
    process.join()
    length, rng = time.perf_counter() - started, random.Random(1)
    for _ in range(max(1, KILLS // 4)):
        process = FORKED.Process(target=train_once, args=(photos, runs[1], folder))
        process.start()
        killed(process, rng.uniform(0.3, 0.95) * length)
        if runs[1].exists():
            break
    process = FORKED.Process(target=train_once, args=(photos, runs[1], folder))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert runs[1].read_bytes() == runs[0].read_bytes()
    assert [p.name for p in runs[1].parent.iterdir() if p.suffix == ".safetensors"] == ["a.safetensors"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
@pytest.mark.parametrize("format", ["split"] if KILLS < 20 else ["diffusers", "split"])
def test_a_killed_merge_leaves_the_old_file_or_none_and_goes_on_to_the_same_bytes(
    folder, loras, photos, tmp_path, format
):
    started = time.perf_counter()
    whole, out = tmp_path / "whole" / "a.safetensors", tmp_path / "parts" / "a.safetensors"
    process = FORKED.Process(target=merge_once, args=(loras, photos, whole, folder, format))
    process.start()
    process.join()
    assert process.exitcode == 0
    length, rng = time.perf_counter() - started, random.Random(2)
    finished = {path.name: path.read_bytes() for path in whole.parent.iterdir()}
    out.parent.mkdir()
    old = {name: b"what was there" for name in finished}
    for kill in range(KILLS if KILLS >= 20 else max(1, KILLS // 4)):
        for name, data in ({} if kill % 2 else old).items():
            (out.parent / name).write_bytes(data)
        process = FORKED.Process(target=merge_once, args=(loras, photos, out, folder, format))
        process.start()
        killed(process, rng.uniform(0.2, 1.0) * length)
        for name in finished:
            path = out.parent / name
            assert not path.exists() or path.read_bytes() in (finished[name], old[name])
    process = FORKED.Process(target=merge_once, args=(loras, photos, out, folder, format))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == finished
