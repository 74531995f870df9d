"""Names: from the keys of a LoRA file to modules of diffusers' UNet.

diffusers, new    unet.<module>.lora_A.weight, .lora_B.weight; with the prefix `unet.`, without it or with two of it
diffusers, old    unet.<module>.lora.down.weight, .lora.up.weight; also <attention>.processor.to_q_lora.down.weight
kohya             lora_unet_<module with _ for .>.lora_down.weight, .lora_up.weight; the module in SDXL's original names
                  (input_blocks, middle_block, output_blocks) or in diffusers'

A module's strength is scale = alpha / rank, or alpha / √rank with rsLoRA; alpha stands in `<module>.alpha`, or in the
header's `lora_adapter_metadata`, which holds the arguments of PEFT's LoraConfig; where it is nowhere, scale is 1.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor

from duolora.adapters.adapter import Adapter
from duolora.adapters.foreign import refuse_foreign, refuse_other_unet
from duolora.errors import FileRefused
from duolora.paper.lowrank import LowRank

ADAPTER_METADATA = "lora_adapter_metadata"
RECIPE = "duolora"
_FACTOR = re.compile(r"(?P<stem>.+)\.(?P<side>lora_A|lora_B|lora_down|lora_up|lora_mid)(?:\.default)?\.weight")
_SIDES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "lora_mid": "mid"}
_PEFT_ALPHA = 8
"""The alpha of PEFT's LoraConfig when it is not told one."""
_KOHYA_UNET = SimpleNamespace(layers_per_block=2)


@dataclass
class _Parts:
    """What a file says about one module."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None


def adapter_from(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: str) -> Adapter:
    """The adapter that the tensors and the header of a file spell out; factors in float32.

    Raises:
        FileRefused: it is not a plain LoRA for an SDXL-shaped UNet, or its keys do not make whole LoRAs.
    """
    refuse_foreign(tensors, metadata, file)
    config = _config(metadata, file)
    parts, left_out = _parts(tensors, file)
    _refuse_two_strengths([name for name, part in parts.items() if part.alpha is not None], config, file)
    patterns = _patterns(config, file)
    modules = {}
    for name, part in sorted(parts.items()):
        up, down = _factors(name, part, file)
        alpha = _alpha(name, config, patterns) if config else part.alpha
        divisor = math.sqrt(up.shape[1]) if config.get("use_rslora") else up.shape[1]
        modules[name] = LowRank(up.float(), down.float(), 1.0 if alpha is None else alpha / divisor)
    if not modules:
        raise FileRefused(
            f"{file}: expected LoRAs of linear modules of the UNet, found only {len(left_out)} of text encoders or "
            "convolutions; give a LoRA whose UNet was trained"
        )
    refuse_other_unet(modules, file)
    return Adapter(modules, _recipe(metadata, file), tuple(left_out))


def _parts(tensors: Mapping[str, Tensor], file: str) -> tuple[dict[str, _Parts], list[str]]:
    """What the file says about each module, and what is left out: text encoders and convolutions."""
    parts: dict[str, _Parts] = defaultdict(_Parts)
    left_out = set()
    for key, value in sorted(tensors.items()):
        if key.startswith(("text_encoder", "lora_te")):
            left_out.add(re.split(r"\.lora|_lora\.|\.alpha$", key)[0])
            continue
        (name,) = convert_unet_state_dict_to_peft({key: value})
        found = _FACTOR.fullmatch(name)
        if not found and not name.endswith(".alpha"):
            raise FileRefused(f"{file}: {key} is not a key of a plain LoRA; expected diffusers' or kohya's names")
        part = parts[_module(found["stem"] if found else name.removesuffix(".alpha"), file)]
        side = _SIDES[found["side"]] if found else "alpha"
        if side in part.factors or (side == "alpha" and part.alpha is not None):
            raise FileRefused(f"{file}: {key} is there a second time under another spelling; remove one of the two")
        if side == "alpha":
            part.alpha = _number(value, key, file)
        else:
            part.factors[side] = value
    convolutions = {name for name, part in parts.items() if any(f.ndim > 2 for f in part.factors.values())}
    return {name: part for name, part in parts.items() if name not in convolutions}, sorted(left_out | convolutions)


def _module(stem: str, file: str) -> str:
    """The path in diffusers' UNet of what a key names."""
    if not stem.startswith("lora_unet_"):
        return re.sub(r"^(?:unet\.)+", "", stem)
    try:
        return _kohya_module(stem)
    except (ValueError, IndexError) as error:
        raise FileRefused(f"{file}: {stem} is not a module of SDXL's UNet in kohya's or diffusers' names") from error


