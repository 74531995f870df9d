"""Training that runs off to infinity is stopped at once, before a checkpoint of it replaces a good one."""

from collections.abc import Iterable

import torch
from torch import Tensor

from duolora.errors import DuoLoRAError


def check_loss(loss: Tensor, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Stop where the loss of a step, counted from 0, is NaN or infinite.

    Raises:
        DuoLoRAError: it is; the message names the learning rate.
    """
    if not torch.isfinite(loss.detach()).all():
        raise _diverged(f"the loss is {float(loss.detach().sum())}", optimiser, step)


def check_values(values: Iterable[Tensor], optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Stop where what was learnt in so many steps holds NaN or infinite values.

    Raises:
        DuoLoRAError: it does; the message names the learning rate.
    """
    if not all(torch.isfinite(value.detach()).all() for value in values):
        raise _diverged("what is learnt is no longer finite", optimiser, steps - 1)


def _diverged(what: str, optimiser: torch.optim.Optimizer, step: int) -> DuoLoRAError:
    lr = optimiser.param_groups[0]["lr"]
    return DuoLoRAError(
        f"step {step + 1}: {what}: training has diverged and was stopped; give a lower --lr (it was {float(lr):g})"
    )
