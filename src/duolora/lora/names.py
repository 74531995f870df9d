"""Names of modules: diffusers' paths, SDXL's original ones (sgm), and kohya's, which have _ for every dot.

diffusers   down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
sgm         input_blocks.4.1.transformer_blocks.0.attn1.to_q
kohya       lora_unet_ and either of the two; lora_te1_ and lora_te2_ for the text encoders

sgm numbers its blocks through, so a number means another block where a block has another count of layers. SDXL, SSD-1B
and Segmind-Vega have two layers in a block (three in the up blocks), however deep their attentions are.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

TEXT_ENCODERS = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
"""A module of a text encoder is named `text_encoder.text_model.…`, and begins with this in kohya's files."""
KOHYA_PREFIXES = {
    "lora_unet_": "", "lycoris_": "",
    "lora_te_": "text_encoder.", "lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2.",
}  # fmt: skip
_LAYERS = 3
"""Numbers that a level takes up in sgm: two layers and a sampler on the way down, three layers on the way up."""
_OUTER = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTER_BACK, _RESNET_BACK = ({new: old for old, new in table.items()} for table in (_OUTER, _RESNET))
_BLOCK = re.compile(
    r"(?:(down|up)_blocks\.([0-3])|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.([0-3])\.(.+)"
)
_TAILS = {
    "resnets": re.compile(r"conv[12]|time_emb_proj|conv_shortcut"),
    "attentions": re.compile(
        r"proj_(?:in|out)|transformer_blocks\.[0-9]{1,3}\.(?:attn[12]\.to_(?:[qkv]|out\.0)|ff\.net\.(?:0\.proj|2))"
    ),
    "downsamplers": re.compile("conv"),
    "upsamplers": re.compile("conv"),
}
_TEXT = re.compile(
    r"text_encoder(?:_2)?\.text_model\.encoder\.layers\.[0-9]{1,2}\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])"
    r"|text_encoder_2\.text_projection"
)
_SGM = re.compile(r"(?:(input|output)_blocks\.([0-9]{1,2})|middle_block)\.([0-2])\.(.+)")
_LEVELS = range(4)
"""Stable Diffusion 1 has four, and is told from SDXL by them (see `families`); SDXL and similar UNets have three."""
_WORDS = re.compile(
    r"(?:transformer_blocks|(?:down|up|input|output)_blocks|(?:mid|middle)_block|to_(?:q|k|v|out)|proj_(?:in|out)"
    r"|conv_(?:in|out|shortcut)|time_emb_proj|(?:time|add)_embedding|linear_[12]|(?:in|out|emb)_layers|skip_connection"
    r"|time_embed|label_emb|text_model|self_attn|(?:q|k|v|out)_proj|text_projection|[a-z0-9]+)(?:_|$)"
)


def is_module(name: str) -> bool:
    """Whether a network of SDXL's kind can have a layer of this name, in diffusers' spelling."""
    if name in _OUTER or _TEXT.fullmatch(name):
        return True
    found = _BLOCK.fullmatch(name)
    if found is None or (found[1] is None and found[3] not in ("resnets", "attentions")):
        return False
    return _TAILS[found[3]].fullmatch(found[5]) is not None


def sgm(module: str) -> str:
    """SDXL's original name of a module of diffusers' UNet.

    Raises:
        ValueError: it has none.
    """
    if module in _OUTER:
        return _OUTER[module]
    if not (found := _BLOCK.fullmatch(module)):
        raise ValueError(f"{module}: no module of SDXL's UNet")
    way, level, kind, number, tail = found.groups()
    layer = int(number)
    if kind == "resnets":
        tail = _RESNET.get(tail, tail)
    if way is None:
        return f"middle_block.{2 * layer if kind == 'resnets' else 1}.{tail}"
    start = int(level) * _LAYERS
    if kind == "downsamplers":
        return f"input_blocks.{start + _LAYERS}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{start + _LAYERS - 1}.2.{tail}"
    block = f"input_blocks.{start + layer + 1}" if way == "down" else f"output_blocks.{start + layer}"
    return f"{block}.{int(kind == 'attentions')}.{tail}"


