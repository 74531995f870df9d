"""Commands that measure images, go by what they measure, and look at data sets: evaluate, choose, refine, datasets."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from duolora.cli.common import (
    JsonOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    check_device,
    chosen as chosen_base,
    doing,
    printable,
    report,
)
from duolora.cli.early import check_inputs, check_there
from duolora.cli.examples import examples
from duolora.cli.spread import Changes, Without, spread
from duolora.errors import InputError
from duolora.lora.write.atomic import check_out
from duolora.metrics.named import DEFAULTS, chosen, named_checkpoints
from duolora.model.architectures import shapes_in
from duolora.model.defaults import BaseChoice, read_defaults
from duolora.options import word
from duolora.training.options import TrainOptions, check_training, training_of

BothOption = Annotated[
    str | None,
    typer.Option(help="One of the content and one of the style  [atelier-content,atelier-csd or dino,csd-s]."),
]
CheckpointOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=WHERE", help="Another hub id, folder or file for dino, clip or csd."),
]


def evaluate(
    generated: Annotated[
        Path, typer.Option(help="A folder of generated images, or one; of several runs of `generate` the last.")
    ],
    content: Annotated[Path | None, typer.Option(help="The subject's photos.")] = None,
    style: Annotated[Path | None, typer.Option(help="The style image; also measures what leaks from it.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What was asked for.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="What was asked for of each image, a line each, in the order of their names.")
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="`atelier` (offline), `paper`, or names: dino,clip-i,clip-t,csd-s,leakage.")
    ] = "atelier",
    checkpoint: CheckpointOption = None,
    device: Annotated[str, typer.Option(help="Where the networks run.")] = "auto",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no embeddings on disk, and use none.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score images: content, style, prompt and leakage.

    With the checkpoints and transforms behind each number.
    """
    check_inputs((), generated, content, style)
    check_device(device)
    given = {"content": content, "style": style, "prompt": prompt or prompts}
    names, places = chosen(metrics, [each for each in given if given[each]]), named_checkpoints(checkpoint or [])
    with doing("Loading the metrics", quiet):
        from duolora.api.evaluate import evaluate as run, prompts_of

    asked = prompts_of(prompt, prompts)
    done = run(generated, content, style, asked, names, places, device=device, cache=not no_cache, progress=not quiet)
    report(as_json, done.table(), **done.facts())


