"""An adapter as kohya's tools, ComfyUI, A1111 and Forge know it: lora_down, lora_up and alpha.

The header has kohya's `ss_…` and the `modelspec.…` of Stability's Model Metadata Standard, 1.0.1.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from duolora.lora.adapter import Adapter
from duolora.lora.families import FAMILIES, UNETS
from duolora.lora.names import TEXT_ENCODERS, kohya_names
from duolora.lora.on_demand import one_by_one, outlines, renamed
from duolora.lora.read.notes import UNTITLED, plain
from duolora.lora.write.diffusers import alpha, stored_factors
from duolora.lora.write.layout import data_of
from duolora.lora.write.stems import stems
from duolora.paper.lowrank import LowRank

MODEL_SPEC = "1.0.1"
_WIDTHS = {
    "down_blocks.0.": 320,
    "down_blocks.1.": 640,
    "down_blocks.2.": 1280,
    "mid_block.": 1280,
    "up_blocks.0.": 1280,
    "up_blocks.1.": 640,
    "up_blocks.2.": 320,
}
"""Outputs of the layers in SDXL's blocks; a feed-forward layer has eight times as many."""


def kohya_tensors(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors in `dtype`, and alphas in float32, under kohya's names."""
    tensors, common = {}, _common_alpha(outlines(adapter.modules))
    for stem, stored in one_by_one(_stems(adapter).items(), "Writing"):
        lora = _with_alpha(stored, common)
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
        names = kohya_names(modules, _is_sdxl(outlines(modules)) or None)
    elif family in UNETS:
        names = {name: stem.replace("lora_te1_", "lora_te_") for name, stem in kohya_names(modules, False).items()}
    else:
        spoken = {name: lora for name, lora in modules.items() if name.partition(".")[0] in TEXT_ENCODERS}
        rest = replace(adapter, modules={name: lora for name, lora in modules.items() if name not in spoken})
        return stems(rest, family) | {stem: spoken[name] for name, stem in kohya_names(spoken).items()}
    return renamed(modules, {stem: name for name, stem in names.items()})


def _is_sdxl(modules: Mapping[str, LowRank]) -> bool:
    """Whether all blocks that are covered have SDXL's widths, and so its numbers: a B-LoRA covers two of them."""
    widths = {name: width for name in modules for block, width in _WIDTHS.items() if name.startswith(block)}
    return bool(widths) and all(modules[name].d_out in (width, 8 * width) for name, width in widths.items())


def kohya_metadata(adapter: Adapter, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, str]:
    """The header: what kohya's trainer and the standard would say of such a file, whatever its name is."""
    modules = outlines(adapter.modules).values()
    ranks = {lora.rank for lora in modules}
    alphas = [value for key, value in tensors.items() if key.endswith(".alpha")]
    prompt, hashed = adapter.metadata.get("prompt"), _weights_hash(tensors)
    version, architecture = adapter.family.kohya or ("", "")
    convolutions = [lora.rank for lora in modules if lora.kernel not in (None, (1, 1))]
    found = {
        "format": "pt",
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{float(alphas[0]):g}",
        "sshs_model_hash": hashed,
        "modelspec.sai_model_spec": MODEL_SPEC,
        "modelspec.architecture": architecture,
        "modelspec.title": UNTITLED,
        "modelspec.hash_sha256": f"0x{hashed}",
    }
    if adapter.families[0] == "SDXL":
        found["modelspec.implementation"] = "https://github.com/Stability-AI/generative-models"
    if convolutions:
        conv = {"conv_dim": str(max(convolutions)), "conv_alpha": found["ss_network_alpha"]}
        found["ss_network_args"] = json.dumps(conv, sort_keys=True)
    if isinstance(prompt, str):
        found["modelspec.trigger_phrase"] = found["modelspec.title"] = plain(prompt)
    return found


def _weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all bytes of tensors, in the file's order: as the standard has it, what follows the header."""
    found = hashlib.sha256()
    for piece in data_of(tensors).values():
        found.update(piece)
    return found.hexdigest()


def _common_alpha(modules: Mapping[str, LowRank]) -> float:
    """One alpha for the whole file: where they differ, diffusers gives some modules those of others (`docs/log.md`)."""
    counts = Counter(alpha(lora) for lora in modules.values())
    return min(counts, key=lambda value: (value == 0, -counts[value], value)) or 1.0


def _with_alpha(lora: LowRank, common: float) -> LowRank:
    """The same ΔW with this alpha, and what is left of the strength in `up`."""
    if alpha(lora) == common:
        return lora
    scale = common / lora.rank
    return replace(lora, up=lora.up * (lora.scale / scale), scale=scale)
