"""Commands that work on LoRA files alone: convert, compose, inspect."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from duolora.cli.common import (
    JsonOption,
    OverwriteOption,
    QuietOption,
    chosen,
    doing,
    printable,
    report,
    tell_images,
    verification_facts,
    verified,
)
from duolora.cli.early import check_inputs, check_output
from duolora.cli.set_option import assigned
from duolora.cli.spread import Without, spread
from duolora.errors import InputError
from duolora.model.defaults import BaseChoice
from duolora.options import DEFAULT_FORMAT, Export, Format, Plot, check_smaller, check_weights, option, word

_FORMATS = "kohya (for every program), diffusers, uniform (for old diffusers), split or split-diffusers (two files)"
FormatOption = Annotated[str, typer.Option("--format", help=f"{_FORMATS}, peft (a folder) or masks.")]
DtypeOption = Annotated[str, typer.Option(help="What the numbers of the file are: float16, bfloat16 or float32.")]


def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA in any dialect, a PEFT folder, or the masks of a merge.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write; for peft a folder.")],
    format: Annotated[str, typer.Option("--format", help=f"{_FORMATS}, or peft (a folder).")] = DEFAULT_FORMAT,
    dtype: DtypeOption = "float16",
    content: Annotated[Path | None, typer.Option(help="For masks: the content LoRA that was merged.")] = None,
    style: Annotated[Path | None, typer.Option(help="For masks: the style LoRA that was merged.")] = None,
    content_weight: Annotated[float, typer.Option(help="Of a merge: what multiplies its content part.")] = 1.0,
    style_weight: Annotated[float, typer.Option(help="Of a merge: what multiplies its style part.")] = 1.0,
    threshold: Annotated[
        float | None, typer.Option(help="Leave out directions with at most this share of their module's strongest.")
    ] = None,
    energy: Annotated[float | None, typer.Option(help="Keep this share of each module's energy, by SVD.")] = None,
    rank: Annotated[int | None, typer.Option(help="Keep at most so many directions of each module, by SVD.")] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a LoRA in another format, strength or size, verified."""
    check_smaller(threshold, energy, rank)
    check_output(out, format, dtype, Export, (file, content, style), overwrite)
    check_inputs([path for path in (file, content, style) if path is not None])
    with doing(f"Reading {file}", quiet):
        from duolora.api.convert import convert as run
        from duolora.progress import shown

    with shown(not quiet):
        done = run(
            file, out, format, dtype, overwrite, content=content, style=style, content_weight=content_weight,
            style_weight=style_weight, threshold=threshold, energy=energy, rank=rank,
        )  # fmt: skip
    text = f"{' and '.join(map(str, done.paths))}: {verified(done.verification)}{_not_carried(done.left_out)}"
    facts = {"paths": done.paths, "left_out": done.left_out, **verification_facts(done.verification)}
    if done.lost is not None:
        worst = max(done.lost.errors, key=done.lost.errors.__getitem__)
        text += f"\nmade smaller: ΔW has lost {done.lost.whole:.2%} of its size, most in {worst}"
        text += f" ({done.lost.errors[worst]:.2%})"
        facts["lost"] = {"whole": done.lost.whole, "modules": done.lost.errors}
    report(as_json, text, **facts)


@dataclass(frozen=True)
class OneShot:
    """What several LoRAs are merged at once with."""

    prompt: list[str] | None = option(None, "oneshot: each file's trigger prompt, in their order  [from the files].")
    images: list[Path] | None = option(
        None, "oneshot: images of each, cropped about the centre, in order  [generated with each LoRA]."
    )
    kind: list[str] | None = option(
        None, "oneshot: what each is for, content or style, in their order; they lead in blocks of that role."
    )
    merged_prompt: str | None = option(None, "oneshot: the trigger prompt for all  [their prompts in a row].")


