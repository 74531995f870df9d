"""`docs/speed.md` says which card holds what: parameters of the full-size networks times bytes."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from duolora.model.architectures import unet_config
from duolora.model.blocks import layer_shapes, target_modules
from duolora.model.sdxl import CLIP_G, CLIP_L, VAE

PAGE = (Path(__file__).parents[2] / "docs" / "speed.md").read_text("utf-8")
RANK = 64
NAMES = ("sdxl", "ssd-1b", "segmind-vega")


@cache
def counted(name: str) -> tuple[int, int]:
    """Parameters of a UNet, and of a LoRA on its attention."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(name))
    shapes = layer_shapes(unet)
    return unet.num_parameters(), RANK * sum(sum(shapes[module]) for module in target_modules(unet))


def row(start: str) -> list[str]:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f}"


def test_the_table_of_parts():
    unets, loras = zip(*map(counted, NAMES), strict=True)
    title, *shown = row("UNet in 16 bits")
    assert re.findall(r"[\d.]+", title)[1:] == [f"{unet / 1e9:.3f}" for unet in unets]
    assert shown == [gigabytes(2 * unet) for unet in unets]
    assert row("two LoRAs to merge")[1:] == [gigabytes(2 * 4 * lora) for lora in loras]
    assert row("one LoRA in training")[1:] == [gigabytes(4 * 4 * lora) for lora in loras]
    assert row("the same with `--optimiser adam8bit`")[1:] == [gigabytes((4 + 4 + 2) * lora) for lora in loras]
    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(**CLIP_L)), CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))
        vae = AutoencoderKL.from_config(VAE)
    assert set(row("both text encoders")[1:]) == {gigabytes(2 * sum(each.num_parameters() for each in text))}
    assert set(row("VAE in 32 bits")[1:]) == {gigabytes(4 * vae.num_parameters())}


@pytest.mark.parametrize(("card", "steps"), [("24 GB", 11.4), ("16 GB", 1.7)])
def test_the_sums(card, steps):
    terms, total = row(card)[1].split(" = ")
    unet, lora = (row(name)[1] for name in ("UNet in 16 bits", "two LoRAs to merge"))
    assert terms.split(" + ") == [unet, lora, str(steps), "0.5"]
    assert f"{sum(map(float, terms.split(' + '))):.1f}" == total
    assert float(total) < float(card.split()[0])
