"""Commands that show finished benchmarks: report, study."""

from pathlib import Path
from typing import Annotated

import typer

from duolora.bench.report.folders import run_folders
from duolora.cli.common import JsonOption, doing, report as said
from duolora.cli.early import check_there
from duolora.cli.examples import examples

FoldersArgument = Annotated[
    list[Path], typer.Argument(help="Folders of finished tables and figures, or a folder of such.")
]
RUNS = "folders that `duolora bench` has printed"


def report(
    folders: FoldersArgument,
    out: Annotated[Path, typer.Option(help="The page to write; links to files are relative to it.")] = Path(
        "report.html"
    ),
    title: Annotated[str | None, typer.Option(help="Its heading  [the runs' names].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show finished runs as one page that opens offline.

    Tables, plots, images, metadata.
    """
    check_there(RUNS, *folders)
    run_folders(folders)
    with doing("Reading the runs"):
        from duolora.bench.report.page import report as run

    path = run(folders, out, title)
    said(as_json, f"{path}: {path.stat().st_size / 1e6:.1f} MB", path=path, bytes=path.stat().st_size)


study = typer.Typer(no_args_is_help=True, help="A blind questionnaire from finished runs, and Table 6.")


@study.command(epilog=examples("bench study make"))
def make(
    folders: FoldersArgument,
    out: Annotated[Path, typer.Option(help="Folder for questionnaire.html and key.json.")],
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="A method to compare, in any case; may be given several times  [the paper's four, of them what is"
            " finished; every finished merge if that is fewer than two]."
        ),
    ] = None,
    each: Annotated[int, typer.Option(help="Questions for every pair.")] = 1,
    seed: Annotated[int, typer.Option(help="Which images are asked about.")] = 0,
) -> None:
    """Make a page that people answer offline, and the key to it.

    The key stays with you.
    """
    check_there(RUNS, *folders)
    run_folders(folders)
    with doing("Reading the runs"):
        from duolora.bench.study.study import make as run, read_key

    page, key = run(folders, out, row or (), each, seed)
    count = len(read_key(key).questions)
    typer.echo(f"{page}: {count} questions, {page.stat().st_size / 1e6:.1f} MB; give this to people")
    typer.echo(f"{key}: keep this; it says which image is whose")


@study.command(epilog=examples("bench study score"))
def score(
    answers: Annotated[list[Path], typer.Argument(help="Files that people sent back, or a folder of them.")],
    key: Annotated[Path, typer.Option(help="The key.json of the study.")],
    as_json: JsonOption = False,
) -> None:
    """Table 6 from returned answers.

    Who was chosen how often, with intervals, and how far people agree.
    """
    check_there("the key.json that `study make` wrote", key)
    check_there("answers that people sent back", *answers)
    with doing("Reading the answers"):
        from dataclasses import asdict

        from duolora.bench.study.study import score as run

    done = run(answers, key)
    said(as_json, done.table(), **asdict(done))
