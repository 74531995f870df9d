"""Muon (Jordan et al. 2024): momentum whose singular values are brought near one; for matrices and convolutions."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def orthogonalised(update: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    """Matrices with their singular values brought near 1, by five Newton-Schulz steps."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.baddbmm(x, gram, x, beta=3.4445)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; a convolution is a matrix of its outputs by all else.

    (`torch.optim.Muon` takes matrices only.)
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step for every parameter that has a gradient; several processes share the work.

        Matrices of one shape are orthogonalised together: a GPU would spend its time starting their products.
        """
        alone = not dist.is_initialized()
        rank, world = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
        for group in self.param_groups:
            shown = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in shown]
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in shown]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
            updates = [torch.zeros_like(p) for p in shown]
            alike: dict[tuple[int, ...], list[int]] = {}
            for k, p in enumerate(shown):
                if k % world == rank:
                    alike.setdefault((len(p), p[0].numel()), []).append(k)
            for (rows, columns), places in alike.items():
                found = orthogonalised(torch.stack([ahead[k].flatten(1) for k in places]))
                for k, one in zip(places, found * max(1.0, rows / columns) ** 0.5, strict=True):
                    updates[k] = one.view_as(shown[k])
            if not alone:
                whole = torch.cat([update.flatten() for update in updates])
                dist.all_reduce(whole)
                parts = whole.split([p.numel() for p in shown])
                updates = [part.view_as(p) for part, p in zip(parts, shown, strict=True)]
            torch._foreach_mul_(shown, 1 - group["lr"] * group["decay"])
            torch._foreach_add_(shown, updates, alpha=-group["lr"])
