"""The methods: one loop, and a table of which masks, which losses and which beginning.

Every field is an option of `duolora merge`; its metadata, which `duolora merge --set help` shows, say what it does,
what it can be and where its default comes from. `docs/paper.md` says where the paper is open and what was chosen;
presets of its loss weights are in `WEIGHTS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from duolora.lora.families import FAMILIES
from duolora.options import about, option, word
from duolora.paper.choices import BlockMap, Cycles, Init, Multiplies, Norm, Reduction, Similarity, Variant

MaskAxis = Literal["none", "rank", "output", "input"]
Basis = Literal["svd", "raw"]
Unmasked = Literal["sum", "content", "style", "drop"]
Combine = Literal["masks", "svd", "ties", "dare_ties"]
First = Init | Literal["oneshot"]

_training = about("training", "asks_network")
_prior = about("layer prior", "lambda_layer_prior")
_one_shot = about("one-shot", "is_one_shot")
_cycle = about("cycle", "has_cycle")
_rank_masks = about("masks", "selects_directions")
_masks = about("masks")
_strength = about("strength")
_beginning = about("masks", "begins_in_part")


@dataclass(frozen=True)
class MergeOptions:
    """How two LoRAs are merged."""

    masks: MaskAxis = _masks(
        "rank",
        "What a mask acts on: nothing, the rank dimension (Def. 2), the outputs (Def. 1) or the inputs (ZipLoRA's).",
    )
    basis: Basis = _rank_masks(
        "svd", "The directions that a rank mask selects: singular ones (Def. 2's U Σ Vᵀ), or those of the file."
    )
    init: First = _masks(
        "all-ones",
        "How masks begin, or `oneshot`: at the closed form (options below), for rank masks only.",
        section="Sec. 3.3.2",
    )
    T_content: float = _beginning(
        0.1,
        "Where the mask of the adapter that does not lead begins with ones (Table 8's row with initialisation).",
        least=0,
        most=1,
    )
    T_style: float = _beginning(0.0, "The same for the mask of the adapter that leads.", least=0, most=1)
    block_map: BlockMap | Mapping[str, str] = option(
        "resolution",
        "Which LoRA leads where: a map by its name, or a table {beginning of a module's path: role} (on the command "
        "line a .json file with one, as `bench figure3` writes it).",
        topic="masks",
        only="needs_roles",
    )
    neutral: float = _masks(1.0, "What multiplies the first masks of modules without a role.", least=0)

    lambda_layer_prior: float = option(
        0.0,
        "Weight of the layer prior in the loss.",
        section="Eq. 1",
        least=0,
        topic="layer prior",
        only="asks_network",
    )
    prior_lambda: float = _prior(1.0, "λ inside Eq. 1, before the hinge.", least=0)
    sparsity: float = _prior(1.0, "What multiplies Eq. 1's first term, ‖m_dominant‖₁.", least=0)
    norm: Norm = _prior(
        "diag", "‖m‖_* of Eq. 1: of the diagonal matrix, which is ‖m‖₁, or of the mask as a column, which is ‖m‖₂."
    )
    hinge: bool = _prior(
        True, "Whether Eq. 1 takes max(0, ‖m_other‖_* − ‖m_dominant‖_*), or the difference also where it is negative."
    )
    reduction: Reduction = _prior("mean", "How Eq. 1 of all modules becomes one number.")

    cycle_variant: Variant = option(
        "none",
        "How the cycle reaches the masks (`paper/constyle.py`); `none` leaves the reconstruction terms only.",
        topic="cycle",
        only="asks_network",
    )
    lambda_cycle: float = _cycle(0.1, "Weight of the cycle.", section="Sec. 3.4", least=0)
    multiplies: Multiplies = _cycle(
        "cycle", "What `lambda_cycle` multiplies: the cycle's terms only, or all of Constyle, as printed."
    )
    cycles: Cycles = _cycle(
        "both", "Which cycles there are: style added and removed again, content added and removed again, or both."
    )

    lambda_similarity: float = option(
        0.0,
        "Weight of ZipLoRA's term that keeps the two masks apart.",
        least=0,
        topic="similarity",
        only="asks_network",
    )
    similarity: Similarity = option(
        "product",
        "That term: |m_c · m_s|, as in ziplora-pytorch, or a true cosine.",
        topic="similarity",
        only="lambda_similarity",
    )

    steps: int = _training(
        100, "Training steps of the masks; with 0 they stay as they begin.", section="Sec. 4", least=0
    )
    batch: int = _training(1, "Content images, and as many style images, in each step.", least=1)
    pool: int = _training(
        25,
        "How many samples of images, timesteps and noise take turns, their teachers computed once; 0 is a new one"
        " each step, which costs more and changes nothing (`docs/log.md`).",
        least=0,
    )
    lr: float = _training(0.01, "Learning rate of Adam.", section="Sec. 4", above=0)
    seed: int = option(0, "The same seed and inputs give the same file.", topic="training")
    calibration_images: int = _training(
        4, "How many calibration images are generated with each LoRA when none are given.", least=1
    )
    per_image: bool = _training(
        False,
        "Whether `steps` are divided by the number of images of the larger set, rounded up: the authors' program ends "
        "each epoch after its first update.",
    )
    weight_decay: float = _training(0.0, "Weight decay of AdamW; 0 is Adam.", least=0)
    clip: float = _training(0.0, "The largest norm of the gradient of all masks; 0 is no limit.", least=0)
    tied: bool = option(
        False,
        "Whether q, k, v and out of an attention share one mask, as in the authors' program.",
        topic="masks",
        only="asks_network",
    )

    calls: int = _one_shot(8, "One-shot: calibration calls of the UNet, each with one image of every adapter.", least=1)
    off_role: float = _one_shot(1.0, "One-shot: weight of a teacher in the modules where the other one leads.", least=0)
    ridge: float = _one_shot(
        1e-3, "One-shot: the pull towards masks of ones, relative to the mean curvature of a module.", least=0
    )
    upper: float = _one_shot(1.5, "One-shot: the largest mask entry.", above=0)

    combine: Combine = option(
        "masks",
        "How the two become one: by their masks, or without any by one of PEFT's ways, on the true ΔW.",
        topic="without masks",
    )
    density: float = option(
        0.5,
        "The share of entries of each ΔW that `ties` and `dare_ties` keep.",
        above=0,
        most=1,
        topic="without masks",
        only="drops_entries",
    )
    rank: int = option(
        0,
        "The rank that `svd`, `ties` and `dare_ties` end with; 0 is the sum of both ranks.",
        least=0,
        topic="without masks",
        only="has_rank",
    )
    content_weight: float = _strength(1.0, "What multiplies the content part of the merge.")
    style_weight: float = _strength(1.0, "What multiplies the style part.")
    threshold: float = _rank_masks(
        1e-3,
        "Directions whose mask is not above this are left out of the file. For rank masks only: an entry of an "
        "output or input mask is no direction.",
        least=0,
    )
    binary: bool = _rank_masks(
        False, "Directions that are left enter in full, whatever their mask; for rank masks only."
    )
    unmasked: Unmasked = _strength("sum", "What becomes of modules outside the attention layers, which have no masks.")

    @property
    def asks_network(self) -> bool:
        """Whether the masks are found with the base; where there are none, a merge needs the two files only."""
        return self.masks != "none"

    @property
    def needs_roles(self) -> bool:
        """Whether anything depends on which LoRA leads in a module."""
        return self.asks_network or self.init == "split" or self.neutral != 1

    @property
    def selects_directions(self) -> bool:
        """Whether there are rank masks."""
        return self.masks == "rank"

    @property
    def begins_in_part(self) -> bool:
        """Whether the two masks of a module begin differently, by a threshold."""
        return self.init in ("ones", "values")

    @property
    def has_cycle(self) -> bool:
        """Whether the loss has the cycle's terms."""
        return self.asks_network and self.cycle_variant != "none"

    @property
    def is_one_shot(self) -> bool:
        """Whether masks begin at the closed form."""
        return self.init == "oneshot"

    @property
    def has_rank(self) -> bool:
        """Whether a rank is chosen for the result."""
        return self.combine != "masks"

    @property
    def drops_entries(self) -> bool:
        """Whether entries of ΔW are dropped."""
        return self.combine in ("ties", "dare_ties")


