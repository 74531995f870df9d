"""What a kind of base says of itself, in one file of about a hundred lines (`unets`, `flux`; docs/families.md)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from duolora.model.defaults import GUIDANCE

Configs = Mapping[str, Mapping[str, Any]]
"""The `config.json` of each network of a folder."""


@dataclass(frozen=True)
class Kind:
    """All that is asked of a kind of base, whatever uses it."""

    name: str
    pipeline: Any
    """The class of diffusers, by whose name a folder is known."""
    networks: Mapping[str, str]
    """The class of each network by its folder's name."""
    facts: Callable[[Configs], Mapping[str, object]]
    """What must stand in the denoising network's config, by the configs of the networks beside it."""
    encode: Callable[[Any, Sequence[str], torch.device], tuple[Tensor, Tensor]]
    """Of a pipeline's prompts one vector for each token, and one for each prompt: pooled, or which tokens are read."""
    call: Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    """The network's prediction for noisy latents, timesteps, vectors of tokens, vectors of prompts and sizes."""
    network: str = "unet"
    """What the pipeline calls the denoising network."""
    flow: bool = False
    """Whether it was trained by flow matching."""
    patch: int = 1
    """Latents a side that the network takes together."""
    tokens: int = 0
    """What is read of a prompt, where that is less than the tokenizer says; 0 is what it says."""
    video: bool = False
    """Whether the VAE takes images as videos of one frame."""
    guidance: float = GUIDANCE
    """What is usual when images are generated."""
    guided: Callable[[float, int], Mapping[str, Any]] = lambda scale, n: {"guidance_scale": scale}
    """The pipeline's arguments for a scale of guidance, of which 1 is none, and so many images."""
    unpacked: Callable[[Tensor, int], Tensor] = lambda latents, side: latents
    """Latents as the VAE has them, of those that the pipeline gives, and how many there are a side."""
