"""Results as a table: Markdown, CSV and a plot, with intervals over pairs."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

COLUMNS = ("object", "look", "joint", "colour", "pattern", "leak")
Result = tuple[str, str, dict]
"""Data set, label of the row, and what the cell measured."""


def interval(values: Sequence[float], seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean over pairs, by a percentile bootstrap."""
    x = np.asarray(values, float)
    means = np.random.default_rng(seed).choice(x, (draws, len(x))).mean(1)
    return float(x.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def share_of_the_way(value: float, floor: float, ceiling: float) -> float | None:
    """Where a value lies between floor (0) and ceiling (1); None when there is no way between them."""
    return None if ceiling <= floor else (value - floor) / (ceiling - floor)


def summary(labels: Sequence[str], results: Sequence[Result]) -> list[dict[str, object]]:
    """For each data set and row: means with intervals, and what the merge cost."""
    lines: list[dict[str, object]] = []
    for dataset in dict.fromkeys(d for d, _, _ in results):
        for label in labels:
            here = [r for d, name, r in results if (d, name) == (dataset, label)]
            if not here:
                continue
            line: dict[str, object] = {"dataset": dataset, "row": label, "pairs": len(here)}
            for column in COLUMNS:
                values = [r["truth"][column] for r in here if r["truth"][column] is not None]
                line[column] = interval(values) if values else None
            for cost in ("trainable", "bytes", "seconds", "moved"):
                line[cost] = float(np.mean([r[cost] for r in here])) if cost in here[0] else None
            lines.append(line)
    for line in lines:
        ends = {
            o["row"]: o["joint"][0]  # type: ignore[index]
            for o in lines
            if o["dataset"] == line["dataset"] and o["row"] in ("base, no LoRA", "oracle") and o["joint"]
        }
        way = None
        if len(ends) == 2 and line["joint"]:
            way = share_of_the_way(line["joint"][0], ends["base, no LoRA"], ends["oracle"])  # type: ignore[index]
        line["way"] = way
    return lines


def render(title: str, labels: Sequence[str], results: Sequence[Result], folder: Path) -> str:
    """Write `table.md`, `table.csv`, `table.json` and `table.png` into the folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = summary(labels, results)
    text = _markdown(title, lines)
    (folder / "table.md").write_text(text, "utf-8")
    (folder / "table.json").write_text(json.dumps(lines, indent=1), "utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{c}{end}" for c in COLUMNS for end in ("", "_low", "_high")]
        writer.writerow(["dataset", "row", "pairs", *ends, "way", "trainable", "bytes", "seconds", "moved"])
        for line in lines:
            cells = [v for c in COLUMNS for v in (line[c] or ("", "", ""))]  # type: ignore[attr-defined]
            rest = [line[c] for c in ("way", "trainable", "bytes", "seconds", "moved")]
            writer.writerow([line["dataset"], line["row"], line["pairs"], *cells, *rest])
    _plot(title, lines, folder / "table.png")
    return text


def _markdown(title: str, lines: Sequence[dict[str, object]]) -> str:
    head = ["row", "pairs", *COLUMNS, "way to oracle", "masks", "kB", "s"]
    text = [
        f"## {title}",
        "",
        "Atelier's numbers, by its recognisers; not comparable with the paper's. Mean over pairs",
        "",
    ]
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        text += [f"### {dataset}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for line in lines:
            if line["dataset"] == dataset:
                cells = [_with_interval(line[c]) for c in COLUMNS]
                cost = [_number(line["trainable"], 1), _number(line["bytes"], 1e-3), _number(line["seconds"], 1, 1)]
                row = [str(line["row"]), str(line["pairs"]), *cells, _number(line["way"], 1, 2), *cost]
                text.append(f"| {' | '.join(row)} |")
        text.append("")
    text[2] += " (95 % interval, bootstrap over pairs)."
    return "\n".join(text)


def _with_interval(value: object) -> str:
    if not isinstance(value, tuple):
        return "–"
    mean, low, high = value
    return f"{mean:.2f} ({low:.2f}–{high:.2f})"


def _number(value: object, times: float, digits: int = 0) -> str:
    return "" if not isinstance(value, float) else f"{value * times:,.{digits}f}"


def _plot(title: str, lines: Sequence[dict[str, object]], path: Path) -> None:
    """Content against style, one point a row, one panel a data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    datasets = list(dict.fromkeys(line["dataset"] for line in lines))
    figure, axes = pyplot.subplots(1, len(datasets), figsize=(5.2 * len(datasets), 5), squeeze=False)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for line in lines:
            if line["dataset"] == dataset:
                x, y = line["object"], line["look"]
                axis.errorbar(
                    x[0], y[0], [[y[0] - y[1]], [y[2] - y[0]]], [[x[0] - x[1]], [x[2] - x[0]]],  # type: ignore[index]
                    fmt="o", capsize=2, alpha=0.7,
                )  # fmt: skip
                axis.annotate(str(line["row"]), (x[0], y[0]), fontsize=7, xytext=(4, 4), textcoords="offset points")  # type: ignore[index]
        axis.set(
            title=str(dataset),
            xlabel="thing recognised",
            ylabel="look recognised",
            xlim=(-0.05, 1.05),
            ylim=(-0.05, 1.05),
        )
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
