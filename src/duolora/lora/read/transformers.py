"""LoRAs of diffusion transformers under diffusers' names, from whichever names they have.

Names that differ from diffusers' by a prefix only, or by _ for dots, are read here; for the others (BFL's and kohya's
FLUX with q, k and v in one, XLabs', the original names of Z-Image, Wan and so on) diffusers' own converters are asked,
in the order of the families. Strengths are multiplied in before, since converters lose some, and what they leave
without a prefix gets it back (`tests/lora/test_transformers.py` has a number for each of their faults).
"""

import re
from collections.abc import Collection, Mapping
from functools import cache

from torch import Tensor

from duolora.errors import FileRefused
from duolora.lora.families import FAMILIES, UNETS, fitting
from duolora.lora.names import module_of, stem_and_side

Factors = dict[str, dict[str, Tensor]]
"""The down and up of each module."""
_ALIKE = ("lora_te", "text_encoder", "clip_")
"""How names of text encoders begin, in every spelling."""
_MOST = 5000
"""Modules of a file that converters are asked about; the largest networks have under 1,500."""
_UNET = re.compile(r"(?:down|up|input|output)_blocks?[._]\d|mid(?:dle)?_block[._]")
_PREFIX = re.compile(r"^(?:(?:transformer|diffusion_model|unet|base_model\.model)\.)+")
_FLAT = re.compile(r"^(?:lora_transformer_|lora_unet_|lycoris_)")
_BEGINS = re.compile(r"[a-z_]*blocks[._]\d|layers[._]\d|(?:noise|context)_refiner[._]\d|text_fusion\.")
_XLABS = re.compile(r"(.+\.processor\.(?:qkv|proj)_lora[12]?)\.(down|up)\.weight")
_WORDS = re.compile(
    r"(?:(?:single_|joint_|text_|visual_)?transformer_blocks|(?:double|single)_stream_blocks|(?:noise|context)_refiner"
    r"|token_refiner|refiner_blocks|time_(?:text|guidance|caption)_embed"
    r"|(?:timestep|text|guidance|context|condition|caption|time|x|cap|p|t|pooled)_embedder|(?:time|patch|pos)_embed"
    r"|linear_(?:in|out|[123])|norm_out|norm1_context|ff_context|proj_(?:in|out|mlp)|text_proj|time_proj"
    r"|to_add_out|to_qkv_mlp_proj|to_(?:out|[qkv])|add_[qkv]_proj|(?:img|txt)_(?:mlp|mod|in)|feed_forward"
    r"|adaLN_modulation|all_x_embedder|all_final_layer|caption_projection"
    r"|(?:double_stream_modulation_(?:img|txt)|single_stream_modulation)|[A-Za-z0-9-]+)(?:_|$)"
)


def of_transformer(keys: Collection[str], file: str) -> bool:
    """Whether these keys are of a transformer's LoRA, in whoever's names.

    Raises:
        FileRefused: some are, and some are of a UNet's.
    """
    unet, others = set(filter(_UNET.search, keys)), set()
    for key in set(keys) - unet:
        bare = _FLAT.sub("", _PREFIX.sub("", key))
        if key.startswith(("transformer.", "lora_transformer_")) or _BEGINS.match(bare):
            others.add(key)
    if unet and others:
        raise FileRefused(
            f"{file}: {min(unet)} belongs to a UNet, and {min(others)} to a transformer; expected a LoRA of one network"
        )
    return bool(others)


def transformer_factors(tensors: Mapping[str, Tensor], file: str) -> tuple[Factors, tuple[str, ...]]:
    """The factors by diffusers' names, and the family whose converter knew the file's own names, if one was asked.

    Each up is multiplied by alpha / rank. Modules of text encoders begin with `text_encoder.`.

    Raises:
        FileRefused: diffusers has no transformer with all these modules, or no converter for the names, or it is for a
            converter to read and all its up matrices are zero.
    """
    given = _with_strength(tensors, file)
    plain = {_plain(stem): factors for stem, factors in given.items()}
    if len(plain) == len(given) and _fits(plain):
        return plain, ()
    if not any(factors["up"].any() for factors in given.values()):
        raise FileRefused(
            f"{file}: the up matrices of all {len(given)} modules are zero, as before the first step of a training, so "
            "the file adds nothing; give one that was saved later"
        )
    for name in FAMILIES if len(given) <= _MOST else ():
        if name not in UNETS and (found := _converted(given, name)) is not None:
            return found, (name,)
    strange = next((stem for stem in given if not fitting({_plain(stem): (0, 0)})), min(given))
    raise FileRefused(
        f"{file}: {strange} is not a module of {', '.join(sorted(FAMILIES))} in diffusers' names or in others that it "
        "converts; give a LoRA for one of these"
    )


