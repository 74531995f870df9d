"""DINO, DINOv2 and CLIP through transformers: safetensors only, and every key accounted for."""

import json
import re
import reprlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, CLIPModel, CLIPTokenizer, Dinov2Model, Dinov2WithRegistersModel, ViTModel

from duolora.errors import FileRefused, InputError, Notice, reason
from duolora.metrics.encoder import Card, NetworkEmbedder, fingerprint
from duolora.metrics.transforms import Transform
from duolora.model.base_check import AGAIN, check_files
from duolora.model.hub import hub_answers, not_downloaded

VISION: dict[str, Callable[..., Any]] = {
    "vit": partial(ViTModel.from_pretrained, add_pooling_layer=False),
    "dinov2": Dinov2Model.from_pretrained,
    "dinov2_with_registers": Dinov2WithRegistersModel.from_pretrained,
}
"""Backbones whose CLS token is the embedding, by transformers' model type."""
EXPECTED = {"dino": ("vit",), "dinov2": ("dinov2", "dinov2_with_registers")}
UNUSED = re.compile(r"^pooler\.|\.position_ids$")
"""What some checkpoints carry beside the network: a pooling layer, and the numbers 0, 1, 2, … of OpenAI's CLIP."""
PUBLISHED, SENTENCE, TOKENS = 49408, "a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]
"""How many tokens CLIP's tokenizer has, and how it reads a sentence."""
HIGHEST = 2
"""The `eos_token_id` of older configs: the text's vector is then that of its token with the highest number."""
PICKLED = "pytorch_model*.bin"


def load_vision(
    name: str, source: str, transform: Transform, device: torch.device, progress: bool = False
) -> NetworkEmbedder:
    """The CLS token of the last layer, after its norm, as DreamBooth's DINO metric takes it.

    Raises:
        InputError: the checkpoint is not there.
        FileRefused: it is of another kind, damaged, pickled, or a key is missing, unexpected or of another shape.
    """
    config = _opened(source, partial(AutoConfig.from_pretrained, trust_remote_code=False))
    if config.model_type not in EXPECTED[name]:
        expected = " or ".join(EXPECTED[name])
        raise FileRefused(f"{source}: expected a model of type {expected} for {name}, found {config.model_type}")
    _check_heads(source, config)
    network = _checked(source, VISION[config.model_type], device)
    architecture = f"{config.model_type}, width {config.hidden_size}, patch {config.patch_size}"

    def cls(pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
        return network(pixel_values=pixels).last_hidden_state[:, 0]

    card = Card(name, source, architecture, str(transform), fingerprint(network.state_dict()))
    return NetworkEmbedder(card, transform, cls, None, device, progress=progress)


def load_clip(source: str, transform: Transform, device: torch.device, progress: bool = False) -> NetworkEmbedder:
    """CLIP's projected image and text embeddings, for plain cosines (CLIP-I, CLIP-T); long texts are cut, and told.

    Raises:
        InputError: the checkpoint is not there.
        FileRefused: it is of another kind, damaged, pickled, or a key is missing, unexpected or of another shape.
    """
    config = _opened(source, partial(AutoConfig.from_pretrained, trust_remote_code=False))
    if config.model_type != "clip":
        raise FileRefused(f"{source}: expected a model of type clip, found {config.model_type}")
    _check_heads(source, config, "text_config", "vision_config")
    network = _checked(source, CLIPModel.from_pretrained, device)
    tokenizer = _tokenizer(source, config.text_config.vocab_size)
    if (end := config.text_config.eos_token_id) not in (HIGHEST, tokenizer.eos_token_id):
        raise FileRefused(
            f"{source}: config.json: text_config: eos_token_id: expected {tokenizer.eos_token_id}, the tokenizer's, "
            f"found {end}; {AGAIN}"
        )
    longest = config.text_config.max_position_embeddings

    def images(pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
        return network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)

    def texts(words: list[str]) -> Float[Tensor, "n d"]:
        """Projected embeddings of texts; what CLIP cannot read of one is told."""
        for ids in tokenizer(words).input_ids:
            if rest := tokenizer.decode(ids[longest - 1 :], skip_special_tokens=True).strip():
                line = f"prompt: longer than CLIP reads; {reprlib.repr(rest)} counts for nothing"
                warnings.warn(f"{line}: put what matters first, or shorten the prompt", Notice, stacklevel=2)
        tokens = tokenizer(words, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        return network.text_projection(network.text_model(**tokens).pooler_output)

    vision = config.vision_config
    architecture = f"clip, width {vision.hidden_size}, patch {vision.patch_size}"
    tokens = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer(SENTENCE).input_ids])
    card = Card("clip", source, architecture, str(transform), fingerprint(network.state_dict(), tokens))
    return NetworkEmbedder(card, transform, images, texts, device, progress=progress)


