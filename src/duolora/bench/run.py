"""Run a table: train the LoRAs that it needs, then its cells; what is there already is never run again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duolora.bench.cells import Cell, loras_of, run_cell, train_lora
from duolora.bench.pairs import Case
from duolora.bench.render import render
from duolora.bench.tables import Row, Table
from duolora.bench.workers import run_all
from duolora.errors import InputError
from duolora.provenance import versions


@dataclass(frozen=True)
class Ran:
    """A table that was run: its text, its folder, and the cells that failed, with why."""

    text: str
    folder: Path
    failed: dict[str, str]


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
    chosen = [case for case in cases if case.dataset in table.datasets]
    if not chosen:
        raise InputError(f"{name}: expected pairs of {', '.join(table.datasets)}, got none")
    cells = [Cell(out, case, row, seed) for row in table.rows for case in chosen]
    missing = [cell for cell in cells if not cell.done]
    loras = {job.path: job for cell in missing for job in loras_of(cell).values() if not job.path.exists()}
    failed = {job.path.stem: why for job, why in run_all(train_lora, list(loras.values()), "LoRAs", workers, progress)}
    by_pair = sorted(missing, key=lambda cell: cell.case.name)
    failed |= {str(cell.folder): why for cell, why in run_all(run_cell, by_pair, "Cells", workers, progress)}
    results = [(cell.case.dataset, cell.row.label, cell.result()) for cell in cells if cell.done]
    folder = out / name
    text = render(table.title, [row.label for row in table.rows], results, folder)
    about = {"table": name, "seed": seed, "cases": [c.name for c in chosen], "versions": versions(), "failed": failed}
    (folder / "run.json").write_text(json.dumps(about, indent=1), "utf-8")
    return Ran(text, folder, failed)


def chosen_rows(table: Table, labels: Sequence[str]) -> tuple[Row, ...]:
    """The rows of those labels; all when none is named.

    Raises:
        InputError: there is no such row.
    """
    known = [row.label for row in table.rows]
    if unknown := [label for label in labels if label not in known]:
        raise InputError(f"rows: expected some of {', '.join(known)}; got {unknown[0]!r}")
    return tuple(row for row in table.rows if not labels or row.label in labels)
