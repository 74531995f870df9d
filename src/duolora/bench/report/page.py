"""`report.html`: finished runs as one file that opens anywhere, offline, without any other file."""

import base64
import datetime
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from duolora.bench.report.paper_numbers import paper_base, printed
from duolora.bench.report.plots import Point, bars, colour, curves, scatter
from duolora.bench.report.runs import (
    Line,
    Measured,
    Ranks,
    Run,
    mean_ranks,
    metadata_of,
    ranks_of,
    read_runs,
    undamaged,
)
from duolora.bench.tables.rows import ALONE
from duolora.errors import FileRefused, InputError
from duolora.lora.parts import CONTENT_RANKS
from duolora.model.image_files import images_in, read_image
from duolora.model.images import untiled
from duolora.textfiles import write_whole

SIDE = 384
"""Pixels on the longer side of an image in a page."""
BUDGET, CELL = 40_000, 160_000
"""Bytes of a photo in a page, and of all images of a cell."""
SHOWN = 8
"""How many images of each prompt are shown; all are in the cell's folder."""
COST_NAMES = {"trainable": "masks", "storage": "masks, kB", "change": "mean change", "bytes": "kB", "seconds": "s"}
AXES = (("object", "style", "both"), ("dino", "csd-s", None))
"""Content, style and overall quality: Atelier's, and the paper's."""


def environment(*packages: str) -> Environment:
    """Templates of this package, and of others; everything that is put into them is escaped."""
    loaders = [PackageLoader(package, ".") for package in ("duolora.bench.report", *packages)]
    return Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def report(folders: Sequence[str | Path], out: str | Path, title: str | None = None) -> Path:
    """Write the report of the runs in these folders to `out`; links to files are relative to it.

    Its title is by default the names of the runs.

    Raises:
        DuoLoRAError: a folder holds no run, or the report cannot be written.
    """
    path = Path(out).expanduser()
    runs = []
    for k, run in enumerate(read_runs([Path(f) for f in folders])):
        with undamaged(run.folder):
            runs.append(_Page(run, k, path.absolute().parent).view())
    made = datetime.date.today().isoformat()
    title = title or f"DuoLoRA: {', '.join(dict.fromkeys(run['name'] for run in runs))}"
    text = environment().get_template("report.html.j2").render(title=title, runs=runs, made=made)
    return written(path, text)


def written(path: Path, text: str) -> Path:
    """Write a page.

    Raises:
        InputError: it cannot be put there.
    """
    try:
        return write_whole(path, text)
    except OSError as error:
        raise InputError(f"{path}: the page cannot be written ({error.strerror}); name another place") from error


def embedded(path: Path, most: int = SIDE, budget: int = BUDGET) -> str:
    """An image as a data URI (see `data_uri`).

    Raises:
        FileRefused: it is no image.
    """
    try:
        return data_uri(read_image(path), most, budget)
    except FileRefused as error:
        raise FileRefused(f"{error}; or delete its folder and run it again") from error


