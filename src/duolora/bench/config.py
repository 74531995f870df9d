"""`config.json` in a table's folder: its rows, pairs, seed and bases, from which exactly the same is run again."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from duolora.api.evaluate import named_checkpoints
from duolora.bench.cells.multi import Group
from duolora.bench.cells.pairs import Case, case_of, sample_suite, suite
from duolora.bench.cells.photos import PhotoPair, for_photos, photo_pair_of, photo_pairs
from duolora.bench.cells.scores import Scoring, scoring_of
from duolora.bench.options import Captions, PhotoOptions, TableOptions
from duolora.bench.tables.rows import Table, matched, read_blocks, row_of, with_blora
from duolora.bench.tables.tuning import tuned
from duolora.errors import DuoLoRAError, InputError, reason
from duolora.model.files import weights_mark
from duolora.options import word
from duolora.provenance import file_hash
from duolora.textfiles import read_json, write_json
from duolora.training.distil import SHAPES, DistilRecipe, distil

CONFIG = "config.json"
HEADINGS = {"ssd1b": "like SSD-1B", "vega": "like Segmind-Vega"}
C = TypeVar("C", bound=Case | PhotoPair)


@dataclass(frozen=True)
class Config:
    """All that decides what a table measures."""

    name: str
    table: Table
    cases: tuple[Case | PhotoPair, ...]
    """Atelier's pairs, or pairs of photos."""
    seed: int = 0
    """Of merging and generating."""
    bases: Mapping[str, str] = field(default_factory=lambda: {"": "atelier"})
    """What generates, by the heading in the table; one without a heading is the only one."""
    scoring: Scoring | None = None
    """What images of photos' pairs are scored by."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the bases' weights (`weights_mark`), where they are at hand."""


def write_config(folder: Path, config: Config) -> None:
    """Write a table's config into its folder."""
    write_json(folder / CONFIG, asdict(config))


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


def problem_of(entry: Mapping[str, Any]) -> Case | Group | PhotoPair:
    """What cells are about, from plain data."""
    if "subjects" in entry:
        return Group(tuple(case_of(case) for case in entry["subjects"]))
    return case_of(entry) if "pair" in entry else photo_pair_of(entry)


def read_config(folder: Path) -> Config:
    """The config of a table's folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / CONFIG
    try:
        found = read_json(path)
        rows = tuple(row_of(row) for row in found["table"]["rows"])
        table = Table(**found["table"] | {"rows": rows, "datasets": tuple(found["table"]["datasets"])})
        scoring = found["scoring"] and Scoring(tuple(found["scoring"]["metrics"]), found["scoring"]["checkpoints"])
        cases = tuple(problem_of(case) for case in found["cases"])
        return Config(**found | {"table": table, "cases": cases, "scoring": scoring})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, DuoLoRAError) as error:
        raise InputError(
            f"{path}: expected a table's config, as `duolora bench` writes it ({reason(error)}); give the folder of one"
        ) from error


def root_of(out: Path, base: str) -> Path:
    """The folder of a base's LoRAs and cells: `out` itself for Atelier, else one in it, named for its weights."""
    if base == "atelier":
        return out
    weights = Path(base) / "unet" / "diffusion_pytorch_model.safetensors"
    mark = file_hash(weights) if weights.exists() else hashlib.sha256(base.encode()).hexdigest()
    return out / "on" / f"{Path(base).name}-{mark[:8]}"


def config_of(name: str, table: Table, options: TableOptions, bases: Mapping[str, str] | None = None) -> Config:
    """The config of a table with what was chosen.

    Raises:
        DuoLoRAError: a choice cannot be, or a file cannot be read.
    """
    chosen = options if isinstance(options, PhotoOptions) else PhotoOptions()
    bases = bases or {"": chosen.base}
    scoring = None
    cases: Sequence[Case | PhotoPair]
    if chosen.photos or chosen.contents or chosen.styles:
        if options.manifest or options.sample is not None:
            raise InputError("--photos: its pairs are those of that file; leave --manifest and --sample out")
        captions: Captions = word("--captions", chosen.captions, get_args(Captions))
        places = [*_places(chosen)]
        scoring = scoring_of(chosen.metrics, named_checkpoints(chosen.checkpoint or []))
        table, cases = _on_photos(table, [photo_pairs(*each, captions) for each in places], options.dataset or [])
    else:
        cases = suite(options.manifest) if options.sample is None else sample_suite(options.sample)
        table = replace(table, datasets=tuple(options.dataset)) if options.dataset else table
    table = prepared(table, root_of(options.out, next(iter(bases.values()))), options)
    return Config(name, table, tuple(limited(cases, options.pairs)), options.seed, bases, scoring)


def smaller_bases(out: Path, steps: int) -> dict[str, str]:
    """Table 5's bases: Atelier distilled into the shapes of SSD-1B and Segmind-Vega; their folders by headings.

    Those that are missing are made, going on if need be.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = out / "bases"
    made = {shape: distil(shape, folder, DistilRecipe(steps=steps), device) for shape in SHAPES}
    return {HEADINGS[shape]: str(path) for shape, path in made.items()}


def _places(options: PhotoOptions) -> Iterator[tuple[Path, Path, Path]]:
    """Each manifest with the data sets of its subjects and styles."""
    photos = options.photos or []
    for name, folders in (("contents", options.contents or []), ("styles", options.styles or [])):
        if not photos or len(folders) not in (1, len(photos)):
            raise InputError(
                f"--{name}: expected one for all --photos, or one for each; got {len(folders)} for {len(photos)}"
            )
    sides = ((folders or []) * (len(photos) // len(folders or [0])) for folders in (options.contents, options.styles))
    return zip(photos, *sides, strict=True)


def _on_photos(
    table: Table, sets: Sequence[Sequence[PhotoPair]], datasets: Sequence[str]
) -> tuple[Table, list[PhotoPair]]:
    """The table on the pairs of all manifests, and those that it needs."""
    known = [pairs[0].dataset for pairs in sets]
    if len(set(known)) < len(known):
        raise InputError(f"--photos: expected manifests with different names, got {', '.join(known)}")
    if unknown := [name for name in datasets if name not in known]:
        raise InputError(f"--dataset: expected the name of a manifest, {', '.join(known)}; got {unknown[0]!r}")
    shown = for_photos(table, datasets or known)
    return shown, [pair for pairs in sets for pair in pairs if pair.dataset in shown.datasets]


def limited(cases: Sequence[C], most: int | None) -> list[C]:
    """The first `most` cases of each data set; all when there is no limit."""
    sets = dict.fromkeys(case.dataset for case in cases)
    return [case for name in sets for case in [c for c in cases if c.dataset == name][:most]]


def prepared(table: Table, root: Path, options: TableOptions) -> Table:
    """The table as it is run: with tuned settings, B-LoRA's blocks on this base, and only some rows.

    B-LoRA's blocks are those of the file `blora`, or those that `bench figure3` found on this base, or else SDXL's.

    Raises:
        InputError: a file is another one than it should be, or there is no such row.
    """
    table = table if options.tuned is None else tuned(table, options.tuned)
    found = options.blora or root / "figure3" / "blocks.json"
    if options.blora is not None or found.exists():
        table = with_blora(table, *read_blocks(found))
    known = {row.label: row.method for row in table.rows}
    rows = {matched(row, known) for row in options.row or []}
    return replace(table, rows=tuple(row for row in table.rows if not rows or row.label in rows))
