"""The parts of Atelier's pipeline, untrained: the classes and names of SDXL at a size that a laptop trains."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MAX_TOKENS = 48
LATENT_CHANNELS = 12
TEXT_WIDTH = 64


def new_vae() -> AutoencoderKL:
    """An autoencoder with factor 2 and 12 latent channels, which is as many numbers as the image has."""
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(24, 48),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
    )


def new_unet() -> UNet2DConditionModel:
    """An SDXL-shaped UNet with attention at 16×16 (style leads there) and 8×8 (content), `text_time` conditioning."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(40, 96),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(1, 2),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + TEXT_WIDTH,
        norm_num_groups=8,
    )


def new_scheduler() -> DDIMScheduler:
    """Velocity prediction with zero terminal signal, so that dark and light images are both in reach."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def _byte_symbols() -> list[str]:
    """The 256 printable symbols that byte-level BPE uses for the bytes, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def save_tokenizer(folder: Path, words: list[str]) -> CLIPTokenizer:
    """Write a CLIP tokenizer in which each of `words` is one token and any other text falls apart into bytes."""
    symbols = _byte_symbols()
    vocabulary = symbols + [s + "</w>" for s in symbols]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges[pieces[-2], pieces[-1]] = None
            pieces[-2:] = ["".join(pieces[-2:])]
            vocabulary.append(pieces[-1])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}), "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _text_config(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextConfig:
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 3 * TEXT_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": TEXT_WIDTH,
        "hidden_act": activation,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**settings)


def new_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's two text encoders, small; the second one gives the pooled vector."""
    encoders = (
        CLIPTextModel(_text_config(tokenizer, "quick_gelu")),
        CLIPTextModelWithProjection(_text_config(tokenizer, "gelu")),
    )
    for encoder in encoders:  # CLIP's 0.02 leaves words so alike that the UNet takes thousands of updates to tell them
        torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoders
