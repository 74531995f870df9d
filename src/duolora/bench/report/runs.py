"""Finished runs, read back from their folders: the lines of a table, its cells, its curves, how it was made."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from duolora.bench.cells.cell import Cell, described
from duolora.bench.cells.lora import Lora
from duolora.bench.config import problem_of
from duolora.bench.report.folders import run_folders
from duolora.bench.tables.render import COSTS, LABELS
from duolora.bench.tables.rows import TABLES, Table, row_of
from duolora.bench.tables.tuning import TUNING
from duolora.errors import FileRefused
from duolora.lora.names import module_of
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.header import METADATA, json_object, read_header
from duolora.model.blocks import blocks_of
from duolora.textfiles import read_json

_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, OSError)
Interval = tuple[float, float, float]
"""A mean and the ends of its interval over pairs, which are not numbers (NaN) where there is none."""


@dataclass(frozen=True)
class Line:
    """A row of a table on one data set: metrics as (mean, low, high) over pairs, and what the merge cost."""

    dataset: str
    row: str
    pairs: int
    metrics: Mapping[str, Interval | None]
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class Measured:
    """A finished cell: what is in its folder."""

    folder: Path
    case: str
    dataset: str
    row: str
    result: Mapping[str, Any]
    loras: tuple[Lora, ...] = ()

    @property
    def files(self) -> list[Path]:
        """What is there to open, the result first."""
        found = sorted(path for path in self.folder.iterdir() if path.suffix in (".json", ".png", ".safetensors"))
        return sorted(found, key=lambda path: path.suffix != ".json")


@dataclass(frozen=True)
class Run:
    """A finished table or figure."""

    name: str
    title: str
    folder: Path
    base: str
    about: Mapping[str, Any]
    lines: tuple[Line, ...] = ()
    cells: tuple[Measured, ...] = ()
    curves: Mapping[str, Mapping[str, Sequence[float]]] | None = None

    @property
    def published(self) -> str:
        """The hub id of its base, where the run has recognised a folder or file as that; else the base."""
        return str(self.about.get("published") or self.base)

    @property
    def metrics(self) -> list[str]:
        """The metrics that any line has, in the order of the file."""
        names = dict.fromkeys(name for line in self.lines for name in line.metrics)
        return [name for name in names if any(line.metrics.get(name) for line in self.lines)]

    @property
    def rows(self) -> list[str]:
        """The labels of all rows, in the table's order."""
        return list(dict.fromkeys(line.row for line in self.lines))

    @property
    def datasets(self) -> list[str]:
        """The data sets, in the table's order."""
        return list(dict.fromkeys(line.dataset for line in self.lines))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, or in the folders inside them.

    Raises:
        InputError: a folder holds neither `table.json` nor `curves.json`, and none of those in it does.
        FileRefused: one of their files is damaged.
    """
    return list({path.resolve(): read_run(path) for path in run_folders(folders)}.values())


def read_run(folder: Path) -> Run:
    """One run.

    Raises:
        FileRefused: one of its files is damaged.
    """
    with undamaged(folder):
        about = _json(folder / "run.json") if (folder / "run.json").exists() else {}
        name = str(about.get("table", folder.name))
        curves = None
        if (folder / "curves.json").exists():
            found = _json(folder / "curves.json").items()
            curves = {str(g): {key: [*map(float, values)] for key, values in curve.items()} for g, curve in found}
        known = TABLES | {"tuning": TUNING}
        title = known[name].title if name in known else name
        lines: tuple[Line, ...] = ()
        if (folder / "table.json").exists():
            lines = tuple(_line(entry, folder) for entry in _json(folder / "table.json"))
        elif curves is not None:
            title = "Figure 3: what is still generated as the attention of some blocks is turned down"
        cells = _cells(folder.parent / "cells", name, about, {line.row for line in lines})
        return Run(name, title, folder, ", ".join(about.get("bases", ("atelier",))), about, lines, tuple(cells), curves)


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileRefused as error:
        raise FileRefused(str(error).replace("download it again", "run the benchmark again")) from error


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """Turn whatever a run makes of values that no benchmark writes into one line about its folder."""
    try:
        yield
    except _DAMAGED as error:
        raise FileRefused(f"{folder}: not as a benchmark leaves it ({_short(error)}); run it again") from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no more is known'}".splitlines()[0][:200]


def _line(entry: Any, folder: Path) -> Line:
    try:
        rest = {k: v for k, v in entry.items() if k not in ("dataset", "row", "pairs")}
        named = {LABELS.get(k, k): v for k, v in rest.items() if k not in COSTS}
        metrics = {k: None if v is None else _interval(v) for k, v in named.items()}
        costs = {k: None if rest.get(k) is None else float(rest[k]) for k in COSTS}
        return Line(str(entry["dataset"]), str(entry["row"]), int(entry["pairs"]), metrics, costs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileRefused(
            f"{folder / 'table.json'}: expected lines with dataset, row and intervals ({_short(error)}); run it again"
        ) from error


def _interval(value: Any) -> Interval:
    mean, low, high = (float("nan") if v is None else float(v) for v in value)
    return mean, low, high


def _cells(where: Path, table: str, about: Mapping[str, Any], rows: set[str]) -> list[Measured]:
    """The cells of a table's pairs, rows and seed; of two that are the same measurement, the newer one."""
    known = about.get("rows") or {row.label: described(row) for row in TABLES.get(table, Table("", ())).rows}
    labels = {_key(row): label for label, row in known.items()}
    found: dict[tuple[str, str], tuple[float, Measured]] = {}
    for case in about.get("cases", ()):
        for path in sorted((where / case).glob("*/result.json")):
            cell = _measured(path, labels)
            if cell.row not in rows or int(path.parent.name.rpartition("-")[2]) != about.get("seed", 0):
                continue
            if cell.result.get("settings", {}) != about.get("settings", {}):
                continue
            age, key = path.stat().st_mtime, (case, cell.row)
            if key not in found or found[key][0] < age:
                found[key] = (age, cell)
    return [cell for _, cell in found.values()]


