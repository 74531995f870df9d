"""`config.json` in a table's folder: its rows, pairs, seed and bases, from which exactly the same is run again."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from duolora.api.train import default_options
from duolora.bench.cells.multi import Group, PhotoGroup
from duolora.bench.cells.pairs import Case, case_of, sample_suite, suite
from duolora.bench.cells.photos import PhotoPair, for_photos, photo_pair_of, photo_pairs
from duolora.bench.cells.scores import Scoring, scoring_of
from duolora.bench.options import PLAIN, Captions, PhotoOptions, Settings, TableOptions
from duolora.bench.tables.rows import Table, matched, read_blocks, row_of, with_blora
from duolora.bench.tables.tuning import check_judged, tuned
from duolora.errors import DuoLoRAError, InputError, Notice, reason
from duolora.metrics.named import named_checkpoints
from duolora.model.architectures import shapes_in
from duolora.model.device import chosen_device
from duolora.model.files import weights_mark
from duolora.options import parsed, word
from duolora.provenance import known_hash, sampled_hashes
from duolora.textfiles import read_json, write_json
from duolora.training.distil import SHAPES, DistilRecipe, distil
from duolora.training.options import TrainOptions, check_training

CONFIG = "config.json"
HEADINGS = {"ssd1b": "like SSD-1B", "vega": "like Segmind-Vega"}


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
    settings: Settings = PLAIN


def write_config(folder: Path, config: Config) -> None:
    """Write a table's config into its folder."""
    write_json(folder / CONFIG, asdict(config))


def marked(config: Config) -> Config:
    """The config with the hashes of its bases' weights.

    Raises:
        InputError: the weights, or the finished LoRAs, are others than those that it was written with.
    """
    if config.settings.loras and loras_mark(Path(config.settings.loras)) != config.settings.loras_mark:
        raise InputError(f"{config.settings.loras}: expected the LoRAs that the table was run with; these are others")
    weights = {base: mark for base in config.bases.values() if (mark := weights_mark(base))}
    for base, mark in config.weights.items():
        if weights.get(base) != mark:
            raise InputError(f"{base}: expected the weights that the table was run with, {mark[:8]}; these are others")
    return replace(config, weights=weights)


def problem_of(entry: Mapping[str, Any]) -> Case | Group | PhotoPair | PhotoGroup:
    """What cells are about, from plain data."""
    if "subjects" in entry and all("pair" in subject for subject in entry["subjects"]):
        return Group(tuple(case_of(case) for case in entry["subjects"]))
    if "subjects" in entry:
        return PhotoGroup(tuple(photo_pair_of(pair) for pair in entry["subjects"]))
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
        settings = Settings(**found.get("settings", {}))
        return Config(**found | {"table": table, "cases": cases, "scoring": scoring, "settings": settings})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, DuoLoRAError) as error:
        raise InputError(
            f"{path}: expected a table's config, as `duolora bench` writes it ({reason(error)}); give the folder of one"
        ) from error


def root_of(out: Path, base: str) -> Path:
    """The folder of a base's LoRAs and cells: `out` itself for Atelier, else one in it, named for its weights."""
    if base == "atelier":
        return out
    weights = Path(base) / "unet" / "diffusion_pytorch_model.safetensors"
    mark = known_hash(weights) if weights.exists() else hashlib.sha256(base.encode()).hexdigest()
    return out / "on" / f"{Path(base).name}-{mark[:8]}"


def config_of(name: str, table: Table, options: TableOptions, bases: Mapping[str, str] | None = None) -> Config:
    """The config of a table with what was chosen.

    Raises:
        DuoLoRAError: a choice cannot be, or a file cannot be read.
    """
    chosen = options if isinstance(options, PhotoOptions) else PhotoOptions()
    bases = bases or {"": chosen.base}
    scoring = None
    captions: Captions = word("--captions", chosen.captions, get_args(Captions))
    cases: Sequence[Case | PhotoPair]
    if captions != "class" and table.several:
        raise InputError(f"--captions {captions}: expected a table of single pairs; {table.title!r} names each kind")
    if chosen.photos or chosen.contents or chosen.styles:
        if options.manifest or options.sample is not None:
            raise InputError("--photos: its pairs are those of that file; leave --manifest and --sample out")
        places = [*_places(chosen)]
        scoring = scoring_of(chosen.metrics, named_checkpoints(chosen.checkpoint or []))
        twins = chosen.twins is not None
        table, cases = _on_photos(
            table, [photo_pairs(*each, captions, chosen.twins) for each in places], options.dataset or [], twins
        )
    else:
        found = suite(options.manifest) if options.sample is None else sample_suite(options.sample)
        cases = [replace(case, pair=replace(case.pair, captions=captions)) for case in found]
        table = replace(table, datasets=tuple(options.dataset)) if options.dataset else table
    settings = settings_of(options, [*bases.values()])
    table = prepared(table, root_of(options.out, next(iter(bases.values()))), options, [*bases.values()])
    if name == "tuning" and scoring is not None:
        check_judged(scoring.metrics)
    sets = [[case for case in cases if case.dataset == name] for name in dict.fromkeys(case.dataset for case in cases)]
    some = tuple(case for each in sets for case in each[: options.pairs])
    return Config(name, table, some, options.seed, bases, scoring, settings=settings)


