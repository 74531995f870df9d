"""`duolora bench speed`: a training step of each method: ours, the dense reference's and the floor.

A step on new samples of images, timesteps and noise needs the teachers; where samples are cached (the option `pool`)
one on cached samples does not. Both are measured, each against its own floor, and weighted as in a whole merge.

Time is measured in one process, the ways in turn, so that other work on the machine hits all alike; what counts
is the ratio of medians. With one thread on the CPU it is the process's own time, which other work disturbs least; else
that of the clock. Memory is measured in a process of its own for each, because a process does not give it back.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from duolora.bench.options import Setting, SpeedOptions
from duolora.bench.speed.floor import Floor, matrix_rate, operations, passes
from duolora.bench.speed.reference import Reference, reference
from duolora.bench.speed.scenes import Scene, scene_of
from duolora.errors import DuoLoRAError
from duolora.merging.fold import folded
from duolora.merging.inputs import first_masks
from duolora.merging.learn import Learner, learner
from duolora.merging.options import METHODS, MergeOptions
from duolora.provenance import facts
from duolora.textfiles import markdown, write_json

Way = Literal["ours", "cached", "floor", "cached floor", "dense"]
WAYS: tuple[Way, ...] = ("ours", "cached", "floor", "cached floor", "dense")
"""Ours and the floor on new samples and on cached ones; the dense reference caches none."""
PEAKS: tuple[Way, ...] = ("ours", "floor", "dense")
"""The ways whose memory is measured."""
TRAINED = ("ziplora", "ziprank", "ziprank-prior", "duolora")


@contextmanager
def way_of(way: Way, made: Scene, options: MergeOptions) -> Iterator[Floor | Reference | Learner]:
    """One way to train the masks of a method, step by step."""
    if way in ("floor", "cached floor"):
        yield Floor(made, options, cached=way == "cached floor")
    else:
        masks = first_masks(made.both, options, made.base.device)
        loop: Callable[..., AbstractContextManager[Reference | Learner]] = reference if way == "dense" else learner
        with loop(made.base, made.both, options, made.data, *masks) as learning:
            yield learning


def _seconds(way: Way, made: Scene, options: MergeOptions, steps: int) -> list[float]:
    """The times of some steps after those that do not count: a first one, or one on each sample to be cached."""
    times, clock = [], getattr(time, clock_of(made))
    options = replace(options, pool=steps + 1 if way == "cached" else 0)
    with way_of(way, made, options) as learning:
        for step in range(options.pool or 1):
            learning.step(step)
        for step in range(1, steps + 1):
            wait(made)
            begun = clock()
            learning.step(step)
            wait(made)
            times.append(clock() - begun)
    return times


def clock_of(made: Scene) -> str:
    """The name of the clock, in the module `time`."""
    alone = made.base.device.type == "cpu" and torch.get_num_threads() == 1
    return "process_time" if alone else "perf_counter"


def wait(made: Scene) -> None:
    """Let the device finish."""
    if made.base.device.type == "cuda":
        torch.cuda.synchronize()


def timed(made: Scene, methods: dict[str, MergeOptions], how: SpeedOptions) -> dict[str, dict[Way, list[float]]]:
    """Seconds of single steps, for each method and way; the ways take turns."""
    times: dict[str, dict[Way, list[float]]] = {m: {way: [] for way in WAYS} for m in methods}
    turns = [(m, way) for _ in range(how.repeats) for m in methods for way in WAYS]
    for method, way in tqdm(turns, "Timing", disable=how.quiet, leave=False):
        if count := how.dense_steps if way == "dense" else how.steps:
            times[method][way] += _seconds(way, made, methods[method], count)
    return times


def peak(setting: Setting, method: str, way: Way, steps: int = 2) -> dict[str, float]:
    """Peak memory of some steps (see `memory_of`). Run it in a fresh process."""
    made = scene_of(setting)
    Floor(made, METHODS[method]).warm()

    def work() -> None:
        """The steps whose memory is measured."""
        with way_of(way, made, METHODS[method]) as learning:
            for step in range(steps):
                learning.step(step)

    return memory_of(made, work)


def memory_of(made: Scene, work: Callable[[], object]) -> dict[str, float]:
    """Peak memory in MB beyond the bare UNet's, of this process and of its device, while work is done."""
    cuda = made.base.device.type == "cuda"
    with suppress(OSError):  # let the peak begin anew, on Linux; elsewhere it stays that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")
    before = resident(), torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    work()
    device = torch.cuda.max_memory_allocated() - before[1] if cuda else 0
    found = {"bare": before[0], "process": resident() - before[0], "device": device, "device_bare": before[1]}
    return {name: value / 1e6 for name, value in found.items()}


