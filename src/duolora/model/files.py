"""Where base models come from, and what is refused before a weight of them is read."""

import os
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import diffusers
import torch
import transformers
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from huggingface_hub import list_repo_files, snapshot_download, try_to_load_from_cache
from safetensors import safe_open

from duolora.errors import DuoLoRAError, FileRefused, InputError
from duolora.model.architectures import ARCHITECTURES
from duolora.model.base_check import AGAIN, TOKENIZERS, check_configs, check_files, check_tokenizers
from duolora.model.defaults import PICKLES, base_path, check_base
from duolora.model.flux import FLUX
from duolora.model.hub import hub_answers, not_downloaded
from duolora.model.kind import Kind
from duolora.model.kinds import KINDS, kind_of
from duolora.model.qwen import QWEN
from duolora.model.sd3 import SD3
from duolora.model.sdxl import architecture_of_keys, write_configs
from duolora.model.unets import SD15, SDXL as SDXL_KIND
from duolora.model.z_image import Z_IMAGE
from duolora.provenance import known_hash, sampled_hashes
from duolora.textfiles import read_json

Pipeline: TypeAlias = (
    StableDiffusionXLPipeline
    | StableDiffusionPipeline
    | FluxPipeline
    | StableDiffusion3Pipeline
    | ZImagePipeline
    | QwenImagePipeline
)
CONFIGS = ["*.json", "*.txt", "*.model"]
"""What a model on the hub has beside its weights: configs and tokenizers."""
HALF = "fp16"
"""How the names of weight files in 16 bits end, where those in 32 bits are beside them."""
_BEFORE = re.compile(r"((text_model|model|language_model)\.)+")
_OLDER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names in VAEs that older versions of diffusers wrote, and today's."""
UNREAD = {"feature_extractor": None, "image_encoder": None}
"""Parts of folders that nothing here has a use for."""
UNSAFE = {"safety_checker": None, "requires_safety_checker": False}
"""And those of Stable Diffusion's."""
TOKENIZER_CLASSES = [f"{name}Tokenizer{fast}" for name in ("CLIP", "T5", "Qwen2") for fast in ("", "Fast")]
NUMBERS = (
    "hidden_size", "projection_dim", "addition_time_embed_dim", "d_model", "latent_channels", "z_dim", "scaling_factor",
)  # fmt: skip
"""What configs say of the sizes of networks that fit each other."""
_CLIP = ("num_attention_heads", "num_hidden_layers", "hidden_act", "eos_token_id")
NEEDED = {
    "UNet2DConditionModel": ("attention_head_dim", "norm_num_groups", "transformer_layers_per_block"),
    "AutoencoderKL": ("scaling_factor", "layers_per_block"),
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
    "FluxTransformer2DModel": ("num_attention_heads", "attention_head_dim", "guidance_embeds"),
    "SD3Transformer2DModel": ("num_attention_heads", "attention_head_dim"),
    "ZImageTransformer2DModel": ("n_heads", "n_kv_heads"),
    "QwenImageTransformer2DModel": ("num_attention_heads", "attention_head_dim"),
}
"""What configs must say by a network's class; libraries make it up otherwise, and the weights' shapes do not tell."""
SINCE = ("scaling_factor", "transformer_layers_per_block")
"""What those of Stable Diffusion 1.5, which are older, do not say; what is made up is right there."""
OLDER_SCHEDULERS = ("PNDMScheduler", "DDIMScheduler", "DDPMScheduler")
"""Of Stable Diffusion 1.5, whose config leaves out what is newer; what these make up is right there."""
SHIFTED = (FLUX, QWEN)
"""Kinds whose timesteps are shifted by the image's size or not, as the scheduler's config says."""
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
PUBLISHED = {
    "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b": SDXL,  # the single file
    "357650fbfb3c7b4d94c1f5fd7664da819ad1ff5a839430484b4ec422d03f710a": SDXL,  # the UNet in float32
    "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139": SDXL,  # and in float16
}
"""SHA-256 of published weights. SSD-1B and Segmind-Vega are known by their hub ids only."""
LARGE = 2**32
"""Bytes that published weights have at least; smaller files are not hashed for it."""
SMALL = 256 * 1024 * 1024
CHECKPOINT_KEYS = (
    "model.diffusion_model.label_emb.0.0.weight",
    "first_stage_model.decoder.conv_in.weight",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    "conditioner.embedders.1.model.positional_embedding",
)
SD15_KEYS = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "first_stage_model.decoder.conv_in.weight",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
)
TRANSFORMERS = {
    "double_blocks.": FLUX, "single_transformer_blocks.": FLUX, "joint_blocks.": SD3, "pos_embed.": SD3,
    "cap_embedder.": Z_IMAGE, "add_q_proj.": QWEN,
}  # fmt: skip
"""Kinds by what is in the names of their transformers' weights, in the original spelling or diffusers'; in order."""
QUANTISED = re.compile(r"scaled_fp8$|[._](scale_weight|weight_scale|comfy_quant|absmax|quant_map)$|bitsandbytes")
BASES = (
    "SDXL 1.0, SSD-1B, Segmind-Vega, Stable Diffusion 1.5 and 3, FLUX.1, Z-Image, Qwen-Image, one of their fine-tunes, "
    "or `atelier`"
)


