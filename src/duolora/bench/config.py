"""`config.json` in a table's folder: its rows, pairs, seed and bases, from which exactly the same is run again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from duolora.bench.pairs import Case, cases_of
from duolora.bench.record import write
from duolora.bench.tables import Table, row_of
from duolora.errors import InputError

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


def write_config(folder: Path, config: Config) -> None:
    """Write a table's config into its folder."""
    write(folder / CONFIG, asdict(config))


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
        return Config(**found | {"table": table, "cases": tuple(cases_of(found["cases"]))})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: expected a table's config, as `duolora bench` writes it ({error!r}); give the folder of a table"
        ) from error