def _check_heads(source: str, config: Any, *towers: str) -> None:
    """Refuse a config that leaves out heads of attention, which transformers makes up; shapes of weights do not tell.

    Older versions leave out of the config of a tower of CLIP what is as in their class; there its width is so, too.
    """
    said = _opened(source, lambda *place, **options: type(config).get_config_dict(*place, **options)[0])
    for tower in towers or ("",):
        here = {**(said.get(tower) or {}), **(said.get(f"{tower}_dict") or {})} if tower else said
        found = getattr(config, tower) if tower else config
        usual = bool(tower) and found.hidden_size == type(found)().hidden_size
        if here.get("num_attention_heads") is None and not usual:
            place = f"{tower}: num_attention_heads" if tower else "num_attention_heads"
            raise FileRefused(f"{source}: config.json: {place}: expected a number, found none; {AGAIN}")


def _tokenizer(source: str, size: int) -> CLIPTokenizer:
    """CLIP's tokenizer; where its files are missing, transformers makes up one of two words, and all texts are alike.

    Raises:
        FileRefused: it has another size than the text encoder takes, or reads a known sentence otherwise.
    """
    tokenizer = _opened(source, CLIPTokenizer.from_pretrained)
    remedy = "expected the checkpoint's own; put its vocab.json and merges.txt (or tokenizer.json) beside config.json"
    if len(tokenizer) != size:
        raise FileRefused(f"{source}: its tokenizer has {len(tokenizer)} tokens, its text encoder {size}; {remedy}")
    if size == PUBLISHED and (found := tokenizer(SENTENCE).input_ids) != TOKENS:
        raise FileRefused(f"{source}: its tokenizer reads {SENTENCE!r} as {found}, not {TOKENS}; {remedy}")
    return tokenizer


def _checked(source: str, load: Callable[..., Any], device: torch.device) -> Any:
    """The network in float32, after every key of its checkpoint has been accounted for."""
    network, info = _opened(source, load, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True)
    kinds = {
        "missing": list(info["missing_keys"]),
        "of another shape": [key[0] for key in info["mismatched_keys"]],
        "unexpected": [key for key in info["unexpected_keys"] if not UNUSED.search(key)],
    }
    for kind, keys in kinds.items():
        if keys:
            raise FileRefused(
                f"{source}: {min(keys)} is {kind} ({len(keys)} such keys); expected exactly the weights of "
                f"{type(network).__name__}; get the published checkpoint again, with its own config.json"
            )
    return network.float().to(device).eval().requires_grad_(False)


def _opened(source: str, load: Callable[..., Any], **options: Any) -> Any:
    """What `load` gives, with what the libraries raise turned into one line about the checkpoint."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileRefused(f"{source}: no config.json; expected a folder in transformers' layout")
        if list(folder.glob(PICKLED)) and not list(folder.glob("*.safetensors")):
            raise FileRefused(
                f"{source}: its weights are pickled, and a pickle is never opened; expected model.safetensors "
                "(`duolora checkpoints convert` makes it)"
            )
        check_files(folder, ["."])
    elif folder.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(f"{source}: expected a folder in transformers' layout or a hub id such as owner/name")
    try:
        if folder.is_dir():
            return load(str(folder), **options)
        return load(source, local_files_only=not hub_answers(), **options)
    except Exception as error:  # the hub library checks configs, too, and has errors of its own
        if folder.is_dir():
            raise FileRefused(f"{source}: cannot be loaded: {reason(error)}; get the checkpoint again") from error
        raise not_downloaded(source, error) from error
