"""Benchmarks: a command for each table and figure of the paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from duolora.bench.tables.rows import TABLES, Table, fits_photos
from duolora.bench.tables.tuning import TUNING
from duolora.cli import report as reports
from duolora.cli.common import JsonOption, one_line, report
from duolora.cli.examples import examples
from duolora.cli.speed import app as measure
from duolora.errors import InputError

if TYPE_CHECKING:
    from duolora.bench.cells.photo_cell import Scoring
    from duolora.bench.cells.photos import PhotoPair
    from duolora.bench.config import Config

bench = typer.Typer(
    no_args_is_help=True,
    help="""Run a table or figure of the paper, on Atelier or photos.

    A table is a folder of cells (a pair, a method, a seed). What is finished is never run again, so a stopped run
    goes on when the same command is given; LoRAs are shared by all tables in `--out`. On two CPU cores a pair takes
    about two minutes for its LoRAs and half a minute for each trained method: begin with `--pairs 1`.
    """,
)

OutOption = Annotated[Path, typer.Option(help="Folder of all benchmarks; tables share what is in it.")]
PairsOption = Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs of each data set.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(help="Processes; by default one for each core, or for each GPU (eight on Atelier, which is small)."),
]
RayOption = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster that does the work; `local` for one on this machine.")
]
ManifestOption = Annotated[Path | None, typer.Option(help="Other pairs than the shipped ones, as a JSON file.")]
SampleOption = Annotated[int | None, typer.Option(help="Other pairs: those that the rule samples from this seed.")]
RowOption = Annotated[list[str] | None, typer.Option("--row", help="Only this row; may be given several times.")]
DatasetOption = Annotated[list[str] | None, typer.Option("--dataset", help="Only this data set; likewise.")]
SeedOption = Annotated[int, typer.Option(help="Seed of merging and generating.", min=0, max=2**32 - 1)]
BaseOption = Annotated[
    str, typer.Option(help="Atelier, or another base whose images its judges can judge; any base with --photos.")
]
PhotosOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Pairs of photos, a file of `duolora datasets pairs`; one for each data set of the table. Rows that need "
        "Atelier's truth (oracle, PairCustomization) are left out then."
    ),
]
ContentsOption = Annotated[
    list[Path] | None,
    typer.Option(help="With --photos: the data set with the subjects; one for all, or one for each --photos."),
]
StylesOption = Annotated[
    list[Path] | None, typer.Option(help="With --photos: the data set with the styles, likewise; may be the same.")
]
CaptionsOption = Annotated[
    str,
    typer.Option(
        help="With --photos: what LoRAs are told, class ('a sks dog', 'a house in zwx style') or paper (the paper's: "
        "'a sks object in vkt style', 'a ohw object in zwx style')."
    ),
]
MetricsOption = Annotated[str, typer.Option(help="With --photos: what they are scored by, as in `duolora evaluate`.")]
CheckpointOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=WHERE", help="With --photos: another hub id, folder or file for dino, clip or csd."),
]
TunedOption = Annotated[
    Path | None, typer.Option(help="Each method at its best setting: tuned.json of `bench tuning`.")
]
BloraOption = Annotated[
    Path | None, typer.Option(help="B-LoRA's blocks, as `bench figure3` writes them: blocks.json  [SDXL's two].")
]
UpdatesOption = Annotated[int, typer.Option(help="Training steps in which each smaller base is distilled.")]


def _table(name: str, table: Table) -> None:
    def run(
        out: OutOption = Path("benchmarks/runs"),
        pairs: PairsOption = None,
        dataset: DatasetOption = None,
        row: RowOption = None,
        seed: SeedOption = 0,
        workers: WorkersOption = None,
        ray: RayOption = None,
        manifest: ManifestOption = None,
        sample: SampleOption = None,
        base: BaseOption = "atelier",
        tuned: TunedOption = None,
        blora: BloraOption = None,
        photos: PhotosOption = None,
        contents: ContentsOption = None,
        styles: StylesOption = None,
        captions: CaptionsOption = "class",
        metrics: MetricsOption = "paper",
        checkpoint: CheckpointOption = None,
        as_json: JsonOption = False,
    ) -> None:
        with one_line():
            if photos or contents or styles:
                if manifest or sample is not None:
                    raise InputError("--photos: its pairs are those of that file; leave --manifest and --sample out")
                sets = _photo_sets(photos or [], contents or [], styles or [], captions, metrics, checkpoint or [])
                config = _on_photos(name, table, out, sets, pairs, dataset, row, seed, base, tuned, blora)
            else:
                chosen = (pairs, dataset, row, seed, manifest, sample, {"": base}, tuned, blora)
                config = _on_atelier(name, table, out, *chosen)
            _run_config(config, out, workers, ray, as_json)

    shown = "bench photos" if fits_photos(table) else "bench table"
    bench.command(name, help=f"{table.title}.", epilog=examples(shown, name=name))(run)


def _on_atelier(
    name: str,
    table: Table,
    out: Path,
    pairs: int | None,
    dataset: list[str] | None,
    row: list[str] | None,
    seed: int,
    manifest: Path | None,
    sample: int | None,
    bases: dict[str, str],
    tuned: Path | None,
    blora: Path | None,
) -> "Config":
    """The table with what was chosen, on Atelier's pairs."""
    from duolora.bench.cells.pairs import limited, sample_suite, suite
    from duolora.bench.config import Config
    from duolora.bench.run import prepared

    cases = suite(manifest) if sample is None else sample_suite(sample)
    chosen = prepared(table, out, next(iter(bases.values())), row or [], dataset or [], tuned, blora)
    return Config(name, chosen, tuple(limited(cases, pairs)), seed, bases)


