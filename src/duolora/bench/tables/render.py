"""Results as a table: Markdown, CSV and a plot, with intervals over pairs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from duolora.bench.tables.rows import FLOOR, ORACLE
from duolora.metrics.named import ATELIER, METRICS
from duolora.metrics.similarity import bootstrap_interval, ends, resampled
from duolora.textfiles import markdown, write_json

TRUTH = ("object", "style", "both", "colour", "pattern", "leak")
SIMILARITY = tuple(ATELIER)
COLUMNS = (*TRUTH, *SIMILARITY)
COSTS = ("trainable", "storage", "bytes", "seconds", "change")
"""Mask entries, bytes of the masks alone (the paper's storage), bytes of the merged file, seconds, and the masks' mean
change."""
LARGEST = 1e15
"""Of any score or cost."""
RIVALS = {"lead": "ZipLoRA", "lead_naive": "naive"}
"""The rows that the others are compared with pair by pair, since pairs differ more than methods do."""
LABELS = {"gap": "gap closed"} | {name: f"both − {rival}" for name, rival in RIVALS.items()}
"""What columns that compare rows are called where people read them."""
Ends = tuple[float, float | None, float | None]
"""A number and the two ends of its interval, where it has one."""
NO_GAP = 0.025
"""The largest share of resamples without a gap between floor and oracle at which an interval is still given."""


NOTE = (
    "Atelier's numbers, not comparable with the paper's: mean over pairs (95 % interval, bootstrap over pairs). Object "
    "to leak are shares of images by its classifier: both is the subject's class, its colour where the style keeps it, "
    "and the style, all in one image; leak is the style image's own object. Atelier content, "
    "image, text, style and leakage are the formulas of DINO, CLIP-I, CLIP-T, CSD-s and of DINO to the style, "
    "with its own encoders. Gap closed is of both: 0 the base without a LoRA, 1 a LoRA trained on true images. "
    f"Both − {' and both − '.join(RIVALS.values())} are means over pairs of the difference on a pair; what each "
    "pair has is in pairs.csv."
)


SERIES = (("both", "object", "style"), ("dino", "clip-i", "csd-s"), tuple(ATELIER)[:3])
"""What the plot shows, the first first and with intervals: of these the first group that was measured."""
SHOWN = {"both": "subject and style", "object": "subject", "style": "style"} | {n: m.label for n, m in METRICS.items()}


def note_of(encoders: Mapping[str, Mapping[str, object]]) -> str:
    """What the numbers of a table on photos are, and which encoders made them."""
    made = "; ".join(
        f"{name}: {card['checkpoint']} ({str(card['fingerprint'])[:12]}), {card['transform']}"
        for name, card in encoders.items()
    )
    return (
        "Mean over pairs (95 % interval, bootstrap over pairs) of average cosines: DINO to the subject's photos, "
        f"CLIP-I, CSD-s and leakage to the style images, CLIP-T to the prompt in words. {made}."
    )


class Result(NamedTuple):
    """What a cell measured, and where it belongs."""

    dataset: str
    pair: str
    row: str
    measured: dict


def is_sound(found: Any) -> bool:
    """Whether what a cell's file holds can stand in a table: scores and costs are numbers, or missing."""
    if not isinstance(found, dict) or not isinstance(found.get("prompts"), list):
        return False
    parts = [found.get(name, {}) for name in ("truth", "similarity", "encoders")]
    if not all(isinstance(part, dict) for part in parts) or "both" not in found.get("truth", {"both": 0}):
        return False
    values = [*parts[0].values(), *parts[1].values(), *(found.get(cost) for cost in COSTS)]
    return all(value is None or (isinstance(value, int | float) and abs(value) < LARGEST) for value in values)


def interval(values: Sequence[float]) -> Ends:
    """Mean and 95 % interval of the mean over pairs, by a percentile bootstrap."""
    found = bootstrap_interval(values)
    return found.mean, found.low, found.high


def gap_closed(values: Sequence[float], floors: Sequence[float], ceilings: Sequence[float]) -> Ends | None:
    """The share of the gap between floor and ceiling that is closed, of means over pairs, with its 95 % interval.

    The three are of the same pairs in the same order, and are resampled together. None where the ceiling's mean is not
    above the floor's; without an interval where that happens in many resamples, as with few pairs.
    """
    x, low, high = (np.asarray(v, float) for v in (values, floors, ceilings))
    if high.mean() <= low.mean():
        return None
    share = float((x - low).mean() / (high - low).mean())
    found = resampled(lambda rows: np.stack([(x - low)[rows].mean(1), (high - low)[rows].mean(1)], 1), len(x))
    closed, whole = found.T
    there = whole > 0
    if there.mean() < 1 - NO_GAP:
        return share, None, None
    return share, *ends(closed[there] / whole[there])


def summary(labels: Sequence[str], results: Sequence[Result]) -> list[dict[str, object]]:
    """For each data set and row: means with intervals, the gap closed, and what the merge cost."""
    lines: list[dict[str, object]] = []
    true = any("truth" in result.measured for result in results)
    scored = {name for result in results for name in result.measured.get("similarity", {})}
    columns = COLUMNS if true else [name for name in METRICS if name in scored]
    for dataset in dict.fromkeys(result.dataset for result in results):
        found = {
            label: {r.pair: r.measured for r in results if (r.dataset, r.row) == (dataset, label)} for label in labels
        }
        for label, here in found.items():
            if here:
                line: dict[str, object] = {"dataset": dataset, "row": label, "pairs": len(here)}
                line |= {column: _mean(column, list(here.values())) for column in columns}
                if true:
                    line["gap"] = _gap(here, found.get(FLOOR.label, {}), found.get(ORACLE.label, {}))
                    line |= {name: _lead(here, found[rival]) for name, rival in RIVALS.items() if found.get(rival)}
                for cost in COSTS:
                    known = [r[cost] for r in here.values() if r.get(cost) is not None]
                    line[cost] = float(np.mean(known)) if known else None
                lines.append(line)
    return lines


def pooled(results: Sequence[Result]) -> list[Result]:
    """The results again, as a data set "all", of those rows that are measured on every pair of all data sets."""
    pairs = {result.pair for result in results}
    measured_on = {row: {r.pair for r in results if r.row == row} for row in {r.row for r in results}}
    return [result._replace(dataset="all") for result in results if measured_on[result.row] == pairs]


def _mean(column: str, measured: Sequence[dict]) -> Ends | None:
    """A column's mean over the pairs that have it; photos may be scored by other metrics in each."""
    values = [r.get("truth" if column in TRUTH else "similarity", {}).get(column) for r in measured]
    known = [value for value in values if value is not None]
    return interval(known) if known else None


def _gap(here: dict[str, dict], floor: dict[str, dict], ceiling: dict[str, dict]) -> Ends | None:
    """The gap closed in both, over the pairs that all three have."""
    pairs = [pair for pair in here if pair in floor and pair in ceiling]
    values, floors, ceilings = ([of[pair]["truth"]["both"] for pair in pairs] for of in (here, floor, ceiling))
    return gap_closed(values, floors, ceilings) if pairs else None


def _lead(here: dict[str, dict], rival: dict[str, dict]) -> Ends | None:
    """By how much the share of both exceeds the rival's, over the pairs that the two rows have."""
    gaps = [here[pair]["truth"]["both"] - rival[pair]["truth"]["both"] for pair in here if pair in rival]
    return interval(gaps) if gaps else None


def write_pairs(results: Sequence[Result], path: Path) -> None:
    """What every single cell measured, a line each: what all intervals are made of."""
    asked = [(name, "truth") for name in TRUTH] + [(name, "similarity") for name in METRICS]
    measures = [(name, kind) for name, kind in asked if any(name in r.measured.get(kind, {}) for r in results)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "pair", "row", "device", *(name for name, _ in measures), *COSTS])
        for dataset, pair, row, measured in results:
            values = [measured.get(kind, {}).get(name) for name, kind in measures]
            costs = [measured.get(cost) for cost in COSTS]
            writer.writerow([dataset, pair, row, measured.get("device", ""), *values, *costs])


