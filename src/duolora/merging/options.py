"""The methods: one loop, and a table of which masks, which losses and which beginning.

Every field is an option of `duolora merge`; the text under it, which `duolora merge --set help` shows, says what it
does and where its default comes from. `docs/paper.md` says where the paper is open and what was chosen; presets of its
loss weights are in `WEIGHTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args, get_origin, get_type_hints

from duolora.errors import InputError
from duolora.paper.choices import BlockMap, Cycles, Init, Multiplies, Norm, Reading, Reduction, Similarity

MaskAxis = Literal["none", "rank", "output", "input"]
Basis = Literal["svd", "raw"]
Rest = Literal["sum", "content", "style", "drop"]
Combine = Literal["masks", "svd", "ties", "dare_ties"]
First = Init | Literal["oneshot"]


@dataclass(frozen=True)
class MergeOptions:
    """How two LoRAs are merged."""

    masks: MaskAxis = "rank"
    """What a mask acts on: nothing, the rank dimension (Def. 2), the outputs (Def. 1) or the inputs (ZipLoRA's own)."""
    basis: Basis = "svd"
    """The directions that a rank mask selects: singular ones (Def. 2's U Σ Vᵀ), or those of the file."""
    init: First = "all-ones"
    """How masks begin (Sec. 3.3.2), or `oneshot`: at the closed form (options below), for rank masks only."""
    T_content: float = 0.1
    """From 0 to 1: where the mask of the adapter that does not lead begins with ones (Table 8's row with
    initialisation)."""
    T_style: float = 0.0
    """The same for the mask of the adapter that leads."""
    block_map: BlockMap | Mapping[str, str] = "resolution"
    """Which LoRA leads where: a map by its name, or a table {beginning of a module's path: role}."""
    neutral: float = 1.0
    """What multiplies the first masks of modules without a role."""

    lambda_layer_prior: float = 0.0
    """Weight of the layer prior (Eq. 1) in the loss."""
    prior_lambda: float = 1.0
    """λ inside Eq. 1, before the hinge."""
    sparsity: float = 1.0
    """What multiplies Eq. 1's first term, ‖m_dominant‖₁."""
    norm: Norm = "diag"
    """‖m‖_* of Eq. 1: of the diagonal matrix, which is ‖m‖₁, or of the mask as a column, which is ‖m‖₂."""
    hinge: bool = True
    """Whether Eq. 1 takes max(0, ‖m_other‖_* − ‖m_dominant‖_*), or the difference also where it is negative."""
    reduction: Reduction = "mean"
    """How Eq. 1 of all modules becomes one number."""

    reading: Reading = "none"
    """How the cycle reaches the masks (`paper/constyle.py`); `none` leaves the reconstruction terms only."""
    lambda_cycle: float = 0.1
    """Weight of the cycle (Sec. 3.4)."""
    multiplies: Multiplies = "cycle"
    """What `lambda_cycle` multiplies: the cycle's terms only, or all of Constyle, as printed."""
    cycles: Cycles = "both"
    """Which cycles there are: style added and removed again, content added and removed again, or both."""

    lambda_similarity: float = 0.0
    """Weight of ZipLoRA's term that keeps the two masks apart."""
    similarity: Similarity = "product"
    """That term: |m_c · m_s|, as in ziplora-pytorch, or a true cosine."""

    steps: int = 100
    """Optimiser updates of the masks (Sec. 4); with 0 they stay as they begin."""
    batch: int = 1
    """Content pictures, and as many style pictures, in each update."""
    pool: int = 25
    """How many draws of pictures, timesteps and noise take turns, their teachers computed once; 0 is a new one each
    update, which costs more and draws the same (`docs/log.md`)."""
    lr: float = 0.01
    """Learning rate of Adam (Sec. 4)."""
    seed: int = 0
    """The same seed and inputs give the same file."""
    pictures: int = 8
    """How many calibration pictures are drawn with each LoRA when none are given."""

    calls: int = 8
    """One-shot: calibration calls of the UNet, each with one picture of every adapter."""
    off_role: float = 1.0
    """One-shot: weight of a teacher in the modules where the other one leads."""
    ridge: float = 1e-3
    """One-shot: the pull towards masks of ones, relative to the mean curvature of a module."""
    upper: float = 1.5
    """One-shot: the largest mask entry."""

    combine: Combine = "masks"
    """How the two become one: by their masks, or without any by one of PEFT's ways, on the true ΔW."""
    density: float = 0.5
    """The share of entries of each ΔW that `ties` and `dare_ties` keep."""
    rank: int = 0
    """The rank that `svd`, `ties` and `dare_ties` end with; 0 is the sum of both ranks."""
    content_weight: float = 1.0
    """What multiplies the content half of the merge."""
    style_weight: float = 1.0
    """What multiplies the style half."""
    threshold: float = 1e-3
    """Directions whose mask is not above this are left out of the file. For rank masks only: an entry of an output or
    input mask is no direction."""
    binary: bool = False
    """Directions that are left enter in full, whatever their mask; for rank masks only."""
    rest: Rest = "sum"
    """What becomes of modules outside the attention layers, which have no masks."""

    @property
    def asks_network(self) -> bool:
        """Whether the masks are found with the base; where there are none, a merge needs the two files only."""
        return self.masks != "none"

    @property
    def needs_roles(self) -> bool:
        """Whether anything depends on which LoRA leads in a module."""
        return self.asks_network or self.init == "split" or self.neutral != 1


METHODS: dict[str, MergeOptions] = {
    "naive": MergeOptions(masks="none"),
    "split": MergeOptions(masks="none", init="split"),
    "blora": MergeOptions(masks="none", init="split", block_map="blora", neutral=0.0),
    "svd": MergeOptions(masks="none", combine="svd"),
    "ties": MergeOptions(masks="none", combine="ties"),
    "dare_ties": MergeOptions(masks="none", combine="dare_ties"),
    "ziplora": MergeOptions(masks="output", lambda_similarity=0.01),
    "ziprank": MergeOptions(),
    "ziprank-prior": MergeOptions(init="ones", lambda_layer_prior=0.1),
    "duolora": MergeOptions(init="ones", lambda_layer_prior=0.1, reading="teacher"),
    "oneshot": MergeOptions(init="oneshot", steps=0, off_role=0.0),
}

WEIGHTS: dict[str, dict[str, object]] = {
    "section4": {"lambda_layer_prior": 0.1, "lambda_cycle": 0.01, "multiplies": "all", "reduction": "sum"},
    "table9": {"lambda_layer_prior": 1.0, "lambda_cycle": 0.01, "multiplies": "all", "reduction": "sum"},
    "released": {"reading": "teacher", "hinge": False, "block_map": "released"},
}
"""Presets: the weights as Section 4 prints them, as the row of Table 9 that equals the headline numbers has them, and
what the authors' program does differently."""

_LEAST = dict.fromkeys(("batch", "pictures", "calls"), 1) | dict.fromkeys(
    (
        "lambda_layer_prior", "prior_lambda", "sparsity", "lambda_cycle", "lambda_similarity", "neutral",
        "steps", "pool", "rank", "threshold", "off_role", "ridge",
    ),
    0,
)  # fmt: skip
_ABOVE_0 = ("lr", "upper", "density")
_AT_MOST_1 = ("density", "T_content", "T_style")


def check_options(options: MergeOptions) -> None:
    """Refuse options that no merge can be made with, before anything is read or learnt.

    Raises:
        InputError: a name is not one of the choices, or a number is out of range or none.
    """
    for name in get_type_hints(MergeOptions):
        value = getattr(options, name)
        check_word(name, value)
        if isinstance(value, float) and not isfinite(value):
            raise InputError(f"{name}: expected a finite number, got {value}")
        if name in _LEAST and value < _LEAST[name]:
            raise InputError(f"{name}: expected {_LEAST[name]:g} or more, got {value}")
        if name in _ABOVE_0 and value <= 0:
            raise InputError(f"{name}: expected a number above 0, got {value}")
        if name in _AT_MOST_1 and value > 1:
            raise InputError(f"{name}: expected a share of at most 1, got {value}")


def check_word(name: str, value: object) -> None:
    """Refuse a word that is not among the choices of an option.

    Raises:
        InputError: it is not.
    """
    known = choices(name)
    if known and isinstance(value, str) and value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def choices(name: str) -> tuple[str, ...]:
    """The words that an option can be; none for options that are no words."""
    hint = get_type_hints(MergeOptions)[name]
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) if get_origin(part) is Literal for word in get_args(part))
