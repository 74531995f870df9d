"""Which pairs, prompts and seeds a table is made of: small JSON files that are kept under version control."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused, InputError, reason
from duolora.metrics.datasets.dataset import STYLE, SUBJECT, Dataset
from duolora.textfiles import read_json, write_whole

VERSION = 1
PROMPT = f"a {SUBJECT} in {STYLE}"
"""The paper's: "a <V1> object in <S2> style"."""


@dataclass(frozen=True)
class Pairing:
    """A subject and a style, by their names in the data sets."""

    content: str
    style: str


@dataclass(frozen=True)
class Manifest:
    """All that fixes a table but the method: run again, it has exactly the same pairs, prompts and seeds."""

    name: str
    pairs: tuple[Pairing, ...]
    prompts: tuple[str, ...]
    """With `{subject}` and `{style}` for the words of the pair; empty for each subject's own prompts."""
    seeds: tuple[int, ...]
    contents: str = ""
    """The layout of the subjects' data set."""
    styles: str = ""
    """The layout of the styles' data set."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Subjects and styles in words, by their names, where the data sets have none or others."""


def choose_pairs(
    contents: Sequence[str], styles: Sequence[str], count: int | None = None, seed: int = 0
) -> tuple[Pairing, ...]:
    """`count` different pairs sampled from all, or all of them, sorted.

    Raises:
        InputError: there are not so many pairs.
    """
    every = [Pairing(content, style) for content in sorted(contents) for style in sorted(styles)]
    if count is None:
        return tuple(every)
    if not 0 < count <= len(every):
        found = f"{len(every)} ({len(contents)} contents × {len(styles)} styles)"
        raise InputError(f"count: expected 1 to the number of pairs, {found}; got {count}")
    sampled = random.Random(seed).sample(every, count)
    return tuple(sorted(sampled, key=lambda pair: (pair.content, pair.style)))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, one pair a line so that a difference is easy to read; whole or not at all.

    Raises:
        InputError: it has no pairs, or a prompt does not name both the subject and the style.
    """
    if not manifest.pairs:
        raise InputError(f"{path}: expected at least one pair of a content and a style, got none")
    check_prompts(path, manifest.prompts)
    facts: dict[str, Any] = {"version": VERSION, **asdict(manifest)}
    if not manifest.words:
        del facts["words"]
    pairs = ",\n".join(f"  {json.dumps([p.content, p.style], ensure_ascii=False)}" for p in manifest.pairs)
    facts["pairs"] = "PAIRS"
    text = json.dumps(facts, indent=1, ensure_ascii=False).replace('"PAIRS"', f"[\n{pairs}\n ]")
    write_whole(path, text + "\n")


def check_prompts(path: Path, prompts: Sequence[str]) -> None:
    """Make sure that every prompt names the subject and the style.

    Raises:
        InputError: one does not.
    """
    for prompt in prompts:
        if SUBJECT not in prompt or STYLE not in prompt:
            raise InputError(f"{path}: prompts: expected {SUBJECT} and {STYLE} in each, found {prompt!r}")


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        FileRefused: it is missing, or is not a manifest as `write_manifest` writes it.
    """
    try:
        facts = read_json(path)
    except (FileNotFoundError, FileRefused) as error:
        raise FileRefused(f"{path}: expected a manifest in JSON ({reason(error)}); check the path") from error
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        found = facts.get("version") if isinstance(facts, dict) else type(facts).__name__
        raise FileRefused(f"{path}: expected a manifest of version {VERSION}, found {found}; write it anew")
    wanted = {"name": str, "pairs": list, "prompts": list, "seeds": list, "contents": str, "styles": str}
    for key, kind in wanted.items():
        if not isinstance(facts.get(key), kind):
            raise FileRefused(f"{path}: {key}: expected a {kind.__name__}, found {facts.get(key)!r}")
    entries = {
        "pairs": (_is_pair, "[content, style]"),
        "prompts": (_is_text, "text"),
        "seeds": (_is_seed, "a whole number"),
    }
    for key, (sound, what) in entries.items():
        if wrong := [entry for entry in facts[key] if not sound(entry)]:
            raise FileRefused(f"{path}: {key}: expected {what}, found {wrong[0]!r}")
    if not facts["pairs"] or not facts["seeds"]:
        raise FileRefused(f"{path}: expected at least one pair and one seed, found none")
    pairs = tuple(Pairing(content, style) for content, style in facts["pairs"])
    texts = {key: facts[key] for key in ("name", "contents", "styles")}
    words = facts.get("words", {})
    if not isinstance(words, dict) or not all(map(_is_text, words.values())):
        raise FileRefused(f"{path}: words: expected {{name: words}}, found {words!r}")
    return Manifest(words=words, pairs=pairs, prompts=tuple(facts["prompts"]), seeds=tuple(facts["seeds"]), **texts)


def lacking(manifest: Manifest, contents: Dataset, styles: Dataset) -> list[str]:
    """What the manifest names and the data sets do not have, one line each."""
    found = []
    for side, dataset in (("content", contents), ("style", styles)):
        known = dataset.contents if side == "content" else dataset.styles
        names = sorted({getattr(pair, side) for pair in manifest.pairs})
        found += [
            f"{side} {name}: not in {dataset.root} ({len(known)} {side}s there)" for name in names if name not in known
        ]
    return found


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) and name for name in entry)


def _is_text(entry: Any) -> bool:
    return isinstance(entry, str)


def _is_seed(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool)