def data_uri(image: Image.Image, most: int, budget: int) -> str:
    """An image with no side longer than `most`, in about so many bytes at most; without loss where that fits.

    Nothing but its pixels is kept.
    """
    shown = image.copy()
    shown.thumbnail((most, most))
    steps = ((1, 100), (1, 90), (1, 75), (1, 50), (2, 75), (2, 40), (4, 50), (6, 40))
    for side, quality in ((most // part, quality) for part, quality in steps):
        if quality == 100 and shown.width * shown.height > budget:
            continue  # it would take seconds to find out that it is too much
        file = io.BytesIO()
        shown.thumbnail((side, side))
        shown.save(file, "WEBP", quality=quality, method=4, lossless=quality == 100, exif=b"", icc_profile=b"", xmp=b"")
        if file.tell() <= budget:
            break
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


class _Page:
    """What the template needs of one run."""

    def __init__(self, run: Run, index: int, home: Path) -> None:
        self.run, self.home, self.anchor = run, home, f"run{index}-{_slug(run.name)}"
        self.numbers = {row: k + 1 for k, row in enumerate(run.rows)}
        self.apart = {row for row, said in run.about.get("rows", {}).items() if said["how"] in ("floor", *ALONE)}
        self.first = {(cell.dataset, cell.row): self._anchor(cell) for cell in reversed(run.cells)}

    def view(self) -> dict[str, Any]:
        """The run as the template's variables."""
        run = self.run
        return {
            "anchor": self.anchor, "title": run.title, "base": run.base,
            "name": f"{run.folder.absolute().parent.name}/{run.folder.absolute().name}",
            "atelier": run.base == "atelier" and "encoders" not in run.about,
            "paper": bool(paper_base(run.published)), "metrics": run.metrics,
            "failed": {str(cell): str(why) for cell, why in run.about.get("failed", {}).items()},
            "tables": [self._table(d) for d in run.datasets], "plots": self._plots(), "cases": self._cases(),
            "environment": self._environment(),
        }  # fmt: skip

    def _anchor(self, cell: Measured) -> str:
        return f"{self.anchor}-{_slug(cell.case)}-{self.numbers[cell.row]}"

    def _table(self, dataset: str) -> dict[str, Any]:
        lines = [line for line in self.run.lines if line.dataset == dataset]
        costs = [c for c in COST_NAMES if any(line.costs[c] is not None for line in lines)]
        return {
            "dataset": dataset,
            "pairs": max(line.pairs for line in lines),
            "costs": [COST_NAMES[c] for c in costs],
            "lines": [self._line(line, costs) for line in lines],
        }

    def _line(self, line: Line, costs: Sequence[str]) -> dict[str, Any]:
        paper = printed(self.run.name, self.run.published, line.dataset, line.row)
        values = [self._value(line, metric, paper) for metric in self.run.metrics]
        number = self.numbers[line.row]
        return {
            "row": line.row, "number": number, "colour": colour(number), "scores": values,
            "anchor": self.first.get((line.dataset, line.row)), "costs": [_cost(c, line.costs[c]) for c in costs],
        }  # fmt: skip

    def _value(self, line: Line, metric: str, paper: Mapping[str, float]) -> dict[str, Any] | None:
        found = line.metrics.get(metric)
        if found is None:
            return None
        mean, low, high = found
        span = f"{low:.2f}–{high:.2f}" if line.pairs > 1 and isfinite(low) and isfinite(high) else ""
        share = round(min(max(mean, 0.0), 1.0), 3)
        said = f"{paper[metric]:g}" if metric in paper else ""
        bad = metric.endswith(("leak", "leakage"))
        return {"mean": f"{mean:.2f}", "span": span, "paper": said, "share": share, "bad": bad}

    def _plots(self) -> list[dict[str, Any]]:
        found = []
        for dataset in self.run.datasets:
            lines = [line for line in self.run.lines if line.dataset == dataset]
            for content, style, quality in AXES:
                points = [
                    Point(self.numbers[line.row], x, y, line.row not in self.apart)
                    for line in lines
                    if (x := line.metrics.get(content)) is not None and (y := line.metrics.get(style)) is not None
                ]
                timed = [
                    Point(self.numbers[line.row], (s, s, s), y)
                    for line in lines
                    if quality and (s := line.costs["seconds"]) and (y := line.metrics.get(quality)) is not None
                ]
                if points:
                    name = f"{self.anchor}-{_slug(dataset)}"
                    svg = scatter(points, f"{content} (content)", f"{style} (style)", f"{name}-{content}")
                    found.append((f"{dataset}: content against style", svg))
                    if timed:
                        svg = scatter(timed, "seconds to merge", f"{quality} (content and style)", f"{name}-t", True)
                        found.append((f"{dataset}: quality against time", svg))
        found += [(f"mean rank by block: {row}", bars(r, "directions", f"{self.anchor}-r{self.numbers[row]}"))
                  for row, r in self._ranks().items()]  # fmt: skip
        if self.run.curves is not None:
            known = [w for w in ("object", "style") if all(w in curve for curve in self.run.curves.values())]
            found += [(f"{w} by α", curves(self.run.curves, w, f"{self.anchor}-{w}")) for w in known]
        return [{"title": title, "svg": Markup(svg)} for title, svg in found]

    def _ranks(self) -> dict[str, Ranks]:
        """Mean ranks of the rows whose masks were trained, over all cells of the run."""
        found: dict[str, list[Ranks]] = {}
        for cell in self.run.cells:
            merged = cell.folder / "merged.safetensors"
            if cell.result.get("trainable") and merged.exists() and (ranks := ranks_of(merged)):
                found.setdefault(cell.row, []).append(ranks)
        return {row: mean_ranks(found[row]) for row in self.run.rows if row in found}

    def _cases(self) -> list[dict[str, Any]]:
        found = []
        for case in dict.fromkeys(cell.case for cell in self.run.cells):
            cells = sorted((c for c in self.run.cells if c.case == case), key=lambda c: self.numbers[c.row])
            most = max(cells, key=lambda c: len(c.loras))
            texts = next((c.result["texts"] for c in cells if len(c.result.get("texts", ())) > 1), None)
            found.append({
                "name": case, "anchor": f"{self.anchor}-{_slug(case)}",
                "texts": texts or next((c.result["texts"] for c in cells if "texts" in c.result), []),
                "references": self._references(most), "cells": [self._cell(cell) for cell in cells],
            })  # fmt: skip
        return found

    def _references(self, cell: Measured) -> list[dict[str, Any]]:
        return [
            {
                "title": job.kind,
                "images": [embedded(p) for p in images_in(job.images)],
                "link": self._link(job.path) if job.path.exists() else "",
            }
            for job in cell.loras
        ]

    def _cell(self, cell: Measured) -> dict[str, Any]:
        number = self.numbers[cell.row]
        seen = cell.result.get("truth") or cell.result.get("similarity", {})
        facts = [f"{name} {value:.2f}" for name, value in seen.items() if isinstance(value, float)]
        if cell.result.get("seconds") is not None:
            facts.append(f"{cell.result['seconds']:.1f} s")
        merged = cell.folder / "merged.safetensors"
        metadata = metadata_of(merged) if merged.exists() else cell.result
        return {
            "anchor": self._anchor(cell), "row": cell.row, "number": number, "colour": colour(number),
            "strips": _strips(cell), "facts": " · ".join(facts),
            "files": [{"name": p.name, "link": self._link(p)} for p in cell.files],
            "metadata": json.dumps({k: v for k, v in metadata.items() if k != CONTENT_RANKS}, indent=1, default=str),
        }  # fmt: skip

    def _environment(self) -> dict[str, str]:
        about = self.run.about
        found = {"folder": str(self.run.folder), "base": self.run.base}
        found |= {key: str(about.get(key)) for key in ("commit", "seed", "device") if about.get(key) is not None}
        for key in ("hardware", "versions"):
            if isinstance(about.get(key), Mapping):
                found[key] = ", ".join(f"{name} {value}" for name, value in about[key].items())
        for name, counts in about["cells"].items() if isinstance(about.get("cells"), Mapping) else ():
            if isinstance(counts, Mapping) and len(counts) > 1:  # otherwise it is as above
                found[f"{name} of cells"] = "; ".join(f"{value} ({count})" for value, count in counts.items())
        if "encoders" in about:
            cards = about["encoders"].values()
            found["encoders"] = ", ".join(f"{c['name']}: {c['checkpoint']} ({c['fingerprint'][:12]})" for c in cards)
        if "cases" in about:
            found["pairs"] = ", ".join(about["cases"])
        return found

    def _link(self, path: Path) -> str:
        return quote(os.path.relpath(path.absolute(), self.home).replace(os.sep, "/"))


def _strips(cell: Measured) -> list[dict[str, Any]]:
    """All prompts of a cell, each with the first of its images; the more there are, the less each weighs."""
    sheet = cell.folder / "images.png"
    if not sheet.exists():
        return []
    asked = list(cell.result.get("prompts", [""]))
    try:
        rows = untiled(read_image(sheet), len(asked))
    except InputError as error:
        raise FileRefused(f"{sheet}: {error}; delete its folder and run it again") from error
    budget = CELL // sum(len(row[:SHOWN]) for row in rows)
    return [
        {"prompt": prompt, "images": [data_uri(image, SIDE, budget) for image in row[:SHOWN]]}
        for prompt, row in zip(asked, rows, strict=True)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cost(name: str, value: float | None) -> str:
    if value is None:
        return ""
    times, digits = {"storage": (1e-3, 1), "bytes": (1e-3, 0), "seconds": (1, 1), "change": (1, 3)}.get(name, (1, 0))
    return f"{times * value:,.{digits}f}"
