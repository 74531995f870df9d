"""Defaults that help texts name as well: training, drawing, weights of losses. Nothing is imported."""

from dataclasses import dataclass

STEPS = 25
"""Denoising steps of a picture."""
GUIDANCE = 5.0
"""The scale of classifier-free guidance; 1 is none."""
ATELIER_GUIDANCE = 3.0
"""Under more guidance than this, LoRAs on the small base overshoot (`docs/log.md`)."""


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
    """Prompts whose pictures by the base alone stay as they are (prior preservation, see `kept`)."""


ATELIER_TRAINING = TrainOptions(rank=16, steps=400, batch=4, lr=5e-4, unconditional=0.1)
"""What suits the small base; what it keeps is added in `verbs.train`."""

WEIGHTS: dict[str, dict[str, object]] = {
    "section4": {"lambda_layer_prior": 0.1, "lambda_cycle": 0.01, "multiplies": "all", "reduction": "sum"},
    "table9": {"lambda_layer_prior": 1.0, "lambda_cycle": 0.01, "multiplies": "all", "reduction": "sum"},
    "released": {"reading": "teacher", "hinge": False, "block_map": "released"},
}
"""Presets: the weights as Section 4 prints them, as the row of Table 9 that equals the headline numbers has them, and
what the authors' program does differently."""
