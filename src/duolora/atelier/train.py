"""The recipe that trains Atelier: `python -m duolora.atelier.train vae`, then base, judges, pack and report.

Besides, `distil ssd1b` and `distil vega` make the smaller bases of Table 5 from the packed one.

Each stage goes on from where it was stopped, so the same command again continues; with another recipe, renderer or VAE
it begins anew. To go on from finished weights in other updates, there is `base --start-from`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer

Recipe = TypeVar("Recipe")
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Updates = Annotated[int | None, typer.Option(help="Number of updates, if not the recipe's own.")]
Runs = Annotated[Path, typer.Option(help="Folder of checkpoints and drawn pictures.")]


def _recipe(recipe: Recipe, updates: int | None) -> Recipe:
    return recipe if updates is None else replace(recipe, updates=updates)  # type: ignore[type-var]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@app.callback()
def recipe() -> None:
    """Stages, in order: vae, base, judges, pack, report."""


@app.command()
def vae(runs: Runs = Path("runs/atelier"), updates: Updates = None) -> None:
    """Train the VAE (about 25 minutes on two CPU cores)."""
    from duolora.atelier.train_vae import VaeRecipe, train_vae

    typer.echo(f"VAE: {train_vae(runs, _recipe(VaeRecipe(), updates), _device())}")


@app.command()
def base(
    runs: Runs = Path("runs/atelier"),
    updates: Updates = None,
    start_from: Annotated[Path | None, typer.Option(help="A pipeline folder whose weights are the start.")] = None,
) -> None:
    """Train the UNet and the text encoders on that VAE (hours on two CPU cores)."""
    from duolora.atelier.train_base import BaseRecipe, train_base

    typer.echo(f"Base: {train_base(runs, _recipe(BaseRecipe(), updates), _device(), start_from)}")


@app.command()
def judges(runs: Runs = Path("runs/atelier"), updates: Updates = None) -> None:
    """Train the recognisers (about ten minutes on two CPU cores)."""
    from duolora.atelier.train_recogniser import RecogniserRecipe, train_recogniser

    typer.echo(f"Judges: {train_recogniser(runs, _recipe(RecogniserRecipe(), updates), _device())}")


@app.command()
def pack(runs: Runs = Path("runs/atelier")) -> None:
    """Put what was trained into the package, and how it was made into its `provenance.json`."""
    from shutil import copyfile, copytree

    from duolora.atelier.made_by import NAME, noted, weights_of

    facts, weights = noted(runs), Path(__file__).parent / "weights"
    copytree(runs / "base", weights / "base", dirs_exist_ok=True)
    copyfile(runs / "recogniser.safetensors", weights / "recogniser.safetensors")
    (weights / NAME).write_text(json.dumps(facts | {"weights": weights_of(weights)}, indent=1) + "\n")
    typer.echo(f"Packed: {weights}")


@app.command()
def distil(
    shape: Annotated[str, typer.Argument(help="ssd1b or vega.")],
    runs: Runs = Path("runs/atelier"),
    updates: Updates = None,
) -> None:
    """Distil the packed base into a smaller one, shaped like SSD-1B or Segmind-Vega (half an hour on two CPU cores)."""
    from duolora.atelier.distil import DistilRecipe
    from duolora.atelier.distil import distil as run

    typer.echo(f"Distilled: {run(shape, runs, _recipe(DistilRecipe(), updates), _device())}")


@app.command()
def report(out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("benchmarks/atelier")) -> None:
    """Measure the packed base and judges; writes figures and a grid of pictures."""
    from duolora.atelier.report import report as measure

    typer.echo(json.dumps(measure(out), indent=1))


if __name__ == "__main__":
    app()
