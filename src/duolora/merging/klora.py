"""K-LoRA (Ouyang, Li and Hou 2025): at every step and in every module, either the content or the style LoRA.

    K = r_c r_s         γ = Σ|ΔW_c| / Σ|ΔW_s|         S(t) = α t + β,  t from 0 (noise) to 1 (picture)
    content if  Σ top-K |ΔW_c|  ≥  γ S(t) Σ top-K |ΔW_s|,  else style

The sums behind γ run over all modules; K may also be given. As the choice changes from step to step, no one LoRA
file can hold it: this baseline exists at sampling time only. α = 1.5 and β = 0.5 are the authors' values as we know
them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor

from duolora.merging.inputs import Sources
from duolora.model.base import Base
from duolora.model.mount import Mount
from duolora.paper.lowrank import LowRank

ALPHA = 1.5
BETA = 0.5


@dataclass(frozen=True)
class Scores:
    """For each module the top-K sums of content and style, the latter times γ."""

    content: dict[str, float]
    style: dict[str, float]

    def content_wins(self, name: str, t: float, alpha: float = ALPHA, beta: float = BETA) -> bool:
        """Whether the content LoRA is taken in a module at the share t of the sampling that is done."""
        return self.content.get(name, 0.0) >= (alpha * t + beta) * self.style.get(name, 0.0)


def scores(both: Sources, k: int | None = None) -> Scores:
    """The top-K sums of all modules; K is that of each module's ranks, or the same `k` everywhere."""
    content, style = ({n: x.delta().abs() for n, x in loras.items()} for loras in (both.content, both.style))
    gamma = float(sum(d.sum() for d in content.values()) / sum(d.sum() for d in style.values()))
    ks = {n: k or _rank(both.content.get(n)) * _rank(both.style.get(n)) for n in both.roles}
    return Scores(
        {n: _top(d, ks[n]) for n, d in content.items()}, {n: gamma * _top(d, ks[n]) for n, d in style.items()}
    )


def _rank(lora: LowRank | None) -> int:
    return 1 if lora is None else lora.rank


def _top(magnitudes: Tensor, k: int) -> float:
    return float(magnitudes.flatten().topk(min(k, magnitudes.numel())).values.sum())


class Chooser:
    """The base's UNet under K-LoRA; call it with the share of the sampling that is done, before each step."""

    def __init__(self, mount: Mount, both: Sources, alpha: float, beta: float, k: int | None) -> None:
        self._mount, self._scores, self._strength = mount, scores(both, k), (alpha, beta)
        self._names = (both.content, both.style)
        self._gate = ExitStack()

    def __call__(self, t: float) -> None:
        """Choose anew in every module."""
        self._gate.close()
        masks: list[dict[str, Tensor]] = self._mount.unflat(self._mount.owned().sum(0))
        for name in masks[0].keys() | masks[1].keys():
            content = self._scores.content_wins(name, t, *self._strength)
            for mask, wins in ((masks[0], content), (masks[1], not content)):
                if name in mask:
                    mask[name] = mask[name] * float(wins)
        self._gate.enter_context(self._mount.gating(self._mount.flat(masks)[None]))

    def close(self) -> None:
        """Leave the bare base behind."""
        self._gate.close()


@contextmanager
def klora(
    base: Base, both: Sources, alpha: float = ALPHA, beta: float = BETA, k: int | None = None
) -> Iterator[Chooser]:
    """K-LoRA on a base; hand the chooser to `sample.draw` as `before_step`."""
    with Mount(base.unet, [both.content, both.style], "rank", base.device) as mount:
        chooser = Chooser(mount, both, alpha, beta, k)
        try:
            chooser(0.0)
            yield chooser
        finally:
            chooser.close()
