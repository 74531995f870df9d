"""What a single checkpoint of SDXL or SD 1.5 does not hold: its networks' configs and CLIP's tokenizers, as facts.

So a single file is loaded without the hub. Words become tokens by the merges of OpenAI's CLIP (MIT), which SDXL shares.
"""

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused
from duolora.model.architectures import ARCHITECTURES

VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L = {
    "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}  # fmt: skip
CLIP_G = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280, "intermediate_size": 5120,
    "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
SD15 = {
    "unet": {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768},
    "vae": VAE | {"sample_size": 512, "scaling_factor": 0.18215, "force_upcast": False},
    "text_encoder": CLIP_L,
}
"""The networks of Stable Diffusion 1.5; what is not said is as diffusers has it."""
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
_CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
}
_DEEPEST = re.compile(r"model\.diffusion_model\.input_blocks\.8\.1\.transformer_blocks\.(\d{1,2})\.norm1\.weight")
_DEPTHS = {10: "sdxl", 4: "ssd-1b", 2: "segmind-vega"}
_END = "<|endoftext|>"


def architecture_of_keys(keys: Iterable[str], path: Path) -> str:
    """Which of `ARCHITECTURES` a checkpoint is, by the depth of its lowest level, or `sd-1.5`.

    Raises:
        FileRefused: none of them.
    """
    names = set(keys)
    if not any(key.startswith("conditioner.") for key in names):
        return "sd-1.5"
    depth = sum(1 for key in names if _DEEPEST.fullmatch(key))
    if depth not in _DEPTHS:
        raise FileRefused(
            f"{path}: expected SDXL, SSD-1B or Segmind-Vega, with 10, 4 or 2 transformer blocks in input_blocks.8.1, "
            f"found {depth}; name a diffusers folder with its configs by --base-config"
        )
    return _DEPTHS[depth]


def networks(architecture: str) -> Mapping[str, Mapping[str, Any]]:
    """The configs of the networks."""
    if architecture == "sd-1.5":
        return SD15
    unet = {"_class_name": "UNet2DConditionModel"} | ARCHITECTURES[architecture]
    return {"unet": unet, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G}


def write_configs(folder: Path, architecture: str) -> None:
    """Write what is not in a single file, as a diffusers folder without weights."""
    two = architecture != "sd-1.5"
    index: dict[str, object] = {
        "_class_name": "StableDiffusionXLPipeline" if two else "StableDiffusionPipeline",
        "force_zeros_for_empty_prompt" if two else "requires_safety_checker": two,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    for part, config in networks(architecture).items():
        _write(folder / part / "config.json", config)
        index[part] = _CLASSES[part]
    for name, padding in (("tokenizer", _END), *([("tokenizer_2", "!")] if two else [])):
        _write_tokenizer(folder / name, padding)
        index[name] = ["transformers", "CLIPTokenizer"]
    _write(folder / "model_index.json", index)
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)


def _write_tokenizer(folder: Path, padding: str) -> None:
    merges = gzip.decompress(resources.files(__package__).joinpath("clip_merges.txt.gz").read_bytes()).decode("utf-8")
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, plain), *(chr(256 + k) for k in range(256 - len(plain)))]  # for the 256 bytes, in CLIP's order
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(line.replace(" ", "") for line in merges.split("\n")),
    ]
    special = {"bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": padding}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "vocab.json", {word: k for k, word in enumerate([*words, "<|startoftext|>", _END])})
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
