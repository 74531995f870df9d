"""`--set NAME=VALUE` of `duolora merge`: every option of a method, read from the command line and listed."""

from collections.abc import Sequence
from dataclasses import fields
from textwrap import fill
from typing import Any

import typer

from duolora.errors import InputError
from duolora.options import kind, parsed, told


def assigned(assignments: Sequence[str], options: Any) -> dict[str, object]:
    """The values of `NAME=VALUE` words, with the types of the options as they are.

    Raises:
        InputError: there is no such option, or the value has another type or is not one of its choices.
    """
    found: dict[str, object] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in {field.name for field in fields(options)}:
            raise InputError(f"--set {assignment}: no option of that name; `--set help` lists them")
        found[name] = parsed(options, name, value)
    return found


def tell(assignments: list[str] | None) -> list[str] | None:
    """List the options and leave, where `help` is among the words; else the words."""
    if "help" in (assignments or []):
        typer.echo(listed())
        raise typer.Exit()
    return assignments


def listed() -> str:
    """Every option: its default, its type or choices, which methods have another default, and what it does."""
    from duolora.merging.options import METHODS, MergeOptions

    lines = []
    for field in fields(MergeOptions):
        name = field.name
        others: dict[object, list[str]] = {}
        for method, options in METHODS.items():
            if (value := getattr(options, name)) != field.default:
                others.setdefault(value, []).append(method)
        also = "".join(f"; {value} for {', '.join(methods)}" for value, methods in others.items())
        text = f"{told(MergeOptions, name)} [{kind(MergeOptions, name)}{also}]"
        lines += [f"{name}={field.default}", fill(text, 100, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(lines)