def side_of(key: str, file: str) -> tuple[str, str]:
    """The module's name in a key, and whether the key holds its down, up, mid or alpha.

    Raises:
        FileRefused: it is not a key of a plain LoRA.
    """
    try:
        return (found[1], found[2]) if (found := _XLABS.fullmatch(key)) else stem_and_side(key)
    except ValueError as error:
        raise FileRefused(
            f"{file}: {key} is not a key of a plain LoRA; expected diffusers' or kohya's names"
        ) from error


def _with_strength(tensors: Mapping[str, Tensor], file: str) -> Factors:
    """The factors by the names that they have in the file, once the strength is in them."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        stem, side = side_of(key, file)
        if side in (here := found.setdefault(stem, {})):
            raise FileRefused(f"{file}: {key} is there a second time under another spelling; remove one of the two")
        here[side] = value
    for stem, factors in found.items():
        alpha = factors.pop("alpha", None)
        if set(factors) != {"up", "down"}:
            there = " and ".join(sorted(factors)) or "only an alpha"
            raise FileRefused(
                f"{file}: {stem}: expected a down and an up factor, found {there}; download the file again"
            )
        if alpha is not None and (scale := float(alpha) / len(factors["down"])) != 1:
            factors["up"] = scale * factors["up"].float()
    return found


@cache
def _plain(stem: str) -> str:
    """A name in diffusers' spelling, if prefixes or dots are all that has to be changed for that."""
    if stem.startswith(_ALIKE):
        try:
            return module_of(stem)
        except ValueError:
            return stem
    bare = _PREFIX.sub("", stem)
    if not _FLAT.match(bare):
        return bare
    return ".".join(word.removesuffix("_") for word in _WORDS.findall(_FLAT.sub("", bare)))


def _fits(found: Factors) -> bool:
    return bool(fitting({name: (factors["up"].shape[0], factors["down"].shape[1]) for name, factors in found.items()}))


def _converted(given: Factors, family: str) -> Factors | None:
    """What a family's converter makes of a file; None where it is not for it. Parts of nothing are left out."""
    from diffusers.loaders import lora_pipeline
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        spelled = {key: value for stem, factors in given.items() for key, value in _spelled(stem, factors, family)}
        found = getattr(lora_pipeline, FAMILIES[family].loader).lora_state_dict(spelled)
        back = _with_strength({key: value for key, value in found.items() if not key.endswith(".alpha")}, family)
        named = {_plain(stem): _kept(factors) for stem, factors in back.items() if factors["up"].any()}
        return named if named and _fits(named) else None
    except Exception:  # whatever a converter raises, it says that it knows other names
        return None
    finally:
        logging.set_verbosity(before)


def _kept(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without directions that another part of a layer of q, k and v has alone, if most are such."""
    kept = factors["up"].flatten(1).any(0)
    if 2 * int(kept.sum()) > len(kept):
        return dict(factors)
    return {"up": factors["up"][:, kept], "down": factors["down"][kept]}


def _spelled(stem: str, factors: Mapping[str, Tensor], family: str) -> list[tuple[str, Tensor]]:
    """A module's factors under the keys that converters look for."""
    sides = ("lora_down", "lora_up")
    if ".processor." in stem:
        sides = ("down", "up")
    elif not stem.startswith("lora_"):
        bare = _PREFIX.sub("", stem)
        stem = bare if bare.startswith(_ALIKE) else f"diffusion_model.{bare}"
        sides = sides if family == "FLUX.1" else ("lora_A", "lora_B")
    return [(f"{stem}.{side}.weight", factors[k]) for side, k in zip(sides, ("down", "up"), strict=True)]