def render(title: str, lines: Sequence[dict[str, object]], folder: Path, note: str = NOTE) -> str:
    """Write a summary as `table.md`, `.csv`, `.json` and `.png` into the folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [name for name in (*TRUTH, *METRICS, *LABELS) if any(name in line for line in lines)]
    text = _markdown(title, lines, columns, note)
    (folder / "table.md").write_text(text, "utf-8")
    write_json(folder / "table.json", lines)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{c}{end}" for c in columns for end in ("", "_low", "_high")]
        writer.writerow(["dataset", "row", "pairs", *ends, *COSTS])
        for line in lines:
            cells = [v for c in columns for v in (line.get(c) or ("", "", ""))]  # type: ignore[attr-defined]
            writer.writerow([line["dataset"], line["row"], line["pairs"], *cells, *(line.get(c) for c in COSTS)])
    _plot(title, lines, folder / "table.png")
    return text


def _markdown(title: str, lines: Sequence[dict[str, object]], columns: Sequence[str], note: str) -> str:
    labels = {name: metric.label for name, metric in METRICS.items()} | LABELS
    head = ["row", "pairs", *(labels.get(c, c) for c in columns), "masks", "masks, kB", "mean change", "kB", "s"]
    costs = (("trainable", 1, 0), ("storage", 1e-3, 1), ("change", 1, 3), ("bytes", 1e-3, 0), ("seconds", 1, 1))
    text = [f"## {title}", "", note, ""]
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        rows = [
            [str(line["row"]), str(line["pairs"]), *(_with_interval(line.get(c), line["pairs"]) for c in columns)]
            + [_number(line.get(name), times, digits) for name, times, digits in costs]
            for line in lines
            if line["dataset"] == dataset
        ]
        text += [f"### {dataset}", "", markdown(head, rows), ""]
    return "\n".join(text)


def _with_interval(value: object, pairs: object) -> str:
    """A mean, with its interval over pairs where there is more than one."""
    if not isinstance(value, tuple):
        return "–"
    mean, low, high = value
    return f"{mean:.2f}" if low is None or pairs == 1 else f"{mean:.2f} ({low:.2f}–{high:.2f})"


def _number(value: object, times: float, digits: int = 0) -> str:
    return "" if not isinstance(value, float) else f"{value * times:,.{digits}f}"


def _plot(title: str, lines: Sequence[dict[str, object]], path: Path) -> None:
    """A line for each row and a panel for each data set, values along it; nothing where there is nothing to show."""
    measured = {name for line in lines for name, value in line.items() if value is not None}
    series = next((group for group in SERIES if measured.intersection(group)), ())
    if not series:
        return
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(line["dataset"] for line in lines))
    rows = list(dict.fromkeys(str(line["row"]) for line in lines))
    size = (2.5 + 2.4 * len(datasets), 1.5 + 0.27 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(datasets), sharey=True, squeeze=False)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for k, name in reversed(list(enumerate(series))):
            found = [(rows.index(str(line["row"])), line.get(name)) for line in lines if line["dataset"] == dataset]
            here = [(row, value) for row, value in found if isinstance(value, tuple)]
            at, means, filled = [row for row, _ in here], [value[0] for _, value in here], "none" if k else f"C{k}"
            axis.plot(means, at, "o^s"[k], color=f"C{k}", ms=5, mfc=filled, label=SHOWN.get(name, name))
            if k == 0:
                axis.hlines(at, [value[1] for _, value in here], [value[2] for _, value in here], color="C0", lw=2)
        axis.set(title=str(dataset), yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], ncols=len(handles), loc="outside lower center", frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
