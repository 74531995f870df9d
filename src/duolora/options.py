"""Options are data: help, range, choices and source stand on the fields of one dataclass.

The command line, its help and the checks are made from them; nothing heavy is imported.
"""

import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from math import isfinite
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from duolora.errors import InputError

T = TypeVar("T")
Format = Literal["kohya", "diffusers", "uniform"]
"""Whose names a LoRA file has."""
DEFAULT_FORMAT: Format = "kohya"
"""The one that every program loads whole and at its strength (`docs/log.md`)."""
Export = Literal["kohya", "diffusers", "uniform", "split", "split-diffusers", "peft", "masks"]
"""How a merge is written: as one file, as its two parts, as a folder of PEFT's, or as its masks."""
FileDtype = Literal["float32", "float16", "bfloat16", "fp32", "fp16", "bf16"]
"""What the numbers of a file are."""
Plot = Literal[".png", ".pdf", ".svg"]
"""How the name of a plot ends."""


class Written(TypedDict, total=False):
    """How a result is written, as functions take it by keyword."""

    format: str
    """Whose names the file has; by default kohya's."""
    dtype: str
    """What its numbers are; by default float16."""
    overwrite: bool
    """Whether a file that is there already is replaced, as by default; an input never is."""


_TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "words"}


@dataclass(frozen=True)
class Range:
    """Which numbers an option can be."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number is among them."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """In words, as they follow "a number"."""
        if self.least is not None:
            if self.most is None and self.below is None:
                return f", {self.least:g} or more"
            return f" from {self.least:g} to " + (f"{self.most:g}" if self.below is None else f"below {self.below:g}")
        ends = (("above", self.above), ("at most", self.most), ("below", self.below))
        both = " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)
        return f" {both}" if both else ""


def option(
    default: T, help: str, *, section: str = "", topic: str = "", only: str = "", flag: str = "", **ends: float
) -> T:
    """A field of an options dataclass: its default, what it does, the paper's section, and its topic.

    `only` is the name of another option or property: where that one is false, this one has no effect. `flag` is what it
    is called on the command line, where not by its name. `ends` are those of its `Range`: least, above, most, below.
    """
    said = {"help": help, "section": section, "topic": topic, "only": only, "flag": flag, "range": Range(**ends)}
    found: T = field(default=default, metadata=said)
    return found


def about(topic: str, only: str = "") -> Any:
    """`option` for several fields of one topic, which have an effect under the same condition."""
    return partial(option, topic=topic, only=only)


def several(values: T | Sequence[T]) -> list[T]:
    """The values as a list; a text or path where a list is expected is one value."""
    return [values] if isinstance(values, str | os.PathLike) else list(values)  # type: ignore[arg-type]


def word(name: str, value: str, known: Sequence[T]) -> T:
    """The one of the known words that a value is.

    Raises:
        InputError: it is none of them.
    """
    for each in known:
        if each == value:
            return each
    raise InputError(f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}")


@cache
def hints(options: type[Any]) -> dict[str, Any]:
    """The types of its fields, found once: Python takes a millisecond for them."""
    return get_type_hints(options)


def choices(options: Any, name: str) -> tuple[str, ...]:
    """The words that an option can be; none for options that are no words."""
    hint = hints(options if isinstance(options, type) else type(options))[name]
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) if get_origin(part) is Literal for word in get_args(part))


def kind(options: Any, name: str) -> str:
    """What an option can be, in words: "one of sum, mean", "a number above 0"."""
    if words := choices(options, name):
        return f"one of {', '.join(words)}"
    known = _field(options, name)
    return f"{_KINDS[type(known.default)]}{known.metadata['range']}"


def told(options: Any, name: str) -> str:
    """What an option does, with the section of the paper that it comes from."""
    said = _field(options, name).metadata
    return f"{said['help'].removesuffix('.')} ({said['section']})." if said["section"] else str(said["help"])


def check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of so many LoRA files, by default 1 each.

    Raises:
        InputError: they are not as many, or not finite.
    """
    found = [1.0] * count if weights is None else list(weights)
    if len(found) != count or not all(map(isfinite, found)):
        said = ", ".join(f"{weight:g}" for weight in found) or "none"
        raise InputError(
            f"weights: expected {count} finite number{'s' * (count != 1)}, one for each LoRA file, got {said}"
        )
    return found


def check_smaller(threshold: float | None, energy: float | None, rank: int | None) -> None:
    """Refuse measures by which no LoRA can be made smaller.

    Raises:
        InputError: the first of them.
    """
    shares = {"threshold": (threshold, Range(0, below=1)), "energy": (energy, Range(above=0, most=1))}
    for name, (value, span) in (shares | {"rank": (rank, Range(1))}).items():
        if value is not None and not span.holds(value):
            raise InputError(f"{name}: expected a number{span}, got {value:g}")


def check(options: Any) -> None:
    """Refuse options that nothing can be made with, before anything is read or trained.

    Raises:
        InputError: a word is not one of the choices, or a number is out of range or none.
    """
    for known in fields(options):
        check_value(options, known.name, getattr(options, known.name))


def idle(options: Any, names: Iterable[str]) -> dict[str, str]:
    """Which of these options have no effect among the others as they are, with the name of what they would need."""
    needs = {name: _field(options, name).metadata["only"] for name in names}
    return {name: need for name, need in needs.items() if need and not getattr(options, need)}


def check_value(options: Any, name: str, value: object) -> None:
    """Refuse a value that an option cannot have.

    Raises:
        InputError: it cannot.
    """
    expected = kind(options, name).replace("a number", "a finite number")
    wrong = False
    if isinstance(value, str):
        words = choices(options, name)
        wrong = bool(words) and value not in words
    elif isinstance(value, int | float) and not isinstance(value, bool):
        wrong = not (isfinite(value) and _field(options, name).metadata["range"].holds(value))
    if wrong:
        raise InputError(f"{name}: expected {expected}, got {reprlib.repr(value)}")


def parsed(options: Any, name: str, text: str) -> object:
    """The value of an option from the command line's word for it.

    Raises:
        InputError: it has another type, or is not one of the choices.
    """
    of = type(getattr(options, name))
    try:
        found = _TRUTHS[text.lower()] if of is bool else of(text)
    except (ValueError, KeyError):
        raise InputError(f"{name}={text}: expected {kind(options, name)}") from None
    if choices(options, name):
        check_value(options, name, found)
    return found


def _field(options: Any, name: str) -> Any:
    return next(known for known in fields(options) if known.name == name)
