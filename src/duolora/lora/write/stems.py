"""Modules of transformers under kohya's names, as ComfyUI reads them: those of the original networks.

There q, k and v (and in FLUX's single blocks the feed-forward, too) are one layer. Where LoRAs have one down in common,
the layer has it; else they are put beside each other, and up has a block for each, which diffusers takes apart again.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch

from duolora.errors import DuoLoRAError
from duolora.lora.adapter import Adapter
from duolora.paper.lowrank import LowRank
from duolora.progress import through

_DOUBLE = {
    "attn.to_q attn.to_k attn.to_v": "img_attn_qkv",
    "attn.to_out.0": "img_attn_proj",
    "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "txt_attn_qkv",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1.linear": "img_mod_lin",
    "norm1_context.linear": "txt_mod_lin",
}
_SINGLE = {
    "attn.to_q attn.to_k attn.to_v proj_mlp": "linear1",
    "proj_out": "linear2",
    "norm.linear": "modulation_lin",
}
_REFINED = {"attention.to_q attention.to_k attention.to_v": "attention_qkv", "attention.to_out.0": "attention_out"}
_NAMES: dict[str, dict[str, dict[str, str]]] = {
    "FLUX.1": {
        r"transformer_blocks\.(\d+)\.": {k: f"double_blocks_#_{v}" for k, v in _DOUBLE.items()},
        r"single_transformer_blocks\.(\d+)\.": {k: f"single_blocks_#_{v}" for k, v in _SINGLE.items()},
        r"()": {
            "x_embedder": "img_in",
            "context_embedder": "txt_in",
            "norm_out.linear": "final_layer_adaLN_modulation_1",
            "proj_out": "final_layer_linear",
            **{
                f"time_text_embed.{old}_embedder.linear_{k}": f"{new}_in_{side}_layer"
                for old, new in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))
                for k, side in ((1, "in"), (2, "out"))
            },
        },
    },
    "Z-Image": {
        rf"{root}\.(\d+)\.": {k: f"{root}_#_{v}" for k, v in _REFINED.items()}
        for root in ("layers", "noise_refiner", "context_refiner")
    },
    "Qwen-Image": {},
}
"""By the beginning of a module's path (with its number) and the rest of it; modules that become one stand together.

What is in none has its own path with _ for dots.
"""
REORDERED = ("Z-Image",)
"""Families of which diffusers gives q, k and v all directions of the layer that they were; which are whose is lost."""
_SWAPPED = "final_layer_adaLN_modulation_1"
"""Shift and scale have changed places in diffusers."""


def stems(adapter: Adapter, family: str) -> dict[str, LowRank]:
    """The modules of a transformer's adapter under kohya's names, without those of text encoders."""
    layers: dict[str, dict[int, LowRank]] = defaultdict(dict)
    counts = {}
    for name, lora in through(adapter.modules.items(), "Preparing"):
        stem, part, counts[stem] = _stem(name, family)
        layers[stem][part] = lora
    return {f"lora_unet_{stem}": _whole(stem, parts, counts[stem]) for stem, parts in layers.items()}


def _stem(name: str, family: str) -> tuple[str, int, int]:
    """Kohya's name of the layer that a module is in, which part of it that is, and how many parts it has."""
    for begins, table in _NAMES[family].items():
        if not (found := re.match(begins, name)):
            continue
        for modules, stem in table.items():
            parts = modules.split(" ")
            if (rest := name[found.end() :]) in parts:
                return stem.replace("#", found[1]), parts.index(rest), len(parts)
    if name.startswith(("all_", "distilled_")):
        raise DuoLoRAError(f"{name}: programs that read kohya's names have none for it; write --format diffusers")
    return name.replace(".", "_"), 0, 1


def _whole(stem: str, parts: Mapping[int, LowRank], count: int) -> LowRank:
    """One LoRA for a layer that holds the outputs of several modules, one after another; those missing have none."""
    if count == 1:
        lora = parts[0]
        up = torch.cat(lora.up.chunk(2)[::-1]) if stem == _SWAPPED else lora.up
        return LowRank(up, lora.down, lora.scale, lora.kernel)
    first = next(iter(parts.values()))
    sizes = [parts[k].d_out if k in parts else first.d_in * (4 if k == 3 else 1) for k in range(count)]
    shared = all(torch.equal(lora.down, first.down) for lora in parts.values())
    rank = max(lora.rank for lora in parts.values())
    up = first.up.new_zeros(sum(sizes), rank if shared else count * rank)
    down = first.down if shared else first.down.new_zeros(count * rank, first.d_in)
    for k, lora in parts.items():
        begin, at = sum(sizes[:k]), 0 if shared else k * rank
        up[begin : begin + lora.d_out, at : at + lora.rank] = lora.scale * lora.up
        if not shared:
            down[at : at + lora.rank] = lora.down
    return LowRank(up, down)
