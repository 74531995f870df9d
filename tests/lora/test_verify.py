"""The error of a file is that of its dense ΔW."""

import pytest
import torch

from duolora.lora.verify import relative_error
from duolora.paper.lowrank import LowRank

NOISE = 1e-6
"""What float64 leaves of terms that cancel."""


def rounded(lora: LowRank, seed: int) -> LowRank:
    return LowRank(lora.up.bfloat16().float(), lora.down.half().float(), lora.scale)


def balanced(lora: LowRank, seed: int) -> LowRank:
    """The same product, its directions lifted on one side."""
    factor = 2.0 ** torch.randint(-6, 7, (lora.rank,), generator=torch.Generator().manual_seed(seed))
    return LowRank(lora.up * factor, lora.down / factor[:, None], lora.scale)


def turned(lora: LowRank, seed: int) -> LowRank:
    """The same product in other directions."""
    square = torch.randn(lora.rank, lora.rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(square)[0]
    return LowRank(lora.up.double() @ q, q.T @ lora.down.double(), lora.scale)


def both(lora: LowRank, seed: int) -> LowRank:
    return rounded(balanced(lora, seed), seed)


def stronger(lora: LowRank, seed: int) -> LowRank:
    return LowRank(lora.up, lora.down, lora.scale * (1 + 10.0**-seed))


def smaller(lora: LowRank, seed: int) -> LowRank:
    return LowRank(lora.up[:, 1:], lora.down[1:], lora.scale)


@pytest.mark.parametrize("change", [rounded, balanced, turned, both, stronger, smaller], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(8))
def test_the_error_is_that_of_the_dense_products(change, seed):
    rng = torch.Generator().manual_seed(seed)
    d_out, d_in, rank = torch.randint(3, 60, (3,), generator=rng).tolist()
    size = 10.0 ** (seed - 5)
    up, down = size * torch.randn(d_out, rank, generator=rng), torch.randn(rank, d_in, generator=rng)
    asked = LowRank(up, down, 0.3)
    found = change(asked, seed)
    dense, other = (one.scale * (one.up.double() @ one.down.double()) for one in (asked, found))
    assert relative_error(asked, found) == pytest.approx(float((other - dense).norm() / dense.norm()), 1e-3, NOISE)
