"""Numbers of a training that stay finite: gradients scaled in float16, and a stop where they diverge.

It stops at once, before a checkpoint of it replaces a good one.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from duolora.errors import DuoLoRAError
from duolora.model.base import Base


def check_loss(loss: Tensor, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Stop where the loss of a step, counted from 0, is NaN or infinite.

    Raises:
        DuoLoRAError: it is; the message names the learning rate.
    """
    if not torch.isfinite(loss.detach()).all():
        raise _diverged(f"the loss is {float(loss.detach().sum())}", optimiser, step)


def check_values(values: Iterable[Tensor], optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Stop where what was trained in so many steps holds NaN or infinite values.

    Raises:
        DuoLoRAError: it does; the message names the learning rate.
    """
    if not all(torch.isfinite(value.detach()).all() for value in values):
        raise _diverged("what is trained is no longer finite", optimiser, steps - 1)


def _diverged(what: str, optimiser: torch.optim.Optimizer, step: int) -> DuoLoRAError:
    lr = optimiser.param_groups[0]["lr"]
    return DuoLoRAError(
        f"step {step + 1}: {what}: training has diverged and was stopped; give a lower learning rate than "
        f"{float(lr):g}, by --lr in `train`, by --set lr=… in `merge`"
    )


def scaler_for(base: Base) -> torch.amp.GradScaler:
    """Gradient scaling, without which most gradients are 0 in float16; without effect on another base."""
    return torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)


def scaling_of(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """The state of gradient scaling for a checkpoint; nothing where there is none."""
    state = scaler.state_dict()
    return {"gradient scaling": torch.tensor([state["scale"], state["_growth_tracker"]])} if state else {}


def restore_scaling(scaler: torch.amp.GradScaler, scaling: Mapping[str, Tensor]) -> None:
    """Give gradient scaling the state that a checkpoint had."""
    for values in scaling.values():
        scale, tracker = values.tolist()
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})
