"""Stable Diffusion 3 and 3.5: a transformer on latents as they are, two CLIPs and T5, by flow matching as in `flux`."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from duolora.model.kind import Configs, Kind

TOKENS = 256
"""What T5 reads of a prompt."""


def call(network: nn.Module, x: Tensor, t: Tensor, embeds: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
    """ε − x_0 as the transformer predicts it, for timesteps 0 to 999; sizes are not looked at."""
    found: Tensor = network(
        hidden_states=x,
        timestep=(t.float() + 1).expand(len(x)),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return found


def _encode(parts: Any, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    embeds, _, pooled, _ = parts.encode_prompt(
        list(texts), None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
    )
    return embeds, pooled


def _facts(configs: Configs) -> dict[str, object]:
    clips = [configs[name].get("projection_dim") or 0 for name in ("text_encoder", "text_encoder_2")]
    return {
        "in_channels": configs["vae"].get("latent_channels"),
        "joint_attention_dim": configs["text_encoder_3"].get("d_model"),
        "pooled_projection_dim": sum(clips),
    }


SD3 = Kind(
    "Stable Diffusion 3",
    StableDiffusion3Pipeline,
    {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    _facts, _encode, call, network="transformer", flow=True, patch=2, tokens=TOKENS,
    guidance=7.0,
)  # fmt: skip
