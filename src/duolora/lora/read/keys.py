"""From the keys of a LoRA file to modules of diffusers' networks; those of transformers are in `transformers`.

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

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from duolora.errors import FileRefused
from duolora.lora.adapter import Adapter
from duolora.lora.families import fitting, narrowed
from duolora.lora.names import module_of
from duolora.lora.on_demand import OnDemand
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.header import CONTROL, VERIFICATION, json_object, making, refuse_foreign
from duolora.lora.read.notes import notes_of
from duolora.lora.read.peft_config import ADAPTER_METADATA, NETWORK, PeftConfig, peft_configs
from duolora.lora.read.stored import outline
from duolora.lora.read.transformers import of_transformer, side_of, transformer_factors
from duolora.paper.lowrank import LowRank
from duolora.provenance import tensors_hash

BUNDLED = "bundle_emb."
"""How ComfyUI's and kohya's world begins the keys of an embedding inside a LoRA file."""
_MOST_WORDS = 64
"""With vectors of their own, in one file; the paper's LoRAs have one."""
_CONTROLLED = (3072, 128)
"""Outputs and inputs of FLUX.1's first layer where it is given a control image beside the noisy latents."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class _Parts:
    """What a file says about one module."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    """Without values, on the meta device, where `keys` say which tensors of the file have them."""
    alpha: float | None = None
    keys: dict[str, str] = field(default_factory=dict)


def adapter_from(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: str, as_stored: bool = False
) -> Adapter:
    """The adapter that the tensors and the header of a file spell out.

    Factors are in float32 or, `as_stored`, on demand: taken from `tensors` whenever a module is asked for.

    Raises:
        FileRefused: it is not a plain LoRA for a network that diffusers has, or its keys do not make whole LoRAs.
    """
    refuse_foreign(tensors, metadata, file)
    configs = peft_configs(metadata, file)
    parts, left_out, families = (_of_transformer if of_transformer(tensors, file) else _parts)(tensors, file)
    embeddings = _embeddings(tensors)
    left_out = [part for part in left_out if part.removeprefix(BUNDLED) not in embeddings]
    with_alpha = [name for name, part in parts.items() if part.alpha is not None]
    if with_alpha and configs:
        raise FileRefused(
            f"{file}: expected alphas beside the weights or in {ADAPTER_METADATA}, found both, "
            f"the first at {with_alpha[0]}; save it again with the program that made it"
        )
    shapes = {name: _shape(part) for name, part in parts.items()}
    families = families or narrowed(fitting(shapes), metadata)
    if families[:1] == ("FLUX.1",) and shapes.get("x_embedder") == _CONTROLLED:
        raise FileRefused(f"{file}: x_embedder with {_CONTROLLED[1]} inputs, where FLUX.1 has 64, {CONTROL}")
    outlines = {name: _lora(name, part, configs, file, families) for name, part in sorted(parts.items())}

    def made(name: str) -> LowRank:
        return _lora(name, _with_values(parts[name], tensors, as_stored), configs, file, families)

    modules = OnDemand(outlines, made) if as_stored else {name: made(name) for name in outlines}
    if not modules:
        raise FileRefused(
            f"{file}: expected LoRAs of modules, found {len(left_out)} other parts only; give a LoRA file"
        )
    verification = json_object(metadata, VERIFICATION, file)
    ours = "tensors" in verification and verification["tensors"] == tensors_hash(tensors)
    said = making(metadata, file)
    if not ours:  # programs that rewrite a file copy its header; which directions are the content's is not known then
        said.pop(CONTENT_RANKS, None)
    verified = verification if ours else {}
    return Adapter(modules, said, tuple(left_out), verified, notes_of(metadata), families, embeddings)


def _word_of(key: str) -> tuple[str, str]:
    """The word whose vectors a key of a bundled embedding holds, and for which text encoder of SDXL, if it says so."""
    word, _, encoder = key.removeprefix(BUNDLED).rpartition(".")
    return (word, encoder) if encoder in ("clip_l", "clip_g") else (key.split(".")[1], "")


def _embeddings(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Bundled embeddings that have vectors for both text encoders."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in sorted(key for key in tensors if key.startswith(BUNDLED)):
        (word, encoder), value = _word_of(key), tensors[key]
        sound = value.dtype in _FLOATS and value.ndim in (1, 2) and value.numel()
        if word and word.isprintable() and encoder and sound:
            found[word][encoder] = value.float().reshape(-1, value.shape[-1])
    return {word: known for word, known in [*found.items()][:_MOST_WORDS] if len(known) == 2}


_Read = tuple[dict[str, _Parts], list[str], tuple[str, ...]]
"""What the file says about each module, what is left out (embeddings and biases that some programs add), and the
families, as far as its spelling says more of them than its modules."""


def _parts(tensors: Mapping[str, Tensor], file: str) -> _Read:
    """What a UNet's LoRA says."""
    parts: dict[str, _Parts] = defaultdict(_Parts)
    left_out = set()
    for key in sorted(tensors):
        if key.startswith(BUNDLED):
            left_out.add(f"{BUNDLED}{_word_of(key)[0]}")
            continue
        if key.endswith(".diff_b"):
            left_out.add("differences of biases (.diff_b)")
            continue
        stem, side = side_of(key, file)
        part = parts[_module(stem, file)]
        if side in part.factors or (side == "alpha" and part.alpha is not None):
            raise FileRefused(f"{file}: {key} is there a second time under another spelling; remove one of the two")
        if side == "alpha":
            part.alpha = _number(tensors[key], key, file)
        else:
            part.factors[side] = _checked(outline(tensors, key), key, file)
            part.keys[side] = key
    return parts, sorted(left_out), ()


