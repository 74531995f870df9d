"""Pairs of photos: what manifests name, found in their data sets, and what is asked of each pair.

In what is generated, `{subject}` is the identifier with a noun and `{style}` the other identifier ("zwx style"). CLIP-T
reads the same prompts in words: the class ("dog"), and what the data set calls the style ("watercolor painting style").
The captions of the LoRAs' images are written in two ways:

class    "a sks dog", "a house in zwx style": the subject's class, and what the style image shows
paper    "a sks object in vkt style", "a ohw object in zwx style": the paper's, by identifiers alone
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from duolora.api.evaluate import evaluate
from duolora.atelier.pairs import IDENTIFIERS, STYLE_IDENTIFIER
from duolora.bench.cells.cell import IMAGES, Cell, Part
from duolora.bench.cells.lora import Lora
from duolora.bench.cells.scores import Images, Scoring
from duolora.bench.options import Captions
from duolora.bench.tables.rows import Row, Table
from duolora.errors import InputError
from duolora.metrics.datasets.dataset import STYLE, SUBJECT, Concept, read_dataset
from duolora.metrics.datasets.manifests import PROMPT, Manifest, check_prompts, lacking, read_manifest
from duolora.metrics.encoder import Embedder
from duolora.model.image_files import images_in
from duolora.provenance import file_hash

OBJECT = "object"
"""What the paper calls every subject."""
WITHOUT = ("oracle", "pair")
"""Rows that need true images of the subject in the style, the photos' twins, which few have."""


@dataclass(frozen=True)
class Photos:
    """The photos of a subject or of a style, and what they show."""

    kind: str
    """content or style; oracle and twin, both with a pair's twins"""
    name: str
    files: tuple[str, ...]
    hash: str
    """Of all their bytes."""
    words: str
    """The subject or the style in words."""
    caption: str
    """What the photos show, with `{subject}` or `{style}` in it."""
    noun: str = ""
    """What the subject is called beside its identifier; its words if that is empty."""
    identifier: str = IDENTIFIERS[0]
    """The word that stands for the subject."""

    @property
    def about(self) -> str:
        """A name for files, another one for other photos or captions."""
        mark = hashlib.sha256(f"{self.hash} {self.prompt}".encode()).hexdigest()[:8]
        return f"{self.kind}-{self.name}-{mark}"

    @property
    def prompt(self) -> str:
        """Their caption."""
        return self.identified(self.caption)

    def identified(self, prompt: str) -> str:
        """A prompt with the identifiers in it."""
        subject = f"{self.identifier} {self.noun or self.words}"
        return prompt.replace(SUBJECT, subject).replace(STYLE, f"{STYLE_IDENTIFIER} style")

    def write(self, folder: Path) -> None:
        """Copy the photos into a folder.

        Raises:
            InputError: a photo is gone, or they are others than when the pairs were read.
        """
        if _hash(self.files) != self.hash:
            raise InputError(f"{self.kind} {self.name}: its photos were changed; give the ones of the first run")
        for k, file in enumerate(map(Path, self.files)):
            shutil.copyfile(file, folder / f"{k:03d}{file.suffix.lower()}")


@dataclass(frozen=True)
class PhotoPair:
    """A subject and a style, and what is generated of them."""

    dataset: str
    content: Photos
    style: Photos
    prompts: tuple[str, ...]
    """With `{subject}` and `{style}` in them."""
    seeds: tuple[int, ...]
    twin: Photos | None = None
    """The subject's photos in the style, one for each of them in their order, where there are any."""

    @property
    def name(self) -> str:
        """A name for folders."""
        return f"{self.dataset}-{self.content.name}-{self.style.name}"

    @property
    def title(self) -> str:
        """The subject and the style in words."""
        return f"{self.content.words}, {self.style.words}"

    @property
    def parts(self) -> tuple[Part]:
        """The photos of both."""
        twins = {} if self.twin is None else {"twin": self.twin, "oracle": replace(self.twin, kind="oracle")}
        return (Part({"content": self.content, "style": self.style} | twins, self.content.identified(PROMPT)),)

    def about(self, row: Row) -> object:
        """Both sides' photos and captions, the prompts and the seeds, and the twins where they matter."""
        twins = [self.twin.about] if self.twin is not None and row.how in WITHOUT else []
        return [self.content.about, self.style.about, self.templates(row), self.seeds, *twins]

    def templates(self, row: Row) -> tuple[str, ...]:
        """The prompts with `{subject}` and `{style}` in them; of a LoRA alone its own caption."""
        alone = {"content": self.content, "style": self.style}
        return (alone[row.how].caption,) if row.how in alone else self.prompts

    def asked(self, row: Row) -> list[str]:
        """The prompts with the identifiers in them; of a LoRA of the style, which knows no subject, with the class."""
        if row.how == "class":
            style = f"{STYLE_IDENTIFIER} style"
            return [p.replace(SUBJECT, self.content.words).replace(STYLE, style) for p in self.prompts]
        return [self.content.identified(prompt) for prompt in self.templates(row)]

    def noise_seeds(self, seed: int) -> list[int]:
        """Those of the manifest."""
        return [*self.seeds]

    def scores(self, cell: Cell, images: Images = ()) -> dict[str, object]:
        """Means over the images that the cell keeps, and the encoders behind them."""
        (loras,) = cell.loras()
        return similarity(cell, loras, [self.in_words(prompt) for prompt in self.templates(cell.row)])

    def in_words(self, prompt: str) -> str:
        """A prompt in words, as CLIP-T reads it."""
        return prompt.replace(SUBJECT, self.content.words).replace(STYLE, self.style.words)


