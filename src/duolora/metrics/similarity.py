"""The paper's metrics as formulas on L2-normalised embeddings: tensors and floats only, no networks.

DINO, CLIP-I, CSD-s and the leakage check are `all_pairs_mean` of images with reference images; CLIP-T is
the mean of `matched`, or `all_pairs_mean` where all images share one prompt (Sec. 4, "Metrics"). Which network made the
embeddings is the business of `encoders`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from duolora.errors import InputError

LEVEL = 0.95
RESAMPLES = 10_000
UNIT_TOLERANCE = 1e-3
"""An embedding whose length is off by more than this is not normalised."""


def cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """cos(aᵢ, bⱼ) = aᵢ · bⱼ of every pair, both L2-normalised.

    Raises:
        InputError: one side is empty, or a row has not the length 1.
    """
    for name, rows in (("first", a), ("second", b)):
        if not len(rows):
            raise InputError(f"cosine: expected at least one embedding on each side, the {name} has none")
        lengths = rows.double().norm(dim=1)
        if not bool(((lengths - 1).abs() < UNIT_TOLERANCE).all()):
            worst = float(lengths[(lengths - 1).abs().argmax()])
            raise InputError(f"cosine: expected embeddings of length 1, the {name} has {worst:.4g}; normalise them")
    return a @ b.T


def all_pairs_mean(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Average pairwise cosine, 1 / (n m) Σᵢⱼ aᵢ · bⱼ (DINO, CLIP-I, CSD-s; Sec. 4), in [-1, 1]."""
    return float(cosines(a, b).double().mean())


def mean_by_row(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    """Average cosine of each row of `a` with all of `b`, 1 / m Σⱼ aᵢ · bⱼ; its mean is `all_pairs_mean`."""
    return cosines(a, b).double().mean(1)


def matched(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Cosine of each embedding with its own partner, aᵢ · bᵢ (CLIP-T: an image and its prompt)."""
    return cosines(a, b).double().diagonal()


@dataclass(frozen=True)
class Interval:
    """A mean, and the interval in which it would likely fall had other pairs been sampled."""

    mean: float
    low: float
    high: float
    count: int
    """How many values the mean is of."""
    level: float = LEVEL


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Percentile bootstrap of the mean: quantiles (1 ∓ level) / 2 of the means of samples taken with replacement.

    `values` are those of independent units: one number for each pair, averaged over its images first. For two methods
    on the same pairs take the interval of their differences.

    Raises:
        InputError: there are no values, one is not finite, or `level` or `resamples` are out of range.
    """
    data = np.asarray(values, np.float64)
    if not len(data) or not np.isfinite(data).all():
        raise InputError(f"interval: expected at least one value, all finite, got {len(data)}: {list(values)[:5]}")
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"interval: expected 0 < level < 1 and resamples ≥ 1, got {level} and {resamples}")
    low, high = ends(resampled(lambda rows: data[rows].mean(1), len(data), seed, resamples), level)
    return Interval(float(data.mean()), low, high, len(data), level)


def resampled(
    statistic: Callable[[NDArray[np.int64]], NDArray], count: int, seed: int = 0, resamples: int = RESAMPLES
) -> NDArray:
    """A statistic of many samples of `count` units with replacement, each a row of numbers, part by part."""
    rng, at_once = np.random.default_rng(seed), max(1, 1_000_000 // count)
    parts = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    return np.concatenate([statistic(rng.integers(count, size=(part, count))) for part in parts])


def ends(values: NDArray, level: float = LEVEL) -> tuple[float, float]:
    """The quantiles (1 ∓ level) / 2 of a resampled statistic."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def normalised(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each row divided by its length, float32.

    Raises:
        InputError: a row is zero or not finite, and so has no direction.
    """
    lengths = rows.double().norm(dim=1, keepdim=True)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        row = int((~(torch.isfinite(lengths) & (lengths > 0))).flatten().int().argmax())
        raise InputError(f"embedding {row}: expected finite values, not all zero, got length {float(lengths[row])}")
    return (rows.double() / lengths).float()
