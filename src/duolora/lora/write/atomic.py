"""Files that appear whole under their names, several of them together, or not at all."""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EACCES
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from duolora.errors import DuoLoRAError, InputError
from duolora.lora.read.header import PEFT_WEIGHTS
from duolora.options import Export, Format

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, flock

Pieces = Sequence[bytes | memoryview]
Stage = Callable[[Path, Pieces], Path]
"""Writes a draft of the file at a path, and returns where the draft is."""
SPLITS: dict[str, Format] = {"split": "kohya", "split-diffusers": "diffusers"}
"""In which format the parts of a merge are."""
LONGEST_NAME = 200
"""Bytes in a file's name: most systems take 255, and drafts, parts and checkpoints add to it."""


def check_writable(path: Path) -> None:
    """Make sure, before any work, that a file can be put at `path`.

    Raises:
        InputError: it is a folder, read-only, or in a place where nothing can be written.
    """
    path = path.expanduser()
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"{path.name[:40]}…: expected a file name of at most {LONGEST_NAME} bytes; name a shorter one")
    if os.path.isdir(path):
        raise InputError(f"{path}: expected a file to write, got a folder; name a .safetensors file in it")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected an output file that ends in .safetensors; name one")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise InputError(f"{path}: expected a file that may be replaced, found a read-only one; name another")
    _check_place(path, path.parent)


def check_out(path: Path, inputs: Iterable[str | Path | None], overwrite: bool) -> None:
    """Make sure, before any work, that a result can and may be put at `path`.

    Raises:
        InputError: it cannot (see `check_writable`), or what is there is an input, or may not be replaced.
    """
    check_writable(path)
    if not os.path.lexists(path):
        return
    for given in (Path(one).expanduser() for one in inputs if one is not None):
        for file in given.iterdir() if os.path.isdir(given) else [given]:
            with suppress(OSError):
                if os.path.samefile(path, file):
                    raise InputError(f"{path}: it is one of the inputs, which are never replaced; name another file")
    if not overwrite:
        raise InputError(f"{path}: there is a file already; name another one, or replace it with --overwrite")


def part_paths(out: Path) -> tuple[Path, Path]:
    """Where the parts go: `both.safetensors` becomes `both.content.safetensors` and `both.style.safetensors`."""
    return out.with_suffix(".content.safetensors"), out.with_suffix(".style.safetensors")


def check_export(out: Path, format: Export, inputs: Iterable[str | Path | None], overwrite: bool) -> None:
    """Make sure, before any work, that the files of a merge can and may be put there.

    Raises:
        InputError: one of them cannot, is an input, or is there already and may not be replaced.
    """
    given = list(inputs)
    for path in part_paths(out) if format in SPLITS else (out / PEFT_WEIGHTS,) if format == "peft" else (out,):
        check_out(path, given, overwrite)


def check_folder(folder: Path) -> None:
    """Make sure, before any work, that files can be put into `folder`, which need not be there yet.

    Raises:
        InputError: it is a file, read-only, or in a place where nothing can be written.
    """
    _check_place(folder, folder.expanduser())


def _check_place(path: Path, folder: Path) -> None:
    """Refuse `path` if no file can be made in the nearest folder that there is; what permissions say is not all."""
    near = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    try:
        if "\0" in str(path) or not os.access(near, os.W_OK | os.X_OK):
            raise OSError(EACCES, "not allowed")
        with TemporaryFile(dir=near):
            pass
    except OSError as error:
        raise InputError(
            f"{path}: {near} is no folder to write into ({error.strerror}); nothing was changed; name another place"
        ) from None


@contextmanager
def whole_files() -> Iterator[Stage]:
    """A function that writes drafts beside their files; when the block ends well, all of them take their names.

    When it does not, or one of them cannot take its name, no file is changed. What killed runs left of earlier drafts
    of the same files is removed.

    Raises:
        DuoLoRAError: a draft cannot be written or put in place.
    """
    drafts: dict[Path, tuple[Path, IO[bytes]]] = {}

    def stage(path: Path, pieces: Pieces) -> Path:
        """Write a draft beside `path`, locked, so that nobody takes it for a left-over one; returns it."""
        draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")  # readers go by the suffix
        with _refusing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_over(path)
            file = draft.open("xb")
            _drop(drafts.pop(path, None))
            drafts[path] = draft, file
            _lock(file)
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        return draft

    try:
        yield stage
        _put_in_place({path: _closed(draft) for path, draft in drafts.items()})
    finally:
        for draft in drafts.values():
            _drop(draft)


def _put_in_place(drafts: dict[Path, Path]) -> None:
    """Give every draft its name; if one of them cannot have it, the files before it become what they were."""
    backups = {path: draft.with_suffix(".old") for path, draft in drafts.items()}
    done: list[Path] = []
    try:
        for path, draft in drafts.items():
            with _refusing(path):
                if len(drafts) > 1 and os.path.exists(path):
                    try:
                        os.link(path, backups[path])
                    except OSError:  # on a disk that knows no links
                        shutil.copy2(path, backups[path])
                done.append(path)
                draft.replace(path)
    except BaseException:
        for path in done:
            with suppress(OSError):
                if backups[path].exists():
                    backups[path].replace(path)
                elif not drafts[path].exists():  # which has become the new file
                    path.unlink()
        raise
    finally:
        for backup in backups.values():
            backup.unlink(missing_ok=True)


def _closed(draft: tuple[Path, IO[bytes]]) -> Path:
    draft[1].close()
    return draft[0]


def _drop(draft: tuple[Path, IO[bytes]] | None) -> None:
    if draft is not None:
        with suppress(OSError):
            _closed(draft).unlink()


def _lock(file: IO[bytes]) -> None:
    """Lock an open file, or raise OSError; on Windows files that are open cannot be removed, which is lock enough."""
    if sys.platform != "win32":
        flock(file, LOCK_EX | LOCK_NB)


def _remove_left_over(path: Path) -> None:
    """Remove the drafts of this file that nobody holds open any more: their writers were killed."""
    for left in path.parent.glob(f".{escape(path.stem)}.*.tmp.*"):
        with suppress(OSError), left.open("rb") as file:
            _lock(file)
            left.unlink()


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DuoLoRAError(f"{path}: it cannot be written ({error.strerror or error}); nothing was changed") from error
