"""An adapter as diffusers writes and reads it: lora_A, lora_B and, in the header, their ranks and alphas.

diffusers takes `lora_adapter_metadata` as the arguments of PEFT's LoraConfig, from 0.34 on.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from duolora.adapters.adapter import Adapter
from duolora.adapters.dialects import ADAPTER_METADATA, RECIPE
from duolora.paper.lowrank import LowRank


def diffusers_tensors(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors under diffusers' names, in `dtype`, on the CPU, each in storage of its own."""
    tensors = {}
    for name, lora in adapter.modules.items():
        for key, factor in (("lora_A", lora.down), ("lora_B", lora.up)):
            cast = factor.detach().to("cpu", dtype)
            tensors[f"unet.{name}.{key}.weight"] = cast.clone(memory_format=torch.contiguous_format)
    return tensors


def diffusers_metadata(adapter: Adapter) -> dict[str, str]:
    """The header that goes with `diffusers_tensors`: arguments of LoraConfig, and the recipe.

    The commonest rank and alpha stand for all modules and patterns for the others, one for all that share a value.
    PEFT tries every pattern on every module, and Python keeps only 512 compiled: with a pattern for each module, as
    diffusers has it, SDXL would take half a minute to load.
    """
    ranks = {name: float(lora.rank) for name, lora in adapter.modules.items()}
    alphas = {name: _alpha(lora) for name, lora in adapter.modules.items()}
    config: dict[str, object] = {"unet.target_modules": sorted(ranks)}
    config["unet.r"], config["unet.rank_pattern"] = _patterns(ranks)
    config["unet.lora_alpha"], config["unet.alpha_pattern"] = _patterns(alphas)
    return {"format": "pt", ADAPTER_METADATA: _json(config), RECIPE: _json(adapter.recipe)}


def _alpha(lora: LowRank) -> float:
    """Scale · rank to 12 digits, so that alpha / rank · rank is alpha again, however often a file is rewritten."""
    return float(f"{lora.scale * lora.rank:.12g}")


def _patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The commonest value, and an anchored pattern for all names of each other value."""
    counts = Counter(values.values())
    common = min(counts, key=lambda value: (-counts[value], value))
    names: dict[float, list[str]] = defaultdict(list)
    for name in sorted(values):
        names[values[name]].append(re.escape(name))
    rest = {f"^(?:{'|'.join(group)})": _plain(value) for value, group in names.items() if value != common}
    return _plain(common), rest


def _plain(value: float) -> float:
    """8 rather than 8.0, since PEFT expects an int where there can be one."""
    return int(value) if value.is_integer() else value


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
