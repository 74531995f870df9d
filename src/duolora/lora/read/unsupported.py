"""Files that hold something else than a plain LoRA of a network that diffusers has, told by their keys and header."""

import re
from collections.abc import Iterable, Mapping

from duolora.errors import FileRefused

MASKS = "duolora_masks"
"""The header's key of a file that holds masks only (see `merging.mask_file`)."""
_KINDS = {
    "a DoRA": r"dora_scale|lora_magnitude_vector",
    "a LoHa": r"\.hada_[wt]\d",
    "a LoKr": r"\.lokr_[wt]\d",
    "an OFT adapter": r"\.oft_(?:blocks|diag|R)\b",
    "a GLoRA": r"\.[ab][12]\.weight$",
    "an (IA)³": r"\.on_input$",
    "a file of whole differences": r"\.(?:diff|[wb]_norm)$",
    "a LoRA with biases": r"\.lora_(?:B|up)\.(?:\w+\.)?bias$",
}
_BASES = {
    "the T5 text encoder": r"^lora_te3_|^text_encoder_3\.|^text_encoders\.t5xxl",
    "PixArt or a similar network": r"adaln_single\.emb\.(?:resolution|aspect)",
    "Stable Cascade": r"^lora_prior_",
}
"""Networks whose LoRAs diffusers does not load."""
_FOREIGN = (
    *((p, f"makes it {kind}; expected a plain LoRA; convert it to one first") for kind, p in _KINDS.items()),
    (r"\.lora\.weight$", "makes it a merge by ziplora-pytorch, which holds whole weights and no factors; expected a "
     "plain LoRA; merge its two LoRAs again with `duolora merge --method ziplora`"),
    (r"^lora_controlnet$|(?:query|key)_norm\.scale$|\.norm_(?:added_)?[qk]\.weight$", "makes it a control LoRA, which "
     "changes what the network is given; expected a plain LoRA; load it beside the merge"),
    *((p, f"belongs to {base}, of which diffusers loads no LoRA; expected one for SDXL, Stable Diffusion or a "
       "transformer that diffusers has") for base, p in _BASES.items()),
    (r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.", "belongs to a whole "
     "model; expected a LoRA; a whole model goes in as the base"),
)  # fmt: skip
"""What keys that match say of their file, the first that is found."""


def refuse_foreign(keys: Iterable[str], metadata: Mapping[str, str], file: str) -> None:
    """Raise FileRefused if the keys are not those of a plain LoRA, saying whose they are."""
    keys = sorted(keys)
    if MASKS in metadata:
        raise FileRefused(
            f"{file}: expected a LoRA, found the masks of a merge only; rebuild it with `duolora convert {file} "
            "--content FILE --style FILE --out FILE`"
        )
    for pattern, why in _FOREIGN:
        if key := next(filter(re.compile(pattern).search, keys), None):
            raise FileRefused(f"{file}: {key} {why}")
    if not any("lora" in key.lower() for key in keys):
        example = f", such as {keys[0]}" if keys else ""
        raise FileRefused(f"{file}: expected keys of a LoRA, found none among {len(keys)}{example}; give a LoRA file")
    for key in keys:
        if key.startswith("base_model.model."):
            raise FileRefused(
                f"{file}: {key} is PEFT's name, whose strength is kept in another file; "
                "expected diffusers' or kohya's names; save it with diffusers' save_lora_weights"
            )