@spread
def compose(
    files: Annotated[list[Path], typer.Argument(help="Two or more LoRA files.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    *,
    method: Annotated[str, typer.Option(help="sum, or oneshot: masks for each, on the base, in seconds.")] = "sum",
    weight: Annotated[
        list[float] | None,
        typer.Option(
            help="sum: what multiplies each file, in their order  [1 each]. Of n merges of several contents with one "
            "style Sec. 3.5 takes the mean, which is 1/n each."
        ),
    ] = None,
    oneshot: OneShot,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="oneshot: as in `duolora merge --set help`.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="kohya, diffusers or uniform.")] = DEFAULT_FORMAT,
    dtype: DtypeOption = "float16",
    base: Annotated[BaseChoice, Without(("gradient_checkpointing",))],
    seed: Annotated[int, typer.Option(help="oneshot: the same seed and inputs give the same file.", min=0)] = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put several LoRAs into one file.

    Their exact sum, weighted if asked for, or any number merged at once.
    """
    word("--method", method, ("sum", "oneshot"))
    check_output(out, format, dtype, Format, files, overwrite)
    if method == "sum" and (given := [n for n, value in {**vars(oneshot), "set": assignments}.items() if value]):
        name = given[0].replace("_", "-")
        raise InputError(f"--{name}: the exact sum trains nothing; leave it out, or give --method oneshot")
    if method == "oneshot" and weight is not None:
        raise InputError("--weight: one-shot masks weigh the files; leave it out, or give --method sum")
    check_weights(weight, len(files))
    check_inputs(files, *(oneshot.images or ()), base=base.base if method == "oneshot" else None)
    with doing(f"Reading {len(files)} files", quiet):
        from duolora.api.compose import compose as run, compose_at_once, one_shot_options
        from duolora.progress import shown

    if method == "sum":
        with shown(not quiet):
            done = run(files, out, weight, format=format, dtype=dtype, overwrite=overwrite)
    else:
        kinds, images = oneshot.kind or (), oneshot.images or ()
        plain = one_shot_options(kinds, seed=seed)
        options = one_shot_options(kinds, **{"seed": seed, **assigned(assignments or [], plain)})
        done = compose_at_once(
            files, out, chosen(base, quiet), oneshot.prompt or (), images, kinds, options, format=format, dtype=dtype,
            merged_prompt=oneshot.merged_prompt, progress=not quiet, overwrite=overwrite,
        )  # fmt: skip
        tell_images(quiet, *images)
    text = f"{done.path}: {verified(done.verification)}{_not_carried(done.left_out)}"
    report(as_json, text, path=done.path, left_out=done.left_out, **verification_facts(done.verification))


def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA in any dialect, a PEFT folder, or the masks of a merge.")],
    other: Annotated[Path | None, typer.Option(help="Another LoRA to compare it with, such as a source.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A plot to write: .png, .pdf or .svg.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a LoRA file.

    Base, dialect, rank and trigger words, then ranks and energy by block, its metadata, what two files have in common.
    """
    if plot is not None:
        word("--plot", plot.suffix.lower(), get_args(Plot))
    check_inputs([file, *([] if other is None else [other])])
    with doing(f"Reading {file}", quiet):
        from duolora.api.inspect import inspect as run
        from duolora.progress import shown

    with shown(not quiet):
        facts = run(file, other, plot)
    report(as_json, "" if as_json else printed(facts), **facts)


def printed(facts: dict[str, Any], indent: int = 0) -> str:
    """Facts for people: tables where every row has the same columns, lines elsewhere."""
    lines = []
    for name, value in facts.items():
        start = " " * indent + printable(name)
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            columns = list(dict.fromkeys(column for row in value.values() for column in row))
            flat = not any(isinstance(cell, dict) for row in value.values() for cell in row.values())
            lines.append(_table(start, value, columns, indent) if flat else f"{start}\n{printed(value, indent + 2)}")
        elif isinstance(value, dict) and value:
            lines.append(f"{start}\n{printed(value, indent + 2)}")
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines.append(_table(start, {str(k): row for k, row in enumerate(value, 1)}, list(value[0]), indent))
        elif value not in (None, [], {}):
            lines.append(f"{start:{indent + 24}} {_cell(value)}")
    return "\n".join(lines)


def _table(title: str, rows: dict[str, dict[str, Any]], columns: list[str], indent: int) -> str:
    cells = [
        [title.strip(), *columns],
        *([name, *(_cell(row.get(c, "")) for c in columns)] for name, row in rows.items()),
    ]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns) + 1)]
    return "\n".join(
        " " * indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return f"{value[0]} to {value[1]}" if value[0] != value[1] else str(value[0])
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    return printable(str(value))


def _not_carried(parts: Sequence[str]) -> str:
    return f"\nnot carried over: {printable(', '.join(parts))}" if parts else ""
