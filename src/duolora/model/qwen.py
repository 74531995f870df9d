"""Qwen-Image: a transformer on patches of 2×2 latents, as FLUX's, and Qwen2.5-VL's vectors of tokens; flow matching.

The VAE is one for videos, and an image has one frame. Guidance is the classifier-free one, with a second call.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor, nn

from duolora.model.flux import STEPS, packed, unpacked
from duolora.model.kind import Configs, Kind
from duolora.model.z_image import CHAT, filled

TOKENS = 512
"""What is read of a prompt and the words of a chat behind it."""


def call(network: nn.Module, x: Tensor, t: Tensor, embeds: Tensor, read: Tensor, sizes: Tensor) -> Tensor:
    """ε − x_0 as the transformer predicts it, for timesteps 0 to 999; sizes are not looked at."""
    n, height, width = len(x), *x.shape[2:]
    mask = read > 0
    longest = int(mask.sum(1).max())
    mask = mask[:, :longest]
    found = network(
        hidden_states=packed(x),
        timestep=((t.float() + 1) / STEPS).expand(n).to(x.dtype),
        encoder_hidden_states=embeds[:, :longest],
        encoder_hidden_states_mask=None if mask.all() else mask,
        img_shapes=[[(1, height // 2, width // 2)]] * n,
        return_dict=False,
    )[0]
    return unpacked(found, height)


def _encode(parts: Any, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    embeds, mask = parts.encode_prompt(list(texts), device, max_sequence_length=TOKENS)
    lengths = [embeds.shape[1]] * len(texts) if mask is None else mask.sum(1).tolist()
    return filled([each[:length] for each, length in zip(embeds, lengths, strict=True)], TOKENS)


def _facts(configs: Configs) -> dict[str, object]:
    encoder: Mapping[str, Any] = configs["text_encoder"]
    words = encoder.get("text_config")  # where new versions of transformers write it
    return {
        "in_channels": 4 * configs["vae"].get("z_dim", 0),
        "joint_attention_dim": (words if isinstance(words, Mapping) else encoder).get("hidden_size"),
        "guidance_embeds": False,
    }


QWEN = Kind(
    "Qwen-Image",
    QwenImagePipeline,
    {
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    },
    _facts, _encode, call, network="transformer", flow=True, patch=2, tokens=TOKENS - CHAT, video=True, guidance=4.0,
    guided=lambda scale, n: {"true_cfg_scale": scale} | ({"negative_prompt": [" "] * n} if scale > 1 else {}),
    unpacked=unpacked,
)  # fmt: skip