def resident() -> float:
    """The peak of this process's memory, in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def apart(module: str, asked: dict[str, Any]) -> dict[str, float]:
    """What a module of this package prints when it is run with a question, in a process of its own."""
    child = [sys.executable, "-m", module, json.dumps(asked)]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DuoLoRAError(f"the measurement of {asked} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(options: SpeedOptions) -> str:
    """Measure, write `speed-BASE.json` into the folder `out`, and return the table as text."""
    setting = Setting(**{f.name: getattr(options, f.name) for f in fields(Setting)})
    made = scene_of(setting)
    methods = {m: replace(METHODS[m], seed=setting.seed) for m in options.method or TRAINED}
    times = timed(made, methods, options)
    rate = matrix_rate(made.base.device, made.base.dtype, getattr(time, clock_of(made)))
    rows = {m: _row(made, o, times[m], rate) for m, o in methods.items()}
    for method in methods if options.memory else ():
        settings: dict[str, Setting] = dict.fromkeys(PEAKS, setting)
        settings["ours, checkpointed"] = replace(setting, checkpointing=True)
        asked = {
            name: {"setting": asdict(each), "method": method, "way": name.partition(",")[0]}
            for name, each in settings.items()
        }
        rows[method]["peak_mb"] = {name: apart("duolora.bench.speed.speed", each) for name, each in asked.items()}
    about = {"setting": asdict(setting), "clock": clock_of(made), "matrix_rate": rate}
    about |= {**facts(setting.device, setting.seed), "methods": rows}
    return f"{table(rows)}\n{write_json(options.out / f'speed-{setting.base}.json', about)}"


def _row(made: Scene, options: MergeOptions, times: dict[Way, list[float]], rate: float) -> dict[str, Any]:
    medians = {way: statistics.median(seconds) for way, seconds in times.items() if seconds}
    masks = first_masks(made.both, options, made.base.device)
    work, loras = operations(Floor(made, options)), folded(made.both, *masks, options).modules.values()
    new = min(options.pool, options.steps) / options.steps if options.pool else 1.0
    in_a_merge = new * medians["ours"] + (1 - new) * medians["cached"]
    dense = medians.get("dense")
    return {
        "seconds": medians,
        "all_seconds": times,
        "new_samples": new,
        "seconds_in_a_merge": in_a_merge,
        "to_floor": medians["ours"] / medians["floor"],
        "cached_to_floor": medians["cached"] / medians["cached floor"],
        "dense_to_ours": dense and dense / medians["ours"],
        "dense_to_merge": dense and dense / in_a_merge,
        "samples": passes(options).samples,
        "operations": work,
        "share_of_matrix_rate": work / medians["ours"] / rate,
        "trainable": sum(m.numel() for side in masks for m in side.values()),
        "bytes": sum(2 * (lora.up.numel() + lora.down.numel()) for lora in loras),
    }


HEAD = (
    "method", "s/step: new samples", "× floor", "cached samples", "× floor", "in a merge", "dense reference ×",
    "share of matrix rate", "samples", "masks", "file, kB",
    "peak MB beyond the UNet: ours", "checkpointed", "dense reference", "floor",
)  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = []
    for method, row in rows.items():
        added = {way: f"{added(at):.0f}" for way, at in row.get("peak_mb", {}).items()}
        dense, seconds = row["dense_to_merge"], row["seconds"]
        cells = [method, f"{seconds['ours']:.3f}", f"{row['to_floor']:.2f}"]
        cells += [f"{seconds['cached']:.3f}", f"{row['cached_to_floor']:.2f}"]
        cells += [f"{row['seconds_in_a_merge']:.3f}", f"{dense:.2f}" if dense else "–"]
        cells += [f"{row['share_of_matrix_rate']:.2f}", str(row["samples"])]
        cells += [f"{row['trainable']:,}", f"{row['bytes'] / 1000:.0f}"]
        lines.append([*cells, *(added.get(way, "–") for way in ("ours", "ours, checkpointed", "dense", "floor"))])
    return markdown(HEAD, lines)


def added(at: dict[str, float]) -> float:
    """Peak beyond the bare UNet's: on the device where there is one, else of the process."""
    return at["device"] or at["process"]


if __name__ == "__main__":
    _asked = json.loads(sys.argv[1])
    print(json.dumps(peak(Setting(**_asked["setting"]), _asked["method"], _asked["way"])))