@spread
def choose(
    loras: Annotated[list[Path], typer.Argument(help="Two or more LoRA files, such as merges by several methods.")],
    prompt: Annotated[str, typer.Option(help="What to generate with each of them.")],
    content: Annotated[Path, typer.Option(help="The subject's photos.")],
    style: Annotated[Path, typer.Option(help="The style image.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Where to copy the best file.")] = None,
    num: Annotated[int, typer.Option(help="Images of each file.", min=1)] = 8,
    metrics: BothOption = None,
    checkpoint: CheckpointOption = None,
    base: Annotated[BaseChoice, Without(("gradient_checkpointing",))],
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rank LoRA files by how near they come to the photos.

    Such as merges of two LoRAs by several methods: which is best differs from pair to pair. The score
    is the geometric mean of the two similarities; look at the images as well.
    """
    check_inputs(loras, content, style)
    if out is not None:
        check_out(out, loras, overwrite)
        if folders := [path for path in loras if path.expanduser().is_dir()]:
            raise InputError(f"{folders[0]}: a folder cannot be copied to --out; leave --out out, or convert it first")
    places, base = named_checkpoints(checkpoint or []), chosen_base(base, quiet)
    with doing("Loading the metrics", quiet):
        from duolora.api.choose import choose as run
        from duolora.textfiles import write_whole

    done = run(
        loras, prompt, content, style, base, metrics=metrics, checkpoints=places, num=num, seed=seed,
        progress=not quiet,
    )  # fmt: skip
    if out is not None:
        write_whole(out.expanduser(), done.path.read_bytes())
    report(as_json, done.table(), **done.facts(), out=out)


@spread
def refine(
    loras: Annotated[list[Path], typer.Argument(help="A LoRA file or more, such as merges by several methods.")],
    prompt: Annotated[str, typer.Option(help="What to generate; the new LoRA's caption.")],
    content: Annotated[Path, typer.Option(help="The subject's photos.")],
    style: Annotated[Path, typer.Option(help="The style image.")],
    out: Annotated[
        Path, typer.Option(help="The .safetensors file to write; what it learns from goes beside it, into NAME-kept.")
    ],
    *,
    num: Annotated[int, typer.Option(help="Images of each file.", min=1)] = 24,
    keep: Annotated[int, typer.Option(help="How many of all are kept.", min=1)] = 12,
    guidance: Annotated[
        float | None, typer.Option(help="Their guidance  [1.5, or the base's own where that is less].", min=0)
    ] = None,
    metrics: BothOption = None,
    checkpoint: CheckpointOption = None,
    changed: Annotated[
        dict[str, Any],
        Changes(TrainOptions, without=("seed", "class_prompts", "learn_tokens"), default=", or the base's own"),
    ],
    base: BaseChoice,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one LoRA on the best images of several.

    Each file generates, those images that are nearest to the photos and the style are kept, and a LoRA is trained on
    them. Look at what was kept: it is what you get.
    """
    options = replace(training_of(read_defaults(base.base)), seed=seed, **changed)
    check_training(options, shapes_in(base.base))
    check_inputs(loras, content, style)
    check_out(out, loras, overwrite)
    places, base = named_checkpoints(checkpoint or []), chosen_base(base, quiet)
    with doing("Loading the metrics", quiet):
        from duolora.api.refine import refine as run

    done = run(
        loras, prompt, content, style, out, base, metrics=metrics, checkpoints=places, num=num, keep=keep, seed=seed,
        guidance=guidance, options=options, progress=not quiet, overwrite=overwrite,
    )  # fmt: skip
    kept = {str(path): count for path, count in done.kept.items()}
    said = ", ".join(f"{count} of {path}" for path, count in kept.items())
    report(as_json, f"{done.path}: trained on {keep} images, in {done.images} ({said})", path=done.path,
           images=done.images, kept=kept, metrics=done.metrics)  # fmt: skip


checkpoints = typer.Typer(name="checkpoints", no_args_is_help=True, help="Checkpoints of the metrics' encoders.")


@checkpoints.command(epilog=examples("checkpoints convert"))
def convert(
    name: Annotated[str, typer.Argument(help="dino, dinov2, clip or csd.")],
    source: Annotated[Path, typer.Argument(help="CSD's pickle, or a folder with config.json and pytorch_model.bin.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file (csd) or the folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Turn a published pickle into safetensors, for `--checkpoint`.

    Nothing in it is executed: it is read as tensors only, in a process of its own, and then loaded as a check.
    """
    word("checkpoint", name, list(DEFAULTS))
    check_there("CSD's pickle, or a folder with pytorch_model.bin", source)
    with doing("Loading"):
        from duolora.metrics.pickled import convert as run

    path = run(name, source.expanduser(), out.expanduser())
    report(as_json, f"{path}: use it by --checkpoint {name}={path}", path=path)


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
    from duolora.metrics.datasets.dataset import problems, read_dataset

    found = read_dataset(folder, layout)
    missing = problems(found)
    images = sum(len(c.images) for c in (*found.contents.values(), *found.styles.values()))
    held = f"{len(found.contents)} contents, {len(found.styles)} styles, {images} images"
    report(
        as_json,
        "\n".join([f"{folder}: {found.layout}; {held}; {len(missing)} problems", *missing]),
        layout=found.layout, contents=list(found.contents), styles=list(found.styles), images=images,
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
        list[str] | None, typer.Option(help="What to generate, with {subject} and {style}  [a {subject} in {style}].")
    ] = None,
    own_prompts: Annotated[
        bool,
        typer.Option("--own-prompts", help="Each subject's own prompts in the style, but for those that name another."),
    ] = False,
    words: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WORDS", help="What a subject or style is in words  [as its data set or folder says]."
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Images of each prompt, with the seeds 0, 1, …")] = 4,
    seed: SeedOption = 0,
) -> None:
    """Fix the pairs, prompts and seeds of a table.

    So that it can be run again on exactly the same.
    """
    from duolora.metrics.datasets.dataset import read_dataset
    from duolora.metrics.datasets.manifests import PROMPT, Manifest, choose_pairs, write_manifest

    if prompt and own_prompts:
        raise InputError("--own-prompts: expected these or --prompt, got both")
    subjects, others = read_dataset(contents), read_dataset(styles)
    sides = [{name: each.images for name, each in side.items()} for side in (subjects.contents, others.styles)]
    named, styled = ([name for name, images in side.items() if images] for side in sides)
    for option, folder, found, other in (
        ("--contents", contents, named, subjects.styles), ("--styles", styles, styled, others.contents)
    ):  # fmt: skip
        if not found:
            held = f", but {len(other)} of the other kind; are the two exchanged?" if other else ""
            raise InputError(f"{option} {folder}: expected {option[2:]} with images, found none{held}")
    chosen = choose_pairs(named, styled, count, seed)
    said = _words(words or [], {*subjects.contents, *others.styles})
    concepts = [subjects.contents[pair.content] for pair in chosen]
    for pair, concept in zip(chosen, concepts, strict=True):
        concept.in_words(concept.words, said, "content")
        others.styles[pair.style].in_words(others.styles[pair.style].style, said, "style")
    asked = () if own_prompts else tuple(prompt or [PROMPT])
    seeds = tuple(range(num))
    write_manifest(out, Manifest(out.stem, chosen, asked, seeds, subjects.layout, others.layout, said))
    images = num * sum(len(asked or concept.fitting() or [PROMPT]) for concept in concepts)
    count_said = "1 pair" if len(chosen) == 1 else f"{len(chosen)} pairs"
    typer.echo(f"{out}: {count_said}, {num} images of each prompt; {images} images for each row of a table")
    if own_prompts:
        own = {prompt for concept in concepts for prompt in concept.prompts}
        left = own - {prompt for concept in concepts for prompt in concept.fitting()}
        typer.echo(f"{len(left)} of {len(own)} prompts name another style, matter or colour, and are left out")
    if absent := [name for side in sides for name, images in side.items() if not images]:
        left_out = printable(", ".join(absent))
        typer.echo(f"left out, for lack of images: {left_out}; `duolora datasets check` says what is missing", err=True)


def _words(given: list[str], known: set[str]) -> dict[str, str]:
    """What `--words` says, by name."""
    found = {}
    for each in given:
        name, _, words = each.partition("=")
        if name not in known or not words.strip():
            raise InputError(f"--words {each}: expected NAME=WORDS with the name of a subject or style there")
        found[name] = words.strip()
    return found