def read_pipeline(
    base: str, dtype: torch.dtype, config: Path | None, given: Mapping[str, Any] | None = None, whole: bool = True
) -> Pipeline:
    """The pipeline that `base` names (see `load_base`), on the CPU.

    Args:
        base: its name.
        dtype: of all networks.
        config: for a single file, a folder with the configs.
        given: parts that are taken as they are, by their names.
        whole: whether VAE and text encoders are read, too; without, they have no weights (see `read_network`).

    Raises:
        FileRefused: it is there, but unsafe, damaged or of no kind in `KINDS`.
        InputError: it is not there.
    """
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    check_base(base)
    path = base_path(base)
    if os.path.isfile(path):
        return _from_file(path, dtype, config, dict(given or {}), whole)
    elif not os.path.isdir(path):
        path = _downloaded(base, dtype)
    return _from_folder(path, dtype, dict(given or {}), whole)


def read_network(parts: Pipeline, name: str, base: str, dtype: torch.dtype, config: Path | None) -> None:
    """Read the weights of a network that has none into it; it stays the same object, with its hooks.

    Raises:
        FileRefused: they are damaged, or not there any more.
    """
    place = base_path(base)
    place = place if os.path.exists(place) else Path(str(parts.config.get("_name_or_path", base)))
    given = {other: part for other, part in parts.components.items() if other != name}
    network: torch.nn.Module = getattr(parts, name)
    read = getattr(read_pipeline(str(place), dtype, config, given), name)
    for module, found in zip(network.modules(), read.modules(), strict=True):
        tensors = {key: value for key, value in vars(found).items() if isinstance(value, torch.Tensor)}
        tensors |= dict(found.named_parameters(recurse=False)) | dict(found.named_buffers(recurse=False))
        for key, tensor in tensors.items():
            setattr(module, key, tensor)
    network.requires_grad_(False).eval()


def is_read(network: torch.nn.Module) -> bool:
    """Whether a network has its weights."""
    return not any(weight.is_meta for weight in network.parameters())


def read_outline(base: str, config: Path | None) -> Any:
    """What `read_pipeline` has of networks that LoRAs change, without weights: on the meta device, by the configs.

    Raises:
        DuoLoRAError: as `read_pipeline`.
    """
    check_base(base)
    path = base_path(base)
    with TemporaryDirectory() as facts:
        if os.path.isfile(path):
            keys, _ = check_single_file(path)
            kind, folder = _kind_of_file(path, keys, config), config or Path(facts)
            if config is None:
                write_configs(folder, architecture_of_keys(keys, path))
        else:
            folder = path if os.path.isdir(path) else _downloaded(base, None)
            kind = check_folder(folder, "none")
        with refusing(path):
            parts = {name: _empty(known, folder / name) for name, known in kind.networks.items() if name != "vae"}
    return type(kind.pipeline.__name__, (SimpleNamespace,), {})(**parts)


def _empty(name: str, folder: Path) -> torch.nn.Module:
    """A network of diffusers or transformers by its class and its folder's config, on the meta device."""
    config = _json(folder / "config.json")
    with torch.device("meta"):
        if hasattr(diffusers, name):
            found: torch.nn.Module = getattr(diffusers, name).from_config(config)
        else:
            known = getattr(transformers, name)
            found = known(known.config_class.from_dict(config))
    return found


