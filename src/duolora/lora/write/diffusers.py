"""An adapter as diffusers writes and reads it: lora_A, lora_B and, in the header, their ranks and alphas.

diffusers takes `lora_adapter_metadata` as the arguments of PEFT's LoraConfig, from 0.34 on.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from duolora.lora.adapter import Adapter
from duolora.lora.names import TEXT_ENCODERS
from duolora.lora.on_demand import mapped, one_by_one, outlines
from duolora.lora.read.peft_config import ADAPTER_METADATA
from duolora.lora.write.layout import header_json
from duolora.paper.lowrank import LowRank


def diffusers_tensors(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors under diffusers' names, in `dtype`, on the CPU, each in storage of its own."""
    spoken = {name.partition(".")[0] for name in adapter.modules if ".self_attn." in name}
    tensors = {}
    for name, lora in one_by_one(adapter.modules.items(), "Writing"):
        encoder = name.partition(".")[0]
        prefix = "" if encoder in TEXT_ENCODERS else f"{adapter.family.network}."
        # diffusers cannot tell what a text encoder's file is, by its new names, where no attention is in it
        old = encoder in TEXT_ENCODERS and encoder not in spoken
        sides = ("lora_linear_layer.down", "lora_linear_layer.up") if old else ("lora_A", "lora_B")
        up, down = stored_factors(lora, dtype)
        tensors[f"{prefix}{name}.{sides[0]}.weight"], tensors[f"{prefix}{name}.{sides[1]}.weight"] = down, up
    return tensors


def stored_factors(lora: LowRank, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The up and down of a module as files hold them; those of a convolution with four sizes."""
    up, down = _balanced(lora.up, lora.down) if dtype == torch.float16 else (lora.up, lora.down)
    if lora.kernel is not None:
        up, down = up[..., None, None], down.reshape(lora.rank, -1, *lora.kernel)
    up, down = (f.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format) for f in (up, down))
    return up, down


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with weak directions of one factor lifted by a power of two that the other one gives.

    float16 has no digits left below 2⁻²⁴; a small alpha folded into `up`, or a LoRA hardly trained, lies there.
    """
    u, d = (f.detach().float().square().mean(axis).sqrt() for f, axis in ((up, 0), (down, 1)))
    weak = (torch.minimum(u, d) < 2**-9) & (torch.minimum(u, d) > 0)
    k = torch.where(weak, torch.exp2((torch.log2(d / u) / 2).round()), torch.ones_like(u)).to(up.dtype)
    return up * k, down / k[:, None]


def diffusers_metadata(adapter: Adapter) -> dict[str, str]:
    """The header that goes with `diffusers_tensors`: arguments of LoraConfig for the network and each text encoder."""
    components: dict[str, dict[str, LowRank]] = defaultdict(dict)
    network = adapter.family.network
    for name, lora in outlines(adapter.modules).items():
        encoder, _, rest = name.partition(".")
        if encoder in TEXT_ENCODERS:
            components[encoder][rest.removeprefix("text_model.")] = lora
        else:
            components[network][name] = lora
    config: dict[str, object] = {}
    for component, modules in components.items():
        config |= {f"{component}.{key}": value for key, value in _config(modules, component == network).items()}
    return {"format": "pt", ADAPTER_METADATA: header_json(config)}


def _config(modules: Mapping[str, LowRank], anchored: bool) -> dict[str, object]:
    """Arguments of LoraConfig.

    The commonest rank and alpha stand for all modules and patterns for the others, one for all that share a value.
    PEFT tries every pattern on every module, and Python keeps only 512 compiled: with a pattern for each module, as
    diffusers has it, SDXL would take half a minute to load. Text encoders' modules begin with `text_model.` in some
    versions of transformers and not in others, so theirs are named by their ends.
    """
    start = "^" if anchored else ""
    ranks, rank_pattern = _patterns({name: float(lora.rank) for name, lora in modules.items()}, start)
    alphas, alpha_pattern = _patterns({name: alpha(lora) for name, lora in modules.items()}, start)
    found: dict[str, object] = {"target_modules": sorted(modules), "r": ranks, "rank_pattern": rank_pattern}
    return found | {"lora_alpha": alphas, "alpha_pattern": alpha_pattern}


def alpha(lora: LowRank) -> float:
    """Scale · rank to 12 digits, so that alpha / rank · rank is alpha again, however often a file is rewritten."""
    return float(f"{lora.scale * lora.rank:.12g}")


def _patterns(values: Mapping[str, float], start: str) -> tuple[float, dict[str, float]]:
    """The commonest value, and a pattern for all names of each other value."""
    counts = Counter(values.values())
    common = min(counts, key=lambda value: (-counts[value], value))
    names: dict[float, list[str]] = defaultdict(list)
    for name in sorted(values):
        names[values[name]].append(re.escape(name))
    rest = {f"{start}(?:{'|'.join(group)})": _plain(value) for value, group in names.items() if value != common}
    return _plain(common), rest


def _plain(value: float) -> float:
    """8 rather than 8.0, since PEFT expects an int where there can be one."""
    return int(value) if value.is_integer() else value


def uniform(adapter: Adapter) -> Adapter:
    """The same ΔW with the highest rank everywhere (zeros fill up) and scale 1, folded into `up`.

    diffusers before 0.34 reads no ranks and alphas from a header; here there is none that it would miss.
    """
    rank = max(lora.rank for lora in outlines(adapter.modules).values())
    return replace(adapter, modules=mapped(adapter.modules, lambda lora: _filled(lora, rank)))


def _filled(lora: LowRank, rank: int) -> LowRank:
    missing = rank - lora.rank
    up = torch.cat([lora.scale * lora.up, lora.up.new_zeros(lora.d_out, missing)], 1)
    return replace(lora, up=up, down=torch.cat([lora.down, lora.down.new_zeros(missing, lora.d_in)]), scale=1.0)
