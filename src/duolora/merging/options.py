"""The methods: one loop, and a table of which masks, which losses and which beginning.

Every field is an option of `duolora merge`; its metadata, which `duolora merge --set help` shows, say what it does,
what it can be and where its default comes from. `docs/paper.md` says where the paper is open and what was chosen;
presets of its loss weights are in `WEIGHTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from duolora.options import option
from duolora.paper.choices import BlockMap, Cycles, Init, Multiplies, Norm, Reading, Reduction, Similarity

MaskAxis = Literal["none", "rank", "output", "input"]
Basis = Literal["svd", "raw"]
Rest = Literal["sum", "content", "style", "drop"]
Combine = Literal["masks", "svd", "ties", "dare_ties"]
First = Init | Literal["oneshot"]


@dataclass(frozen=True)
class MergeOptions:
    """How two LoRAs are merged."""

    masks: MaskAxis = option(
        "rank",
        "What a mask acts on: nothing, the rank dimension (Def. 2), the outputs (Def. 1) or the inputs (ZipLoRA's).",
    )
    basis: Basis = option(
        "svd",
        "The directions that a rank mask selects: singular ones (Def. 2's U Σ Vᵀ), or those of the file.",
    )
    init: First = option(
        "all-ones",
        "How masks begin, or `oneshot`: at the closed form (options below), for rank masks only.",
        section="Sec. 3.3.2",
    )
    T_content: float = option(
        0.1,
        "Where the mask of the adapter that does not lead begins with ones (Table 8's row with initialisation).",
        least=0,
        most=1,
    )
    T_style: float = option(0.0, "The same for the mask of the adapter that leads.", least=0, most=1)
    block_map: BlockMap | Mapping[str, str] = option(
        "resolution",
        "Which LoRA leads where: a map by its name, or a table {beginning of a module's path: role}.",
    )
    neutral: float = option(1.0, "What multiplies the first masks of modules without a role.", least=0)

    lambda_layer_prior: float = option(0.0, "Weight of the layer prior in the loss.", section="Eq. 1", least=0)
    prior_lambda: float = option(1.0, "λ inside Eq. 1, before the hinge.", least=0)
    sparsity: float = option(1.0, "What multiplies Eq. 1's first term, ‖m_dominant‖₁.", least=0)
    norm: Norm = option(
        "diag",
        "‖m‖_* of Eq. 1: of the diagonal matrix, which is ‖m‖₁, or of the mask as a column, which is ‖m‖₂.",
    )
    hinge: bool = option(
        True,
        "Whether Eq. 1 takes max(0, ‖m_other‖_* − ‖m_dominant‖_*), or the difference also where it is negative.",
    )
    reduction: Reduction = option("mean", "How Eq. 1 of all modules becomes one number.")

    reading: Reading = option(
        "none",
        "How the cycle reaches the masks (`paper/constyle.py`); `none` leaves the reconstruction terms only.",
    )
    lambda_cycle: float = option(0.1, "Weight of the cycle.", section="Sec. 3.4", least=0)
    multiplies: Multiplies = option(
        "cycle",
        "What `lambda_cycle` multiplies: the cycle's terms only, or all of Constyle, as printed.",
    )
    cycles: Cycles = option(
        "both",
        "Which cycles there are: style added and removed again, content added and removed again, or both.",
    )

    lambda_similarity: float = option(0.0, "Weight of ZipLoRA's term that keeps the two masks apart.", least=0)
    similarity: Similarity = option("product", "That term: |m_c · m_s|, as in ziplora-pytorch, or a true cosine.")

    steps: int = option(
        100,
        "Training steps of the masks; with 0 they stay as they begin.",
        section="Sec. 4",
        least=0,
    )
    batch: int = option(1, "Content images, and as many style images, in each step.", least=1)
    pool: int = option(
        25,
        "How many samples of images, timesteps and noise take turns, their teachers computed once; 0 is a new one"
        " each step, which costs more and changes nothing (`docs/log.md`).",
        least=0,
    )
    per_image: bool = option(
        False,
        "Whether `steps` are divided by the number of images of the larger set, rounded up: the authors' program ends "
        "each epoch after its first update.",
    )
    tied: bool = option(False, "Whether q, k, v and out of an attention share one mask, as in the authors' program.")
    lr: float = option(0.01, "Learning rate of Adam.", section="Sec. 4", above=0)
    weight_decay: float = option(0.0, "Weight decay of AdamW; 0 is Adam.", least=0)
    clip: float = option(0.0, "The largest norm of the gradient of all masks; 0 is no limit.", least=0)
    seed: int = option(0, "The same seed and inputs give the same file.")
    pictures: int = option(8, "How many calibration images are generated with each LoRA when none are given.", least=1)

    calls: int = option(8, "One-shot: calibration calls of the UNet, each with one image of every adapter.", least=1)
    off_role: float = option(1.0, "One-shot: weight of a teacher in the modules where the other one leads.", least=0)
    ridge: float = option(
        1e-3,
        "One-shot: the pull towards masks of ones, relative to the mean curvature of a module.",
        least=0,
    )
    upper: float = option(1.5, "One-shot: the largest mask entry.", above=0)

    combine: Combine = option(
        "masks",
        "How the two become one: by their masks, or without any by one of PEFT's ways, on the true ΔW.",
    )
    density: float = option(0.5, "The share of entries of each ΔW that `ties` and `dare_ties` keep.", above=0, most=1)
    rank: int = option(0, "The rank that `svd`, `ties` and `dare_ties` end with; 0 is the sum of both ranks.", least=0)
    content_weight: float = option(1.0, "What multiplies the content part of the merge.")
    style_weight: float = option(1.0, "What multiplies the style part.")
    threshold: float = option(
        1e-3,
        "Directions whose mask is not above this are left out of the file. For rank masks only: an entry of an "
        "output or input mask is no direction.",
        least=0,
    )
    binary: bool = option(False, "Directions that are left enter in full, whatever their mask; for rank masks only.")
    rest: Rest = option("sum", "What becomes of modules outside the attention layers, which have no masks.")

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
    "section4": {"lambda_layer_prior": 0.1, "lambda_cycle": 0.01},
    "table9": {"lambda_layer_prior": 1.0, "lambda_cycle": 0.01},
    "released": {
        "basis": "raw",
        "init": "all-ones",
        "block_map": "released",
        "tied": True,
        "lambda_layer_prior": 0.01,
        "norm": "vector",
        "hinge": False,
        "reading": "teacher",
        "lambda_cycle": 0.1,
        "per_image": True,
        "pool": 0,
        "weight_decay": 1e-4,
        "clip": 1.0,
    },
}
"""Presets: the weights as Section 4 prints them, as the row of Table 9 that equals the headline numbers has them, and
all that the authors' program does differently (its AdamW has 8 bits). λ_cycle multiplies the cycle only, and layers are
averaged, in all of them: Table 9's row 0/0 has ZipRank's numbers of Table 1, and would have no loss at all if it
multiplied all of Constyle."""
