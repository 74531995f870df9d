"""From the keys of a LoRA file to modules of diffusers' UNet and text encoders.

diffusers, new    unet.<module>.lora_A.weight, .lora_B.weight; with the prefix `unet.`, without it or with two of it
diffusers, old    unet.<module>.lora.down.weight, .lora.up.weight; also <attention>.processor.to_q_lora.down.weight
kohya, LyCORIS    lora_unet_<module with _ for .>.lora_down.weight, .lora_up.weight (see `names`); lycoris_<module>
ComfyUI           diffusion_model.<module in SDXL's original names>.lora_up.weight
OneTrainer        unet.<module in SDXL's original names>.lora_up.weight (OMI), or without any prefix
text encoders     text_encoder.text_model.<module>, text_encoder_2.…; lora_te1_…, lora_te2_… in kohya's files;
                  text_encoders.clip_l.transformer.text_model.…, clip_g in ComfyUI's; clip_l.text_model.…, clip_g in OMI

A module's strength is scale = alpha / rank; alpha stands in `<module>.alpha`, or in the header or a file beside it (see
`peft_config`); where it is nowhere, scale is 1. Convolutions are factored likewise: down (r, channels, height, width),
up (outputs, r, 1, 1), and with `lora_mid` (r, r, height, width) between a 1×1 down and up.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from duolora.errors import FileRefused
from duolora.lora.adapter import Adapter
from duolora.lora.names import KOHYA_PREFIXES, from_kohya, from_sgm, is_module
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.notes import notes_of
from duolora.lora.read.peft_config import ADAPTER_METADATA, PeftConfig, json_object, peft_configs
from duolora.lora.read.unsupported import refuse_foreign, refuse_other_base
from duolora.paper.lowrank import LowRank
from duolora.provenance import tensors_hash

RECIPE, PROOF = "duolora", "duolora_proof"
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
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class _Parts:
    """What a file says about one module."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None


def adapter_from(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: str, as_stored: bool = False
) -> Adapter:
    """The adapter that the tensors and the header of a file spell out; factors in float32, or as they are stored.

    Raises:
        FileRefused: it is not a plain LoRA for an SDXL-shaped UNet, or its keys do not make whole LoRAs.
    """
    refuse_foreign(tensors, metadata, file)
    configs = peft_configs(metadata, file)
    parts, left_out = _parts(tensors, file)
    _refuse_two_strengths([name for name, part in parts.items() if part.alpha is not None], configs, file)
    if not as_stored:
        for part in parts.values():
            part.factors = {side: value.float() for side, value in part.factors.items()}
    modules = {name: _lora(name, part, configs, file) for name, part in sorted(parts.items())}
    if not modules:
        raise FileRefused(
            f"{file}: expected LoRAs of modules, found {len(left_out)} other parts only; give a LoRA file"
        )
    refuse_other_base(modules, metadata, file)
    proof = json_object(metadata, PROOF, file)
    ours = "tensors" in proof and proof["tensors"] == tensors_hash(tensors)
    recipe = _recipe(metadata, ours, file)
    return Adapter(modules, recipe, tuple(left_out), proof if ours else {}, notes_of(metadata))


def _parts(tensors: Mapping[str, Tensor], file: str) -> tuple[dict[str, _Parts], list[str]]:
    """What the file says about each module, and what is left out: embeddings and biases that some programs add."""
    parts: dict[str, _Parts] = defaultdict(_Parts)
    left_out = set()
    for key, value in sorted(tensors.items()):
        if key.startswith("bundle_emb."):
            left_out.add(".".join(key.split(".")[:2]))
            continue
        if key.endswith(".diff_b"):
            left_out.add("differences of biases (.diff_b)")
            continue
        stem, side = _stem_and_side(key, file)
        part = parts[_module(stem, file)]
        if side in part.factors or (side == "alpha" and part.alpha is not None):
            raise FileRefused(f"{file}: {key} is there a second time under another spelling; remove one of the two")
        if side == "alpha":
            part.alpha = _number(value, key, file)
        else:
            part.factors[side] = _checked(value, key, file)
    return parts, sorted(left_out)


def _stem_and_side(key: str, file: str) -> tuple[str, str]:
    """The module's name in a key, and whether the key holds its down, up, mid or alpha."""
    name = key
    for old, new in (*_OLD, *(_OLD_TEXT if key.startswith("text_encoder") else ())):
        name = old.sub(new, name)
    if found := _FACTOR.fullmatch(name):
        return found["stem"], _SIDES[found["side"]]
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    raise FileRefused(f"{file}: {key} is not a key of a plain LoRA; expected diffusers' or kohya's names")


