"""The floor of a method: the bare UNet's passes that one of its steps needs, with nothing mounted."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from duolora.bench.speed.scenes import Scene
from duolora.merging.options import MergeOptions
from duolora.model.base import PromptEmbeds
from duolora.model.predict import predict


@dataclass(frozen=True)
class Passes:
    """The batch sizes of a step's UNet calls: without and with a gradient through the activations."""

    plain: tuple[int, ...]
    learning: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Samples through the UNet in a step."""
        return sum(self.plain) + sum(self.learning)


def passes(options: MergeOptions) -> Passes:
    """The calls that the losses of a method need, those of equal kind in one batch (`paper.constyle`)."""
    n = options.batch
    plain, learning = {"none": ((2,), (2,)), "teacher": ((4, 2), (2,)), "masked": ((2,), (4, 2))}[options.cycle_variant]
    return Passes(tuple(n * k for k in plain), tuple(n * k for k in learning))


@dataclass(frozen=True, eq=False)
class Floor:
    """The passes of a method on the bare UNet; the gradient begins at the first module that would carry a mask."""

    scene: Scene
    options: MergeOptions
    cached: bool = False
    """Whether the teachers' predictions are cached from an earlier step, and the calls without a gradient fall away."""

    def step(self, step: int) -> dict[str, Tensor]:
        """Run them once; the number of the step makes no difference."""
        needed = passes(self.options)
        with torch.no_grad():
            for batch in () if self.cached else needed.plain:
                self._call(batch)
        first = self.scene.base.unet.get_submodule(next(iter(self.scene.both.roles)))
        hook = first.register_forward_hook(lambda _m, _x, y: y.requires_grad_() if torch.is_grad_enabled() else y)
        try:
            for batch in needed.learning:
                self._call(batch).square().mean().backward()
        finally:
            hook.remove()
        return {}

    def warm(self) -> None:
        """One sample through the bare UNet without a gradient."""
        with torch.no_grad():
            self._call(1)

    def _call(self, batch: int) -> Tensor:
        base, data = self.scene.base, self.scene.data
        x = data.x_c[:1].expand(batch, -1, -1, -1)
        t = torch.full((batch,), 500, device=base.device)
        return predict(base.unet, x, t, self._embeds, base.time_ids())

    @cached_property
    def _embeds(self) -> PromptEmbeds:
        return self.scene.base.encode_prompts([self.scene.data.prompts.content])


SIDE = {"cuda": 8192, "cpu": 1024}
REPEATS = 10


def operations(floor: Floor) -> int:
    """Floating-point operations of the bare UNet's passes, forwards and backwards; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        floor.step(0)
    return int(counter.get_total_flops())


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations in a second, on that clock, of this machine's best product of two large square matrices."""
    n = SIDE.get(device.type, 1024)
    x = torch.randn(n, n, device=device).to(dtype)
    best = float("inf")
    for _ in range(REPEATS):
        begun = clock()
        x @ x
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - begun)
    return 2.0 * n**3 / best
