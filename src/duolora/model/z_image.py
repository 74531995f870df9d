"""Z-Image: a transformer on latents as they are and Qwen3's vectors of tokens, by flow matching as in `flux`.

Its clock runs backwards, from 0 for noise to 1 for an image, and it predicts x_0 − ε. A prompt has as many vectors as
tokens; they are kept filled up to `TOKENS`, beside a row that says which are read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor, nn

from duolora.model.flux import STEPS
from duolora.model.kind import Configs, Kind

TOKENS = 512
"""What is read of a prompt and the words of a chat around it."""
CHAT = 16
"""At least as many as those words have."""


def filled(vectors: Sequence[Tensor], length: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Prompts of any number of tokens as (n, length, d), zeros at the ends, and (n, length) with ones before those."""
    embeds = vectors[0].new_zeros(len(vectors), length, vectors[0].shape[1])
    read = vectors[0].new_zeros(len(vectors), length)
    for k, each in enumerate(vectors):
        embeds[k, : len(each)], read[k, : len(each)] = each, 1
    return embeds, read


def call(network: nn.Module, x: Tensor, t: Tensor, embeds: Tensor, read: Tensor, sizes: Tensor) -> Tensor:
    """ε − x_0 as the transformer predicts it, for timesteps 0 to 999; sizes are not looked at."""
    lengths = (read > 0).sum(1).tolist()
    found = network(
        list(x[:, :, None].unbind()),
        1 - ((t.float() + 1) / STEPS).expand(len(x)),
        [each[:length] for each, length in zip(embeds, lengths, strict=True)],
        return_dict=False,
    )[0]
    return -torch.stack(found)[:, :, 0]


def _encode(parts: Any, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    vectors, _ = parts.encode_prompt(list(texts), device, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    return filled(vectors)


def _facts(configs: Configs) -> dict[str, object]:
    return {
        "in_channels": configs["vae"].get("latent_channels"),
        "cap_feat_dim": configs["text_encoder"].get("hidden_size"),
    }


Z_IMAGE = Kind(
    "Z-Image",
    ZImagePipeline,
    {"transformer": "ZImageTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "Qwen3Model"},
    _facts, _encode, call, network="transformer", flow=True, patch=2, tokens=TOKENS - CHAT, guidance=1.0,
    guided=lambda scale, n: {"guidance_scale": max(scale - 1, 0.0)},
)  # fmt: skip