def _module(stem: str, file: str) -> str:
    """The path in diffusers' UNet or text encoders of what a key names."""
    try:
        return module_of(stem)
    except ValueError as error:
        raise FileRefused(
            f"{file}: {stem} is not a module of SDXL's UNet or text encoders in kohya's or diffusers' names; "
            "use a LoRA that was trained on SDXL or one of its kin"
        ) from error


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


def _number(value: Tensor, key: str, file: str) -> float:
    if value.numel() != 1 or value.is_complex():
        found = f"shape {tuple(value.shape)} of {value.dtype}"
        raise FileRefused(f"{file}: {key}: expected one number, got {found}; get the file again")
    return float(value)


def _checked(value: Tensor, key: str, file: str) -> Tensor:
    """A factor, once it is certain that it is a matrix or a convolution of real numbers."""
    if value.dtype not in _FLOATS:
        raise FileRefused(f"{file}: {key}: expected float16, bfloat16 or float32, got {value.dtype}; save it as one")
    if value.ndim not in (2, 4) or not value.numel():
        raise FileRefused(f"{file}: {key}: expected 2 or 4 sizes over 0, got {tuple(value.shape)}; get it again")
    return value


def _lora(name: str, part: _Parts, configs: Mapping[str, PeftConfig], file: str) -> LowRank:
    """The LoRA of one module, once it is certain that its factors are there and fit each other."""
    if set(part.factors) not in ({"up", "down"}, {"up", "mid", "down"}):
        there = " and ".join(sorted(part.factors)) or "only an alpha"
        raise FileRefused(f"{file}: {name}: expected a down and an up factor, found {there}; get the file again")
    up, down = part.factors["up"], _whole_down(name, part.factors, file)
    fits = up.ndim == down.ndim and up.shape[1] == down.shape[0] and set(up.shape[2:]) <= {1}
    if not fits:
        raise FileRefused(
            f"{file}: {name}: expected up (d_out, r) and down (r, d_in) with the same r, "
            f"got {tuple(up.shape)} and {tuple(down.shape)}; get the file again"
        )
    kernel = (down.shape[2], down.shape[3]) if down.ndim == 4 else None
    if kernel in (None, (1, 1)):  # some programs save linear layers as 1×1 convolutions, and others the reverse
        kernel = (1, 1) if name.endswith(".conv_shortcut") else None
    return LowRank(up.flatten(1), down.flatten(1), _scale(name, part, configs, up.shape[1]), kernel)


def _whole_down(name: str, factors: Mapping[str, Tensor], file: str) -> Tensor:
    """The down factor, times the mid factor of a decomposed convolution: Σ_q mid[p, q, h, w] down[q, i]."""
    down = factors["down"]
    if "mid" not in factors:
        return down
    mid = factors["mid"]
    if mid.ndim != 4 or down.ndim != 4 or mid.shape[1] != down.shape[0] or down.shape[2:] != (1, 1):
        shapes = f"{tuple(mid.shape)} and {tuple(down.shape)}"
        raise FileRefused(
            f"{file}: {name}: expected mid (r, r, h, w) and down (r, c, 1, 1), got {shapes}; get the file again"
        )
    return torch.einsum("pqhw,qi->pihw", mid.float(), down[..., 0, 0].float())


def _scale(name: str, part: _Parts, configs: Mapping[str, PeftConfig], rank: int) -> float:
    encoder, _, rest = name.partition(".")
    component = encoder if encoder.startswith("text_encoder") else "unet"
    if component in configs:
        names = [name] if component == "unet" else [rest, rest.removeprefix("text_model.")]
        return configs[component].scale(names, rank)
    return 1.0 if part.alpha is None else part.alpha / rank


def _refuse_two_strengths(with_alpha: list[str], configs: Mapping[str, PeftConfig], file: str) -> None:
    if with_alpha and configs:
        raise FileRefused(
            f"{file}: expected alphas beside the weights or in {ADAPTER_METADATA}, found both, "
            f"the first at {with_alpha[0]}; save it again with the program that made it"
        )


def _recipe(metadata: Mapping[str, str], ours: bool, file: str) -> dict[str, object]:
    """How the file was made: our own recipe, or the trigger words of another program's header.

    Programs that rewrite a file copy its header. Which directions are the content's is known of our own tensors only.
    """
    recipe = json_object(metadata, RECIPE, file)
    if not ours:
        recipe.pop(CONTENT_RANKS, None)
    words = metadata.get("modelspec.trigger_phrase", "").strip()
    return recipe or ({"prompt": words} if words else {})
