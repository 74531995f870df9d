"""Bases with a UNet: SDXL and similar bases, and Stable Diffusion 1 and 2, which has one text encoder and no sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from duolora.model.kind import Configs, Kind

_ONE = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}


def call(unet: nn.Module, x: Tensor, t: Tensor, embeds: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
    """The UNet's prediction; one without conditions on size does not look at them."""
    conditions = {"text_embeds": pooled, "time_ids": sizes}
    found: Tensor = unet(x, t, encoder_hidden_states=embeds, added_cond_kwargs=conditions, return_dict=False)[0]
    return found


def _encode_xl(parts: Any, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    embeds, _, pooled, _ = parts.encode_prompt(list(texts), device=device, do_classifier_free_guidance=False)
    return embeds, pooled


def _encode(parts: Any, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    embeds, _ = parts.encode_prompt(list(texts), device, 1, False)
    return embeds, embeds.new_zeros(len(texts), 0)


def _facts_xl(configs: Configs) -> dict[str, object]:
    first, second, unet = configs["text_encoder"], configs["text_encoder_2"], configs["unet"]
    return {
        "addition_embed_type": "text_time",
        "in_channels": configs["vae"].get("latent_channels"),
        "cross_attention_dim": (first.get("hidden_size") or 0) + (second.get("hidden_size") or 0),
        "projection_class_embeddings_input_dim": 6 * (unet.get("addition_time_embed_dim") or 0)
        + (second.get("projection_dim") or 0),
    }


def _facts(configs: Configs) -> dict[str, object]:
    return {
        "addition_embed_type": None,
        "in_channels": configs["vae"].get("latent_channels"),
        "cross_attention_dim": configs["text_encoder"].get("hidden_size"),
    }


SDXL = Kind(
    "an SDXL-shaped model", StableDiffusionXLPipeline, _ONE | {"text_encoder_2": "CLIPTextModelWithProjection"},
    _facts_xl, _encode_xl, call,
)  # fmt: skip
SD15 = Kind("Stable Diffusion", StableDiffusionPipeline, _ONE, _facts, _encode, call)
