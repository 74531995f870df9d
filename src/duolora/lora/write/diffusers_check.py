"""A file as its commonest reader takes it: diffusers' own `load_lora_weights`, with its converters and PEFT.

No base is needed: the networks here have the adapter's layers and little else, and their weights are one zero that is
seen as a matrix, so that they cost nothing. What is compared are the factors and the strengths that PEFT multiplies
with.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import lora_pipeline
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils import logging
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from duolora.errors import reason
from duolora.lora.adapter import Adapter
from duolora.lora.families import Family
from duolora.lora.names import TEXT_ENCODERS
from duolora.lora.on_demand import outlines
from duolora.lora.read.file import read_adapter
from duolora.lora.read.peft_config import NETWORK
from duolora.lora.verify import identical, relative_error
from duolora.paper.lowrank import LowRank
from duolora.progress import through, underway

_NAME = "read"
_LAYERS_PER_BLOCK = 2
"""Of the UNets whose blocks we number as SDXL's original code does (see `names.kohya_names`)."""


class _Block(nn.Module):
    """A part of a network; some are known by numbers."""

    def __getitem__(self, name: object) -> nn.Module:
        found: nn.Module = getattr(self, str(name))
        return found


class _Layers(PeftAdapterMixin, nn.Module):  # type: ignore[misc]
    """A network for diffusers' loader: the layers that an adapter covers, under their names."""

    config = SimpleNamespace(layers_per_block=_LAYERS_PER_BLOCK, image_dim=None)

    def __init__(self, modules: Mapping[str, LowRank]) -> None:
        super().__init__()
        for name, lora in modules.items():
            place: nn.Module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, _Block())
                place = getattr(place, parent)
            place.add_module(leaf, _layer(lora))


def _pipeline(family: Family, components: Mapping[str, Mapping[str, LowRank]]) -> Any:
    """The part of the family's pipeline that loads LoRAs."""
    loader = getattr(lora_pipeline, family.loader)
    # anything but None as the map says that there is nothing to take off a device
    pipeline = type("Pipeline", (loader,), {"hf_device_map": MappingProxyType({}), "components": {}})()
    setattr(pipeline, family.network, _Layers(components[NETWORK]))
    for name in TEXT_ENCODERS:
        setattr(pipeline, name, _text_encoder(components[name]))
    return pipeline


def error_in_diffusers(path: Path, meant: Adapter, dtype: torch.dtype, ours: float) -> float:
    """The largest ‖ΔW_loaded − ΔW‖ / ‖ΔW‖ of any module, once diffusers has loaded the file.

    `dtype` is that of its factors, and of the layers that they are loaded on; `ours` is the error of the file as we
    read it, which is not measured again where diffusers gives the very same numbers.

    Raises:
        ReadingFailed: diffusers, PEFT or transformers raise something, or leave modules out.
    """
    try:
        with underway("Loading it as diffusers does"):
            loaded = loaded_by_diffusers(path, meant, dtype)
    except Exception as error:  # whatever they raise, the answer is that they cannot load it
        raise ReadingFailed(reason(error)[:200]) from error
    found = loaded.modules
    if missing := sorted(meant.modules.keys() - found.keys()):
        raise ReadingFailed(f"{missing[0]} is left out, {len(missing)} modules in all")
    if identical(read_adapter(path, as_stored=True), loaded):
        return ours
    return max(relative_error(lora, found[name]) for name, lora in through(meant.modules.items(), "Verifying"))


class ReadingFailed(Exception):
    """Diffusers cannot load a file, or not all of it."""


def loaded_by_diffusers(path: Path, meant: Adapter, dtype: torch.dtype) -> Adapter:
    """The adapter that diffusers makes of a file, on layers of the shapes that `meant` has.

    Raises:
        Exception: diffusers, PEFT or transformers cannot load it, for whatever reason they have.
    """
    components: dict[str, dict[str, LowRank]] = defaultdict(dict)
    for name, lora in outlines(meant.modules).items():
        encoder, _, rest = name.partition(".")
        component, rest = (encoder, rest.removeprefix("text_model.")) if encoder in TEXT_ENCODERS else (NETWORK, name)
        components[component][rest] = lora
    before, bars = logging.get_verbosity(), is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bar()
    try:
        with torch.device("meta"):
            pipeline = _pipeline(meant.family, components)
        network = getattr(pipeline, meant.family.network)
        for part in (network, pipeline.text_encoder, pipeline.text_encoder_2):
            _grounded(part, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of ranks of parts of a layer that the file has nothing for
            pipeline.load_lora_weights(
                str(path.parent), weight_name=path.name, adapter_name=_NAME, use_safetensors=True
            )
    finally:
        logging.set_verbosity(before)
        if bars:
            enable_progress_bar()
    found = _factors(network, "")
    for encoder in TEXT_ENCODERS:
        part = getattr(pipeline, encoder)
        found |= {} if part is None else _factors(part, f"{encoder}.")
    return Adapter(found, families=meant.families)


def _grounded(network: nn.Module | None, dtype: torch.dtype) -> None:
    """Put zeros of no size in place of weights on the meta device, to which PEFT would move the factors too."""
    for module in network.modules() if network is not None else ():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.zeros((), dtype=dtype).expand(weight.shape), False))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.zeros((), dtype=buffer.dtype).expand(buffer.shape))


def _factors(network: nn.Module, prefix: str) -> dict[str, LowRank]:
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer) and _NAME in layer.lora_A:
            up, down = (side[_NAME].weight.detach() for side in (layer.lora_B, layer.lora_A))
            kernel = (down.shape[2], down.shape[3]) if down.ndim == 4 else None
            bare = name.removeprefix("text_model.")
            full = bare if not prefix or bare == "text_projection" else f"text_model.{bare}"
            scale = float(layer.scaling[_NAME])
            found[f"{prefix}{full}"] = LowRank(up.flatten(1), down.flatten(1), scale, kernel)
    return found


def _layer(lora: LowRank) -> nn.Module:
    if lora.kernel is None:
        return nn.Linear(lora.d_in, lora.d_out, bias=False)
    return nn.Conv2d(lora.d_in // (lora.kernel[0] * lora.kernel[1]), lora.d_out, lora.kernel, bias=False)


def _text_encoder(modules: Mapping[str, LowRank]) -> nn.Module | None:
    """A CLIP text encoder that has these modules."""
    if not modules:
        return None
    sizes = {"width": 8, "inner": 8, "projection": 8}
    for name, lora in modules.items():
        ends = {"fc1": ("inner", "width"), "fc2": ("width", "inner"), "text_projection": ("projection", "width")}
        out, into = ends.get(name.rpartition(".")[2], ("width", "width"))
        sizes |= {out: lora.d_out, into: lora.d_in}
    layers = 0
    for name in modules:
        with suppress(ValueError, IndexError):
            layers = max(layers, 1 + int(name.split(".")[2]))
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=sizes["width"], intermediate_size=sizes["inner"], num_hidden_layers=layers,
        projection_dim=sizes["projection"], num_attention_heads=1, max_position_embeddings=8,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if "text_projection" in modules else CLIPTextModel(config)
