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
    "a GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "an (IA)³": re.compile(r"\.on_input$"),
    "a file of whole differences": re.compile(r"\.(?:diff|[wb]_norm)$"),
    "a LoRA with biases": re.compile(r"\.lora_(?:B|up)\.(?:\w+\.)?bias$"),
}
_ZIPLORA = re.compile(r"\.lora\.weight$")
_OTHER_BASES = {
    "FLUX": re.compile(r"single_transformer_blocks|double_blocks|single_blocks"),
    "Stable Diffusion 3": re.compile(
        r"joint_blocks|joint_transformer_blocks|\.attn\.add_[qkv]_proj|^lora_te3_|^text_encoder_3\."
    ),
    "PixArt or its kin": re.compile(
        r"^(?:transformer\.|lora_transformer_)?transformer_blocks[._]\d+[._]attn1|adaln_single|caption_projection"
    ),
    "Stable Cascade": re.compile(r"^lora_prior_"),
    "a diffusion transformer": re.compile(
        r"^(?:transformer|lora_transformer)[._]|^(?:diffusion_model\.|lora_unet_)?(?:transformer_blocks|blocks|layers)[._]\d"
    ),
}
_HEADERS = {
    "ss_base_model_version": {
        "sd_v1": "Stable Diffusion 1",
        "sd_v2": "Stable Diffusion 2",
        "sd3": "Stable Diffusion 3",
        "flux": "FLUX",
    },
    "modelspec.architecture": {
        "stable-diffusion-v1": "Stable Diffusion 1",
        "stable-diffusion-v2": "Stable Diffusion 2",
        "stable-diffusion-3": "Stable Diffusion 3",
        "stable-diffusion-v3": "Stable Diffusion 3",
        "stable-cascade": "Stable Cascade",
        "flux": "FLUX",
        "pixart": "PixArt",
    },
}
"""How what a header says of its base begins, in small letters."""
_SDXL_HEADERS = ("sdxl", "stable-diffusion-xl")
_FIRST_LEVEL = re.compile(r"down_blocks\.0\.attentions\.")
_FOURTH_LEVEL = re.compile(r"(?:down|up)_blocks\.3\.")
_ONLY_SDXL = re.compile(r"text_encoder_2\.|add_embedding\.|.*\.transformer_blocks\.[1-9]")
_SDXL_TEXT_WIDTH = 2048
_TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
_WIDTHS = (320, 640, 1280)


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
    for key in filter(_ZIPLORA.search, keys):
        raise FileRefused(
            f"{file}: {key} makes it a merge by ziplora-pytorch, which holds whole weights and no factors; expected a "
            "plain LoRA; merge its two LoRAs again with `duolora merge --method ziplora`"
        )
    for base, pattern in _OTHER_BASES.items():
        for key in filter(pattern.search, keys):
            raise FileRefused(_other_base(file, f"{key} belongs to {base}"))
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


def refuse_other_base(modules: Mapping[str, LowRank], metadata: Mapping[str, str], file: str) -> None:
    """Raise FileRefused if the modules are of another UNet: by their shapes or, where these are open, by the header.

    Stable Diffusion 1 and 2 attend to text of width 768 or 1024, SDXL and its kin to 2048, from layers of the same
    widths. They have four levels, and attention of width 320 already on the first; SDXL has three, and attention from
    the second on. (Atelier has two, and narrower attention on both.)
    Only SDXL has a second text encoder, embeds sizes, and has several transformer blocks in an attention.
    """
    for name, lora in modules.items():
        text = name.endswith(("attn2.to_k", "attn2.to_v"))
        if text and lora.d_in in _TEXT_WIDTHS and lora.d_out in _WIDTHS:
            why = f"{name} takes text of width {lora.d_in}, as in {_TEXT_WIDTHS[lora.d_in]}"
            raise FileRefused(_other_base(file, why))
    for name, lora in modules.items():
        first = _FIRST_LEVEL.match(name) and not {lora.d_in, lora.d_out}.isdisjoint(_WIDTHS)
        if not (first or _FOURTH_LEVEL.match(name)):
            continue
        raise FileRefused(_other_base(file, f"{name} is a module of Stable Diffusion 1 or 2, which SDXL has not"))
    if not any(_is_sdxl(name, lora) for name, lora in modules.items()):
        _refuse_other_header(metadata, file)


def _is_sdxl(name: str, lora: LowRank) -> bool:
    """Whether no other base can have this layer."""
    text = name.endswith(("attn2.to_k", "attn2.to_v"))
    return bool(_ONLY_SDXL.match(name)) or (text and lora.d_in == _SDXL_TEXT_WIDTH)


def _refuse_other_header(metadata: Mapping[str, str], file: str) -> None:
    """Raise FileRefused if the header names another base, and not SDXL too."""
    said = {key: metadata.get(key, "").lower() for key in _HEADERS}
    if any(text.startswith(_SDXL_HEADERS) for text in said.values()):
        return
    for key, names in _HEADERS.items():
        for start, base in names.items():
            if said[key].startswith(start):
                why = f"its header says that it was trained on {base} ({key}: {metadata[key][:60]})"
                raise FileRefused(_other_base(file, why))


def _other_base(file: str, why: str) -> str:
    return f"{file}: {why}; expected a LoRA for SDXL or one of its kin; use one that was trained on it"
