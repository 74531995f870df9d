"""How a LoRA is trained; help texts name the defaults as well, so nothing heavy is imported."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainOptions:
    """How a LoRA is trained. The defaults are the paper's (Sec. 4), meant for SDXL."""

    rank: int = 64
    steps: int = 1000
    batch: int = 1
    lr: float = 5e-4
    unconditional: float = 0.0
    """The chance that a picture is shown without its prompt, which guidance at sampling takes as its zero."""
    mirror: bool = False
    """Show each picture mirrored as well: a look is the same in a mirror, a thing with writing on it is not."""
    seed: int = 0
    blocks: tuple[str, ...] = ()
    """Only the attention whose module paths begin so, as B-LoRA trains two blocks only; all when empty."""
    keep: tuple[str, ...] = ()
    """Prompts whose pictures by the base alone stay as they are (see `training/prior_preservation.py`)."""


ATELIER_TRAINING = TrainOptions(rank=16, steps=400, batch=4, lr=5e-4, unconditional=0.1)
"""What suits the small base; what it keeps is added in `api/train.py`."""