def settings_of(options: TableOptions, bases: Sequence[str]) -> Settings:
    """How LoRAs are trained and images generated, as was chosen.

    Raises:
        InputError: a value cannot be, or there are no LoRAs.
    """
    training: dict[str, Any] = {}
    known = [each.name for each in fields(TrainOptions) if each.name not in ("blocks", "class_prompts")]
    for assignment in options.train or []:
        name, _, value = assignment.partition("=")
        chosen = word("--train", name, known)
        training[chosen] = parsed(TrainOptions(), chosen, value)
    for base in bases if training else ():
        for kind in ("content", "style"):
            check_training(replace(default_options(base, kind), **training), shapes_in(base))
    chosen_device(options.device)
    loras = getattr(options, "loras", None)
    if loras is not None and not getattr(options, "photos", None):
        raise InputError("--loras: expected --photos, by whose names the LoRAs are found; Atelier's are trained")
    where = "" if loras is None else str(loras.expanduser().absolute())
    return options.settings(training=training, loras=where, loras_mark=loras_mark(Path(where)) if where else "")


def loras_mark(folder: Path) -> str:
    """A quick hash of finished LoRAs.

    Raises:
        InputError: there are none in the folder.
    """
    files = sorted(path for kind in ("contents", "styles") for path in (folder / kind).glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: expected contents/NAME.safetensors and styles/NAME.safetensors, found none")
    return sampled_hashes(folder, files)


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
    table: Table, sets: Sequence[Sequence[PhotoPair]], datasets: Sequence[str], twins: bool
) -> tuple[Table, list[PhotoPair]]:
    """The table on the pairs of all manifests, and those that it needs."""
    known = [pairs[0].dataset for pairs in sets]
    if len(set(known)) < len(known):
        raise InputError(f"--photos: expected manifests with different names, got {', '.join(known)}")
    if unknown := [name for name in datasets if name not in known]:
        raise InputError(f"--dataset: expected the name of a manifest, {', '.join(known)}; got {unknown[0]!r}")
    shown = for_photos(table, datasets or known, twins)
    if lost := [row.label for row in table.rows if row.how == "pair" and not twins]:
        warnings.warn(
            f"{', '.join(lost)}: left out, as it learns from the photos' twins in the style; give them with --twins",
            Notice,
            stacklevel=2,
        )
    return shown, [pair for pairs in sets for pair in pairs if pair.dataset in (datasets or known)]


def prepared(table: Table, root: Path, options: TableOptions, bases: Sequence[str] = ("atelier",)) -> Table:
    """The table as it is run: with rows of tuned settings, B-LoRA's blocks on this base, and only some rows.

    B-LoRA's blocks are those of the file `blora`, or those that `bench figure3` found on this base, or else SDXL's.

    Raises:
        InputError: a file is another one than it should be, or there is no such row.
    """
    table = (
        table if options.tuned is None else tuned(table, options.tuned, {base: weights_mark(base) for base in bases})
    )
    found = options.blora or root / "figure3" / "blocks.json"
    if options.blora is not None or found.exists():
        table = with_blora(table, *read_blocks(found))
    known = {row.label: row.name for row in table.rows}
    rows = {matched(row, known) for row in options.row or []}
    kept = [row for row in table.rows if not rows or rows & {row.label, row.group}]
    if getattr(options, "loras", None) and (own := [row.label for row in kept if row.blocks]):
        warnings.warn(f"{', '.join(own)}: left out, as LoRAs of their own are trained for them", Notice, stacklevel=2)
        kept = [row for row in kept if not row.blocks]
    return replace(table, rows=tuple(kept))
