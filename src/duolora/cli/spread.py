"""Options of commands made from the fields of dataclasses, where help, ranges, choices and defaults stand once."""

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from duolora.options import Range, choices, hints, told, word


@dataclass(frozen=True)
class Without:
    """Said of a parameter that is a dataclass: which of its fields are no options of the command."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """Said of a parameter that is a dictionary: it holds those fields of a dataclass that are given."""

    of: type[Any]
    names: tuple[str, ...] = ()
    """Which of the fields; all by default."""
    without: tuple[str, ...] = ()
    default: str = ""
    """What is said of a default, after its value."""


def spread(command: Callable[..., object]) -> Callable[..., object]:
    """The command with an option for each field of the parameters that are dataclasses, or `Changes` of one."""
    parameters: list[inspect.Parameter] = []
    parts: dict[str, tuple[Any, list[Field[Any]], bool]] = {}
    said_of = get_type_hints(command, include_extras=True)
    for each in inspect.signature(command).parameters.values():
        hint = said_of[each.name]
        of, *said = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        changes = next((one for one in said if isinstance(one, Changes)), None)
        if changes is None and not is_dataclass(of):
            parameters.append(each.replace(annotation=hint, kind=each.KEYWORD_ONLY))
            continue
        of = of if changes is None else changes.of
        left_out = changes.without if changes else next((one.names for one in said if isinstance(one, Without)), ())
        shown = [one for one in fields(of) if "help" in one.metadata and one.name not in left_out]
        shown = [one for one in shown if not changes or not changes.names or one.name in changes.names]
        parts[each.name] = (of, shown, changes is not None)
        parameters += [_parameter(of, one, changes) for one in shown]

    def call(**given: Any) -> None:
        """Gather the options into their dataclasses, and run the command."""
        for name, (of, shown, partly) in parts.items():
            values = {one.name: _value(of, one, given.pop(_called(one, "_"))) for one in shown}
            given[name] = {k: v for k, v in values.items() if v is not None} if partly else of(**values)
        command(**given)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def _parameter(of: Any, field: Field[Any], changes: Changes | None) -> inspect.Parameter:
    """The command line's option for a field."""
    hint, said = hints(of)[field.name], field.metadata
    default, help = field.default, told(of, field.name)
    if changes is not None:
        plain = ("no", "yes")[default] if isinstance(default, bool) else default
        plain = f"{plain:g}" if isinstance(plain, float) else plain or "none"
        help, default = f"{help}  [{plain}{changes.default}]" if changes.default else help, None
    flag = f"--{_called(field)}"
    both = hint is bool and (changes is not None or default)
    span = Range() if changes is not None else said["range"]  # of changes, `check` says more
    shown = typer.Option(f"{flag}/--no-{flag[2:]}" if both else flag, help=help, min=span.least, max=span.most)
    hint = str if get_origin(hint) is Literal else list[str] if get_origin(hint) is tuple else hint
    hint = hint | None if default is None else hint
    return inspect.Parameter(
        _called(field, "_"), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, shown]
    )


def _called(field: Field[Any], between: str = "-") -> str:
    """What a field is called on the command line, with this between words."""
    return (field.metadata["flag"] or field.name).replace("_", "-").replace("-", between)


def _value(of: type[Any], field: Field[Any], value: Any) -> Any:
    """What was given, once it is certain that it is one of the choices."""
    if (words := choices(of, field.name)) and value is not None:
        word(_called(field), value, words)
    return tuple(value) or None if isinstance(value, list) and isinstance(field.default, tuple) else value