def _unread(kind: Kind, folder: Path, given: dict[str, Any], whole: bool) -> dict[str, Any]:
    """The parts that are given, and if not the whole is to be read, VAE and text encoders without weights."""
    encoders = [] if whole else [name for name in kind.networks if name != kind.network]
    return {name: _empty(kind.networks[name], folder / name) for name in encoders} | given


def weights_mark(base: str) -> str | None:
    """A quick hash of a base's weight files, in hexadecimal; None for a hub id, or where no such file is."""
    place = base_path(base)
    files = [place] if os.path.isfile(place) else sorted(place.glob("*/*.safetensors"))
    return sampled_hashes(place, files) if files else None


def weight_files(base: str, parts: Pipeline) -> list[Path]:
    """The files that a pipeline's weights were read from; those of a hub id are in the hub's cache, by revision."""
    place = base_path(base)
    folder = place if os.path.isdir(place) else Path(parts.config.get("_name_or_path") or place)
    return [*([place] if os.path.isfile(place) else []), *sorted(folder.glob("*/*.safetensors"))]


def published_base(base: str) -> str | None:
    """The hub id of the published base that a folder or single file holds, by the UNet's config and its file's hash."""
    place = base_path(base)
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    tried = [place] if os.path.isfile(place) else [place / "unet" / name for name in names]
    here = [file for file in tried if file.is_file() and file.stat().st_size >= LARGE]
    known = PUBLISHED.get(known_hash(here[0])) if here else None
    if known is None or here == [place]:
        return known
    config, expected = _json(place / "unet" / "config.json"), ARCHITECTURES["sdxl"]
    alike = all(_plain(config.get(key, value)) == _plain(value) for key, value in expected.items())
    return known if alike else None


def _plain(value: Any) -> Any:
    """Lists, whether of JSON or of Python."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def is_small(base: str) -> bool:
    """Whether the weights of a base are here and at most `SMALL` bytes, so that several fit on one device."""
    sizes = [file.stat().st_size for file in base_path(base).glob("*/*.safetensors")]
    return 0 < sum(sizes) <= SMALL


def check_folder(folder: Path, weights: Literal["all", "encoders", "none"] = "all") -> Kind:
    """The kind of a diffusers folder, once it is certain that it holds no pickles, no code and no other model.

    `weights` are those that it must have: of all networks, of those beside the denoising one, or of none.

    Raises:
        FileRefused: with the reason.
    """
    kind, parts = _check_classes(folder)
    check_files(folder, parts)
    left = {"all": (), "encoders": (kind.network,), "none": kind.networks}[weights]
    for name in (name for name in kind.networks if name not in left):
        suffixes = {file.suffix for file in (folder / name).glob("*")}
        if ".safetensors" not in suffixes:
            held = "pickled weights, which are never opened" if suffixes.intersection(PICKLES) else "no weights"
            raise FileRefused(f"{folder / name}: expected .safetensors, found {held}; get the model as safetensors")
    configs = {name: _json(folder / name / "config.json") for name in kind.networks}
    others = [name for name in parts if name not in TOKENIZERS]
    check_configs({file: _json(file) for name in others for file in sorted((folder / name).glob("*config.json"))})
    _check_configs(folder, kind, configs)
    check_tokenizers(folder, {name: config for name, config in configs.items() if name.startswith("text_encoder")})
    file = folder / "scheduler" / "scheduler_config.json"
    schedule = _json(file)
    found = schedule.get("_class_name")
    if kind.flow and not str(found).startswith("FlowMatch"):
        raise FileRefused(f"{folder}: expected a scheduler of flow matching, as {kind.name}'s, found {found}")
    if not kind.flow and "beta_schedule" not in schedule:
        raise FileRefused(f"{folder}: expected a scheduler with betas, as SDXL's, found {found}; use {BASES}")
    _check_said(file, schedule, _needed_of_scheduler(kind, _json(folder / "model_index.json")["scheduler"][-1]))
    return kind


def _needed_of_scheduler(kind: Kind, name: str) -> list[str]:
    """What a scheduler's config must say, as far as the scheduler of this name has it."""
    if kind.flow:
        return ["shift", *(["use_dynamic_shifting"] if kind in SHIFTED else [])]
    needed = ["beta_start", "beta_end"]
    if kind is not SD15 or name not in OLDER_SCHEDULERS:
        needed += ["prediction_type", "timestep_spacing", "steps_offset"]
    taken = signature(getattr(diffusers, name)).parameters
    return [key for key in needed if key in taken]


