"""`config.json` in a table's folder: its rows, pairs, seed and bases, from which exactly the same is run again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from duolora.bench.cells.pairs import Case, cases_of
from duolora.bench.cells.photo_cell import Scoring
from duolora.bench.cells.photos import PhotoPair, pairs_of
from duolora.bench.record import write
from duolora.bench.tables.rows import Table, row_of
from duolora.errors import InputError, reason
from duolora.model.files import weights_mark

CONFIG = "config.json"


@dataclass(frozen=True)
class Config:
    """All that decides what a table measures."""

    name: str
    table: Table
    cases: tuple[Case, ...]
    seed: int = 0
    """Of merging and drawing."""
    bases: Mapping[str, str] = field(default_factory=lambda: {"": "atelier"})
    """What is drawn with, by the heading in the table; one without a heading is the only one."""
    photos: tuple[PhotoPair, ...] = ()
    """Pairs of photos, in the place of Atelier's own."""
    scoring: Scoring | None = None
    """What pictures of photos' pairs are scored by."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the bases' weights (`weights_mark`), where they are at hand."""


def write_config(folder: Path, config: Config) -> None:
    """Write a table's config into its folder."""
    write(folder / CONFIG, asdict(config))


def marked(config: Config) -> Config:
    """The config with the hashes of its bases' weights.

    Raises:
        InputError: the weights are others than those that it was written with.
    """
    weights = {base: mark for base in config.bases.values() if (mark := weights_mark(base))}
    for base, mark in config.weights.items():
        if weights.get(base) != mark:
            raise InputError(f"{base}: expected the weights that the table was run with, {mark[:8]}; these are others")
    return replace(config, weights=weights)


def read_config(folder: Path) -> Config:
    """The config of a table's folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text("utf-8"))
        rows = tuple(row_of(row) for row in found["table"]["rows"])
        table = Table(**found["table"] | {"rows": rows, "datasets": tuple(found["table"]["datasets"])})
        scoring = found.get("scoring") and Scoring(tuple(found["scoring"]["metrics"]), found["scoring"]["checkpoints"])
        read = {"table": table, "cases": tuple(cases_of(found["cases"])), "scoring": scoring}
        return Config(**found | read | {"photos": tuple(pairs_of(found.get("photos", ())))})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: expected a table's config, as `duolora bench` writes it ({reason(error)}); give the folder of one"
        ) from error
