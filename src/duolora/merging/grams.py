"""What a mounted network's modules see: (D x)(D x)ᵀ of each, summed as the network runs, without a gradient.

That is all of a module's inputs that a merge in closed form needs, and it is R×R, whatever the picture's size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from duolora.model.mount import Mount


class Grams:
    """The sums of every mounted module for each of several teachers."""

    def __init__(self, mount: Mount, teachers: int) -> None:
        """All zero; nothing is watched yet."""
        self._mount = mount
        self._samples = torch.zeros(teachers, device=mount.device)
        self._sums = {
            name: torch.zeros(teachers, len(stacked.down), len(stacked.down), device=mount.device)
            for name, stacked in mount.modules.items()
        }

    @contextmanager
    def watching(self, teacher: Int[Tensor, " batch"]) -> Iterator[None]:
        """Add up what the modules see while the network is called once; sample i belongs to `teacher[i]`."""
        teacher = teacher.to(self._mount.device)
        handles = [
            self._mount.unet.get_submodule(name).register_forward_pre_hook(partial(self._add, name, teacher))
            for name in self._sums
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._samples.index_add_(0, teacher, torch.ones_like(teacher, dtype=torch.float32))

    @torch.no_grad()
    def _add(self, name: str, teacher: Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0]
        h = torch.nn.functional.linear(x, self._mount.modules[name].down).float()
        h = h.reshape(len(x), -1, h.shape[-1])
        self._sums[name].index_add_(0, teacher, h.mT @ h)

    def means(self) -> dict[str, Float[Tensor, "teachers R R"]]:
        """The sums divided by the number of samples of each teacher; zero for one that has had none."""
        return {name: total / self._samples.clamp(min=1)[:, None, None] for name, total in self._sums.items()}
