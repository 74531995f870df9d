"""`--set NAME=VALUE` of `duolora merge`: every option of a method, read from the command line and listed."""

import ast
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

import typer

from duolora.errors import InputError

_TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a word"}
_OPTIONS = Path(__file__).parents[1] / "merging" / "options.py"


def assigned(assignments: Sequence[str], options: Any) -> dict[str, object]:
    """The values of `NAME=VALUE` words, with the types of the options as they are.

    Raises:
        InputError: there is no such option, or the value has another type or is not one of its choices.
    """
    from duolora.merging.options import check_word

    found: dict[str, object] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in {field.name for field in fields(options)}:
            raise InputError(f"--set {assignment}: no option of that name; `--set help` lists them")
        kind = type(getattr(options, name))
        try:
            found[name] = _TRUTHS[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise InputError(f"--set {assignment}: expected {name} to be {_KINDS[kind.__name__]}") from None
        check_word(name, found[name])
    return found


def tell(assignments: list[str] | None) -> list[str] | None:
    """List the options and leave, where `help` is among the words; else the words."""
    if "help" in (assignments or []):
        typer.echo(listed())
        raise typer.Exit()
    return assignments


def listed() -> str:
    """Every option: its default, its type or choices, which methods have another default, and what it does."""
    from duolora.merging.options import METHODS, MergeOptions, choices

    told, lines = explained(_OPTIONS, "MergeOptions"), []
    for field in fields(MergeOptions):
        name, words = field.name, choices(field.name)
        kind = f"one of {', '.join(words)}" if words else _KINDS[type(field.default).__name__]
        others: dict[object, list[str]] = {}
        for method, options in METHODS.items():
            if (value := getattr(options, name)) != field.default:
                others.setdefault(value, []).append(method)
        also = "".join(f"; {value} for {', '.join(methods)}" for value, methods in others.items())
        text = f"{told[name]} [{kind}{also}]"
        lines += [f"{name}={field.default}", fill(text, 100, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(lines)


def explained(source: Path, name: str) -> dict[str, str]:
    """The texts under the fields of a class, on one line each, from its source; nothing for fields without one."""
    classes = {
        node.name: node.body for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)
    }
    found = {}
    for field, below in pairwise(classes[name]):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=word)), ast.Expr(value=ast.Constant(value=str(text))):
                found[word] = " ".join(text.split())
    return found
