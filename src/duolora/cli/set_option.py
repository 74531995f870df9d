"""The options of `duolora merge`, with `--set NAME=VALUE`: read from the command line, checked and listed."""

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import typer

from duolora.errors import FileRefused, InputError, reason
from duolora.merging.options import METHOD_HELP, METHODS, ONLY, WEIGHTS, MergeOptions, options_of
from duolora.options import check, idle, kind, parsed, told, word
from duolora.textfiles import read_json

TOPICS = ("strength", "training", "masks", "layer prior", "cycle", "similarity", "one-shot", "without masks")
"""Of options, the common ones first."""


def merge_options(
    method: str, preset: str | None, changed: Mapping[str, Any], assignments: Sequence[str]
) -> MergeOptions:
    """The options of a method with those that were given, by a preset, by flags of their own and by `--set`.

    Raises:
        InputError: there is no such method, preset or value, or the method makes no use of one that was given.
    """
    if preset is not None:
        word("--preset", preset, list(WEIGHTS))
    options = options_of(method, **WEIGHTS.get(preset or "", {}))
    typed = {name: f"--{name.replace('_', '-')} {value}" for name, value in changed.items() if name != "seed"}
    typed |= {pair.partition("=")[0]: f"--set {pair}" for pair in assignments}
    options = replace(options, **{**changed, **assigned(assignments, options)})
    check(options)
    for name, need in idle(options, typed).items():
        raise InputError(f"{typed[name]}: {method} makes no use of it (it is for {ONLY[need]}); leave it out")
    begins_otherwise = METHODS[method].is_one_shot and not options.is_one_shot
    if preset is not None and (not options.asks_network or begins_otherwise):
        raise InputError(f"--preset {preset}: {method} makes no use of it; leave it out")
    return options


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
        table = name == "block_map" and value.endswith(".json")
        found[name] = _table(Path(value)) if table else parsed(options, name, value)
    return found


def _table(path: Path) -> dict[str, str]:
    """A block map from a file, as `bench figure3` writes it.

    Raises:
        InputError: it is not there, or something else.
    """
    try:
        found = read_json(path.expanduser())
    except (FileNotFoundError, FileRefused) as error:
        raise InputError(f"block_map={path}: cannot be read ({reason(error)}); `bench figure3` writes one") from error
    if not isinstance(found, dict) or not all(isinstance(role, str) for role in found.values()):
        raise InputError(f'block_map={path}: expected {{"down_blocks.1": "style", …}}, as `bench figure3` writes it')
    return found


def tell(assignments: list[str] | None) -> list[str] | None:
    """List the options and leave, where `help` is among the words; else the words."""
    if "help" in (assignments or []):
        typer.echo(listed())
        raise typer.Exit()
    return assignments


def methods() -> str:
    """A line of help for each method."""
    return "\n".join(["\b", "Methods:", *(f"  {name:14} {text}" for name, text in METHOD_HELP.items())])


def listed() -> str:
    """Every option by its topic: its default, its type or choices, which methods have another default, what it does."""
    by_topic: dict[str, list[str]] = {}
    for field in sorted(fields(MergeOptions), key=lambda field: TOPICS.index(field.metadata["topic"])):
        by_topic.setdefault(field.metadata["topic"], []).append(_entry(field))
    return "\n".join(line for topic, entries in by_topic.items() for line in (f"# {topic}", *entries))


def _entry(field: Field[Any]) -> str:
    others: dict[object, list[str]] = {}
    for method, options in METHODS.items():
        if (value := getattr(options, field.name)) != field.default:
            others.setdefault(value, []).append(method)
    also = "".join(f"; {value} for {', '.join(names)}" for value, names in others.items())
    need = f" For {ONLY[only]}." if (only := field.metadata["only"]) else ""
    text = f"{told(MergeOptions, field.name)}{need} [{kind(MergeOptions, field.name)}{also}]"
    return f"{field.name}={field.default}\n" + fill(text, 100, initial_indent="    ", subsequent_indent="    ")
