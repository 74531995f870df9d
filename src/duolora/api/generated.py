"""Which images of a folder `generate` generated last: a list beside them, which `evaluate` goes by."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused, InputError
from duolora.model.image_files import GENERATED, Found, images_of
from duolora.textfiles import read_json, write_json

_MADE_BY = "duolora generate"


def first_number(folder: Path) -> int:
    """The number of the next prompt: one more than that of any image `<prompt number>-<seed>.png` in the folder."""
    names = (re.fullmatch(r"(\d{1,9})-\d+\.png", path.name) for path in folder.iterdir())
    return max((int(name[1]) + 1 for name in names if name), default=0)


def check_list(folder: Path) -> None:
    """Make sure that the list of a folder may be written.

    Raises:
        InputError: something of another program has its name.
    """
    path = folder / GENERATED
    if os.path.exists(path) and _listed(path) is None:
        raise InputError(f"{path}: expected the list of images of an earlier `duolora generate`; name another folder")


def write_list(folder: Path, files: Sequence[Path], prompts: Sequence[str], seeds: Sequence[int], **facts: Any) -> None:
    """Write which images were generated, of which prompts, and how; an earlier list is replaced."""
    images = [{"file": f.name, "prompt": p, "seed": s} for f, p, s in zip(files, prompts, seeds, strict=True)]
    write_json(folder / GENERATED, {"made_by": _MADE_BY, **facts, "images": images})


def generated_images(where: str | Path) -> Found:
    """The images to be scored: those of the last `generate` where it left its list, else all of the folder.

    Raises:
        InputError: there is no such file or folder, or none of the images are there.
    """
    found = images_of(where)
    listed = _listed(found.where / GENERATED) if found.where.is_dir() else None
    if listed is None:
        return found
    files = tuple(path for path in found.files if path.name in listed)
    if not files:
        raise InputError(f"{found.where}: the images that {GENERATED} names are gone; delete it to score all others")
    others = [f"{path.name} (of another run)" for path in found.files if path.name not in listed]
    return Found(found.where, files, (*others, *found.left_out))


def _listed(path: Path) -> set[str] | None:
    """The names in a list of ours; None where there is no such list."""
    try:
        facts = read_json(path)
        return {image["file"] for image in facts["images"]} if facts["made_by"] == _MADE_BY else None
    except (FileNotFoundError, FileRefused, LookupError, TypeError):
        return None