def from_sgm(name: str) -> str:
    """The module of diffusers' UNet that one of SDXL's original names stands for: the inverse of `sgm`.

    Raises:
        ValueError: it stands for none.
    """
    if name in _OUTER_BACK:
        return _OUTER_BACK[name]
    if not (found := _SGM.fullmatch(name)):
        raise ValueError(f"{name}: no name of SDXL's UNet")
    way, block, slot, tail = found[1], int(found[2] or 0), int(found[3]), found[4]
    if way is None:
        kind, number = ("attentions", 0) if slot == 1 else ("resnets", slot // 2)
        return f"mid_block.{kind}.{number}.{_RESNET_BACK.get(tail, tail)}"
    level, layer = divmod(block - (way == "input"), _LAYERS)
    side = "down" if way == "input" else "up"
    if level not in _LEVELS:
        raise ValueError(f"{name}: no name of SDXL's UNet")
    if (way, layer, tail) == ("input", _LAYERS - 1, "op"):
        return f"down_blocks.{level}.downsamplers.0.conv"
    if way == "output" and tail == "conv":
        return f"up_blocks.{level}.upsamplers.0.conv"
    if slot not in (0, 1):
        raise ValueError(f"{name}: no name of SDXL's UNet")
    return f"{side}_blocks.{level}.{('resnets', 'attentions')[slot]}.{layer}.{_RESNET_BACK.get(tail, tail)}"


def from_kohya(stem: str) -> str:
    """The module that kohya's name stands for, in either spelling; text encoders begin with `text_encoder`.

    Raises:
        ValueError: it stands for none.
    """
    prefix = next((p for p in KOHYA_PREFIXES if stem.startswith(p)), None)
    if prefix is None:
        raise ValueError(f"{stem}: expected one of {', '.join(KOHYA_PREFIXES)} in front")
    flat = stem.removeprefix(prefix)
    words = [word.removesuffix("_") for word in _WORDS.findall(flat)]
    if "_".join(words) != flat:
        raise ValueError(f"{stem}: not made of names of SDXL's modules")
    name = ".".join(words)
    if KOHYA_PREFIXES[prefix]:
        return KOHYA_PREFIXES[prefix] + name
    return name if name in _OUTER or _BLOCK.fullmatch(name) else from_sgm(name)


def kohya_names(modules: Iterable[str], certain: bool | None = None) -> dict[str, str]:
    """Kohya's name of each module of a UNet: sgm's blocks where they are certain, else diffusers' in all of them.

    Blocks with one layer only (or of which no second one is known) are numbered otherwise by readers that know the
    base, and diffusers throws sgm names away where a file has both kinds.
    """
    modules = list(modules)
    numbered = any(re.match(r"down_blocks\.\d+\.\w+\.1\.|up_blocks\.\d+\.\w+\.2\.", name) for name in modules)
    unnumbered = all(name in _OUTER or name.startswith(("mid_block", "text_encoder")) for name in modules)
    certain = numbered or unnumbered if certain is None else certain
    return {name: _kohya(name, certain) for name in modules}


def _kohya(module: str, certain: bool) -> str:
    encoder, _, rest = module.partition(".")
    if encoder in TEXT_ENCODERS:
        return TEXT_ENCODERS[encoder] + rest.replace(".", "_")
    return "lora_unet_" + (sgm(module) if certain else module).replace(".", "_")


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


def stem_and_side(key: str) -> tuple[str, str]:
    """The module's name in a key, and whether the key holds its down, up, mid or alpha.

    Raises:
        ValueError: it is not a key of a plain LoRA.
    """
    name = key
    for old, new in (*_OLD, *(_OLD_TEXT if key.startswith("text_encoder") else ())):
        name = old.sub(new, name)
    if found := _FACTOR.fullmatch(name):
        return found["stem"], _SIDES[found["side"]]
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    raise ValueError(key)


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


def shapes_of(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the modules that the tensors in a header are for.

    Raises:
        ValueError: one of them is for no module of a UNet or of its text encoders.
    """
    factors: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for key, entry in entries.items():
        stem, side = stem_and_side(key)
        factors[module_of(stem)][side] = entry["shape"]
    whole = {name: found for name, found in factors.items() if found.get("up") and found.get("down")}
    return {name: (found["up"][0], math.prod(found["down"][1:])) for name, found in whole.items()}
