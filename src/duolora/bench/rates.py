"""How much arithmetic an update is, and how fast this machine could do it at best."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from duolora.bench.floor import Floor

SIDE = {"cuda": 8192, "cpu": 1024}
REPEATS = 10


def operations(floor: Floor) -> int:
    """Floating-point operations of the bare UNet's passes, forwards and backwards; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        floor.update(0)
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
