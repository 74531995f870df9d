"""Benchmarks: a command for each table and figure of the paper."""

from pathlib import Path
from typing import Annotated

import typer

from duolora.bench.tables import TABLES, Table
from duolora.commands import reports
from duolora.commands.measure import app as measure
from duolora.commands.speech import JsonOption, one_line, report

bench = typer.Typer(
    no_args_is_help=True,
    help="""Run a table or figure of the paper, on Atelier's own pairs.

    A table is a folder of cells (a pair, a method, a seed). What is finished is never run again, so a stopped run
    goes on when the same command is given; LoRAs are shared by all tables in `--out`. On two CPU cores a pair takes
    about two minutes for its LoRAs and half a minute for each trained method: begin with `--pairs 1`.
    """,
)

OutOption = Annotated[Path, typer.Option(help="Folder of all benchmarks; tables share what is in it.")]
PairsOption = Annotated[int | None, typer.Option(help="Only the first so many pairs of each data set.")]
WorkersOption = Annotated[int | None, typer.Option(help="Processes  [one for each core].")]
ManifestOption = Annotated[Path | None, typer.Option(help="Other pairs than the shipped ones, as a JSON file.")]
SampleOption = Annotated[int | None, typer.Option(help="Other pairs: those that the rule draws from this seed.")]
RowOption = Annotated[list[str] | None, typer.Option("--row", help="Only this row; may be given several times.")]
DatasetOption = Annotated[list[str] | None, typer.Option("--dataset", help="Only this data set; likewise.")]
SeedOption = Annotated[int, typer.Option(help="Seed of merging and drawing.")]


def _table(name: str, table: Table) -> None:
    def run(
        out: OutOption = Path("benchmarks/runs"),
        pairs: PairsOption = None,
        dataset: DatasetOption = None,
        row: RowOption = None,
        seed: SeedOption = 0,
        workers: WorkersOption = None,
        manifest: ManifestOption = None,
        sample: SampleOption = None,
        as_json: JsonOption = False,
    ) -> None:
        with one_line():
            from dataclasses import replace

            from duolora.bench.pairs import limited, sample_suite, suite
            from duolora.bench.run import only_rows, run_table

            cases = suite(manifest) if sample is None else sample_suite(sample)
            chosen = only_rows(table, row or [])
            if dataset:
                chosen = replace(chosen, datasets=tuple(dataset))
            done = run_table(name, chosen, limited(cases, pairs), out, seed, workers)
            text = f"{done.text}\n{done.folder / 'table.png'}"
            for cell, why in done.failed.items():
                text += f"\nfailed: {cell}: {why.strip().splitlines()[-1]}"
            report(as_json, text, folder=done.folder, failed=done.failed)
            if done.failed:
                raise typer.Exit(1)

    bench.command(name, help=f"{table.title}.")(run)


for _name, _rows in TABLES.items():
    _table(_name, _rows)


@bench.command()
def figure3(
    out: OutOption = Path("benchmarks/runs"),
    base: Annotated[str, typer.Option(help="The base to look into.")] = "atelier",
    count: Annotated[int, typer.Option(help="Pictures for each block group and α.")] = 34,
    seed: SeedOption = 0,
) -> None:
    """Figure 3: what a base still draws as the attention of some blocks is turned down."""
    with one_line():
        from duolora.bench.figures import figure3 as run
        from duolora.networks.bases import load_base

        run(out / "figure3", load_base(base), count=count, seed=seed)
        typer.echo(f"{out / 'figure3' / 'curves.png'}\n{out / 'figure3' / 'pictures.png'}")


@bench.command()
def loras(
    out: OutOption = Path("benchmarks/runs"),
    pairs: PairsOption = 2,
    kind: Annotated[list[str], typer.Option(help="content or style; may be given twice.")] = ["content", "style"],  # noqa: B006
    workers: WorkersOption = None,
) -> None:
    """How to train LoRAs on Atelier: rank, steps, rate and guidance, on the tuning pairs."""
    with one_line():
        from duolora.bench.lora_sweep import sweep
        from duolora.bench.pairs import suite

        cases = [case for case in suite() if case.dataset == "tuning"]
        typer.echo(sweep(out / "loras-sweep", cases[:pairs], kind, workers))


bench.command()(reports.report)
bench.add_typer(reports.study, name="study")
bench.add_typer(measure)
