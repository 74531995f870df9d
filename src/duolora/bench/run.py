"""Run a table: train the LoRAs that it needs, then its cells; what is there already is never run again."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from duolora.bench.cells.cell import Cell, described
from duolora.bench.cells.jobs import Training
from duolora.bench.cells.multi import GroupCell, groups
from duolora.bench.cells.pairs import Case
from duolora.bench.cells.photo_cell import PhotoCell, check_scoring, photo_cells
from duolora.bench.config import Config, marked, write_config
from duolora.bench.record import facts, write
from duolora.bench.tables.render import NOTE, Result, note_of, pooled, render, summary, write_pairs
from duolora.bench.tables.rows import ALL, MULTI, Row, Table, read_blocks, with_blora
from duolora.bench.tables.tuning import tuned
from duolora.bench.workers import crowd, run_all
from duolora.errors import InputError, Notice
from duolora.model.files import is_small, published_base
from duolora.provenance import file_hash


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

    def scored(self) -> bool:
        """Whether its result has the similarities that are asked for."""
        ...

    def needs(self) -> Sequence[Training]:
        """The LoRAs that must be there before it runs."""
        ...

    def run(self) -> None:
        """Measure."""
        ...

    def complete(self) -> None:
        """Measure what a result that was written earlier lacks, as far as what it kept allows."""
        ...

    def result(self) -> dict[str, Any]:
        """What was measured."""
        ...


@dataclass(frozen=True)
class Ran:
    """A table that was run: its text and its lines, its folder, and what failed, with why."""

    text: str
    lines: list[dict[str, Any]]
    folder: Path
    failed: dict[str, str]
    cells: list[tuple[str, Measurement]]
    """Every cell with the data set that the table shows it under."""


def root_of(out: Path, base: str) -> Path:
    """The folder of a base's LoRAs and cells: `out` itself for Atelier, else one in it, named for its weights."""
    if base == "atelier":
        return out
    weights = Path(base) / "unet" / "diffusion_pytorch_model.safetensors"
    mark = file_hash(weights) if weights.exists() else hashlib.sha256(base.encode()).hexdigest()
    return out / "on" / f"{Path(base).name}-{mark[:8]}"


def cells_of(table: Table, cases: Sequence[Case], out: Path, seed: int = 0, base: str = "atelier") -> list[Measurement]:
    """All cells of a table, on the cases of its data sets.

    Raises:
        InputError: none of the cases belongs to the table's data sets.
    """
    cells: list[Measurement] = []
    for dataset in table.datasets:
        if dataset in MULTI:
            several = [case for case in cases if case.dataset == "several"]
            found = groups(several, MULTI[dataset])
            cells += [GroupCell(out, group, row, seed, base) for row in table.rows for group in found]
        else:
            chosen = [case for case in cases if case.dataset == dataset]
            cells += [Cell(out, case, row, seed, base) for row in table.rows for case in chosen]
    if not cells:
        raise InputError(f"expected pairs of {', '.join(table.datasets)}, got none")
    return cells


