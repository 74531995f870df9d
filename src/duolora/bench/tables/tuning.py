"""Every method at several strengths on the tuning pairs, and which of them is taken to the other tables.

The rule: the highest mean of both; of equals the one with more object and style together; of equals still, the
first, which is the default. Pairs, objects and styles of the tuning set are in no other data set.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from duolora.bench.tables.rows import FLOOR, LAMBDAS, ORACLE, TABLES, Row, Table
from duolora.errors import FileRefused, InputError, Notice, reason
from duolora.textfiles import read_json, write_json

RULE = "both, then object + style, then the first; means over the tuning pairs"
ON_PHOTOS = "√(DINO × CSD-s), or CLIP-I in CSD-s's place, then their sum, then the first; means over the pairs"
STYLES = ("csd-s", "clip-i")
"""What says of photos how near the style is, the better one first."""

Bases = Mapping[str, str | None]
"""Bases with the hashes of their weights, where they are known."""
ATELIER: Bases = MappingProxyType({"atelier": None})
Settings = tuple[dict[str, float], ...]


def _weights(*pairs: tuple[float, float]) -> Settings:
    return ({}, *({"content_weight": c, "style_weight": s} for c, s in pairs))


def _each(name: str, *values: float) -> Settings:
    return ({}, *({name: value} for value in values))


def _weakened(**values: tuple[float, ...]) -> Settings:
    """All combinations, then each value of the last option with the content part at 0.7 and at 0.5.

    The first value of each is its default. Naive gains most by such weights, so whatever has strengths of its own has
    them, too.
    """
    name, last = list(values.items())[-1]
    weaker = [{"content_weight": w} | ({name: value} if k else {}) for w in (0.7, 0.5) for k, value in enumerate(last)]
    _, *others = product(*values.values())
    return ({}, *(dict(zip(values, chosen, strict=True)) for chosen in others), *weaker)


_UNEVEN = _weights((1.0, 0.7), (1.0, 0.5), (0.7, 1.0), (0.5, 1.0), (0.7, 0.7))
_STRONGER = _weights((1.5, 1.0), (1.0, 1.5), (1.5, 1.5), (1.0, 0.5), (0.5, 1.0))
_LR, _PRIOR = (0.01, 0.03), (0.1, 0.01)
_ZIPLORA = _weakened(lambda_similarity=(0.01, 0.001), lr=_LR)
_LAMBDAS = _each("prior_lambda", *LAMBDAS)[1:]
GRIDS: dict[str, Settings] = {
    "naive": _UNEVEN,
    "split by role": _STRONGER,
    "B-LoRA (filter)": _STRONGER,
    "B-LoRA": _STRONGER,
    "B-LoRA (own block)": _STRONGER,
    "PEFT svd": _UNEVEN,
    "PEFT ties": _weakened(density=(0.5, 0.9)),
    "PEFT dare_ties": _weakened(density=(0.5, 0.9)),
    "K-LoRA": _each("k", 16, 64, 1024),
    "ZipLoRA": _ZIPLORA,
    "ZipLoRA (inputs)": _ZIPLORA,
    "ZipRank": _weakened(lr=_LR),
    "ZipRank + layer prior": (*_weakened(lambda_layer_prior=_PRIOR, lr=_LR), *_LAMBDAS),
    "DuoLoRA": (*_weakened(lambda_layer_prior=_PRIOR, lr=_LR), {"lambda_cycle": 0.01, "lr": 0.03}, *_LAMBDAS),
    "DuoLoRA (output masks)": (*_weakened(lambda_layer_prior=_PRIOR, lr=_LR), *_LAMBDAS),
    "one-shot (ours)": (*_each("off_role", 1.0, 0.3, 0.1), {"content_weight": 0.7}, {"content_weight": 0.5}),
}
"""For each row of Tables 1 and 3 the settings that are tried, the default first."""


def _settings(row: Row) -> list[Row]:
    rows = []
    for changes in GRIDS.get(row.label, ()):
        said = " ".join(f"{name} {value:g}" for name, value in changes.items()) or "default"
        rows.append(replace(row, label=f"{row.label}: {said}", changes={**row.changes, **changes}, group=row.label))
    return rows


_TUNED = {row.label: row for name in ("table1", "table3") for row in TABLES[name].rows}
TUNING = Table(
    "Tuning: every method at several strengths",
    (FLOOR, ORACLE, *(setting for row in _TUNED.values() for setting in _settings(row))),
    ("tuning",),
)


class Best(NamedTuple):
    """The best setting of a group: its row, what it changes, and its share of both and object + style."""

    row: str
    changes: dict[str, object]
    score: tuple[float, float]


def check_judged(metrics: Sequence[str]) -> None:
    """Refuse metrics by which no setting can be chosen on photos, where nobody knows the truth.

    Raises:
        InputError: the subject or the style is not among them.
    """
    if "dino" not in metrics or not {*STYLES} & {*metrics}:
        raise InputError(
            f"--metrics: expected dino and one of {', '.join(STYLES)}, by which settings are chosen on photos; got "
            f"{', '.join(metrics)}"
        )


def choose(table: Table, lines: Sequence[Mapping[str, Any]], path: Path, bases: Bases = ATELIER) -> str:
    """Write the best setting of each group by the rules above, for `--tuned`; returns them as text.

    `lines` are those of `render.summary`. A setting that failed on some of the pairs is not eligible.
    """
    true = any("both" in line for line in lines)
    rule, names = (RULE, "both, object + style") if true else (ON_PHOTOS, "balance, sum")
    found = {line["row"]: line for line in lines}
    whole = max((line["pairs"] for line in lines), default=0)
    best: dict[str, Best] = {}
    for row in table.rows:
        line = found.get(row.label)
        if row.group and line and line["pairs"] == whole:
            score = _score(line)
            if row.group not in best or score > best[row.group].score:
                tried = {name for changes in GRIDS[row.group] for name in changes}  # so that other options stay free
                changes = {name: value for name, value in row.changes.items() if name in tried}
                best[row.group] = Best(row.label, changes, score)
    kept = {group: each._asdict() for group, each in best.items()}
    write_json(path, {"rule": rule, "bases": dict(bases), "pairs": whole, "best": kept})
    said = [f"{b.row}  ({names}: {b.score[0]:.2f}, {b.score[1]:.2f})" for b in best.values()]
    return "\n".join([f"Best of each group ({rule}):", *said, str(path)])


def _score(line: Mapping[str, Any]) -> tuple[float, float]:
    """What settings are compared by: the classifier's truth, or the similarities of photos."""
    if "both" in line:
        both, object_, style = (line[name][0] for name in ("both", "object", "style"))
        return round(both, 9), round(object_ + style, 9)
    content, style = (line[name][0] for name in ("dino", next(name for name in STYLES if line.get(name))))
    return round(math.sqrt(max(content, 0.0) * max(style, 0.0)), 9), round(content + style, 9)


