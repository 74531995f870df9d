"""An adapter as kohya's tools, ComfyUI, A1111 and Forge know it: lora_down, lora_up and alpha.

The header has kohya's `ss_…` and the `modelspec.…` of Stability's Model Metadata Standard, 1.0.1.

Modules of transformers are named as ComfyUI reads them, for the layers of the original networks. There q, k and v
(and in FLUX's single blocks the feed-forward, too) are one layer. Where LoRAs have one down in common, the layer has
it; else they are put beside each other, and up has a block for each, which diffusers takes apart again.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from duolora.errors import DuoLoRAError
from duolora.lora.adapter import Adapter
from duolora.lora.families import FAMILIES, UNETS
from duolora.lora.names import TEXT_ENCODERS, kohya_names
from duolora.lora.on_demand import one_by_one, outlines, renamed
from duolora.lora.read.notes import UNTITLED, plain
from duolora.lora.write.diffusers import alpha, stored_factors
from duolora.lora.write.layout import data_of
from duolora.paper.lowrank import LowRank
from duolora.progress import through

MODEL_SPEC = "1.0.1"
_WIDTHS = {
    "down_blocks.0.": 320, "down_blocks.1.": 640, "down_blocks.2.": 1280, "mid_block.": 1280,
    "up_blocks.0.": 1280, "up_blocks.1.": 640, "up_blocks.2.": 320,
}  # fmt: skip
"""Outputs of the layers in SDXL's blocks; a feed-forward layer has eight times as many."""

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
_SINGLE = {"attn.to_q attn.to_k attn.to_v proj_mlp": "linear1", "proj_out": "linear2", "norm.linear": "modulation_lin"}
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


def kohya_tensors(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors in `dtype`, and alphas in float32, under kohya's names."""
    # one alpha for the whole file: where they differ, diffusers gives some modules those of others (`docs/log.md`)
    counts = Counter(alpha(lora) for lora in outlines(adapter.modules).values())
    common = min(counts, key=lambda value: (value == 0, -counts[value], value)) or 1.0
    tensors = {}
    for stem, lora in one_by_one(_stems(adapter).items(), "Writing"):
        if alpha(lora) != common:  # what is left of the strength is in `up`
            scale = common / lora.rank
            lora = replace(lora, up=lora.up * (lora.scale / scale), scale=scale)
        up, down = stored_factors(lora, dtype)
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, up
        tensors[f"{stem}.alpha"] = torch.tensor(alpha(lora), dtype=torch.float32)
    return tensors


def has_kohya_names(adapter: Adapter) -> bool:
    """Whether it is certain under which of kohya's names programs look for its modules."""
    known = [name for name in adapter.families if FAMILIES[name].kohya]
    shapes = outlines(adapter.modules).items()
    narrow = any(name.endswith(".attn.to_q") and lora.d_out not in adapter.family.widths for name, lora in shapes)
    if known == ["FLUX.1"] and narrow:  # whose blocks diffusers takes apart at one width only
        return False
    return len(known) == len(adapter.families) and (len(known) == 1 or set(known) <= set(UNETS))


def _stems(adapter: Adapter) -> Mapping[str, LowRank]:
    """The modules under kohya's names."""
    family, modules = adapter.families[0], adapter.modules
    if family == "SDXL":
        # SDXL's numbers are certain where all blocks that are covered have its widths: a B-LoRA covers two of them
        widths = {name: width for name in modules for block, width in _WIDTHS.items() if name.startswith(block)}
        known = all(outlines(modules)[name].d_out in (width, 8 * width) for name, width in widths.items())
        names = kohya_names(modules, (bool(widths) and known) or None)
    elif family in UNETS:
        names = {name: stem.replace("lora_te1_", "lora_te_") for name, stem in kohya_names(modules, False).items()}
    else:
        spoken = {name: lora for name, lora in modules.items() if name.partition(".")[0] in TEXT_ENCODERS}
        rest = replace(adapter, modules={name: lora for name, lora in modules.items() if name not in spoken})
        return _of_layers(rest, family) | {stem: spoken[name] for name, stem in kohya_names(spoken).items()}
    return renamed(modules, {stem: name for name, stem in names.items()})


def _of_layers(adapter: Adapter, family: str) -> dict[str, LowRank]:
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


def kohya_metadata(adapter: Adapter, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, str]:
    """The header: what kohya's trainer and the standard would say of such a file, whatever its name is."""
    modules = outlines(adapter.modules).values()
    ranks = {lora.rank for lora in modules}
    alphas = [value for key, value in tensors.items() if key.endswith(".alpha")]
    prompt, of_data = adapter.metadata.get("prompt"), hashlib.sha256()
    for piece in data_of(tensors).values():  # as the standard has it: all that follows the header
        of_data.update(piece)
    version, architecture = adapter.family.kohya or ("", "")
    convolutions = [lora.rank for lora in modules if lora.kernel not in (None, (1, 1))]
    found = {
        "format": "pt",
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{float(alphas[0]):g}",
        "sshs_model_hash": of_data.hexdigest(),
        "modelspec.sai_model_spec": MODEL_SPEC,
        "modelspec.architecture": architecture,
        "modelspec.title": UNTITLED,
        "modelspec.hash_sha256": f"0x{of_data.hexdigest()}",
    }
    if adapter.families[0] == "SDXL":
        found["modelspec.implementation"] = "https://github.com/Stability-AI/generative-models"
    if convolutions:
        conv = {"conv_dim": str(max(convolutions)), "conv_alpha": found["ss_network_alpha"]}
        found["ss_network_args"] = json.dumps(conv, sort_keys=True)
    if isinstance(prompt, str):
        found["modelspec.trigger_phrase"] = found["modelspec.title"] = plain(prompt)
    return found