def run_table(
    config: Config, out: Path, workers: int | None = None, progress: bool = True, ray: str | None = None
) -> Ran:
    """Run a table into its folder in `out`; returns its text.

    LoRAs and cells are shared by all tables of a base (`root_of`). A cell that fails is reported, the others go on.

    Args:
        config: the table, its pairs, seed and bases; the folder keeps it, for `read_config`.
        out: the folder of all benchmarks.
        workers: processes, by default one for each core or GPU, and several for each GPU on Atelier's family.
        progress: show bars on stderr.
        ray: the address of a Ray cluster that shares `out`, or "local".

    Raises:
        DuoLoRAError: none of the cases belongs to the table's data sets, a photo, a base or an encoder is not what it
            should be, or the cluster cannot be reached.
    """
    config = marked(config)
    table, seed = config.table, config.seed
    roots = {heading: root_of(out, base) for heading, base in config.bases.items()}
    cells = [
        (f"{heading}: {cell.dataset}" if heading else cell.dataset, cell)
        for heading, base in config.bases.items()
        for cell in _cells(config, roots[heading], base)
    ]
    if config.scoring and not all(cell.done and cell.scored() for _, cell in cells):
        check_scoring(config.scoring)
    folder = (out if len(roots) > 1 else next(iter(roots.values()))) / config.name
    write_config(folder, config)
    if workers is None and ray is None and all(map(is_small, config.bases.values())):
        workers = crowd()
    waiting = [cell for _, cell in cells if isinstance(cell, PhotoCell) and not cell.done]
    if waiting:
        images = sum(cell.images for cell in waiting)
        warnings.warn(f"{config.name}: {len(waiting)} cells, {images} images to generate", Notice, stacklevel=2)
    failed = measured([cell for _, cell in cells], workers, progress, ray)
    results = [
        Result(dataset, cell.folder.parent.name, cell.row.label, cell.result()) for dataset, cell in cells if cell.done
    ]
    write_pairs(results, folder / "pairs.csv")
    if len({result.dataset for result in results} & {*ALL}) > 1:
        results += pooled(results)
    lines = summary([row.label for row in table.rows], results)
    encoders = {name: card for result in results for name, card in result.measured.get("encoders", {}).items()}
    text = render(table.title, lines, folder, note_of(encoders) if config.photos else NOTE)
    names = sorted({cell.folder.parent.name for _, cell in cells})
    about: dict[str, object] = {"table": config.name, "bases": list(config.bases.values()), "cases": names}
    if encoders:
        about["encoders"] = encoders
    if len(config.bases) == 1 and (known := published_base(next(iter(config.bases.values())))):
        about["published"] = known
    about["rows"] = {row.label: described(row) for row in table.rows}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write(folder / "run.json", about | {"failed": failed} | facts(device, seed))
    return Ran(text, lines, folder, failed, cells)


def measured(
    cells: Sequence[Measurement], workers: int | None, progress: bool, ray: str | None = None
) -> dict[str, str]:
    """Train the LoRAs that cells lack, run them, and score those that lack a metric; returns what failed, with why."""
    missing = sorted((cell for cell in cells if not cell.done), key=lambda cell: str(cell.folder.parent))
    loras = {job.path: job for cell in missing for job in cell.needs() if not job.path.exists()}
    failed = {job.path.stem: why for job, why in run_all(_train, list(loras.values()), "LoRAs", workers, progress, ray)}
    failed |= {str(cell.folder): why for cell, why in run_all(_run, missing, "Cells", workers, progress, ray)}
    elsewhere = [str(cell.folder) for cell in missing if not cell.done]
    failed = dict.fromkeys(elsewhere, "its result is not here; expected a folder that all machines share") | failed
    unscored = [cell for cell in cells if cell.done and not cell.scored()]
    return failed | {str(cell.folder): why for cell, why in run_all(_complete, unscored, "Scores", 1, progress)}


def _cells(config: Config, root: Path, base: str) -> Sequence[Measurement]:
    """The cells of a table on one of its bases."""
    if config.scoring is None:
        return cells_of(config.table, config.cases, root, config.seed, base)
    return photo_cells(config.table.rows, config.photos, config.scoring, root, config.seed, base)


def _train(job: Training) -> None:
    job.train()


def _run(cell: Measurement) -> None:
    cell.run()


def _complete(cell: Measurement) -> None:
    cell.complete()


def prepared(
    table: Table,
    out: Path,
    base: str = "atelier",
    rows: Sequence[str] = (),
    datasets: Sequence[str] = (),
    best: Path | None = None,
    blora: Path | None = None,
) -> Table:
    """The table as it is run: with tuned settings, B-LoRA's blocks on this base, and only some rows or data sets.

    B-LoRA's blocks are those of the file `blora`, or those that `bench figure3` found on this base, or else SDXL's.

    Raises:
        InputError: a file is another one than it should be, or there is no such row.
    """
    table = table if best is None else tuned(table, best)
    found = blora or root_of(out, base) / "figure3" / "blocks.json"
    if blora is not None or found.exists():
        table = with_blora(table, *read_blocks(found))
    table = only_rows(table, rows)
    return replace(table, datasets=tuple(datasets)) if datasets else table


def only_rows(table: Table, labels: Sequence[str]) -> Table:
    """The table with the rows of those labels; with all when none is named.

    Raises:
        InputError: there is no such row.
    """
    known = [row.label for row in table.rows]
    if unknown := [label for label in labels if label not in known]:
        raise InputError(f"rows: expected some of {', '.join(known)}; got {unknown[0]!r}")
    return replace(table, rows=tuple(row for row in table.rows if not labels or row.label in labels))
