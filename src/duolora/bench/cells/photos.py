"""Pairs of photos: what manifests name, found in their data sets, and what is asked of each pair.

In what is generated, `{thing}` is the identifier with a noun and `{style}` the other identifier ("zwx style"). CLIP-T
reads the same prompts in words: the class ("dog"), and what the data set calls the look ("watercolor painting style").
The captions of the LoRAs' images are written in two ways:

class    "a sks dog", "a house in zwx style": the thing's class, and what the style image shows
paper    "a sks object in vkt style", "a ohw object in zwx style": the paper's, by identifiers alone
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from duolora.atelier.pairs import IDENTIFIERS, STYLE_IDENTIFIER
from duolora.bench.tables.rows import Table, fits_photos
from duolora.errors import InputError
from duolora.metrics.datasets.dataset import STYLE, THING, Concept
from duolora.metrics.datasets.layouts import read_dataset
from duolora.metrics.datasets.manifests import PROMPT, Manifest, check_prompts, lacking, read_manifest
from duolora.provenance import file_hash

Captions = Literal["class", "paper"]
OBJECT = "object"
"""What the paper calls every thing."""
WITHOUT = ("oracle", "pair")
"""Rows that need true pictures of the thing in the look, which nobody has of photos."""


@dataclass(frozen=True)
class Photos:
    """The photos of a thing or of a look, and what they show."""

    kind: str
    """content or style"""
    name: str
    files: tuple[str, ...]
    hash: str
    """Of all their bytes."""
    words: str
    """The thing or the look in words."""
    caption: str
    """What the photos show, with `{thing}` or `{style}` in it."""
    noun: str = ""
    """What the thing is called beside its identifier; its words if that is empty."""

    @property
    def about(self) -> str:
        """A name for files, another one for other photos or captions."""
        mark = hashlib.sha256(f"{self.hash} {self.prompt}".encode()).hexdigest()[:8]
        return f"{self.kind}-{self.name}-{mark}"

    @property
    def prompt(self) -> str:
        """What its LoRA is told that the photos show."""
        return _identified(self.caption, self.noun or self.words)

    def brought(self, root: Path) -> Path:
        """The folder in a run's folder that holds the photos, copied there unless they are.

        Raises:
            InputError: a photo is gone, or they are others than when the pairs were read.
        """
        folder = root / "references" / self.about
        if not (folder / "done").exists():
            if _hash(self.files) != self.hash:
                raise InputError(f"{self.kind} {self.name}: its photos were changed; give the ones of the first run")
            folder.mkdir(parents=True, exist_ok=True)
            for k, file in enumerate(map(Path, self.files)):
                shutil.copyfile(file, folder / f"{k:03d}{file.suffix.lower()}")
            (folder / "done").touch()
        return folder


@dataclass(frozen=True)
class PhotoPair:
    """A thing and a look, and what is drawn of them."""

    dataset: str
    content: Photos
    style: Photos
    prompts: tuple[str, ...]
    """With `{thing}` and `{style}` in them."""
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """A name for folders."""
        return f"{self.dataset}-{self.content.name}-{self.style.name}"

    @property
    def merged_prompt(self) -> str:
        """The thing in the look, as it is drawn."""
        return self.drawn(PROMPT)

    def drawn(self, prompt: str) -> str:
        """A prompt with the identifiers in it."""
        return _identified(prompt, self.content.noun or self.content.words)

    def told(self, prompt: str) -> str:
        """A prompt with the thing's words and the look's identifier, for who has only seen the look."""
        return prompt.replace(THING, self.content.words).replace(STYLE, f"{STYLE_IDENTIFIER} style")

    def said(self, prompt: str) -> str:
        """A prompt in words."""
        return prompt.replace(THING, self.content.words).replace(STYLE, self.style.words)


def photo_pairs(manifest: Path, contents: Path, styles: Path, captions: Captions = "class") -> list[PhotoPair]:
    """The pairs of a manifest, their photos found in two data sets (which may be one), and captions for their LoRAs.

    Raises:
        DuoLoRAError: the manifest or a data set cannot be read, or has not what the manifest names.
    """
    named, things, looks = read_manifest(manifest), read_dataset(contents), read_dataset(styles)
    if missing := lacking(named, things, looks):
        raise InputError(f"{manifest}: {missing[0]}" + (f", and {len(missing) - 1} more" if missing[1:] else ""))
    found = {
        "content": {p.content: _thing(things.contents[p.content], named.words, captions) for p in named.pairs},
        "style": {p.style: _look(looks.styles[p.style], named.words, captions) for p in named.pairs},
    }
    dataset = re.sub(r"[^\w.-]+", "-", named.name) or manifest.stem
    return [
        PhotoPair(
            dataset,
            found["content"][pair.content],
            found["style"][pair.style],
            _prompts(named, things.contents[pair.content], manifest),
            named.seeds,
        )
        for pair in named.pairs
    ]


def captions_of(name: str) -> Captions:
    """The way to write captions of that name.

    Raises:
        InputError: there is none.
    """
    for known in get_args(Captions):
        if name == known:
            return known
    raise InputError(f"--captions: expected one of {', '.join(get_args(Captions))}, got {name!r}")


def pairs_of(entries: Sequence[Mapping[str, Any]]) -> list[PhotoPair]:
    """Pairs from plain data, as `asdict` makes it of them."""
    sides = ("content", "style")
    return [
        PhotoPair(
            **{**entry, "prompts": tuple(entry["prompts"]), "seeds": tuple(entry["seeds"])}
            | {side: Photos(**{**entry[side], "files": tuple(entry[side]["files"])}) for side in sides}
        )
        for entry in entries
    ]


def for_photos(table: Table, datasets: Sequence[str]) -> Table:
    """The table on other data sets, without the rows that need Atelier's truth.

    Raises:
        InputError: it is no table of single pairs.
    """
    if not fits_photos(table):
        raise InputError(f"--photos: expected a table of single pairs, such as table1; {table.title!r} is none")
    rows = tuple(row for row in table.rows if row.how not in WITHOUT)
    return replace(table, rows=rows, datasets=tuple(datasets))


def _identified(prompt: str, thing: str) -> str:
    return prompt.replace(THING, f"{IDENTIFIERS[0]} {thing}").replace(STYLE, f"{STYLE_IDENTIFIER} style")


def _thing(concept: Concept, words: Mapping[str, str], captions: Captions) -> Photos:
    said = concept.in_words(concept.words, words, "content")
    if captions == "paper":
        return _photos("content", concept, said, f"a {THING} in {IDENTIFIERS[2]} style", OBJECT)
    return _photos("content", concept, said, f"a {THING}")


def _look(concept: Concept, words: Mapping[str, str], captions: Captions) -> Photos:
    said = concept.in_words(concept.style, words, "style")
    said = said if concept.style or concept.name in words else f"{said} style"
    shown = f"a {IDENTIFIERS[1]} {OBJECT}" if captions == "paper" else concept.words or "a picture"
    return _photos("style", concept, said, f"{shown} in {STYLE}")


def _photos(kind: str, concept: Concept, words: str, caption: str, noun: str = "") -> Photos:
    if not concept.images:
        raise InputError(f"{kind} {concept.name}: expected photos of it, found none; run `duolora datasets check`")
    files = tuple(str(path.absolute()) for path in concept.images)
    return Photos(kind, concept.name, files, _hash(files), words, caption, noun)


def _hash(files: Sequence[str]) -> str:
    if gone := [file for file in files if not os.path.isfile(file)]:
        raise InputError(f"{gone[0]}: no such photo; a run needs the photos where they were when it began")
    return hashlib.sha256("".join(file_hash(Path(file)) for file in files).encode()).hexdigest()


def _prompts(manifest: Manifest, concept: Concept, path: Path) -> tuple[str, ...]:
    """The manifest's prompts, or else the thing's own that fit any style, in the look."""
    check_prompts(path, manifest.prompts)
    own = tuple(f"{prompt} in {STYLE}" for prompt in concept.fitting())
    return manifest.prompts or own or (PROMPT,)
