"""Run a table: train the LoRAs that it needs, then its cells; what is there already is never run again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from duolora.bench.cells import Cell, LoraJob, train_lora
from duolora.bench.multi import GroupCell, groups
from duolora.bench.pairs import Case
from duolora.bench.record import facts
from duolora.bench.render import render
from duolora.bench.tables import MULTI, Row, Table
from duolora.bench.workers import run_all
from duolora.errors import InputError


@runtime_checkable
class Measurement(Protocol):
    """A cell of any table."""

    @property
    def row(self) -> Row:
        """The line of the table that it belongs to."""
        ...

    @property
    def dataset(self) -> str:
        """The data set that it belongs to."""
        ...

    @property
    def folder(self) -> Path:
        """Where its result is."""
        ...

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        ...

    def needs(self) -> list[LoraJob]:
        """The LoRAs that must be there before it runs."""
        ...

    def run(self) -> None:
        """Measure."""
        ...

    def result(self) -> dict[str, Any]:
        """What was measured."""
        ...


@dataclass(frozen=True)
class Ran:
    """A table that was run: its text, its folder, and what failed, with why."""

    text: str
    folder: Path
    failed: dict[str, str]


def cells_of(table: Table, cases: Sequence[Case], out: Path, seed: int = 0) -> list[Measurement]:
    """All cells of a table, on the cases of its data sets.

    Raises:
        InputError: none of the cases belongs to the table's data sets.
    """
    cells: list[Measurement] = []
    for dataset in table.datasets:
        if dataset in MULTI:
            several = [case for case in cases if case.dataset == "several"]
            found = groups(several, MULTI[dataset])
            cells += [GroupCell(out, group, row, seed) for row in table.rows for group in found]
        else:
            chosen = [case for case in cases if case.dataset == dataset]
            cells += [Cell(out, case, row, seed) for row in table.rows for case in chosen]
    if not cells:
        raise InputError(f"expected pairs of {', '.join(table.datasets)}, got none")
    return cells


def run_table(
    name: str,
    table: Table,
    cases: Sequence[Case],
    out: Path,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Ran:
    """Run a table into `out/<name>` on the cases of its data sets; returns its text.

    LoRAs and cells are shared by all tables in `out`. A cell that fails is reported, and the others go on.

    Raises:
        InputError: none of the cases belongs to the table's data sets.
    """
    cells = cells_of(table, cases, out, seed)
    missing = sorted((cell for cell in cells if not cell.done), key=lambda cell: str(cell.folder.parent))
    loras = {job.path: job for cell in missing for job in cell.needs() if not job.path.exists()}
    failed = {job.path.stem: why for job, why in run_all(train_lora, list(loras.values()), "LoRAs", workers, progress)}
    failed |= {str(cell.folder): why for cell, why in run_all(_run, missing, "Cells", workers, progress)}
    results = [(cell.dataset, cell.row.label, cell.result()) for cell in cells if cell.done]
    folder = out / name
    text = render(table.title, [row.label for row in table.rows], results, folder)
    names = sorted({cell.folder.parent.name for cell in cells})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = {"table": name, "base": "atelier", "cases": names, "failed": failed, **facts(device, seed)}
    (folder / "run.json").write_text(json.dumps(about, indent=1), "utf-8")
    return Ran(text, folder, failed)


def _run(cell: Measurement) -> None:
    cell.run()


def only_rows(table: Table, labels: Sequence[str]) -> Table:
    """The table with the rows of those labels; with all when none is named.

    Raises:
        InputError: there is no such row.
    """
    known = [row.label for row in table.rows]
    if unknown := [label for label in labels if label not in known]:
        raise InputError(f"rows: expected some of {', '.join(known)}; got {unknown[0]!r}")
    return replace(table, rows=tuple(row for row in table.rows if not labels or row.label in labels))