def _key(row: Mapping[str, object]) -> str:
    return json.dumps(row, sort_keys=True)


def _measured(path: Path, labels: Mapping[str, str]) -> Measured:
    result, root = _json(path), path.parents[3]
    try:
        row = row_of(result["row"])
        cell = Cell(root, problem_of(result["problem"]), row, base=result.get("base", "atelier"))
        label = labels.get(_key(described(row)), row.label)
        return Measured(path.parent, cell.problem.name, cell.problem.dataset, label, result, tuple(cell.needs()))
    except (KeyError, TypeError) as error:
        raise FileRefused(
            f"{path}: expected a finished cell ({_short(error)}); delete its folder and run it again"
        ) from error


Ranks = dict[str, dict[str, float]]
_DOWN = re.compile(r"\.(?:lora_A|lora_down)\.weight$")


def metadata_of(path: Path) -> dict[str, Any]:
    """The merge's metadata in a file's header; empty where there are none."""
    return json_object(read_header(path)[1], METADATA, str(path))


def ranks_of(path: Path) -> Ranks | None:
    """Mean rank in each block, {"content": {block: rank}, …}; None for a file that does not part content from style.

    A file in diffusers' or kohya's format, as `duolora merge` writes it.
    """
    entries, metadata = read_header(path)
    counts = json_object(metadata, METADATA, str(path)).get(CONTENT_RANKS)
    downs = {key: _DOWN.sub("", key) for key in entries if _DOWN.search(key)}
    ranks = {module_of(stem): entries[key]["shape"][0] for key, stem in downs.items()}
    if not isinstance(counts, list) or len(counts) != len(ranks):
        return None
    content = dict(zip(sorted(ranks), counts, strict=True))
    blocks = {block: names for block, names in blocks_of(ranks).items() if "_block" in block}
    return {
        "content": {block: mean(content[n] for n in names) for block, names in blocks.items()},
        "style": {block: mean(ranks[n] - content[n] for n in names) for block, names in blocks.items()},
    }


def mean_ranks(found: Iterable[Mapping[str, Mapping[str, float]]]) -> Ranks:
    """The mean over several files; a block that a file does not have counts as rank 0."""
    files = list(found)
    blocks = list(dict.fromkeys(block for one in files for block in one["content"]))
    return {part: {b: mean(one[part].get(b, 0.0) for one in files) for b in blocks} for part in ("content", "style")}
