"""FLUX.1: a transformer on patches of 2×2 latents, with T5's vectors of tokens and CLIP's of prompts, by flow matching.

x_t = (1 − t) x_0 + t ε, and the network predicts ε − x_0. FLUX.1 dev takes its guidance as a number, so there is one
call for each step, and no empty prompt; LoRAs are trained with 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from duolora.model.kind import Configs, Kind

STEPS = 1000
"""Timesteps of training; the last is noise alone."""
TOKENS = 512
"""What T5 reads of a prompt."""


def packed(latents: Tensor) -> Tensor:
    """Latents (n, c, h, w) as the transformer has them: (n, h/2 · w/2, 4 c)."""
    n, c, h, w = latents.shape
    patches = latents.reshape(n, c, h // 2, 2, w // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // 2) * (w // 2), 4 * c)


def unpacked(patches: Tensor, side: int) -> Tensor:
    """The inverse of `packed`, for images of `side` latents in height."""
    n, count, wide = patches.shape
    h, w = side // 2, count // (side // 2)
    found = patches.reshape(n, h, w, wide // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return found.reshape(n, wide // 4, 2 * h, 2 * w)


def places(h: int, w: int, device: torch.device) -> Tensor:
    """Where each patch is: (0, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(-1, 3).float().to(device)


def call(network: nn.Module, x: Tensor, t: Tensor, embeds: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
    """ε − x_0 as the transformer predicts it, for timesteps 0 to 999; sizes are not looked at."""
    n, height = len(x), x.shape[2]
    config: Any = network.config
    found = network(
        hidden_states=packed(x),
        timestep=((t.float() + 1) / STEPS).expand(n).to(x.dtype),
        guidance=torch.ones(n, device=x.device) if config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device),
        img_ids=places(height // 2, x.shape[3] // 2, x.device),
        return_dict=False,
    )[0]
    return unpacked(found, height)


def _encode(parts: Any, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    embeds, pooled, _ = parts.encode_prompt(list(texts), device=device, max_sequence_length=TOKENS)
    return embeds, pooled


def _facts(configs: Configs) -> dict[str, object]:
    return {
        "in_channels": 4 * configs["vae"].get("latent_channels", 0),
        "joint_attention_dim": configs["text_encoder_2"].get("d_model"),
        "pooled_projection_dim": configs["text_encoder"].get("hidden_size"),
    }


FLUX = Kind(
    "FLUX.1",
    FluxPipeline,
    {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
    _facts, _encode, call, network="transformer", flow=True, patch=2, tokens=TOKENS,
    guidance=3.5, unpacked=unpacked,
)  # fmt: skip
