"""Files that hold something else than a LoRA of an SDXL-shaped UNet, told by their keys, header and shapes."""

import re
from collections.abc import Iterable, Mapping

from duolora.errors import FileRefused
from duolora.paper.lowrank import LowRank

MASKS = "duolora_masks"
"""The header's key of a file that holds masks only (see `merging.mask_file`)."""
_CHECKPOINT = re.compile(r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.")
_OTHER_KINDS = {
    "a DoRA": re.compile(r"dora_scale|lora_magnitude_vector"),
    "a LoHa": re.compile(r"\.hada_[wt]\d"),
    "a LoKr": re.compile(r"\.lokr_[wt]\d"),
    "an OFT adapter": re.compile(r"\.oft_(?:blocks|diag|R)\b"),
    "a LoRA with biases": re.compile(r"\.lora_(?:B|up)\.(?:\w+\.)?bias$"),
}
_OTHER_BASES = {
    "FLUX": re.compile(r"single_transformer_blocks|double_blocks|single_blocks"),
    "Stable Diffusion 3": re.compile(r"joint_blocks|joint_transformer_blocks|\.attn\.add_[qkv]_proj"),
}
_BASE_VERSIONS = {
    "sd_v1": "Stable Diffusion 1",
    "sd_v2": "Stable Diffusion 2",
    "flux": "FLUX",
    "sd3": "Stable Diffusion 3",
}
_LEVELS_WITH_ATTENTION = re.compile(r"down_blocks\.0\.attentions\.|up_blocks\.3\.attentions\.")
_TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}


def refuse_foreign(keys: Iterable[str], metadata: Mapping[str, str], file: str) -> None:
    """Raise FileRefused if the keys are not those of a LoRA of a UNet that we know, saying whose they are."""
    keys = sorted(keys)
    if MASKS in metadata:
        raise FileRefused(
            f"{file}: expected a LoRA, found the masks of a merge only; rebuild it with `duolora convert {file} "
            "--content FILE --style FILE --out FILE`"
        )
    for kind, pattern in _OTHER_KINDS.items():
        for key in filter(pattern.search, keys):
            raise FileRefused(f"{file}: {key} makes it {kind}; expected a plain LoRA; convert it to one first")
    for base, pattern in _OTHER_BASES.items():
        for key in filter(pattern.search, keys):
            raise FileRefused(_other_base(file, f"{key} belongs to {base}"))
    version = metadata.get("ss_base_model_version", "")
    for start, base in _BASE_VERSIONS.items():
        if version.startswith(start):
            raise FileRefused(_other_base(file, f"its header says that it was trained on {base} ({version})"))
    for key in filter(_CHECKPOINT.search, keys):
        raise FileRefused(f"{file}: {key} belongs to a whole model; expected a LoRA; a whole model goes in as the base")
    if not any("lora" in key.lower() for key in keys):
        example = f", such as {keys[0]}" if keys else ""
        raise FileRefused(f"{file}: expected keys of a LoRA, found none among {len(keys)}{example}; give a LoRA file")
    for key in keys:
        if key.startswith("base_model.model."):
            raise FileRefused(
                f"{file}: {key} is PEFT's name, whose strength is kept in another file; "
                "expected diffusers' or kohya's names; save it with diffusers' save_lora_weights"
            )


def refuse_other_unet(modules: Mapping[str, LowRank], file: str) -> None:
    """Raise FileRefused if the modules are those of the UNet of Stable Diffusion 1 or 2.

    Those attend to text of width 768 or 1024, and already at the first level; SDXL and its kin only from the second on.
    """
    first = any(name.startswith("down_blocks.0.attentions.") for name in modules)
    for name, lora in modules.items():
        if first and name.endswith(("attn2.to_k", "attn2.to_v")) and lora.d_in in _TEXT_WIDTHS:
            why = f"{name} takes text of width {lora.d_in}, as in {_TEXT_WIDTHS[lora.d_in]}"
            raise FileRefused(_other_base(file, why))
    for name in filter(_LEVELS_WITH_ATTENTION.match, modules):
        raise FileRefused(_other_base(file, f"{name} is a module of Stable Diffusion 1 or 2, which SDXL has not"))


def _other_base(file: str, why: str) -> str:
    return f"{file}: {why}; expected a LoRA for SDXL or one of its kin; use one that was trained on it"
