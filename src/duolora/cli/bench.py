"""Benchmarks: a command for each table and figure of the paper, and for speed."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from duolora.bench.options import (
    DistilledOptions,
    Figure3Options,
    GrowthOptions,
    PaperOptions,
    PhotoOptions,
    RunOptions,
    SamplingOptions,
    SpeedOptions,
    TableOptions,
)
from duolora.bench.tables.rows import ALL, MULTI, OTHERS, PAPER, TABLES, Table, matched
from duolora.bench.tables.tuning import TUNING
from duolora.cli import report as reports
from duolora.cli.common import doing, report
from duolora.cli.early import check_there
from duolora.cli.examples import examples
from duolora.cli.spread import spread
from duolora.errors import InputError
from duolora.metrics.named import chosen, named_checkpoints
from duolora.model.defaults import AUTO, check_base
from duolora.options import word
from duolora.textfiles import read_lines

if TYPE_CHECKING:
    from duolora.bench.config import Config

T = TypeVar("T")
bench = typer.Typer(rich_markup_mode=None)


def _command(
    options: type[T], run: Callable[[T], object], name: str, help: str, example: str = "", known: str = ""
) -> None:
    """A command whose options are the fields of a dataclass; `known` ends its help."""

    def call(options: T) -> None:
        """Run it, once every file and folder that was given is there."""
        for option, value in vars(options).items():
            if option != "out":
                found = value if isinstance(value, list) else [value]
                check_there(f"what --{option} is for", *(place for place in found if isinstance(place, Path)))
        run(options)

    call.__annotations__["options"] = options
    bench.command(name, help=help, epilog=known + examples(example or f"bench {name}", name=name))(spread(call))


def _table(name: str, table: Table) -> None:
    def run(options: TableOptions) -> None:
        """Check what was chosen, then load what the table needs, and run it."""
        for row in options.row or []:
            matched(row, {each.label: each.name for each in table.rows})
        check_base(getattr(options, "base", AUTO))
        if isinstance(options, PhotoOptions) and options.photos:
            chosen(options.metrics, ("content", "style", "prompt"))
            named_checkpoints(options.checkpoint or [])
        elif not options.manifest and options.sample is None:
            for dataset in options.dataset or []:
                word("--dataset", dataset, [*ALL, *MULTI, *OTHERS])
        with doing(f"Loading what {name} needs"):
            from duolora.bench.config import config_of, smaller_bases

        bases = smaller_bases(options.out, options.steps) if isinstance(options, DistilledOptions) else None
        _run(config_of(name, table, options, bases), options)

    example = "bench photos" if name != "table5" else "bench table"
    kind: type[TableOptions] = DistilledOptions if name == "table5" else PhotoOptions
    known = f"Data sets: {', '.join(table.datasets)}.\n\n"
    if table is not TUNING:  # which has a hundred
        rows = ", ".join(row.label for row in table.rows)
        plain = ", ".join(["", *(row.how for row in table.rows if row.how != "merge")])
        known += f"Rows, for --row in any case and without signs, or by their methods{plain}: {rows}.\n\n"
    _command(kind, run, name, f"{table.title}.", example, known)


def _run(config: "Config", options: RunOptions) -> None:
    """Run a table, plot its figure, and say what came out and what failed."""
    text, folder, failed = _ran(config, options)
    report(options.as_json, text, folder=folder, failed=failed)
    if failed:
        raise typer.Exit(1)


def _ran(config: "Config", options: RunOptions) -> tuple[str, Path, dict[str, str]]:
    """Run a table and plot its figure: what to say of it, its folder, and which cells failed, with why."""
    from duolora.bench.grids import figure_of
    from duolora.bench.run import run_table
    from duolora.bench.tables import tuning
    from duolora.model.files import weights_mark

    done = run_table(config, options.out, options.workers, ray=options.ray)
    text = f"{done.text}\n{done.folder / 'table.md'}"
    if config.name == "tuning":
        bases = {base: weights_mark(base) for base in config.bases.values()}
        text += "\n" + tuning.choose(config.table, done.lines, done.folder / "tuned.json", bases)
    if config.table.figure:
        text += f"\n{figure_of(config.table.figure, [cell for _, cell in done.cells], done.folder)}"
    for cell, why in done.failed.items():
        text += f"\nfailed: {cell}: {why.strip().splitlines()[-1]}"
    return text, done.folder, done.failed


def _paper(options: PaperOptions) -> None:
    with doing("Loading what the tables need"):
        from duolora.bench.config import config_of, smaller_bases
        from duolora.bench.report.page import report as page

    common = vars(options) | {"steps": None, "count": None}
    common = {name: value for name, value in common.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come with the table
        config_of(PAPER[0], TABLES[PAPER[0]], PhotoOptions(**common))  # what cannot be is said before any work
    folders, failed = [options.out / "figure3"], dict[str, str]()
    typer.echo(f"Figure 3 (1 of {len(PAPER) + 1})", err=True)
    shared = {each.name: getattr(options, each.name) for each in fields(SamplingOptions)}
    made = _scaled(Figure3Options(**shared, out=options.out, count=options.count, seed=options.seed))
    typer.echo("\n".join(map(str, made)), err=options.as_json)
    for k, name in enumerate(PAPER):
        table = TABLES[name]
        typer.echo(f"{table.title} ({k + 2} of {len(PAPER) + 1})", err=True)
        own = common | ({"tuned": None} if table.ablation else {})
        if options.pairs and table.several:
            own["pairs"] = options.pairs * max(MULTI[dataset] for dataset in table.datasets)
        if name == "table5":
            chosen = DistilledOptions(**own, steps=options.steps)
            config = config_of(name, table, chosen, smaller_bases(options.out, options.steps))
        else:
            config = config_of(name, table, PhotoOptions(**own))
        text, folder, wrong = _ran(config, options)
        typer.echo(text, err=options.as_json)
        folders.append(folder)
        failed |= {f"{name}: {cell}": why for cell, why in wrong.items()}
    shown = page(folders, options.out / "report.html", "The paper's tables and figures")
    report(options.as_json, f"{shown}", page=shown, folders=folders, failed=failed)
    if failed:
        raise typer.Exit(1)


for _name, _rows in (TABLES | {"tuning": TUNING}).items():
    _table(_name, _rows)


@bench.command(epilog=examples("bench rerun"))
@spread
def rerun(
    folder: Annotated[Path, typer.Argument(help="Folder of a table that was run, with its config.json.")],
    options: RunOptions,
) -> None:
    """Run a table again, on exactly the same rows, pairs and seeds.

    Prompts are the same, too. Give another `--out` to measure anew.
    """
    check_there("a table's config; give the folder of one", folder / "config.json")
    with doing(f"Loading what {folder} needs"):
        from duolora.bench.config import read_config

    _run(read_config(folder), options)


def _scaled(options: Figure3Options) -> list[Path]:
    """Make Figure 3: the files that it wrote."""
    check_base(options.base)
    lines = () if options.prompts is None else read_lines(options.prompts)
    if options.prompts is not None and not lines:
        raise InputError(f"{options.prompts}: expected a prompt on each line, found none")
    with doing(f"Loading {options.base}"):
        from duolora.bench.config import root_of
        from duolora.bench.grids import figure3_of
        from duolora.bench.scaling import FOUND, by_classifier, by_encoders, figure3
        from duolora.metrics.encoders import load_embedder
        from duolora.model.base import opened

    settings, folder = options.settings(), root_of(options.out, options.base) / "figure3"
    places, names = named_checkpoints(options.checkpoint or []), (options.content_encoder, options.style_encoder)
    encoders = [load_embedder(name, places.get(name)) for name in names if lines]
    base, blocks, sampling = opened(settings.chosen(options.base)), options.block or [], settings.sampling()
    if options.prompt:
        return [figure3_of(folder, base, options.prompt, blocks, options.seed, sampling)]
    texts = [*islice(cycle(lines), options.count)]
    measure = by_classifier(options.count, options.seed)
    if lines:
        measure = by_encoders(base, texts, options.seed, encoders[0], encoders[1], sampling)
    figure3(folder, base, measure, seed=options.seed, blocks=blocks, sampling=sampling)
    return [folder / name for name in ("curves.png", "images.png", *FOUND) if (folder / name).exists()]


def _speed(options: SpeedOptions) -> None:
    with doing("Loading", options.quiet):
        from duolora.bench.speed.speed import speed

    typer.echo(speed(options))


def _growth(options: GrowthOptions) -> None:
    with doing("Loading", options.quiet):
        from duolora.bench.speed.growth import growth

    typer.echo(growth(options))


_command(
    PaperOptions, _paper, "paper",
    "Every table and figure of the paper, on Atelier.\n\n"
    "Figure 3 first, since it finds B-LoRA's blocks; then Tables 1 to 5 and 7 to 9, Figures 4 to 10, and one page. "
    "Figure 3 is made anew each time; cells that are finished are not run again. By the times of its cells `--pairs 1` "
    "takes an hour or two on two CPU cores, all pairs most of a day. Table 6 asks people: `bench study`.",
)  # fmt: skip
_command(
    Figure3Options, lambda options: typer.echo("\n".join(map(str, _scaled(options)))), "figure3",
    "Figure 3: what a base generates with some blocks turned down.\n\n"
    "Says which blocks carry the subject and which the style: block_map.json for `merge --set block_map=FILE`, and "
    "blocks.json, B-LoRA's two. By Atelier's classifier, or with --prompts by encoders, on any base. With --prompt it "
    "shows images only.",
    "bench figure3",
)  # fmt: skip
bench.command(epilog=examples("bench report"))(reports.report)
bench.add_typer(reports.study, name="study")
_command(
    SpeedOptions, _speed, "speed",
    "Time and memory of one training step.\n\nOurs, the bare UNet's passes, and the dense way of the public programs.",
)  # fmt: skip
_command(
    GrowthOptions, _growth, "growth",
    "How time and memory grow, a plot each.\n\nWith rank, image size, number of adapters and number of steps.",
)  # fmt: skip
