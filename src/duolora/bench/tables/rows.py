"""The tables of the paper as rows: a label, a method and what of its options is changed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from duolora.errors import FileRefused, InputError, reason
from duolora.merging.options import WEIGHTS
from duolora.textfiles import read_json

How = Literal["merge", "floor", "content", "style", "class", "oracle", "klora", "pair", "chosen", "refined"]
Figure = Literal["", "ranks", "prompts", "methods"]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    `how`: a merge by `method` with `changes` to its options; or, to compare with, the base without a LoRA ("floor"),
    one of the two LoRAs alone ("content", "style"), the style LoRA asked for a subject of that kind ("class"), a LoRA
    trained on true images of the subject in the style ("oracle"), or K-LoRA or PairCustomization ("pair"), which exist
    at sampling time only; or of the merges by `CANDIDATES` the one that `duolora choose` takes ("chosen"), or what
    `duolora refine` makes of them ("refined").
    `blocks`: the parts of the UNet that the content and the style LoRA are trained in; all of it where nothing is said.
    """

    label: str
    method: str = ""
    changes: Mapping[str, object] = field(default_factory=dict)
    how: How = "merge"
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group: str = ""
    """The label of the row that this is another setting of."""

    @property
    def name(self) -> str:
        """Its method, or what stands in a method's place."""
        return self.method if self.how == "merge" else self.how


def matched(asked: str, known: Mapping[str, str]) -> str:
    """The label of a row, or the name of its method, that was asked for, whatever its case and signs.

    Args:
        asked: what somebody has written.
        known: the name (`Row.name`) of each label.

    Raises:
        InputError: there is no such row.
    """
    found = {_plain(method): label for label, method in reversed([*known.items()]) if method}
    found |= {_plain(label): label for label in known}
    if (label := found.get(_plain(asked))) is None:
        raise InputError(f"rows: expected some of {', '.join(known)}; got {asked!r}")
    return label


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def row_of(entry: Mapping[str, Any]) -> Row:
    """A row from plain data, as `asdict` makes it of one."""
    blocks = {kind: tuple(names) for kind, names in entry.get("blocks", {}).items()}
    return Row(**{**entry, "blocks": blocks})


@dataclass(frozen=True)
class Table:
    """Rows, and the data sets on which they are measured."""

    title: str
    rows: tuple[Row, ...]
    datasets: tuple[str, ...] = ("several",)
    figure: Figure = ""
    """Its figure: ranks of masks, each merge's prompts, or the methods side by side."""
    ablation: bool = False
    """Whether rows differ by one option each, so that tuned settings have no place in it."""

    @property
    def several(self) -> bool:
        """Whether it is about several subjects in one style."""
        return bool({*self.datasets} & {*MULTI})


ALL = ("several", "single", "crossed", "everyday")
OTHERS = ("paired", "unseen", "random", "tuning", "ceiling")
"""Atelier's data sets besides those of Table 1 (`cells/pairs.py`)."""
MULTI = {"multi2": 2, "multi3": 3, "multi4": 4}
"""Data sets of several subjects in one style, made of those of `several`."""
FLOOR, ORACLE = Row("base (no LoRA)", how="floor"), Row("oracle", how="oracle")
CONTENT, STYLE = Row("content LoRA alone", how="content"), Row("style LoRA alone", how="style")
CLASS_PROMPT = Row("style LoRA (class prompt)", how="class")
ALONE = {"content": "content", "style": "style", "class": "style", "oracle": "oracle"}
"""The LoRA that a row generates with, where it is one alone."""

CANDIDATES = ("naive", "ziplora", "ziprank", "duolora")
"""The methods whose merges the rows "chosen" and "refined" go by, each as it ships."""
BEST = ("chosen", "refined")
"""How rows come about that go by the candidates' images."""

BLORA = (("up_blocks.0.attentions.0",), ("up_blocks.0.attentions.1",))
"""B-LoRA's content and style blocks in SDXL (W4, W5); `with_blora` puts others in their place."""


def blora_rows(content: tuple[str, ...] = BLORA[0], style: tuple[str, ...] = BLORA[1]) -> tuple[Row, ...]:
    """B-LoRA in three ways: as a filter, as its authors have it, and with a block to each LoRA.

    The filter keeps one block of each of two ordinary LoRAs. The authors train both blocks on each image and keep one
    of them from each. In the third way each LoRA is trained in its own block alone.
    """
    table: dict[str, str] = dict.fromkeys(content, "content") | dict.fromkeys(style, "style")
    changes = {} if (content, style) == BLORA else {"block_map": table}
    both = (*content, *style)
    return (
        Row("B-LoRA (filter)", "blora", changes),
        Row("B-LoRA", "blora", changes, blocks={"content": both, "style": both}),
        Row("B-LoRA (own block)", "naive", blocks={"content": content, "style": style}),
    )


