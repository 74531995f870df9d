"""A node pack without nodes: teaches ComfyUI, and duolora inside it, an SDXL of few channels and SDXL's depths.

Neither recognises such a checkpoint by itself. Nothing else of the two is changed: every part has its usual code.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from duolora.model import sdxl
from duolora.model.architectures import SDXL

WIDTH, HEAD, TEXT = 32, 16, (32, 64)
"""Channels of the first level, of an attention head, and of the text encoders, which diffusers tells apart by them."""
ENCODERS = [
    {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    | {"num_hidden_layers": 3, "num_attention_heads": 2}
    for width in TEXT
]
NETWORKS = {
    "unet": SDXL
    | {
        "sample_size": 16,
        "block_out_channels": (WIDTH, 2 * WIDTH, 4 * WIDTH),
        "attention_head_dim": (WIDTH // HEAD, 2 * WIDTH // HEAD, 4 * WIDTH // HEAD),
        "cross_attention_dim": sum(TEXT),
        "projection_class_embeddings_input_dim": 6 * 256 + TEXT[1],
    },
    "vae": sdxl.VAE | {"sample_size": 128},
    "text_encoder": sdxl.CLIP_L | ENCODERS[0],
    "text_encoder_2": sdxl.CLIP_G | ENCODERS[1],
}


def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """The whole of it, with random weights; its configs and tokenizers are written into `folder`."""
    sdxl.write_configs(folder, "sdxl")
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_config(NETWORKS["unet"]),
        "vae": AutoencoderKL.from_config(NETWORKS["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**NETWORKS["text_encoder"])),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**NETWORKS["text_encoder_2"])),
    }
    from transformers import CLIPTokenizer

    one, two = (CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2"))
    scheduler = EulerDiscreteScheduler.from_config(sdxl.SCHEDULER)
    return StableDiffusionXLPipeline(**parts, tokenizer=one, tokenizer_2=two, scheduler=scheduler)


sdxl.networks = lambda architecture: NETWORKS
NODE_CLASS_MAPPINGS: dict[str, type] = {}

if "comfy.sd" in sys.modules:
    from comfy import sdxl_clip, supported_models, supported_models_base

    class TinyEncoders(sdxl_clip.SDXLClipModel):
        """SDXL's text encoders, narrow."""

        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
            """As SDXL's."""
            narrow = {"clip_l_model_config": ENCODERS[0], "clip_g_model_config": ENCODERS[1]}
            super().__init__(device, dtype, (model_options or {}) | narrow)

    class TinySDXL(supported_models.SDXL):
        """SDXL, narrow."""

        unet_config = supported_models.SDXL.unet_config | {
            "model_channels": WIDTH,
            "context_dim": sum(TEXT),
            "adm_in_channels": 6 * 256 + TEXT[1],
        }
        unet_extra_config = {"num_heads": -1, "num_head_channels": HEAD}  # noqa: RUF012

        def clip_target(self, state_dict: Any = None) -> supported_models_base.ClipTarget:
            """CLIP's words, narrow encoders."""
            return supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, TinyEncoders)

    supported_models.models.insert(0, TinySDXL)
