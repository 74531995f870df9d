"""Run a table: train the LoRAs that it needs, then its cells; what is there already is never run again."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from duolora.bench.cells.cell import Cell, Problem, described
from duolora.bench.cells.lora import Lora
from duolora.bench.cells.multi import groups, photo_groups
from duolora.bench.cells.photos import PhotoPair
from duolora.bench.config import Config, marked, read_config, root_of, write_config
from duolora.bench.tables.render import NOTE, Result, note_of, pooled, render, summary, write_pairs
from duolora.bench.tables.rows import ALL, MULTI
from duolora.bench.workers import crowd, run_all
from duolora.errors import InputError, Notice
from duolora.model.files import is_small, published_base
from duolora.provenance import facts
from duolora.textfiles import write_json


@dataclass(frozen=True)
class Ran:
    """A table that was run: its text and its lines, its folder, and what failed, with why."""

    text: str
    lines: list[dict[str, Any]]
    folder: Path
    failed: dict[str, str]
    cells: list[tuple[str, Cell]]
    """Every cell with the data set that the table shows it under."""


def cells_of(config: Config, root: Path, base: str = "atelier") -> list[Cell]:
    """All cells of a table on one of its bases.

    Raises:
        InputError: none of the cases belongs to the table's data sets.
    """
    cells: list[Cell] = []
    for dataset in config.table.datasets:
        photos = [case for case in config.cases if isinstance(case, PhotoPair)]
        known = "several" if dataset in MULTI else dataset
        found: Sequence[Problem] = [case for case in config.cases if case.dataset == known]
        if dataset in MULTI:
            found = photo_groups(photos, MULTI[dataset]) if photos else groups(found, MULTI[dataset])  # type: ignore[arg-type]
        for row in config.table.rows:
            cells += [Cell(root, problem, row, config.seed, base, config.scoring, config.settings) for problem in found]
    if not cells:
        sets = [f"{x} ({MULTI[x]} different subjects)" if x in MULTI else x for x in config.table.datasets]
        raise InputError(f"expected pairs of {', '.join(sets)}, got none")
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
    roots = {heading: root_of(out, base) for heading, base in config.bases.items()}
    cells = [
        (f"{heading}: {cell.problem.dataset}" if heading else cell.problem.dataset, cell)
        for heading, base in config.bases.items()
        for cell in cells_of(config, roots[heading], base)
    ]
    waiting = [cell for _, cell in cells if not cell.done]
    if config.settings.loras and (gone := [x.path for cell in waiting for x in cell.needs() if not x.path.exists()]):
        raise InputError(f"{gone[0]}: expected a finished LoRA there, found none ({len(set(gone))} are missing)")
    if config.scoring is not None and not all(cell.done and cell.scored for _, cell in cells):
        config.scoring.check()
    if config.scoring is not None and waiting:
        images = sum(cell.images for cell in waiting)
        count = "1 cell" if len(waiting) == 1 else f"{len(waiting)} cells"
        warnings.warn(f"{config.name}: {count}, {images} images to generate", Notice, stacklevel=2)
    if workers is None and ray is None and all(map(is_small, config.bases.values())):
        workers = crowd()
    folder = folder_for(config, (out if len(roots) > 1 else next(iter(roots.values()))) / config.name)
    write_config(folder, config)
    failed = measured([cell for _, cell in cells], workers, progress, ray)
    results = [
        Result(dataset, cell.problem.name, cell.row.label, cell.result()) for dataset, cell in cells if cell.done
    ]
    write_pairs(results, folder / "pairs.csv")
    made = made_with([result.measured for result in results])
    if len({result.dataset for result in results} & {*ALL}) > 1:
        results += pooled(results)
    lines = summary([row.label for row in config.table.rows], results)
    encoders = {name: card for result in results for name, card in result.measured.get("encoders", {}).items()}
    text = render(config.table.title, lines, folder, note_of(encoders) if config.scoring else NOTE)
    about: dict[str, object] = {"table": config.name, "bases": list(config.bases.values())}
    about |= {"cases": sorted({cell.problem.name for _, cell in cells})}
    about |= {"encoders": encoders} if encoders else {}
    if len(config.bases) == 1 and (known := published_base(next(iter(config.bases.values())))):
        about["published"] = known
    about["settings"] = config.settings.said()
    about["rows"] = {row.label: described(row) for row in config.table.rows}
    about["cells"] = made
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_json(folder / "run.json", about | {"failed": failed} | facts(device, config.seed))
    return Ran(text, lines, folder, failed, cells)


def made_with(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many cells were made by which commit, on which device and with which versions, as their results say."""
    found: dict[str, Counter[str]] = {"commit": Counter(), "device": Counter(), "versions": Counter()}
    for cell in cells:
        versions = ", ".join(f"{name} {number}" for name, number in (cell.get("versions") or {}).items())
        device = (cell.get("hardware") or {}).get("device") or cell.get("device")
        for name, value in (("commit", cell.get("commit")), ("device", device), ("versions", versions)):
            found[name][str(value or "not recorded")] += 1
    return {name: dict(counts) for name, counts in found.items()}


def _measured(config: Config) -> set[str]:
    """What a table has: rows with what they change, data sets, pairs and metrics."""
    rows = (json.dumps([row.label, described(row)], sort_keys=True) for row in config.table.rows)
    metrics = () if config.scoring is None else config.scoring.metrics
    return {*rows, *config.table.datasets, *(case.name for case in config.cases), *metrics}


def folder_for(config: Config, folder: Path) -> Path:
    """Where a table is written: in its folder, or beside it where one is that has other or more rows, pairs or sets."""
    try:
        there = read_config(folder)
    except InputError:
        return folder
    same = (config.seed, config.settings.said()) == (there.seed, there.settings.said())
    if same and _measured(config) >= _measured(there):
        return folder
    narrower = json.dumps(asdict(config), sort_keys=True, default=str)
    return folder.with_name(f"{folder.name}-{hashlib.sha256(narrower.encode()).hexdigest()[:8]}")


def measured(cells: Sequence[Cell], workers: int | None, progress: bool, ray: str | None = None) -> dict[str, str]:
    """Train the LoRAs that cells lack, run them, and score those that lack a metric; returns what failed, with why."""
    missing = sorted((cell for cell in cells if not cell.done), key=lambda cell: cell.problem.name)
    for lora in {lora.images: lora for cell in missing for part in cell.loras() for lora in part.values()}.values():
        lora.references()
    loras = {lora.path: lora for cell in missing for lora in cell.needs() if not lora.path.exists()}
    untrained = {
        lora.path: why for lora, why in run_all(Lora.train, [*loras.values()], "LoRAs", workers, progress, ray)
    }
    failed = {path.stem: why for path, why in untrained.items()}
    lost = {str(cell.folder): lora.path.stem for cell in missing for lora in cell.needs() if lora.path in untrained}
    failed |= {folder: f"not run, since the LoRA {name} failed" for folder, name in lost.items()}
    ready = [cell for cell in missing if str(cell.folder) not in lost]
    failed |= {str(cell.folder): why for cell, why in run_all(Cell.run, ready, "Cells", workers, progress, ray)}
    elsewhere = [str(cell.folder) for cell in ready if not cell.done]
    failed = dict.fromkeys(elsewhere, "its result is not here; expected a folder that all machines share") | failed
    unscored = [cell for cell in cells if cell.done and not cell.scored]
    return failed | {str(cell.folder): why for cell, why in run_all(Cell.complete, unscored, "Scores", 1, progress)}
