"""Muon (Jordan et al. 2024): momentum whose singular values are brought near one; for matrices and convolutions."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def orthogonalised(update: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1, by five Newton-Schulz steps."""
    tall = update.shape[0] > update.shape[1]
    x = update.mT if tall else update
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; a convolution is a matrix of its outputs by all else.

    (`torch.optim.Muon` takes matrices only.)
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step for every parameter that has a gradient; several processes share the work."""
        alone = not dist.is_initialized()
        rank, world = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
        for group in self.param_groups:
            shown = [p for p in group["params"] if p.grad is not None]
            updates = [torch.zeros_like(p) for p in shown]
            for k, (p, update) in enumerate(zip(shown, updates, strict=True)):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                if k % world == rank:
                    found = orthogonalised(p.grad.lerp(momentum, group["momentum"]).flatten(1))
                    update.copy_((found * max(1.0, found.shape[0] / found.shape[1]) ** 0.5).view_as(p))
            if not alone:
                whole = torch.cat([update.flatten() for update in updates])
                dist.all_reduce(whole)
                parts = whole.split([p.numel() for p in shown])
                updates = [part.view_as(p) for part, p in zip(parts, shown, strict=True)]
            for p, update in zip(shown, updates, strict=True):
                p.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"])