def _with_values(part: _Parts, tensors: Mapping[str, Tensor], as_stored: bool) -> _Parts:
    """The part with the values of its factors, as they are stored or in float32."""
    factors = {side: tensors[key] for side, key in part.keys.items()} if part.keys else part.factors
    return _Parts(factors if as_stored else {side: value.float() for side, value in factors.items()}, part.alpha)


def _of_transformer(tensors: Mapping[str, Tensor], file: str) -> _Read:
    """The same of a transformer's LoRA, whose strengths are in its factors then."""
    left_out = {"differences of biases (.diff_b)" for key in tensors if key.endswith(".diff_b")}
    for key, value in tensors.items():
        (_number if key.endswith(".alpha") else _checked)(value, key, file)
    factors, families = transformer_factors({k: v for k, v in tensors.items() if not k.endswith(".diff_b")}, file)
    return {name: _Parts(dict(here)) for name, here in factors.items()}, sorted(left_out), families


def _shape(part: _Parts) -> tuple[int, int]:
    """Outputs and inputs, as far as its factors say."""
    up, down = part.factors.get("up"), part.factors.get("down")
    return (0 if up is None else up.shape[0], 0 if down is None else down[0].numel())


def _module(stem: str, file: str) -> str:
    """The path in diffusers' UNet or text encoders of what a key names."""
    try:
        return module_of(stem)
    except ValueError as error:
        raise FileRefused(
            f"{file}: {stem} is not a module of SDXL's UNet or text encoders, nor of Stable Diffusion's, in kohya's or "
            "diffusers' names; use a LoRA that was trained on one of these or on a transformer that diffusers has"
        ) from error


def _number(value: Tensor, key: str, file: str) -> float:
    if value.numel() != 1 or value.is_complex():
        found = f"shape {tuple(value.shape)} of {value.dtype}"
        raise FileRefused(f"{file}: {key}: expected one number, got {found}; download the file again")
    return float(value)


def _checked(value: Tensor, key: str, file: str) -> Tensor:
    """A factor, once it is certain that it is a matrix or a convolution of real numbers."""
    if value.dtype not in _FLOATS:
        raise FileRefused(f"{file}: {key}: expected float16, bfloat16 or float32, got {value.dtype}; save it as one")
    if value.ndim not in (2, 4) or not value.numel():
        raise FileRefused(f"{file}: {key}: expected 2 or 4 sizes over 0, got {tuple(value.shape)}; download it again")
    return value


def _lora(name: str, part: _Parts, configs: Mapping[str, PeftConfig], file: str, families: tuple[str, ...]) -> LowRank:
    """The LoRA of one module, once it is certain that its factors are there and fit each other."""
    if set(part.factors) not in ({"up", "down"}, {"up", "mid", "down"}):
        there = " and ".join(sorted(part.factors)) or "only an alpha"
        raise FileRefused(f"{file}: {name}: expected a down and an up factor, found {there}; download the file again")
    up, down = part.factors["up"], _whole_down(name, part.factors, file)
    fits = up.ndim == down.ndim and up.shape[1] == down.shape[0] and set(up.shape[2:]) <= {1}
    if not fits:
        raise FileRefused(
            f"{file}: {name}: expected up (d_out, r) and down (r, d_in) with the same r, "
            f"got {tuple(up.shape)} and {tuple(down.shape)}; download the file again"
        )
    kernel = (down.shape[2], down.shape[3]) if down.ndim == 4 else None
    if kernel in (None, (1, 1)):  # some programs save linear layers as 1×1 convolutions, and others the reverse
        convolved = (".conv_shortcut", ".proj_in", ".proj_out") if families[:1] == ("SD 1.5",) else (".conv_shortcut",)
        kernel = (1, 1) if name.endswith(convolved) else None
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
            f"{file}: {name}: expected mid (r, r, h, w) and down (r, c, 1, 1), got {shapes}; download the file again"
        )
    return torch.einsum("pqhw,qi->pihw", mid.float(), down[..., 0, 0].float())


def _scale(name: str, part: _Parts, configs: Mapping[str, PeftConfig], rank: int) -> float:
    encoder, _, rest = name.partition(".")
    component = encoder if encoder.startswith("text_encoder") else NETWORK
    if component in configs:
        names = [name] if component == NETWORK else [rest, rest.removeprefix("text_model.")]
        return configs[component].scale(names, rank)
    return 1.0 if part.alpha is None else part.alpha / rank
