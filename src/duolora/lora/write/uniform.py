"""One rank for every module and no strength beside it, which every reader of LoRAs takes alike."""

from dataclasses import replace

import torch

from duolora.lora.adapter import Adapter
from duolora.lora.on_demand import mapped, outlines
from duolora.paper.lowrank import LowRank


def uniform(adapter: Adapter) -> Adapter:
    """The same ΔW with the highest rank everywhere (zeros fill up) and scale 1, folded into `up`.

    diffusers before 0.34 reads no ranks and alphas from a header; here there is none that it would miss.
    """
    rank = max(lora.rank for lora in outlines(adapter.modules).values())
    return replace(adapter, modules=mapped(adapter.modules, lambda lora: _filled(lora, rank)))


def _filled(lora: LowRank, rank: int) -> LowRank:
    missing = rank - lora.rank
    up = torch.cat([lora.scale * lora.up, lora.up.new_zeros(lora.d_out, missing)], 1)
    return replace(lora, up=up, down=torch.cat([lora.down, lora.down.new_zeros(missing, lora.d_in)]), scale=1.0)