@cache
def _kohya_module(stem: str) -> str:
    """The module that kohya's name stands for, according to diffusers."""
    nothing = torch.empty(0)
    keys = {f"{stem}.lora_{side}.weight": nothing for side in ("down", "up")}
    state, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(keys, unet_config=_KOHYA_UNET)
    key = next(iter(convert_unet_state_dict_to_peft(state)))
    return key.removeprefix("unet.").partition(".lora_")[0]


def _number(value: Tensor, key: str, file: str) -> float:
    if value.numel() != 1:
        raise FileRefused(f"{file}: {key}: expected one number, got shape {tuple(value.shape)}; the file is damaged")
    return float(value)


def _factors(name: str, part: _Parts, file: str) -> tuple[Tensor, Tensor]:
    """The up and down of a module, once it is certain that there are both and that they fit each other."""
    if set(part.factors) != {"up", "down"}:
        there = " and ".join(sorted(part.factors)) or "only an alpha"
        raise FileRefused(f"{file}: {name}: expected a down and an up factor, found {there}; the file is incomplete")
    up, down = part.factors["up"], part.factors["down"]
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or not up.shape[1]:
        raise FileRefused(
            f"{file}: {name}: expected up (d_out, r) and down (r, d_in) with the same r, "
            f"got {tuple(up.shape)} and {tuple(down.shape)}; the file is damaged"
        )
    return up, down


def _refuse_two_strengths(with_alpha: list[str], config: Mapping[str, Any], file: str) -> None:
    if with_alpha and config:
        raise FileRefused(
            f"{file}: expected alphas beside the weights or in {ADAPTER_METADATA}, found both, "
            f"the first at {with_alpha[0]}; save it again with the program that made it"
        )


def _config(metadata: Mapping[str, str], file: str) -> dict[str, Any]:
    """The arguments of LoraConfig for the UNet; none where the header holds none."""
    found = _object(metadata, ADAPTER_METADATA, file)
    outside = ("text_encoder.", "text_encoder_2.")
    config = {key.removeprefix("unet."): value for key, value in found.items() if not key.startswith(outside)}
    if config.get("use_dora"):
        raise FileRefused(f"{file}: {ADAPTER_METADATA} makes it a DoRA; expected a plain LoRA; convert it to one first")
    return config


def _patterns(config: Mapping[str, Any], file: str) -> list[tuple[re.Pattern[str], float]]:
    """The alphas that differ from the common one, with the modules that PEFT would give them to."""
    patterns = config.get("alpha_pattern") or {}
    alphas = [config.get("lora_alpha", _PEFT_ALPHA), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    for alpha in alphas:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise FileRefused(f"{file}: {ADAPTER_METADATA}: expected finite numbers as alphas, got {alpha!r}")
    try:
        return [(re.compile(rf"(.*\.)?({key})$"), alpha) for key, alpha in patterns.items()]
    except re.error as error:
        raise FileRefused(
            f"{file}: {ADAPTER_METADATA}: {error.pattern!r} is no pattern ({error}); it is damaged"
        ) from error


def _alpha(name: str, config: Mapping[str, Any], patterns: list[tuple[re.Pattern[str], float]]) -> float:
    """The alpha that PEFT gives a module: of the first pattern that matches, else the common one."""
    alpha: float = config.get("lora_alpha", _PEFT_ALPHA)
    return next((a for pattern, a in patterns if pattern.match(name)), alpha)


def _recipe(metadata: Mapping[str, str], file: str) -> dict[str, object]:
    """How the file was made: our own recipe, or the trigger words of another program's header."""
    recipe = _object(metadata, RECIPE, file)
    words = metadata.get("modelspec.trigger_phrase", "").strip()
    return recipe or ({"prompt": words} if words else {})


def _object(metadata: Mapping[str, str], key: str, file: str) -> dict[str, Any]:
    """A JSON object of the header; empty where there is none."""
    try:
        value = json.loads(metadata.get(key) or "{}")
    except ValueError as error:
        raise FileRefused(f"{file}: {key} in its header is not JSON; the file is damaged") from error
    if not isinstance(value, dict):
        raise FileRefused(f"{file}: {key} in its header: expected an object, got {type(value).__name__}")
    return value
