"""K-LoRA (Ouyang, Li and Hou 2025): at every step and in every module, either the content or the style LoRA.

    K = r_c r_s         γ = mean of Σ|ΔW_c| / Σ|ΔW_s| over modules         S(t) = (α t + β) mod α
    content if  Σ top-K |ΔW_c|  ≥  γ S(t) Σ top-K |ΔW_s|,  else style         t from 0 (noise) to 1 (image)

Ratios of three times their mean or more are outliers, which γ leaves out. α = 1.5 and β = 0.85 α are the default of the
authors' program. K may also be given. As the choice changes from step to
step, no one LoRA file can hold it: this baseline exists at sampling time only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from duolora.merging.inputs import Sources
from duolora.model.base import Base
from duolora.model.mount import Mount
from duolora.paper.lowrank import LowRank

ALPHA = 1.5
BETA = 0.85 * ALPHA
OUTLIER = 3.0
"""In means of all ratios."""


@dataclass(frozen=True)
class Scores:
    """For each module the top-K sums of content and style, the latter times γ."""

    content: dict[str, float]
    style: dict[str, float]

    def content_wins(self, name: str, strength: float) -> bool:
        """Whether the content LoRA is taken in a module where the style's strength is S(t); what is alone wins."""
        if name not in self.content or name not in self.style:
            return name in self.content
        return self.content[name] >= strength * self.style[name]


def scores(both: Sources, k: int | None = None) -> Scores:
    """The top-K sums of all modules; K is that of each module's ranks, or the same `k` everywhere."""
    content, style = ({n: x.delta().abs() for n, x in loras.items()} for loras in (both.content, both.style))
    gamma = ratio_of([float(d.sum() / style[n].sum()) for n, d in content.items() if n in style and style[n].any()])
    ks = {n: k or _rank(both.content.get(n)) * _rank(both.style.get(n)) for n in both.roles}
    return Scores(
        {n: _top(d, ks[n]) for n, d in content.items()}, {n: gamma * _top(d, ks[n]) for n, d in style.items()}
    )


def ratio_of(ratios: Sequence[float]) -> float:
    """γ: the mean of the modules' ratios without outliers; 1 where no module has both LoRAs."""
    mean = fmean(ratios or [1.0])
    return fmean([ratio for ratio in ratios if ratio < OUTLIER * mean] or [mean])


def strength_at(t: float) -> float:
    """S(t), which the style's sums are multiplied by at the share t of the sampling that is done."""
    return (ALPHA * t + BETA) % ALPHA


def _rank(lora: LowRank | None) -> int:
    return 1 if lora is None else lora.rank


def _top(magnitudes: Tensor, k: int) -> float:
    return float(magnitudes.flatten().topk(min(k, magnitudes.numel())).values.sum())


@contextmanager
def klora(base: Base, both: Sources, k: int | None = None) -> Iterator[Callable[[float], None]]:
    """K-LoRA on a base; hand what it yields to `sample_images` as `before_step`."""
    found = scores(both, k)
    with Mount(base.unet, [both.content, both.style], "rank", base.device) as mount, ExitStack() as gate:

        def choose(t: float) -> None:
            """Choose anew in every module, once the share t of the sampling is done."""
            gate.close()
            masks = mount.unflat(mount.owned().sum(0))
            for name in masks[0].keys() | masks[1].keys():
                content = found.content_wins(name, strength_at(t))
                for mask, wins in ((masks[0], content), (masks[1], not content)):
                    if name in mask:
                        mask[name] = mask[name] * float(wins)
            gate.enter_context(mount.gating(mount.flat(masks)[None]))

        choose(0.0)
        yield choose