ONLY: dict[str, str] = {
    "asks_network": "methods that train masks",
    "needs_roles": "methods in which a LoRA leads",
    "selects_directions": "masks=rank",
    "begins_in_part": "init=ones and init=values",
    "lambda_layer_prior": "lambda_layer_prior above 0",
    "lambda_similarity": "lambda_similarity above 0",
    "has_cycle": "cycle_variant=teacher and cycle_variant=masked",
    "is_one_shot": "the method oneshot",
    "has_rank": "svd, ties and dare_ties",
    "drops_entries": "ties and dare_ties",
}
"""What an option is for, in words, by the property that says so (`only` of the fields)."""


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
    "duolora": MergeOptions(init="ones", lambda_layer_prior=0.1, cycle_variant="teacher"),
    "oneshot": MergeOptions(init="oneshot", steps=0, off_role=0.0),
}

METHOD_HELP: dict[str, str] = {
    "naive": "the plain sum; no base, seconds",
    "split": "each LoRA alone in the blocks in which it leads; no base, seconds",
    "blora": "one block of each, as B-LoRA; no base, seconds",
    "svd": "the sum, cut to a rank; no base, seconds",
    "ties": "entries of ΔW elected by sign (TIES); no base, minutes",
    "dare_ties": "the same after dropping entries at random (DARE); no base, minutes",
    "ziplora": "trained masks on the outputs (ZipLoRA); needs the base",
    "ziprank": "trained masks on the rank dimension; needs the base",
    "ziprank-prior": "the same with the layer prior; needs the base",
    "duolora": "the paper's: rank masks, layer prior and cycle; needs the base, the slowest",
    "oneshot": "rank masks in closed form, without training steps; needs the base, quick",
}
"""What each method does, needs and costs, in a line."""


def options_of(method: str, **changes: object) -> MergeOptions:
    """The options of a method, some of them changed.

    Raises:
        InputError: there is no such method.
    """
    return replace(METHODS[word("method", method, list(METHODS))], **changes)  # type: ignore[arg-type]


def no_base(method: str, found: str) -> str:
    """What is said where a method trains masks, and nobody names a base; `found` is what the files are for."""
    plain = ", ".join(name for name, options in METHODS.items() if not options.asks_network)
    which = found if found in FAMILIES else "a UNet that is not known" if found == "unknown" else f"the UNet of {found}"
    return (
        f"base: the LoRAs are for {which}, and {method} trains masks on the base itself; name it with --base (a "
        f"diffusers folder, a .safetensors checkpoint or a hub id), or take one of {plain}, which need none"
    )


def no_prompt(kinds: Sequence[str]) -> str:
    """What is said where a method needs the prompts of the LoRAs, and those of these kinds are not known."""
    which = f"{kinds[0]} LoRA: its file names" if len(kinds) == 1 else "the two LoRAs: their files name"
    return f"{which} no prompt or trigger word; give {' and '.join(f'--{kind}-prompt' for kind in kinds)}"


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
        "cycle_variant": "teacher",
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
