"""The numbers that the paper prints (Tables 1 to 9), to compare with runs on the paper's own base and metrics only.

Rows are named as in `bench.tables`, data sets likewise; what the paper does not print is not here.
"""

from collections.abc import Mapping

Printed = dict[str, float]
NAMES = ("dino", "clip-i", "clip-t", "csd-s")
"""Metrics of `api.evaluate.PAPER`. Atelier's have other names, so that none of them finds a number here."""


def _row(*values: float, names: tuple[str, ...] = NAMES) -> Printed:
    return dict(zip(names, values, strict=True))


def _three(*values: float) -> Printed:
    return _row(*values, names=("dino", "clip-i", "csd-s"))


def _four_sets(*values: float) -> dict[str, Printed]:
    sets = ("several", "single", "crossed", "everyday")
    return {name: _row(*values[4 * k : 4 * k + 4]) for k, name in enumerate(sets)}


_TABLE1 = {
    "naive": _four_sets(.47, .64, .266, .44, .48, .59, .263, .30, .42, .49, .274, .12, .40, .39, .204, .18),
    "B-LoRA": _four_sets(.45, .57, .281, .28, .64, .57, .275, .32, .63, .56, .281, .14, .49, .51, .263, .25),
    "ZipLoRA": _four_sets(.53, .65, .285, .41, .75, .62, .288, .35, .87, .56, .289, .16, .54, .58, .286, .30),
    "ZipRank": _four_sets(.53, .64, .287, .42, .71, .62, .291, .35, .86, .56, .296, .17, .56, .58, .295, .32),
    "ZipRank + layer prior": _four_sets(
        .54, .67, .293, .45, .73, .63, .310, .37, .90, .56, .302, .18, .59, .60, .307, .35
    ),
    "DuoLoRA": _four_sets(.56, .69, .314, .48, .78, .65, .318, .40, .90, .58, .319, .20, .61, .62, .316, .37),
}  # fmt: skip
_TABLE9 = {
    "0/0": (.53, .64, .42), "0/1": (.45, .70, .52), "0/0.01": (.47, .68, .48), "1/0": (.57, .63, .40),
    "0.1/0": (.55, .64, .42), "0.1/0.1": (.52, .64, .43), "0.01/0.01": (.48, .65, .45), "0.1/0.01": (.51, .66, .46),
    "1/0.01": (.56, .69, .48),
}  # fmt: skip

PAPER: dict[str, dict[str, dict[str, Printed]]] = {
    "table1": _TABLE1,
    "table2": {
        "PairCustomization": {"paired": _three(0.56, 0.65, 0.47)},
        "DuoLoRA": {"paired": _three(0.62, 0.69, 0.50)},
    },
    "table3": {
        "ZipLoRA": {"several": _three(0.53, 0.65, 0.41)},
        "DuoLoRA (output masks)": {"several": _three(0.57, 0.73, 0.50)},
    },
    "table4": {
        "naive": {"multi2": _three(.38, .63, .35), "multi3": _three(.35, .56, .30), "multi4": _three(.28, .55, .25)},
        "ZipLoRA": {"multi2": _three(.40, .64, .42), "multi3": _three(.38, .60, .34), "multi4": _three(.29, .58, .31)},
        "DuoLoRA": {"multi2": _three(.45, .66, .47), "multi3": _three(.40, .64, .39), "multi4": _three(.32, .63, .35)},
    },
    "table7": {
        "ZipRank": {"several": _three(0.53, 0.64, 0.42)},
        "init 0.1/0.0 prior 0.1": {"several": _three(0.56, 0.65, 0.43)},
        "init 0.75/0.5 prior 0": {"several": _three(0.57, 0.64, 0.41)},
        "init 1.0/0.75 prior 0": {"several": _three(0.53, 0.64, 0.42)},
        "init 0.75/0.5 prior 0.1": {"several": _three(0.50, 0.64, 0.44)},
        "init 1.0/0.75 prior 0.1": {"several": _three(0.47, 0.64, 0.43)},
    },
    "table8": {
        "ZipRank": {"several": _three(0.530, 0.647, 0.424)},
        "+ init": {"several": _three(0.560, 0.652, 0.435)},
        "+ init + nuclear norm + sparsity": {"several": _three(0.542, 0.670, 0.458)},
        "+ style cycle": {"several": _three(0.507, 0.704, 0.519)},
        "+ both cycles": {"several": _three(0.560, 0.693, 0.482)},
    },
    "table9": {label: {"several": _three(*values)} for label, values in _TABLE9.items()},
}  # fmt: skip
_TABLE5 = {
    "ssd-1b": {"naive": (.35, .55, .38), "ZipLoRA": (.42, .65, .46), "DuoLoRA": (.44, .71, .52)},
    "segmind-vega": {"naive": (.33, .57, .42), "ZipLoRA": (.40, .67, .50), "DuoLoRA": (.41, .72, .56)},
}  # fmt: skip
TABLE6 = {"none": 0.0, "naive": 0.10, "B-LoRA": 0.18, "ZipLoRA": 0.22, "DuoLoRA": 0.50}

_KNOWN = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "segmind/ssd-1b": "ssd-1b",
    "segmind/segmind-vega": "segmind-vega",
}


def paper_base(base: str) -> str | None:
    """Which of the paper's three bases this is, by its hub id; None for any other."""
    return _KNOWN.get(base.lower())


def printed(table: str, base: str, dataset: str, row: str) -> Mapping[str, float]:
    """What the paper prints for a row on a base, by metric; nothing on other bases.

    Table 8 prints "+ nuclear norm" and "+ sparsity" under the same marks, so neither is here.
    """
    known = paper_base(base)
    if known == "sdxl":
        return PAPER.get(table, {}).get(row, {}).get(dataset, {})
    if known is not None and table == "table1" and dataset == "several":
        values = _TABLE5[known].get(row)
        return {} if values is None else _three(*values)
    return {}
