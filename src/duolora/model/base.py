"""Base models: load one, and encode prompts and images with it, once.

Only safetensors are read, and no code that comes with a model is run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.hooks import apply_layerwise_casting
from jaxtyping import Float, Int
from torch import Tensor, nn

from duolora.errors import InputError
from duolora.lora.names import TEXT_ENCODERS
from duolora.model.architectures import Architecture
from duolora.model.blocks import architecture_of, block_of, layer_shapes, target_modules
from duolora.model.defaults import FILE as DEFAULTS, BaseChoice as BaseChoice, BaseDefaults, base_path, read_defaults
from duolora.model.device import FLOAT8, NF4, Offload, chosen_checkpointing, chosen_device, chosen_dtype, chosen_offload
from duolora.model.files import Pipeline, is_read, read_network, read_outline, read_pipeline, refusing, weight_files
from duolora.model.kind import Kind
from duolora.model.kinds import kind_of
from duolora.model.prompts import chunks, tell_unread
from duolora.options import word
from duolora.progress import underway
from duolora.provenance import remembered, versions, weights_hash

Network: TypeAlias = (
    UNet2DConditionModel
    | FluxTransformer2DModel
    | SD3Transformer2DModel
    | ZImageTransformer2DModel
    | QwenImageTransformer2DModel
)
PIXELS_AT_ONCE = 1024 * 1024
SIDE = 128
"""Latents a side, where neither the network nor the pipeline says it."""


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """Prompts as the network wants them: one vector a token, and one a prompt, as its `Kind` says."""

    embeds: Float[Tensor, "n L d"]
    pooled: Float[Tensor, "n p"]

    def rows(self, numbers: Int[Tensor, " batch"]) -> "PromptEmbeds":
        """The prompts of these numbers, one for each sample of a batch."""
        numbers = numbers.to(self.embeds.device)
        return PromptEmbeds(self.embeds[numbers], self.pooled[numbers])

    def after(self, empty: "PromptEmbeds") -> "PromptEmbeds":
        """These prompts behind the empty one, which is number 0, in as many chunks as they have."""
        same = empty.embeds.repeat(1, self.embeds.shape[1] // empty.embeds.shape[1], 1)
        return PromptEmbeds(torch.cat((same, self.embeds)), torch.cat((empty.pooled, self.pooled)))


@dataclass(eq=False)
class Base:
    """A base model, frozen: a pipeline of one of the `KINDS` with its noise scheduler for training.

    The VAE is float32 whatever the rest is. VAE and text encoders are read when they are first needed; released ones
    (`release_encoders`) wait on the CPU, or are read again. With `offload`, networks take turns on the device, and
    diffusers' own offloading holds while images are generated; while something is trained, the UNet is on the device
    whole, and alone there.
    """

    name: str
    parts: Pipeline
    noise_scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler
    device: torch.device
    dtype: torch.dtype
    offload: Offload = "none"
    defaults: BaseDefaults = field(default_factory=BaseDefaults)
    """What suits it, by its own folder."""
    size: int = 0
    """Height and width, in pixels, to work at; 0 is what it was made for."""
    keeps_encoders: bool = True
    """Whether VAE and text encoders wait on the CPU once they are released, to be used again soon, or are given up."""
    _config: Path | None = None
    """For a single file, the folder of its configs."""
    _as_read: dict[str, frozenset[tuple[int, int]]] = field(default_factory=dict, repr=False)
    """The state of each network's weights as they were read (see `_state`); of one that was made here there is none."""

    @property
    def unet(self) -> Network:
        """The denoising network, be it a UNet or a transformer."""
        return getattr(self.parts, self.kind.network)

    @property
    def kind(self) -> Kind:
        """What sets it apart from other kinds of bases."""
        return kind_of(self.parts)

    @property
    def vae(self) -> AutoencoderKL | AutoencoderKLQwenImage:
        """The autoencoder between pixels and latents."""
        self._read([self.parts.vae])
        return self.parts.vae

    @property
    def resolution(self) -> int:
        """Height and width, in pixels, of its images: as asked for, or what the base was made for."""
        latents = self.unet.config.get("sample_size") or getattr(self.parts, "default_sample_size", SIDE)
        return self.size or int(latents * self.parts.vae_scale_factor)

    @property
    def architecture(self) -> Architecture:
        """The UNet's attention projections."""
        return architecture_of(self.unet, self.name)

    def lora_shapes(self) -> dict[str, tuple[int, int]]:
        """See `lora_shapes` below."""
        return lora_shapes(self.parts)

    def weights_hash(self) -> str:
        """SHA-256 of all weights: what the base is, whatever it is called.

        Remembered by the files that they were read from, unless they were changed since.
        """
        files = weight_files(self.name, self.parts) if all(map(self._is_as_read, self._networks())) else []
        if not files:
            return weights_hash(self._one_by_one())
        dtypes = sorted({str(weight.dtype) for weight in self.unet.parameters()})
        return remembered(files, (str(self.dtype), *dtypes, versions()), lambda: weights_hash(self._one_by_one()))

    def _networks(self) -> list[nn.Module]:
        return [self.unet, *self._encoders()]

    def _one_by_one(self) -> Iterator[nn.Module]:
        """All networks; those that are read for this only are given up again, each before the next."""
        for network in self._networks():
            known = is_read(network)
            self._read([network])
            yield network
            if not known:
                network.to("meta")

    def _encoders(self) -> list[nn.Module]:
        return [self.parts.vae, *text_encoders(self.parts)]

    @property
    def text_encoders(self) -> list[nn.Module]:
        """One of Stable Diffusion's, two of SDXL's, three of Stable Diffusion 3's."""
        found = text_encoders(self.parts)
        self._read(found)
        return found

    def _read(self, wanted: Sequence[nn.Module]) -> None:
        """Read the weights of those networks that have none yet."""
        for name in self.kind.networks:
            network = getattr(self.parts, name)
            if any(network is one for one in wanted) and not is_read(network):
                kind = torch.float32 if network is self.parts.vae else self.dtype
                with underway(f"Reading {name}"):
                    read_network(self.parts, name, self.name, kind, self._config)
                network.to(kind)
                self._as_read[name] = _state(network)

    def _is_as_read(self, network: nn.Module) -> bool:
        """Whether a network's weights are those of its file, read or not."""
        name = next(name for name in self.kind.networks if getattr(self.parts, name) is network)
        return name in self._as_read and (not is_read(network) or _state(network) == self._as_read[name])

    def described(self) -> str:
        """The base, and where and how it runs, in one line."""
        saving = ", gradient checkpointing" if self.unet.is_gradient_checkpointing else ""
        place = f"{self.name} on {self.device} in {str(self.dtype).removeprefix('torch.')}, {self.resolution} pixels"
        return f"{place}, offloading: {self.offload}{saving}"

    def _bring(self, *wanted: nn.Module) -> None:
        """Move networks to the device; with offloading the others leave it first."""
        self._read(wanted)
        if self.offload != "none":
            for module in self._networks():
                if all(module is not one for one in wanted) and is_read(module):
                    module.to("cpu")
        for module in wanted:
            module.to(self.device)

    def bring_unet(self) -> None:
        """Make sure that the UNet is on the device, as whoever calls it directly needs it."""
        self._bring(self.unet)

    def release_encoders(self) -> None:
        """Leave the device to the UNet: the VAE and the text encoders go to the CPU, or are given up.

        Those whose weights are not in a file, or have changed, are never given up.
        """
        for module in filter(is_read, self._encoders()):
            module.to("cpu" if self.keeps_encoders or not self._is_as_read(module) else "meta")
        self.bring_unet()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The prompts in the vectors of both text encoders, in the UNet's dtype; warns of words that are not read.

        Long prompts are read in chunks where the base allows, the others filled up with empty ones; the pooled vector
        is the first chunk's. Gradients reach nothing but learned tokens (see `prompts`).
        """
        if not prompts:
            raise InputError("expected at least one prompt, got none")
        tell_unread(self.parts, prompts)
        self._bring(*text_encoders(self.parts))
        parts = [chunks(self.parts, prompt) for prompt in prompts]
        most = max(map(len, parts))
        texts = [text for part in parts for text in (*part, *[""] * (most - len(part)))]
        embeds, pooled = self.kind.encode(self.parts, texts, self.device)
        return PromptEmbeds(
            embeds.to(self.dtype).reshape(len(parts), -1, embeds.shape[2]), pooled[::most].to(self.dtype)
        )

    def empty_prompt(self) -> PromptEmbeds:
        """What the pipeline's guidance takes as the prompt that says nothing: zeros, where the pipeline says so."""
        empty = self.encode_prompts([""])
        if not self.parts.config.get("force_zeros_for_empty_prompt"):
            return empty
        return PromptEmbeds(torch.zeros_like(empty.embeds), torch.zeros_like(empty.pooled))

    @torch.no_grad()
    def encode_images(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        """Latents of images in [-1, 1], the posterior's mean less the VAE's shift times its scaling factor, float32."""
        scale = self.parts.vae_scale_factor * self.kind.patch
        height, width = pixels.shape[2:]
        if height % scale or width % scale:
            raise InputError(f"images: height and width must be multiples of {scale}, got {height}×{width}; crop them")
        self._bring(self.parts.vae)
        latents = []
        for part in torch.split(pixels, _at_once(height * width)):
            images = part.to(self.device, torch.float32)
            latents.append(self.vae.encode(images[:, :, None] if self.kind.video else images).latent_dist.mean)
        found = torch.cat(latents)
        shift, scale = self._scaling
        return ((found[:, :, 0] if self.kind.video else found) - shift) * scale

    @property
    def _scaling(self) -> tuple[Tensor, Tensor]:
        """What is taken from the VAE's latents, and what multiplies them then: a number each, or one a channel."""
        config = self.vae.config
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        shift, std = (
            torch.tensor(x, device=self.device)[:, None, None] for x in (mean, config.get("latents_std") or [1.0])
        )
        return shift, config.get("scaling_factor", 1.0) / std

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        """Images, about in [-1, 1], of latents as `encode_images` makes them; float32."""
        self._bring(self.parts.vae)
        shift, scale = self._scaling
        scaled = latents.to(self.device, torch.float32) / scale + shift
        parts = torch.split(scaled, _at_once(latents.shape[2] * latents.shape[3] * self.parts.vae_scale_factor**2))
        if self.kind.video:
            return torch.cat([self.vae.decode(part[:, :, None], return_dict=False)[0][:, :, 0] for part in parts])
        return torch.cat([self.vae.decode(part, return_dict=False)[0] for part in parts])

    def time_ids(self) -> Float[Tensor, "1 6"]:
        """SDXL's size conditions of an uncropped image: original size, corner, target size; others ignore them."""
        side = float(self.resolution)
        return torch.tensor([[side, side, 0.0, 0.0, side, side]], device=self.device)

    def pipeline(self) -> Pipeline:
        """The whole pipeline, with the base's own sampler; on the device, unless `sampling` offloads it.

        It is this base's own, so a LoRA loaded into it stays in the base until it is unloaded. Where the UNet is
        narrower than float32, ask it for `output_type="latent"` and use `decode`, because the VAE stays float32.
        """
        self._read(self._encoders())
        if self.offload == "none":
            self._bring(*self._networks())
        return self.parts

    @contextmanager
    def sampling(self) -> Iterator[Pipeline]:
        """The pipeline while it generates, offloaded by diffusers if the base is to be; plain again on leaving."""
        pipeline = self.pipeline()
        if self.offload == "model":
            pipeline.enable_model_cpu_offload(device=self.device)
        elif self.offload == "sequential":
            for module in self._networks():
                module.to("cpu")
            pipeline.enable_sequential_cpu_offload(device=self.device)
        try:
            yield pipeline
        finally:
            if self.offload != "none":
                pipeline.remove_all_hooks()


def opened(base: "str | Path | BaseChoice | Base", once: bool = False) -> Base:
    """The base itself, loaded if it is not yet; `once` gives up its VAE and text encoders whenever they are released.

    Raises:
        DuoLoRAError: as `load_base`.
    """
    if isinstance(base, Base):
        return base
    base = base if isinstance(base, BaseChoice) else BaseChoice(str(base))
    with underway(f"Loading {base.base}", base.announce is not None):
        loaded = load_base(
            base.base, base.device, base.dtype, base.config, base.offload, base.gradient_checkpointing, base.resolution
        )
    loaded.keeps_encoders = not once
    if base.announce is not None:
        base.announce(loaded.described())
    return loaded


@dataclass(frozen=True, eq=False)
class Outline:
    """A base without its weights, for what needs no more than the names and shapes of its layers."""

    name: str
    architecture: Architecture
    shapes: dict[str, tuple[int, int]]
    """Those of `lora_shapes`."""


def outlined(base: BaseChoice) -> Outline:
    """The outline of a base; no weight is read.

    Raises:
        DuoLoRAError: as `load_base`.
    """
    parts = read_outline(base.base, base.config)
    network = getattr(parts, kind_of(parts).network)
    return Outline(base.base, architecture_of(network, base.base), lora_shapes(parts))


def path_of(base: "str | Path | BaseChoice | Base | None") -> Path | None:
    """Where a base is, or would be if it were no hub id."""
    if base is None:
        return None
    return base_path(base.name if isinstance(base, Base) else str(base.base if isinstance(base, BaseChoice) else base))


def text_encoders(parts: Any) -> list[nn.Module]:
    """The text encoders of a pipeline that has up to three."""
    names = (*TEXT_ENCODERS, "text_encoder_3")
    return [encoder for name in names if (encoder := getattr(parts, name, None)) is not None]


def lora_shapes(parts: Any) -> dict[str, tuple[int, int]]:
    """The (d_out, d_in) of every layer that a LoRA may change, by the names that adapters use.

    Those of text encoders are `text_encoder.text_model.…`, whatever this version of transformers calls them.
    """
    shapes = layer_shapes(getattr(parts, kind_of(parts).network))
    for encoder, network in zip(TEXT_ENCODERS, text_encoders(parts), strict=False):
        for name, shape in layer_shapes(network).items():
            bare = name.removeprefix("text_model.")
            shapes[f"{encoder}.{bare if bare == 'text_projection' else f'text_model.{bare}'}"] = shape
    return shapes


def _state(network: nn.Module) -> frozenset[tuple[int, int]]:
    """Which tensors a network has, and how often each was changed in place; moving it to a device changes nothing."""
    weights = (*network.parameters(), *network.buffers())
    return frozenset((id(weight), weight._version) for weight in weights)


def _at_once(area: int) -> int:
    """How many images of `area` pixels the VAE takes at once, to bound its memory."""
    return max(1, PIXELS_AT_ONCE // area)


def _checked_size(resolution: int | None, parts: Pipeline) -> int:
    """The side of images as asked for, 0 for the base's own, once it is certain that VAE and UNet can halve it."""
    kind = kind_of(parts)
    halved = 2 ** (len(parts.unet.config.block_out_channels) - 1) if kind.network == "unet" else kind.patch
    step = parts.vae_scale_factor * halved
    if resolution is not None and (resolution < step or resolution % step):
        raise InputError(f"resolution: expected a multiple of {step} pixels, got {resolution}")
    return resolution or 0


def _keep_small(network: Network, kind: Kind, dtype: str, device: torch.device) -> None:
    """Keep the weights of a transformer's blocks in float8 or NF4; each layer widens its own for its turn.

    Within blocks only: there checkpointing computes anew what a gradient needs, in the compute dtype.

    Raises:
        InputError: the network is a UNet, or NF4 is asked for where bitsandbytes is not installed.
    """
    if kind.network == "unet":
        raise InputError(f"dtype: {dtype} is for the blocks of a transformer, and {kind.name} has a UNet; take float16")
    for block in map(network.get_submodule, dict.fromkeys(map(block_of, target_modules(network)))):
        if dtype == FLOAT8:
            apply_layerwise_casting(block, torch.float8_e4m3fn, network.dtype, skip_modules_pattern=("norm",))
        else:
            _keep_in_nf4(block, network.dtype, device)


def _keep_in_nf4(block: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    try:
        layers = import_module("bitsandbytes.nn")
    except ImportError as error:
        raise InputError("dtype: nf4 needs bitsandbytes, which is not installed; pip install bitsandbytes") from error
    for name, layer in [*block.named_modules()]:
        if isinstance(layer, nn.Linear):
            small = layers.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type=NF4
            )
            small.load_state_dict(layer.state_dict())
            block.set_submodule(name, small.requires_grad_(False).to(device).eval())


def load_base(
    base: str | Path = "atelier",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    config: str | Path | None = None,
    offload: str = "auto",
    gradient_checkpointing: str = "auto",
    resolution: int | None = None,
) -> Base:
    """Load a base model, frozen and ready.

    Args:
        base: `atelier`, a diffusers folder, a single .safetensors checkpoint, or a hub id such as `owner/name`.
        device: where it runs; "auto" is CUDA where there is one.
        dtype: of UNet and text encoders; "auto" is what the base's folder says, else float32 on the CPU, and elsewhere
            bfloat16 or, on GPUs that are too old for it, float16; "float8" and "nf4" are that with the weights of a
            transformer's blocks kept in 8 bits, or in 4 by bitsandbytes, with gradient checkpointing.
        config: for a single file, a diffusers folder with the configs and tokenizers; by default SDXL's, SSD-1B's,
            Segmind-Vega's or Stable Diffusion 1.5's own. For a transformer's file, which has none of them, the folder
            gives the text encoders and the VAE, too.
        offload: none; model (networks take turns on the device); sequential (layers do, as images are generated: slow,
            and hardly any memory); "auto" is by the device's free memory.
        gradient_checkpointing: on (activations are computed twice and not kept, for training in less memory), off, or
            "auto": on for small GPUs.
        resolution: height and width of images in pixels, by default what the base was made for.

    Raises:
        FileRefused: it is there, but unsafe, damaged or of no kind in `KINDS`.
        InputError: it is not there, or an argument cannot be used.
    """
    word("offload", offload, ("auto", *get_args(Offload)))
    where, defaults = chosen_device(device), read_defaults(str(base))
    saving = chosen_checkpointing(gradient_checkpointing, where)
    kind = chosen_dtype(defaults.dtype if dtype == "auto" else dtype, where)
    configs = None if config is None else Path(config).expanduser()
    parts = read_pipeline(str(base), kind, configs, whole=False)
    kind_found = kind_of(parts)
    network = getattr(parts, kind_found.network)
    for module in (network, parts.vae, *text_encoders(parts)):
        module.requires_grad_(False).eval()
    parts.vae.to(torch.float32)
    for module in (network, *text_encoders(parts)):
        module.to(kind)
    if small := dtype if dtype in (FLOAT8, NF4) else None:
        _keep_small(network, kind_found, small, where)
    parts.set_progress_bar_config(disable=True)
    with refusing(Path(base)):
        noise_scheduler = parts.scheduler if kind_found.flow else DDPMScheduler.from_config(parts.scheduler.config)
    if not (base_path(str(base)) / DEFAULTS).is_file():
        defaults = replace(defaults, guidance=kind_found.guidance)
    offloading = chosen_offload(offload, where, network, [parts.vae, *text_encoders(parts)])
    size = _checked_size(resolution, parts)
    found = Base(str(base), parts, noise_scheduler, where, kind, offloading, defaults, size, _config=configs)
    if saving or small:
        network.enable_gradient_checkpointing()
    if offloading == "none":
        found.bring_unet()
    found._as_read = {name: _state(getattr(parts, name)) for name in kind_found.networks}
    return found