def _photo_sets(
    photos: list[Path], contents: list[Path], styles: list[Path], captions: str, metrics: str, checkpoint: list[str]
) -> "tuple[list[PhotoPair], Scoring]":
    """The pairs of all manifests, and what they are scored by."""
    from duolora.api.evaluate import named_checkpoints
    from duolora.bench.cells.photo_cell import scoring_of
    from duolora.bench.cells.photos import captions_of, photo_pairs

    how = captions_of(captions)
    for name, folders in (("contents", contents), ("styles", styles)):
        if not photos or len(folders) not in (1, len(photos)):
            raise InputError(
                f"--{name}: expected one for all --photos, or one for each; got {len(folders)} for {len(photos)}"
            )
    scoring = scoring_of(metrics, named_checkpoints(checkpoint))
    things, looks = (folders * (len(photos) if len(folders) == 1 else 1) for folders in (contents, styles))
    found = [photo_pairs(*places, how) for places in zip(photos, things, looks, strict=True)]
    names = [pairs[0].dataset for pairs in found]
    if len(set(names)) < len(names):
        raise InputError(f"--photos: expected manifests with different names, got {', '.join(names)}")
    return [pair for pairs in found for pair in pairs], scoring


def _on_photos(
    name: str,
    table: Table,
    out: Path,
    sets: "tuple[list[PhotoPair], Scoring]",
    pairs: int | None,
    dataset: list[str] | None,
    row: list[str] | None,
    seed: int,
    base: str,
    tuned: Path | None,
    blora: Path | None,
) -> "Config":
    """The table with what was chosen, on pairs of photos."""
    from duolora.bench.cells.pairs import limited
    from duolora.bench.cells.photos import for_photos
    from duolora.bench.config import Config
    from duolora.bench.run import prepared

    found, scoring = sets
    known = list(dict.fromkeys(pair.dataset for pair in found))
    if unknown := [name for name in dataset or [] if name not in known]:
        raise InputError(f"--dataset: expected the name of a manifest, {', '.join(known)}; got {unknown[0]!r}")
    shown = for_photos(table, dataset or known)
    chosen = [pair for pair in limited(found, pairs) if pair.dataset in shown.datasets]
    rows = prepared(shown, out, base, row or [], (), tuned, blora)
    return Config(name, rows, (), seed, {"": base}, tuple(chosen), scoring)


def _run_config(config: "Config", out: Path, workers: int | None, ray: str | None, as_json: bool) -> None:
    """Run a table, plot its figure, and say what came out and what failed."""
    from duolora.bench.grids import figure_of
    from duolora.bench.run import run_table
    from duolora.bench.tables import tuning

    done = run_table(config, out, workers, ray=ray)
    text = f"{done.text}\n{done.folder / 'table.md'}"
    if config.name == "tuning":
        text += "\n" + tuning.choose(config.table, done.lines, done.folder / "tuned.json")
    if config.table.figure:
        text += f"\n{figure_of(config.table.figure, [cell for _, cell in done.cells], done.folder)}"
    for cell, why in done.failed.items():
        text += f"\nfailed: {cell}: {why.strip().splitlines()[-1]}"
    report(as_json, text, folder=done.folder, failed=done.failed)
    if done.failed:
        raise typer.Exit(1)


for _name, _rows in (TABLES | {"tuning": TUNING}).items():
    if _name != "table5":
        _table(_name, _rows)


@bench.command(help=f"{TABLES['table5'].title}.", epilog=examples("bench table", name="table5"))
def table5(
    out: OutOption = Path("benchmarks/runs"),
    pairs: PairsOption = None,
    dataset: DatasetOption = None,
    row: RowOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    ray: RayOption = None,
    manifest: ManifestOption = None,
    sample: SampleOption = None,
    tuned: TunedOption = None,
    blora: BloraOption = None,
    updates: UpdatesOption = 3000,
    as_json: JsonOption = False,
) -> None:
    """Distil the smaller bases from Atelier, once, and run the table on each."""
    with one_line():
        from duolora.bench.smaller import smaller_bases

        rows = TABLES["table5"]
        bases = smaller_bases(out, updates)
        chosen = (pairs, dataset, row, seed, manifest, sample, bases, tuned, blora)
        _run_config(_on_atelier("table5", rows, out, *chosen), out, workers, ray, as_json)


@bench.command(epilog=examples("bench rerun"))
def rerun(
    folder: Annotated[Path, typer.Argument(help="Folder of a table that was run, with its config.json.")],
    out: OutOption = Path("benchmarks/runs"),
    workers: WorkersOption = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a table again, on exactly the same rows, pairs and seeds.

    Prompts are the same, too. Give another `--out` to measure anew.
    """
    with one_line():
        from duolora.bench.config import read_config

        _run_config(read_config(folder), out, workers, ray, as_json)


@bench.command(epilog=examples("bench figure3"))
def figure3(
    out: OutOption = Path("benchmarks/runs"),
    base: Annotated[str, typer.Option(help="The base to look into.")] = "atelier",
    count: Annotated[int, typer.Option(help="Images for each block group and α.")] = 34,
    seed: SeedOption = 0,
) -> None:
    """Figure 3: what a base generates with some blocks turned down.

    Names B-LoRA's blocks: those whose attention carries the subject, and those that carry the style.
    """
    with one_line():
        from duolora.bench.figures import figure3 as run
        from duolora.bench.run import root_of
        from duolora.model.base import load_base

        folder = root_of(out, base) / "figure3"
        run(folder, load_base(base), count=count, seed=seed)
        typer.echo("\n".join(str(folder / name) for name in ("curves.png", "pictures.png", "blocks.json")))


bench.command(epilog=examples("bench report"))(reports.report)
bench.add_typer(reports.study, name="study")
bench.add_typer(measure)