def similarity(cell: Cell, loras: Mapping[str, Lora], texts: Sequence[str]) -> dict[str, object]:
    """Means over the images that a cell keeps, the encoders behind them, and what CLIP-T reads of each prompt."""
    scoring, each = cell.scoring or Scoring(()), cell.images // len(texts)
    done = evaluate(
        cell.folder / IMAGES, loras["content"].images, loras["style"].images, [t for t in texts for _ in range(each)],
        scoring.metrics, scoring.checkpoints, cache=cell.out,
        embedders=_loaded(tuple(sorted(scoring.checkpoints.items()))),
    )  # fmt: skip
    return {
        "similarity": {score.metric: score.value.mean for score in done.scores},
        "encoders": {score.card.name: asdict(score.card) for score in done.scores},
        "scoring": scoring.plain(),
        "texts": list(dict.fromkeys(texts)),
    }


@cache
def _loaded(checkpoints: tuple[tuple[str, str], ...]) -> dict[str, Embedder]:
    """Encoders by name, each loaded once in each process when it is first needed."""
    return {}


def photo_pairs(
    manifest: Path, contents: Path, styles: Path, captions: Captions = "class", twins: Path | None = None
) -> list[PhotoPair]:
    """The pairs of a manifest, their photos found in two data sets (which may be one), and captions for their LoRAs.

    Twins are in `<subject>/<style>/` of a folder.

    Raises:
        DuoLoRAError: the manifest or a data set cannot be read, or has not what the manifest names.
    """
    named, subjects, others = read_manifest(manifest), read_dataset(contents), read_dataset(styles)
    if missing := lacking(named, subjects, others):
        raise InputError(f"{manifest}: {missing[0]}" + (f", and {len(missing) - 1} more" if missing[1:] else ""))
    found = {
        "content": {p.content: _subject(subjects.contents[p.content], named.words, captions) for p in named.pairs},
        "style": {p.style: _style(others.styles[p.style], named.words, captions) for p in named.pairs},
    }
    dataset = re.sub(r"[^\w.-]+", "-", named.name) or manifest.stem
    pairs = [
        PhotoPair(
            dataset,
            found["content"][pair.content],
            found["style"][pair.style],
            _prompts(named, subjects.contents[pair.content], manifest),
            named.seeds,
        )
        for pair in named.pairs
    ]
    return pairs if twins is None else [replace(pair, twin=_twin(pair, twins.expanduser())) for pair in pairs]


def _twin(pair: PhotoPair, folder: Path) -> Photos:
    """The subject's photos in the style.

    Raises:
        InputError: there are others than one for each photo.
    """
    place, count = folder / pair.content.name / pair.style.name, len(pair.content.files)
    images = images_in(place)
    if len(images) != count:
        raise InputError(f"{place}: expected {count} images, a twin of each photo of the subject; got {len(images)}")
    name = f"{pair.content.name}-{pair.style.name}"
    return _photos("twin", Concept(name, images), pair.content.words, PROMPT, pair.content.noun)


def photo_pair_of(entry: Mapping[str, Any]) -> PhotoPair:
    """A pair from plain data, as `asdict` makes it of one."""
    there = [side for side in ("content", "style", "twin") if entry.get(side)]
    sides = {side: Photos(**entry[side] | {"files": tuple(entry[side]["files"])}) for side in there}
    return PhotoPair(**{**entry, "prompts": tuple(entry["prompts"]), "seeds": tuple(entry["seeds"])} | sides)


def for_photos(table: Table, datasets: Sequence[str], twins: bool = False) -> Table:
    """The table on other data sets, or on groups of theirs, without the rows that need twins where there are none."""
    rows = tuple(row for row in table.rows if twins or row.how not in WITHOUT)
    return replace(table, rows=rows, datasets=table.datasets if table.several else tuple(datasets))


def _subject(concept: Concept, words: Mapping[str, str], captions: Captions) -> Photos:
    said = concept.in_words(concept.words, words, "content")
    if captions == "paper":
        return _photos("content", concept, said, f"a {SUBJECT} in {IDENTIFIERS[2]} style", OBJECT)
    return _photos("content", concept, said, f"a {SUBJECT}")


def _style(concept: Concept, words: Mapping[str, str], captions: Captions) -> Photos:
    said = concept.in_words(concept.style, words, "style")
    said = said if concept.style or concept.name in words else f"{said} style"
    shown = f"a {IDENTIFIERS[1]} {OBJECT}" if captions == "paper" else concept.words or "an image"
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
    """The manifest's prompts, or else the subject's own that fit any style, in the style."""
    check_prompts(path, manifest.prompts)
    own = tuple(f"{prompt} in {STYLE}" for prompt in concept.fitting())
    return manifest.prompts or own or (PROMPT,)
