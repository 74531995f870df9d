"""What all cells have in common: a row with a seed, a folder named for what is measured, and a result in it."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from duolora.bench.tables.rows import Row
from duolora.merging.options import MergeOptions, options_of


class InFolder(ABC):
    """A cell, in so far as it has a row and a folder."""

    out: Path
    row: Row
    seed: int

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where its results are, the same for the same measurement in any table."""

    def place(self, case: str, about: object) -> Path:
        """The folder of a measurement on a case, named for the method, what it is `about`, and the seed."""
        mark = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
        name = self.row.method if self.row.how == "merge" else self.row.how
        return self.out / "cells" / case / f"{name}-{mark}-{self.seed}"

    @property
    def options(self) -> MergeOptions:
        """The options of its merge."""
        return replace(options_of(self.row.method, **self.row.changes), seed=self.seed)

    @property
    def asked(self) -> dict[str, object]:
        """The options of its merge but for those that are off, so that one that is new and off changes no folder."""
        return {name: value for name, value in asdict(self.options).items() if value}

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").exists()

    def result(self) -> dict[str, Any]:
        """What was measured."""
        return json.loads((self.folder / "result.json").read_text("utf-8"))

    def scored(self) -> bool:
        """Whether its result has all scores that are asked for."""
        return True

    def complete(self) -> None:
        """Add the scores that it lacks; nothing where none can be lacking."""
        return


def write_result(folder: Path, result: Mapping[str, object]) -> None:
    """Write a cell's result, whole or not at all."""
    part = folder / "result.json.part"
    part.write_text(json.dumps(result, indent=1, default=str), "utf-8")
    os.replace(part, folder / "result.json")
