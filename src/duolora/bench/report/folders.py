"""Where finished runs are; nothing heavy is imported to say that there are none."""

from collections.abc import Sequence
from pathlib import Path

from duolora.errors import InputError


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders of finished runs: of these, of those inside them, and of those in `on/`, each base's.

    Raises:
        InputError: a folder holds neither `table.json` nor `curves.json`, and none of those in it does.
    """
    found: list[Path] = []
    for folder in (Path(f).expanduser() for f in folders):
        inside = [*sorted(folder.glob("*")), *sorted(folder.glob("on/*/*"))]
        marks = ("table.json", "curves.json")
        runs = [path for path in (folder, *inside) if any((path / mark).is_file() for mark in marks)]
        if not runs:
            raise InputError(
                f"{folder}: expected a run's folder with table.json or curves.json in it, or a folder of such; found "
                "none; give the folder that `duolora bench` printed"
            )
        found += runs
    return found
