"""A tiny UNet and a LoRA of it that is as awkward as LoRAs get."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from duolora.lora.adapter import Adapter
from duolora.model.blocks import target_modules
from duolora.paper.lowrank import LowRank
from tiny import random_adapter, tiny_unet


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture(scope="session")
def mixed() -> Adapter:
    """Ranks 1 to 5, strengths other than 1, feed-forward layers too, some modules left alone; exact in float16."""
    unet = tiny_unet()
    names = [*target_modules(unet)[1::2], "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"]
    modules: dict[str, LowRank] = {}
    for k, name in enumerate(names):
        (lora,) = random_adapter(unet, [name], rank=1 + k % 5, seed=k, scale=(0.25, 0.5, 1.0, -2.0)[k % 4]).values()
        modules[name] = LowRank((lora.up * 256).round() / 256, (lora.down * 256).round() / 256, lora.scale)
    return Adapter(modules, {"prompt": "a sks cup", "options": {"seed": 3, "lr": 0.01}})


@pytest.fixture
def lora() -> LowRank:
    rng = torch.Generator().manual_seed(0)
    return LowRank(torch.randn(6, 4, generator=rng), torch.randn(4, 5, generator=rng))
