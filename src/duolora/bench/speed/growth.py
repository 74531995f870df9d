"""`duolora bench growth`: time and memory against rank, image size, adapters and steps, with the slopes."""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from duolora.bench.options import GrowthOptions, Setting
from duolora.bench.speed.scenes import Scene, random_lora, scene_of
from duolora.bench.speed.speed import added, apart, clock_of, memory_of, wait, way_of
from duolora.merging.closed_form import Part, one_shot
from duolora.merging.options import METHODS
from duolora.provenance import facts
from duolora.textfiles import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Axis = Literal["rank", "resolution", "adapters", "steps"]
SIZES: dict[Axis, tuple[int, ...]] = {
    "rank": (4, 16, 64, 256),
    "resolution": (64, 128, 192, 256),
    "adapters": (1, 2, 3, 4),
    "steps": (1, 2, 4, 8),
}
WHAT = {
    "rank": "a DuoLoRA step, by rank",
    "resolution": "a DuoLoRA step, by the images' side in pixels",
    "adapters": "a one-shot merge (1 call), by number of adapters",
    "steps": "a DuoLoRA merge, by number of steps",
}


@dataclass(frozen=True)
class Point:
    """One size on one axis; the other sizes are those of `setting`."""

    setting: Setting
    axis: Axis
    size: int

    def scene(self) -> Scene:
        """The scene at this size."""
        changed = {self.axis: self.size} if self.axis in ("rank", "resolution") else {}
        return scene_of(replace(self.setting, **changed))  # type: ignore[arg-type]

    def run(self, made: Scene) -> float:
        """Do the work once, after something that warms up; its seconds."""
        clock = getattr(time, clock_of(made))
        if self.axis == "adapters":  # as many as the size says, the last of them a style
            loras = [random_lora(made.base, self.setting.rank, k) for k in range(self.size)]
            parts = [
                Part(lora, "style" if k == self.size - 1 else "content", made.data.x_c, f"prompt {k}")
                for k, lora in enumerate(loras)
            ]
            wait(made)
            begun = clock()
            one_shot(made.base, parts, made.both.roles, replace(METHODS["oneshot"], calls=1))
            wait(made)
            return float(clock() - begun)
        with way_of("ours", made, METHODS["duolora"]) as learning:
            learning.step(0)
            wait(made)
            begun = clock()
            for step in range(self.size if self.axis == "steps" else 1):
                learning.step(step + 1)
            wait(made)
            return float(clock() - begun)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of value ~ size^p, by least squares in logarithms; 0 for anything that is not positive."""
    if min(values) <= 0:
        return 0.0
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope


def growth(options: GrowthOptions, sizes: dict[Axis, tuple[int, ...]] = SIZES) -> str:
    """Measure all sizes in turns, write `growth.json` and `growth.png` into `out`; returns the slopes as text."""
    base, device, seed = options.base, options.device, options.seed
    setting = Setting(base, 16, None if base == "atelier" else 128, device, width=options.width, seed=seed)
    axes = [axis for axis in sizes if base != "atelier" or axis != "resolution"]
    found: dict[str, dict[str, Any]] = {}
    for axis in tqdm(axes, "Growth", disable=options.quiet, leave=False):
        points = [Point(setting, axis, size) for size in sizes[axis]]
        scenes = [point.scene() for point in points]
        turns = [[p.run(made) for p, made in zip(points, scenes, strict=True)] for _ in range(options.repeats)]
        seconds = [statistics.median(column) for column in zip(*turns, strict=True)]
        megabytes = (
            [added(apart("duolora.bench.speed.growth", asdict(point))) for point in points] if options.memory else []
        )
        found[axis] = {"sizes": sizes[axis], "seconds": seconds, "peak_mb": megabytes, "what": WHAT[axis]}
        found[axis] |= {"slope_seconds": slope(sizes[axis], seconds)}
        if options.memory:
            found[axis]["slope_mb"] = slope(sizes[axis], megabytes)
    path = write_json(options.out / "growth.json", {"setting": asdict(setting), **facts(device, seed), "axes": found})
    _plot(found, options.out / "growth.png")
    slopes = {"time": "slope_seconds", "memory": "slope_mb"}.items()
    said = {axis: [f"{w} ~ size^{f[s]:.2f}" for w, s in slopes if s in f] for axis, f in found.items()}
    return "\n".join([*(f"{a:10} {', '.join(x)}" for a, x in said.items()), f"{path}\n{options.out / 'growth.png'}"])


def _plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel for each axis: time on the left, memory on the right, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 3.6), layout="constrained")
    for k, (axis, f) in enumerate(found.items()):
        left = figure.add_subplot(1, len(found), k + 1)
        _line(left, f["sizes"], f["seconds"], "o-", "C0")
        left.set(xlabel=axis, ylabel="seconds")
        left.set_title(f"{f['what']}\ntime ~ size^{f['slope_seconds']:.2f}", fontsize=9)
        if f["peak_mb"] and min(f["peak_mb"]) > 0:
            right = left.twinx()
            _line(right, f["sizes"], f["peak_mb"], "s--", "C1")
            right.set_ylabel(f"peak MB beyond the UNet, ~ size^{f['slope_mb']:.2f}", color="C1", fontsize=8)
        left.set_xticks(f["sizes"], [str(size) for size in f["sizes"]])
        left.xaxis.minorticks_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _line(axes: "Axes", sizes: Sequence[float], values: Sequence[float], marks: str, color: str) -> None:
    """A line in logarithms, on a scale of a decade at least, so that what does not grow stays flat."""
    axes.loglog(sizes, values, marks, color=color)
    middle, half = math.sqrt(min(values) * max(values)), max(math.sqrt(10), 1.2 * math.sqrt(max(values) / min(values)))
    axes.set_ylim(middle / half, middle * half)


if __name__ == "__main__":
    _asked = json.loads(sys.argv[1])
    _point = Point(**_asked | {"setting": Setting(**_asked["setting"])})
    _made = _point.scene()
    print(json.dumps(memory_of(_made, lambda: _point.run(_made))))