def _check_classes(folder: Path) -> tuple[Kind, list[str]]:
    """The kind that a folder's index names, and its parts, once it is certain that all have classes known here."""
    index = _json(folder / "model_index.json")
    named = str(index.get("_class_name"))
    kind = KINDS.get(named) or (SDXL_KIND if named.startswith("StableDiffusionXL") else None)
    if kind is None:
        raise FileRefused(f"{folder}: expected a pipeline of {', '.join(KINDS)}, found {named[:60]}; use {BASES}")
    if index.get("safety_checker") == ["stable_diffusion", "StableDiffusionSafetyChecker"]:
        del index["safety_checker"]  # which is left unread
    parts = {name: value for name, value in index.items() if isinstance(value, list)}
    for name, value in parts.items():
        if value[:1] not in ([None], ["diffusers"], ["transformers"]):
            origin = reprlib.repr(value[0]) if value else "nowhere"
            raise FileRefused(f"{folder}: {name} would run code from {origin}, which is never done; use {BASES}")
    known = {name: [network] for name, network in kind.networks.items()}
    known |= {name: TOKENIZER_CLASSES for name, encoder in TOKENIZERS.items() if encoder in known}
    known["scheduler"] = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")]
    for name, classes in known.items():
        found = index.get(name)
        if not isinstance(found, list) or not found or found[-1] not in classes:
            expected = "one of diffusers' schedulers" if name == "scheduler" else " or ".join(classes)
            raise FileRefused(f"{folder}: {name}: expected {expected}, found {reprlib.repr(found)}; use {BASES}")
    return kind, list(parts)


def check_single_file(path: Path) -> tuple[set[str], dict[str, Any]]:
    """The keys of a single file, and what they say of its scheduler.

    Raises:
        FileRefused: it is a pickle, damaged, quantised, or neither a transformer nor a whole checkpoint of SDXL or
            Stable Diffusion 1.5.
    """
    if path.suffix.lower() in PICKLES:
        raise FileRefused(f"{path}: pickled weights are never opened; get the model as a .safetensors file")
    if path.suffix.lower() == ".gguf":
        raise FileRefused(
            f"{path}: GGUF is not read; get the model as a .safetensors file, in bfloat16 or plain float8"
        )
    with refusing(path), safe_open(path, "pt") as file:
        keys, metadata = set(file.keys()), file.metadata() or {}
    if scales := sorted(filter(QUANTISED.search, keys)):
        raise FileRefused(
            f"{path}: {scales[0]} says that its weights are quantised; get it in bfloat16, float16 or plain float8"
        )
    if _transformer(keys) is not None:
        return keys, {}
    if "cond_stage_model.model.positional_embedding" in keys:
        raise FileRefused(f"{path}: Stable Diffusion 2 as a single file is not read; name a diffusers folder")
    whole = CHECKPOINT_KEYS if any(key.startswith("conditioner.") for key in keys) else SD15_KEYS
    if missing := [key for key in whole if key not in keys]:
        known = "a whole checkpoint of SDXL or Stable Diffusion 1.5"
        raise FileRefused(f"{path}: expected {known}, but {missing[0]} is not in it; use {BASES}")
    if edm := [key for key in sorted(keys) if key.startswith("edm_")]:
        raise FileRefused(
            f"{path}: {edm[0]} says that it has EDM's noise levels, which nothing here knows; use {BASES}"
        )
    return keys, _schedule(keys, metadata)


