"""Benchmarks of time and memory. Nothing heavy is imported before one runs."""

from pathlib import Path
from typing import Annotated

import typer

from duolora.cli.common import QuietOption, one_line
from duolora.cli.examples import examples

app = typer.Typer(no_args_is_help=True, help="Measure: time and memory.")

OutOption = Annotated[Path, typer.Option(help="Folder for the results.")]


@app.command(epilog=examples("bench speed"))
def speed(
    out: OutOption = Path("benchmarks/speed"),
    base: Annotated[
        str, typer.Option(help="atelier, sdxl-small (100 M), sdxl-random, ssd-1b-random or vega-random.")
    ] = "atelier",
    method: Annotated[list[str] | None, typer.Option(help="May be given several times  [all that learn].")] = None,
    rank: Annotated[int, typer.Option(help="Rank of each of the two LoRAs.")] = 16,
    resolution: Annotated[int | None, typer.Option(help="Side of the images in pixels  [the base's own].")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16  [cpu float32, else bfloat16].")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Channels of a random base  [its own], to try this out.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations twice.")] = False,
    updates: Annotated[int, typer.Option(help="Training steps in each turn.")] = 3,
    repeats: Annotated[int, typer.Option(help="Turns of each method and way.")] = 5,
    slow_updates: Annotated[int, typer.Option(help="Steps of the dense reference in each turn; 0 is none.")] = 1,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each in a process of its own.")] = True,
    seed: Annotated[int, typer.Option(help="The same seed gives the same LoRAs and images.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Time and memory of one training step.

    Ours, the bare UNet's passes, and the dense way of the public programs.
    """
    with one_line():
        from duolora.bench.speed.speed import LEARNT, Setting
        from duolora.bench.speed.speed import speed as run

        kind = dtype or ("float32" if device == "cpu" else "bfloat16")
        setting = Setting(base, rank, resolution, device, kind, width, checkpointing, seed)
        methods = tuple(method or LEARNT)
        typer.echo(run(setting, out, methods, updates, repeats, slow_updates, memory, progress=not quiet))


@app.command(epilog=examples("bench growth"))
def growth(
    out: OutOption = Path("benchmarks/growth"),
    base: Annotated[
        str, typer.Option(help="As for `speed`; image size is varied on random bases only.")
    ] = "sdxl-small",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    width: Annotated[int | None, typer.Option(help="Channels of a random base  [its own].")] = None,
    repeats: Annotated[int, typer.Option(help="Turns through all sizes.")] = 3,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each in a process of its own.")] = True,
    seed: Annotated[int, typer.Option(help="The same seed gives the same LoRAs and images.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """How time and memory grow, a plot each.

    With rank, image size, number of adapters and number of steps.
    """
    with one_line():
        from duolora.bench.speed.growth import growth as run

        typer.echo(run(out, base, device, width, repeats, memory, seed, progress=not quiet))