def with_blora(table: Table, content: tuple[str, ...], style: tuple[str, ...]) -> Table:
    """The table with other blocks in B-LoRA's rows, for a base on which others play that part (see `figure3`)."""
    known, other = blora_rows(), blora_rows(content, style)

    def changed(row: Row) -> Row:
        """The row on the other blocks, if it is one of B-LoRA's."""
        for old, new in zip(known, other, strict=True):
            if (row.group or row.label) == old.label:
                return replace(row, changes={**row.changes, **new.changes}, blocks=new.blocks)
        return row

    return replace(table, rows=tuple(map(changed, table.rows)))


def read_blocks(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """B-LoRA's content and style blocks from a file such as `figure3` writes.

    Raises:
        InputError: it is another file.
    """
    try:
        found = read_json(path)
        return tuple(map(str, found["content"])), tuple(map(str, found["style"]))
    except (OSError, FileRefused, ValueError, TypeError, KeyError) as error:
        raise InputError(f'{path}: expected {{"content": [blocks], "style": [blocks]}} ({reason(error)})') from error


LAMBDAS = (2.0, 10.0, 100.0)
"""What λ of Eq. 1 is tried at besides 1: from there on it holds both masks up, and Lemma 1 takes λ → ∞."""

_OPEN: tuple[tuple[str, dict[str, object]], ...] = (
    ("as it ships", {}),
    ("cycle through the masks", {"cycle_variant": "masked"}),
    ("λ_cycle times all of Constyle", {"multiplies": "all"}),
    ("map: literal", {"block_map": "literal"}),
    ("map: released", {"block_map": "released"}),
    ("init: all ones", {"init": "all-ones"}),
    ("init: values kept", {"init": "values"}),
    ("norm: of a column", {"norm": "vector"}),
    ("no hinge", {"hinge": False}),
    *((f"λ of Eq. 1: {value:g}", dict[str, object](prior_lambda=value)) for value in LAMBDAS),
    ("sum over layers", {"reduction": "sum"}),
    ("directions of the file", {"basis": "raw"}),
    ("binary in the file", {"binary": True}),
    *((f"preset {name}", weights) for name, weights in WEIGHTS.items()),
)
"""Each place where the paper is open (`docs/paper.md`), read otherwise than by default, one at a time."""

_VARIANTS = Table(
    "Variants where the paper is open, on the tuning pairs",
    (FLOOR, *(Row(f"DuoLoRA ({label})", "duolora", changes) for label, changes in _OPEN), ORACLE),
    ("tuning",),
)


def _oneshot(label: str, **changes: object) -> Row:
    """One option changed from the plain fit, in which both teachers weigh the same everywhere."""
    return Row(label, "oneshot", {"off_role": 1.0} | changes)


_ONESHOT = Table(
    "One-shot merges: what to calibrate on, and trained ones",
    (
        Row("naive", "naive"),
        Row("split by role", "split"),
        Row("ZipRank", "ziprank"),
        Row("DuoLoRA", "duolora"),
        _oneshot("one-shot"),
        *(_oneshot(f"off role {w:g}", off_role=w) for w in (0.3, 0.1, 0.0)),
        _oneshot("prior 0.3", lambda_layer_prior=0.3),
        _oneshot("hinge 1", lambda_layer_prior=1.0, sparsity=0.0),
        *(Row(f"ZipRank ({n} from one-shot)", "ziprank", {"init": "oneshot", "steps": n}) for n in (5, 20)),
        *(Row(f"ZipRank ({n} from ones)", "ziprank", {"steps": n}) for n in (5, 20)),
    ),
    ("tuning",),
)

_SHOWN_TOGETHER = (Row("naive", "naive"), Row("ZipLoRA", "ziplora"), Row("DuoLoRA", "duolora"))
_SHOWN = (_SHOWN_TOGETHER[0], blora_rows()[1], *_SHOWN_TOGETHER[1:])

_METHODS = (
    FLOOR, CONTENT, STYLE, CLASS_PROMPT,
    Row("naive", "naive"),
    Row("split by role", "split"),
    *blora_rows(),
    Row("PEFT svd", "svd"),
    Row("PEFT ties", "ties"),
    Row("PEFT dare_ties", "dare_ties"),
    Row("K-LoRA", how="klora"),
    Row("ZipLoRA", "ziplora"),
    Row("ZipLoRA (inputs)", "ziplora", {"masks": "input"}),
    Row("ZipRank", "ziprank"),
    Row("ZipRank + layer prior", "ziprank-prior"),
    Row("DuoLoRA", "duolora"),
    Row("one-shot (ours)", "oneshot"),
    Row("best of four (ours)", how="chosen"),
    Row("refined (ours)", how="refined"),
    ORACLE,
)  # fmt: skip

TABLES: dict[str, Table] = {
    "oneshot": _ONESHOT,
    "variants": _VARIANTS,
    "ceiling": Table("What a merge can reach, of every subject in every style", (FLOOR, ORACLE), ("ceiling",)),
    "table1": Table("Table 1: methods on four data sets", _METHODS, ALL),
    "table2": Table(
        "Table 2: from an image and its stylised twin",
        (FLOOR, Row("naive", "naive"), Row("PairCustomization", how="pair"), Row("DuoLoRA", "duolora"), ORACLE),
        ("paired",),
    ),
    "table3": Table(
        "Table 3: the same number of parameters",
        (FLOOR, Row("ZipLoRA", "ziplora"), Row("DuoLoRA (output masks)", "duolora", {"masks": "output"}), ORACLE),
    ),
    "table4": Table(
        "Table 4: several subjects in one style",
        (FLOOR, Row("naive", "naive"), Row("split by role", "split"), *_SHOWN_TOGETHER[1:], ORACLE),
        tuple(MULTI),
    ),
    "table5": Table("Table 5: smaller bases, shaped like SSD-1B and Segmind-Vega", _METHODS),
    "table7": Table(
        "Table 7: thresholds of the initialisation",
        (
            FLOOR,
            Row("ZipRank", "ziprank", {"lambda_layer_prior": 0.1}),
            *(
                Row(f"init {c}/{s} prior {w}", "ziprank-prior", dict(T_content=c, T_style=s, lambda_layer_prior=w))
                for w, c, s in ((0.1, 0.1, 0.0), (0, 0.75, 0.5), (0, 1.0, 0.75), (0.1, 0.75, 0.5), (0.1, 1.0, 0.75))
            ),
            ORACLE,
        ),
        ablation=True,
    ),
    "table8": Table(
        "Table 8: components",
        (
            FLOOR,
            Row("ZipRank", "ziprank"),
            Row("+ init", "ziprank", {"init": "ones"}),
            Row("+ init + nuclear norm", "ziprank-prior", {"sparsity": 0.0}),
            Row("+ init + sparsity", "ziprank-prior", {"prior_lambda": 0.0}),
            Row("+ init + nuclear norm + sparsity", "ziprank-prior"),
            Row("+ style cycle", "duolora", {"cycles": "style"}),
            Row("+ both cycles", "duolora"),
            ORACLE,
        ),
        ablation=True,
    ),
    "table9": Table(
        "Table 9: λ_layer_prior / λ_cycle",
        (
            FLOOR,
            *(
                Row(f"{p:g}/{c:g}", "duolora", {"lambda_layer_prior": p, "lambda_cycle": c})
                for p, c in (
                    (0, 0), (0, 1), (0, 0.01), (1, 0), (0.1, 0), (0.1, 0.1), (0.01, 0.01), (0.1, 0.01), (1, 0.01)
                )
            ),
            ORACLE,
        ),
        ablation=True,
    ),
    "figure4": Table("Figure 4: ranks of the masks", (Row("DuoLoRA", "duolora"),), ALL, "ranks"),
    "figure5": Table("Figure 5: several images of a subject", _SHOWN, ("several",), "methods"),
    "figure6": Table("Figure 6: subjects and styles of different sets", _SHOWN, ("crossed", "everyday"), "methods"),
    "figure7": Table("Figure 7: one image of each", _SHOWN, ("single",), "methods"),
    "figure8": Table("Figure 8: the subject elsewhere", (Row("DuoLoRA", "duolora"),), ("several",), "prompts"),
    "figure9": Table("Figure 9: two subjects in one style", _SHOWN_TOGETHER, ("multi2",), "methods"),
    "figure10": Table("Figure 10: four subjects in one style", _SHOWN_TOGETHER, ("multi4",), "methods"),
}  # fmt: skip
PAPER = tuple(name for name in TABLES if name.startswith(("table", "figure")))
"""What is in the paper, besides Figure 3 and the study of Table 6."""
