"""`duolora bench speed`: an update of each method, ours, the slow reference's and the floor, side by side.

An update at a new draw of pictures, timesteps and noise needs the teachers; where draws take turns (its option
`pool`) one at a known draw does not. Both are measured, each against its own floor, and weighed as in a whole merge.

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from duolora.bench.record import facts, write
from duolora.bench.speed.floor import Floor, matrix_rate, operations, passes
from duolora.bench.speed.random_base import DTYPES
from duolora.bench.speed.reference import reference
from duolora.bench.speed.scenes import Scene, scene
from duolora.errors import DuoLoRAError
from duolora.merging.fold import folded
from duolora.merging.inputs import Masks, first_masks
from duolora.merging.learn import learner
from duolora.merging.options import METHODS, MergeOptions

Way = Literal["ours", "known", "floor", "known floor", "reference"]
WAYS: tuple[Way, ...] = ("ours", "known", "floor", "known floor", "reference")
"""Ours and the floor at new draws and at known ones; the slow way knows no draw."""
PEAKS: tuple[Way, ...] = ("ours", "floor", "reference")
"""The ways whose memory is measured."""
LEARNT = ("ziplora", "ziprank", "ziprank-prior", "duolora")


@dataclass(frozen=True)
class Setting:
    """What is measured, on what."""

    base: str = "atelier"
    rank: int = 16
    resolution: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    width: int | None = None
    checkpointing: bool = False
    seed: int = 0

    def scene(self) -> Scene:
        """Build it."""
        made = scene(
            self.base, self.rank, self.resolution, self.device, DTYPES[self.dtype], self.width, self.seed
        )  # fmt: skip
        if self.checkpointing:
            made.base.unet.enable_gradient_checkpointing()
        return made


class Updates(Protocol):
    """Something that can be updated."""

    def update(self, step: int) -> dict[str, Tensor]:
        """One update."""
        ...


@contextmanager
def way_of(way: Way, made: Scene, options: MergeOptions) -> Iterator[tuple[Updates, tuple[Masks, Masks]]]:
    """One way to update the masks of a method, and the masks."""
    masks = first_masks(made.both, options, made.base.device)
    if way in ("floor", "known floor"):
        yield Floor(made, options, known=way == "known floor"), masks
    else:
        loop: Callable[..., AbstractContextManager[Updates]] = reference if way == "reference" else learner
        with loop(made.base, made.both, options, made.data, *masks) as learning:
            yield learning, masks


def _seconds(way: Way, made: Scene, options: MergeOptions, updates: int) -> list[float]:
    """The times of some updates after those that do not count: a first one, or one at each draw to be known."""
    times, clock = [], getattr(time, clock_of(made))
    options = replace(options, pool=updates + 1 if way == "known" else 0)
    with way_of(way, made, options) as (learning, _):
        for step in range(options.pool or 1):
            learning.update(step)
        for step in range(1, updates + 1):
            wait(made)
            begun = clock()
            learning.update(step)
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


def timed(
    made: Scene, methods: dict[str, MergeOptions], updates: int, repeats: int, slow_updates: int, progress: bool
) -> dict[str, dict[Way, list[float]]]:
    """Seconds of single updates, for each method and way; the ways take turns `repeats` times."""
    times: dict[str, dict[Way, list[float]]] = {m: {way: [] for way in WAYS} for m in methods}
    turns = [(m, way) for _ in range(repeats) for m in methods for way in WAYS]
    for method, way in tqdm(turns, "Timing", disable=not progress, leave=False):
        count = slow_updates if way == "reference" else updates
        if count:
            times[method][way] += _seconds(way, made, methods[method], count)
    return times


def peak(setting: Setting, method: str, way: Way, updates: int = 2) -> dict[str, float]:
    """Peak memory in MB beyond the bare UNet's, of this process and of its device. Run it in a fresh process."""
    made = setting.scene()
    cuda = made.base.device.type == "cuda"
    Floor(made, METHODS[method]).warm()
    forget_peak()
    before = resident(), torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with way_of(way, made, METHODS[method]) as (learning, _):
        for step in range(updates):
            learning.update(step)
    device = torch.cuda.max_memory_allocated() - before[1] if cuda else 0
    return {"bare": before[0] / 1e6, "process": (resident() - before[0]) / 1e6, "device": device / 1e6} | {
        "device_bare": before[1] / 1e6
    }


