"""What the keys of a LoRA file say: which module of diffusers' networks, and which of its factors."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

from duolora.lora.names import KOHYA_PREFIXES, from_kohya, from_sgm, is_module

_FACTOR = re.compile(r"(?P<stem>.+)\.(?P<side>lora_A|lora_B|lora_down|lora_up|lora_mid)(?:\.default)?\.weight")
_SIDES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "lora_mid": "mid"}
_OLD = (
    (re.compile(r"\.processor\."), "."),
    (re.compile(r"\.to_out_lora\.(down|up)\."), r".to_out.0.lora_\1."),
    (re.compile(r"\.to_([qkv])_lora\.(down|up)\."), r".to_\1.lora_\2."),
    (re.compile(r"\.lora(?:_linear_layer)?\.(down|up)\."), r".lora_\1."),
)
_OLD_TEXT = (
    (re.compile(r"\.self_attn\.to_([qkv])\."), r".self_attn.\1_proj."),
    (re.compile(r"\.self_attn\.to_out\.0\."), ".self_attn.out_proj."),
    (re.compile(r"^(text_encoder(?:_2)?)\.encoder\."), r"\1.text_model.encoder."),
)
_CLIPS = (
    (re.compile(r"^(?:text_encoders\.)?clip_l\.(?:transformer\.)?"), "text_encoder."),
    (re.compile(r"^(?:text_encoders\.)?clip_g\.(?:transformer\.)?"), "text_encoder_2."),
)


def stem_and_side(key: str) -> tuple[str, str]:
    """The module's name in a key, and whether the key holds its down, up, mid or alpha.

    Raises:
        ValueError: it is not a key of a plain LoRA.
    """
    name = key
    for old, new in (*_OLD, *(_OLD_TEXT if key.startswith("text_encoder") else ())):
        name = old.sub(new, name)
    if found := _FACTOR.fullmatch(name):
        return found["stem"], _SIDES[found["side"]]
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    raise ValueError(key)


@cache
def module_of(stem: str) -> str:
    """The path in diffusers' UNet or text encoders of what a key without its end names; ValueError if it is none."""
    if stem.startswith(tuple(KOHYA_PREFIXES)):
        name = from_kohya(stem)
    else:
        name = re.sub(r"^(?:(?:unet\.)+|diffusion_model\.)", "", stem)
        for clip, encoder in _CLIPS:
            name = clip.sub(encoder, name)
        name = name if is_module(name) else from_sgm(name)
    if not is_module(name):
        raise ValueError(name)
    return name


def shapes_of(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the modules that the tensors in a header are for.

    Raises:
        ValueError: one of them is for no module of a UNet or of its text encoders.
    """
    factors: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for key, entry in entries.items():
        stem, side = stem_and_side(key)
        factors[module_of(stem)][side] = entry["shape"]
    whole = {name: found for name, found in factors.items() if found.get("up") and found.get("down")}
    return {name: (found["up"][0], math.prod(found["down"][1:])) for name, found in whole.items()}
