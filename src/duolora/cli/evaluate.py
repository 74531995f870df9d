"""Commands that measure images and look at data sets: evaluate, datasets."""

from pathlib import Path
from typing import Annotated

import typer

from duolora.cli.common import JsonOption, QuietOption, SeedOption, doing, one_line, report
from duolora.cli.early import check_inputs
from duolora.cli.examples import examples


def evaluate(
    generated: Annotated[
        Path, typer.Option(help="A folder of generated images, or one; of several runs of `generate` the last.")
    ],
    content: Annotated[Path | None, typer.Option(help="The subject's photos.")] = None,
    style: Annotated[Path | None, typer.Option(help="The style image; also measures what leaks from it.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What was asked for.")] = None,
    metrics: Annotated[
        str, typer.Option(help="`atelier` (offline), `paper`, or names: dino,clip-i,clip-t,csd-s,leakage.")
    ] = "atelier",
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WHERE", help="Another hub id, folder or file for dino, clip or csd."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the networks run.")] = "auto",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no embeddings on disk, and use none.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score images: content, style, prompt and leakage.

    With the checkpoints and transforms behind each number.
    """
    with one_line():
        check_inputs((), generated, content, style)
        doing("Loading the metrics", quiet)

        from duolora.api.evaluate import evaluate as run
        from duolora.api.evaluate import named_checkpoints

        places = named_checkpoints(checkpoint or [])
        done = run(generated, content, style, prompt, metrics, places, device, not no_cache, progress=not quiet)
        report(as_json, done.table(), **done.facts())


datasets = typer.Typer(
    name="datasets", no_args_is_help=True, help="Look at data sets, and fix which pairs a table has."
)
LayoutOption = Annotated[str, typer.Option(help="auto, dreambooth, styledrop, customconcept101 or folders.")]


@datasets.command(epilog=examples("datasets check"))
def check(
    folder: Annotated[Path, typer.Argument(help="DreamBooth, StyleDrop, CustomConcept101, or contents/ and styles/.")],
    layout: LayoutOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say what a data set holds, and what is missing or damaged in it.

    Exit status 1 if anything is.
    """
    with one_line():
        from duolora.metrics.datasets.dataset import problems
        from duolora.metrics.datasets.layouts import read_dataset

        found = read_dataset(folder, layout)
        missing = problems(found)
        pictures = sum(len(c.images) for c in (*found.contents.values(), *found.styles.values()))
        held = f"{len(found.contents)} contents, {len(found.styles)} styles, {pictures} images"
        report(
            as_json,
            "\n".join([f"{folder}: {found.layout}; {held}; {len(missing)} problems", *missing]),
            layout=found.layout, contents=list(found.contents), styles=list(found.styles), pictures=pictures,
            problems=missing,
        )  # fmt: skip
        if missing:
            raise typer.Exit(1)


@datasets.command(epilog=examples("datasets pairs"))
def pairs(
    contents: Annotated[Path, typer.Option(help="The data set with the subjects.")],
    styles: Annotated[Path, typer.Option(help="The data set with the styles; may be the same.")],
    out: Annotated[Path, typer.Option(help="The .json file to write, to be kept under version control.")],
    count: Annotated[int | None, typer.Option(help="How many pairs  [all].")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to generate, with {thing} and {style}  [each subject's own prompts].")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Images of each prompt, with the seeds 0, 1, …")] = 4,
    seed: SeedOption = 0,
) -> None:
    """Fix the pairs, prompts and seeds of a table.

    So that it can be run again on exactly the same.
    """
    with one_line():
        from duolora.metrics.datasets.layouts import read_dataset
        from duolora.metrics.datasets.manifests import Manifest, choose_pairs, write_manifest

        things, looks = read_dataset(contents), read_dataset(styles)
        sides = [{name: each.images for name, each in side.items()} for side in (things.contents, looks.styles)]
        named, looked = ([name for name, images in side.items() if images] for side in sides)
        chosen = choose_pairs(named, looked, count, seed)
        seeds = tuple(range(num))
        write_manifest(out, Manifest(out.stem, chosen, tuple(prompt or ()), seeds, things.layout, looks.layout))
        typer.echo(f"{out}: {len(chosen)} pairs, {num} images of each prompt")
        if absent := [name for side in sides for name, images in side.items() if not images]:
            left = f"left out, for lack of images: {', '.join(absent)}; `duolora datasets check` says what is missing"
            typer.echo(left, err=True)
