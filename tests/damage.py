"""JSON with any value in another's place, and how many random files a fuzz reads."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CASES = int(os.environ.get("DUOLORA_FUZZ_CASES", "500"))
"""10,000 and more in the long run; where a case takes longer, a part of it."""
DAMAGE = ("7", '"x"', "null", "true", "{}", "[]", "[[]]", "1e400", "-1", "NaN", '{"x": [1]}', "[1, 2, 3]",
          '["a", "b", "c"]', "1000000000", "1" + "0" * 400, "0.5", '"\\u001b[31m\\n"', "[" * 99 + "]" * 99)  # fmt: skip
Place = tuple[str | int, ...]


def damaged(value: object, place: Place, damage: str) -> str:
    """The value as JSON, with other text at one place in it."""
    return json.dumps(_put(value, place, "\0")).replace('"\\u0000"', damage)


def places(value: object, deep: int = 3, before: Place = ()) -> Iterator[Place]:
    """Where something stands in a value, its whole first."""
    yield before
    entries: Sequence[tuple[Any, Any]] = ()
    if len(before) < deep and isinstance(value, Mapping):
        entries = [*value.items()]
    elif len(before) < deep and isinstance(value, list):
        entries = [*enumerate(value)]
    for key, part in entries:
        yield from places(part, deep, (*before, key))


def _put(value: Any, place: Place, new: object) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = _put(value[place[0]], place[1:], new)
    return copy
