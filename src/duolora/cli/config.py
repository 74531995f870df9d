"""`--config FILE`: options of commands from a TOML file, as click's `default_map` takes them; the command line wins."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused, InputError, reason
from duolora.textfiles import read_text


def options_of_file(path: Path, commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each command, by the names that click has for them.

    Args:
        path: a TOML file with a table for each command, such as `[merge]`, and options by their names on the command
            line, such as `base-dtype = "float32"`.
        commands: click's commands by name.

    Raises:
        InputError: it cannot be read, or names a command or an option that there is not.
    """
    try:
        tables = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError, FileRefused) as error:
        raise InputError(
            f"{path}: expected a TOML file of options ({reason(error)}); fix it or leave --config out"
        ) from error
    found: dict[str, dict[str, Any]] = {}
    for command, options in tables.items():
        if command not in commands or not isinstance(options, dict):
            raise InputError(f"{path}: {command}: expected a table of one of {', '.join(commands)}")
        names = {flag.lstrip("-"): option.name for option in commands[command].params for flag in option.opts}
        if unknown := sorted(options.keys() - names.keys()):
            raise InputError(f"{path}: [{command}] {unknown[0]}: expected one of {', '.join(sorted(names))}")
        found[command] = {names[key]: value for key, value in options.items()}
    return found
