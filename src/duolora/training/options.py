"""How a LoRA is trained; help texts are made from the fields, so nothing heavy is imported."""

from dataclasses import dataclass, replace
from typing import Literal

from duolora.errors import FileRefused, InputError
from duolora.model.architectures import Shapes, modules_within
from duolora.model.defaults import FILE, BaseDefaults
from duolora.options import check, option

Optimiser = Literal["adam", "adam8bit", "prodigy"]


@dataclass(frozen=True)
class TrainOptions:
    """How a LoRA is trained. The defaults are the paper's (Sec. 4), meant for SDXL; a base may have its own."""

    rank: int = option(64, "Rank of the LoRA.", section="Sec. 4", least=1)
    steps: int = option(1000, "Training steps.", section="Sec. 4", least=1)
    batch: int = option(1, "Images in each step.", section="Sec. 4", least=1)
    lr: float = option(5e-4, "Learning rate of Adam; 5e-5 is gentler.", section="Sec. 4", above=0)
    caption_dropout: float = option(
        0.0,
        "Caption dropout: the chance that an image is shown without its prompt, which guidance takes as its zero.",
        least=0,
        below=1,
    )
    flip: bool = option(
        False,
        "Horizontal flip: show each image flipped as well; good for a style, not for a subject with writing on it.",
    )
    min_snr: float = option(
        0.0,
        "Min-SNR weighting: no timestep weighs more than at this ratio of signal to noise; 5 is usual, 0 is none.",
        least=0,
    )
    optimiser: Optimiser = option(
        "adam",
        "The optimiser: adam, adam8bit (a quarter of its memory; needs bitsandbytes and a GPU), or prodigy (finds the "
        "learning rate, with lr 1; needs prodigyopt). A stopped run goes on with adam only.",
    )
    seed: int = option(0, "The same seed and inputs give the same file.")
    blocks: tuple[str, ...] = option(
        (), "Only the attention whose module paths begin so, as B-LoRA trains two blocks only; all when empty."
    )
    learn_tokens: bool = option(
        False,
        "Learned tokens: the vectors of the prompt's identifiers are trained, too; the text encoders stay frozen.",
        section="Sec. 3.4",
    )
    class_prompts: tuple[str, ...] = option(
        (), "Prior preservation: prompts of class images by the base alone, whose predictions stay as they are."
    )


def check_training(options: TrainOptions, shapes: Shapes | None = None) -> None:
    """Refuse options that nothing can be trained with, on a base with these attention projections.

    Raises:
        InputError: a value is out of range, a block has no attention, or the rank is above every layer's width.
    """
    check(options)
    if shapes is not None:
        widest = max((min(shapes[name]) for name in modules_within(shapes, options.blocks)), default=0)
        if options.rank > widest:
            raise InputError(
                f"rank: expected at most {widest}, the width of the widest layers that are trained, got {options.rank};"
                " more directions there are not"
            )


def training_of(defaults: BaseDefaults, kind: str = "content") -> TrainOptions:
    """The options that suit a base; for a LoRA of a style (`kind`) they may differ.

    Raises:
        FileRefused: the base's own defaults name an option that there is not, or a value that it cannot have.
    """
    changes = {**defaults.training, **(defaults.style_training if kind == "style" else {})}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    try:
        found = replace(TrainOptions(), **changes)
        check(found)
    except (TypeError, InputError) as error:
        raise FileRefused(f"{FILE} of the base: training: {error}; fix it or delete it") from error
    return found