def forget_peak() -> None:
    """Let the process's peak begin anew (Linux; elsewhere it stays that of its whole life)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident() -> float:
    """The peak of this process's memory, in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_apart(setting: Setting, method: str, way: Way) -> dict[str, float]:
    """`peak` in a child process."""
    asked = json.dumps({"setting": asdict(setting), "method": method, "way": way})
    child = [sys.executable, "-m", "duolora.bench.speed.speed", asked]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DuoLoRAError(f"the measurement of {method}, {way}, failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def folded_bytes(made: Scene, options: MergeOptions) -> int:
    """The size of the merged file's numbers, at two bytes each."""
    loras = folded(made.both, *first_masks(made.both, options, made.base.device), options).modules
    return sum(2 * (lora.up.numel() + lora.down.numel()) for lora in loras.values())


def speed(
    setting: Setting,
    out: Path,
    methods: tuple[str, ...] = LEARNT,
    updates: int = 3,
    repeats: int = 5,
    slow_updates: int = 1,
    memory: bool = True,
    progress: bool = True,
) -> str:
    """Measure, write `speed-BASE.json` into the folder `out`, and return the table as text."""
    made = setting.scene()
    options = {m: replace(METHODS[m], seed=setting.seed) for m in methods}
    times = timed(made, options, updates, repeats, slow_updates, progress)
    rate = matrix_rate(made.base.device, made.base.dtype, getattr(time, clock_of(made)))
    rows = {m: _row(made, o, times[m], rate) for m, o in options.items()}
    if memory:
        for method in methods:
            found = {way: _peak_apart(setting, method, way) for way in PEAKS}
            saving = replace(setting, checkpointing=True)
            rows[method]["peak_mb"] = {**found, "ours, checkpointed": _peak_apart(saving, method, "ours")}
    results: dict[str, Any] = {
        "setting": asdict(setting),
        "clock": clock_of(made),
        "matrix_rate": rate,
        **facts(setting.device, setting.seed),
        "methods": rows,
    }
    path = write(out / f"speed-{setting.base}.json", results)
    return f"{table(rows)}\n{path}"


def _row(made: Scene, options: MergeOptions, times: dict[Way, list[float]], rate: float) -> dict[str, Any]:
    medians = {way: statistics.median(seconds) for way, seconds in times.items() if seconds}
    masks = first_masks(made.both, options, made.base.device)
    work = operations(Floor(made, options))
    new = min(options.pool, options.steps) / options.steps if options.pool else 1.0
    in_a_merge = new * medians["ours"] + (1 - new) * medians["known"]
    slow = medians.get("reference")
    return {
        "seconds": medians,
        "all_seconds": times,
        "new_draws": new,
        "seconds_in_a_merge": in_a_merge,
        "to_floor": medians["ours"] / medians["floor"],
        "known_to_floor": medians["known"] / medians["known floor"],
        "reference_to_ours": slow and slow / medians["ours"],
        "reference_to_merge": slow and slow / in_a_merge,
        "samples": passes(options).samples,
        "operations": work,
        "share_of_matrix_rate": work / medians["ours"] / rate,
        "trainable": sum(m.numel() for side in masks for m in side.values()),
        "bytes": folded_bytes(made, options),
    }


HEAD = (
    "method", "s/update: new draw", "× floor", "known draw", "× floor", "in a merge", "reference ×",
    "share of matrix rate", "samples", "masks", "file, kB",
    "peak MB beyond the UNet: ours", "checkpointed", "reference", "floor",
)  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for method, row in rows.items():
        added = {way: f"{_added(at):.0f}" for way, at in row.get("peak_mb", {}).items()}
        slow, seconds = row["reference_to_merge"], row["seconds"]
        cells = [method, f"{seconds['ours']:.3f}", f"{row['to_floor']:.2f}"]
        cells += [f"{seconds['known']:.3f}", f"{row['known_to_floor']:.2f}"]
        cells += [f"{row['seconds_in_a_merge']:.3f}", f"{slow:.2f}" if slow else "–"]
        cells += [f"{row['share_of_matrix_rate']:.2f}", str(row["samples"])]
        cells += [f"{row['trainable']:,}", f"{row['bytes'] / 1000:.0f}"]
        cells += [added.get(way, "–") for way in ("ours", "ours, checkpointed", "reference", "floor")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _added(at: dict[str, float]) -> float:
    """Peak beyond the bare UNet's: on the device where there is one, else of the process."""
    return at["device"] or at["process"]


if __name__ == "__main__":
    _asked = json.loads(sys.argv[1])
    print(json.dumps(peak(Setting(**_asked["setting"]), _asked["method"], _asked["way"])))