def _schedule(keys: set[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a single file says of its scheduler: empty tensors mark velocity and zero terminal signal (ztsnr)."""
    velocity = "v_pred" in keys or metadata.get("modelspec.prediction_type") in ("v", "v_prediction")
    found = {"prediction_type": "v_prediction"} if velocity else {}
    return found | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in keys else {})


def _check_configs(folder: Path, kind: Kind, configs: dict[str, dict[str, Any]]) -> None:
    """Compare the facts of a network with those of its kind, and of the networks beside it."""
    for name, config in configs.items():
        for key in NUMBERS:
            if not isinstance(value := config.get(key) or 0, int | float):
                file = folder / name / "config.json"
                raise FileRefused(
                    f"{file}: {key}: expected a number, found {reprlib.repr(value)}; download the model again"
                )
        needed = [key for key in NEEDED.get(kind.networks[name], ()) if kind is not SD15 or key not in SINCE]
        if kind.flow and kind.networks[name] == "AutoencoderKL":
            needed.append("shift_factor")  # of latents, none in older models
        _check_said(folder / name / "config.json", config, needed)
    for key, expected in kind.facts(configs).items():
        if (found := configs[kind.network].get(key)) != expected:
            raise FileRefused(
                f"{folder / kind.network / 'config.json'}: expected {key} {expected!r} as {kind.name} has it, "
                f"found {reprlib.repr(found)}; use {BASES}"
            )


def _check_said(file: Path, config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse a config that leaves out what a library would make up."""
    if lost := [key for key in keys if config.get(key) is None]:
        raise FileRefused(f"{file}: {lost[0]}: expected a value, found none, and a library's own may be wrong; {AGAIN}")


def _from_folder(folder: Path, dtype: torch.dtype, given: dict[str, Any], whole: bool) -> Pipeline:
    """The pipeline of a folder, whose denoising network may be given."""
    kind = check_folder(folder, "encoders" if given.keys() & {"unet", "transformer"} else "all")
    with refusing(folder):
        unread = _unread(kind, folder, given, whole)
        read = [[file.name for file in (folder / name).glob("*.safetensors")] for name in {*kind.networks} - {*unread}]
        variant = HALF if any(names and all(f".{HALF}" in name for name in names) for names in read) else None
        parts = kind.pipeline.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant,
            **_without(kind) | unread,
        )  # fmt: skip
        stored = {name: _stored_keys(folder / name) for name in kind.networks if name not in given}
        _check_tokens(folder, parts)
    return _complete(folder, parts, stored, unread)


def _transformer(keys: set[str]) -> Kind | None:
    """The kind of a file with a transformer in it."""
    return next((kind for mark, kind in TRANSFORMERS.items() if any(mark in key for key in keys)), None)


def _kind_of_file(path: Path, keys: set[str], config: Path | None) -> Kind:
    """The kind of a single file, once it is certain that a folder beside it is of that kind, too."""
    transformer = _transformer(keys)
    kind = transformer or (SDXL_KIND if CHECKPOINT_KEYS[0] in keys else SD15)
    if transformer is not None and config is None:
        raise FileRefused(
            f"{path}: the transformer of {kind.name}; name by --base-config a folder of {kind.name} in diffusers' "
            "layout for text encoders, VAE and configs, or such a folder as the base itself"
        )
    if config is not None and not (config / "model_index.json").is_file():
        raise InputError(f"{config}: expected a diffusers folder with model_index.json")
    if config is not None and (found := check_folder(config, "encoders" if transformer else "none")) is not kind:
        raise FileRefused(f"{config}: expected the configs of {kind.name}, found {found.name}'s; name a folder of such")
    return kind


def _from_file(path: Path, dtype: torch.dtype, config: Path | None, given: dict[str, Any], whole: bool) -> Pipeline:
    keys, schedule = check_single_file(path)
    kind: Any = _kind_of_file(path, keys, config)
    if _transformer(keys) is not None and config is not None:
        if kind.network not in given:
            with refusing(path):
                given[kind.network] = getattr(diffusers, kind.networks[kind.network]).from_single_file(
                    str(path), dtype=dtype, config=str(config), subfolder=kind.network, local_files_only=True
                )
        return _from_folder(config, dtype, given, whole)
    with refusing(path), TemporaryDirectory() as facts:
        if config is None:
            write_configs(Path(facts), architecture_of_keys(keys, path))
        unread = _unread(kind, config or Path(facts), given, whole)
        parts: Pipeline = kind.pipeline.from_single_file(
            str(path), dtype=dtype, config=str(config or facts), local_files_only=True, **_without(kind) | unread
        )
        parts.scheduler = type(parts.scheduler).from_config(parts.scheduler.config, **schedule)
    return _complete(path, parts, {}, unread)


def _without(kind: Kind) -> dict[str, Any]:
    """What a pipeline is told of parts that are left unread."""
    return UNREAD | (UNSAFE if kind is SD15 else {})


def _complete(path: Path, parts: Pipeline, stored: dict[str, set[str]], unread: Collection[str]) -> Pipeline:
    """Refuse a model with weights that were not read: diffusers leaves them empty, transformers makes them up.

    And a denoising network whose file has weights beyond those of its config: diffusers leaves them out.
    """
    kind = kind_of(parts)
    for name in kind.networks:
        network, known = getattr(parts, name), {_bare(key) for key in stored.get(name, ())}
        known.update(map(_bare, getattr(network, "_tied_weights_keys", None) or ()) if known else ())
        if lost := [
            key
            for key, value in network.named_parameters()
            if (value.is_meta and (name not in unread or name == kind.network)) or (known and _bare(key) not in known)
        ]:
            raise FileRefused(f"{path}: {name}.{lost[0]} is missing ({len(lost)} in all); download the model again")
    network = getattr(parts, kind.network)
    if beyond := sorted(stored.get(kind.network, set()) - network.state_dict().keys()):
        raise FileRefused(
            f"{path}: {kind.network}.{beyond[0]} is in the weights, and by its config.json the network has no such "
            f"({len(beyond)} in all); {AGAIN}"
        )
    return parts


def _check_tokens(folder: Path, parts: Pipeline) -> None:
    """Refuse a tokenizer of another size than its text encoder; but for CLIP's, encoders leave room for more tokens."""
    for name, encoder in TOKENIZERS.items():
        if encoder in kind_of(parts).networks:
            tokenizer, config = getattr(parts, name), getattr(parts, encoder).config
            count, size = len(tokenizer), config.get_text_config().vocab_size
            if count > size or (count < size and isinstance(tokenizer, transformers.CLIPTokenizer)):
                raise FileRefused(f"{folder}: {name}: expected the {size} tokens of {encoder}, found {count}; {AGAIN}")


def _bare(key: str) -> str:
    """The name of an encoder's weight, whatever the versions of transformers and diffusers call it."""
    for older, name in _OLDER.items():
        key = key.replace(older, name)
    return _BEFORE.sub("", key)


def _stored_keys(folder: Path) -> set[str]:
    """The names of all weights in a folder's safetensors files."""
    keys: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            keys.update(file.keys())
    return keys


def _downloaded(base: str, dtype: torch.dtype | None) -> Path:
    """The folder in the hub's cache that holds the model of this id, downloaded if need be.

    Weights are those in 16 bits for a `dtype` of 16 bits, where there are such; without a `dtype` there are none.
    """
    away = not hub_answers()
    failed: Exception | None = None
    try:
        if dtype is None:
            return Path(
                snapshot_download(base, allow_patterns=CONFIGS, ignore_patterns="*.index.json", local_files_only=away)
            )
        for variant in _variants(base, dtype, away):
            try:
                return Path(
                    DiffusionPipeline.download(base, use_safetensors=True, local_files_only=away, variant=variant)
                )
            except Exception as error:
                failed = failed or error
        raise failed or FileNotFoundError(base)
    except Exception as error:  # a connection that breaks is requests' or httpx's error, by the hub library's version
        raise not_downloaded(base, error) from error


def _variants(base: str, dtype: torch.dtype, away: bool) -> list[str | None]:
    """Which weights of a hub id to ask for, `HALF` or the whole ones (None); of a hub that is away, what is here."""
    half = dtype in (torch.float16, torch.bfloat16)
    if away or not half:
        return ([HALF, None] if half else [None, HALF]) if away else [None]
    names = [name for name in list_repo_files(base) if re.match(r"(unet|transformer)/.*\.safetensors$", name)]
    whole = [name for name in names if f".{HALF}" not in name]
    here = bool(whole) and all(isinstance(try_to_load_from_cache(base, name), str) for name in whole)
    return [HALF if len(whole) < len(names) and not here else None]


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever the libraries raise for configs and weights that make no sense into one line about the file."""
    try:
        yield
    except DuoLoRAError:
        raise
    except Exception as error:
        reason = "weights are missing in it" if "meta tensor" in str(error) else _first_line(error)
        raise FileRefused(f"{path}: cannot be read as a base model: {reason}; download it again") from error


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {text}"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise FileRefused(f"{path}: not there; expected a folder in diffusers' layout; use {BASES}") from error
    if not isinstance(found, dict):
        raise FileRefused(f"{path}: expected a JSON object; download the model again")
    return found