def tuned(table: Table, path: Path, bases: Bases = ATELIER) -> Table:
    """The table with a further row, "NAME (tuned)", after each whose best setting in a file of `choose` is another.

    What a row changes itself stays as it is. Settings that were chosen on another base are told.

    Raises:
        InputError: the table is an ablation, or the file is another one.
    """
    if table.ablation:
        raise InputError(f"{table.title}: an ablation makes one change in each row; run it without --tuned")
    try:
        found = read_json(path)
        best = {name: dict(each["changes"]) for name, each in found["best"].items()}
        chosen_on = dict(found.get("bases", {"atelier": None}))
    except (OSError, FileRefused, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: expected tuned.json as `duolora bench tuning` writes it ({reason(error)})"
        ) from error
    marks = set(filter(None, chosen_on.values()))
    if others := [base for base, mark in bases.items() if base not in chosen_on and mark not in marks]:
        warnings.warn(
            f"{path}: these settings were chosen on {', '.join(chosen_on)}, and may not suit {', '.join(others)}; "
            "`duolora bench tuning` chooses some there", Notice, stacklevel=2,
        )  # fmt: skip
    rows: list[Row] = []
    for row in table.rows:
        changes = {**best.get(row.label, {}), **row.changes}
        own = replace(row, label=f"{row.label} (tuned)", changes=changes, group=row.label)
        rows += [row, own] if changes != row.changes else [row]
    return replace(table, rows=tuple(rows))
