"""Text files: read as other programs write them, of bounded size and depth; written whole or not at all."""

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused, InputError, reason

LARGEST = 2**25
"""Bytes of a text; the largest that a base model has, its vocabulary, are a tenth of it."""
DEEPEST = 64
"""Levels of lists and objects."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without a byte order mark; UTF-16 is read where its mark says so.

    Raises:
        FileNotFoundError: there is no such file.
        FileRefused: it is no regular file, too large, or not readable as text.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileRefused(f"{path}: expected a regular file, found a folder, pipe or device; name a file")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise FileRefused(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
    if len(data) > LARGEST:
        raise FileRefused(
            f"{path}: expected at most {LARGEST >> 20} MiB of text, found more; check that it is the file"
        )
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileRefused(f"{path}: expected text in UTF-8 ({reason(error)}); save it as UTF-8") from error


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, without empty ones.

    Raises:
        InputError: it cannot be read as text.
    """
    try:
        return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    except (FileNotFoundError, FileRefused) as error:
        raise InputError(f"{path}: expected a text file with a prompt on each line ({reason(error)})") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds (see `read_text`), at most `DEEPEST` levels deep.

    Raises:
        FileNotFoundError: there is no such file.
        FileRefused: it is no regular file, too large or deep, or not valid JSON.
    """
    text = read_text(path)
    try:
        found = json.loads(text)
        deep = _depth(found)
    except RecursionError:
        deep = DEEPEST + 1
    except ValueError as error:
        raise FileRefused(f"{path}: not valid JSON ({reason(error)}); download it again") from error
    if deep > DEEPEST:
        raise FileRefused(f"{path}: expected JSON of at most {DEEPEST} levels, found more; download it again")
    return found


def _depth(value: Any) -> int:
    """The levels of lists and objects, counted level by level."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return depth


def write_whole(path: Path, data: str | bytes) -> Path:
    """Write a file, and its folder if need be; until it is whole, what was there before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: object) -> Path:
    """Write a value as JSON (see `write_whole`); what JSON has no words for is written as text."""
    return write_whole(path, json.dumps(value, indent=1, default=str) + "\n")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
