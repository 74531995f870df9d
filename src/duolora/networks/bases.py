"""Base models: load one, and encode prompts and pictures with it, once.

Only safetensors are read, and no code that comes with a model is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from duolora.adapters.names import TEXT_ENCODERS
from duolora.errors import InputError
from duolora.networks.base_files import read_pipeline, refusing
from duolora.networks.targets import layer_shapes

PIXELS_AT_ONCE = 1024 * 1024


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """Prompts as the UNet wants them: one vector a token, and one a prompt."""

    embeds: Float[Tensor, "n L d"]
    pooled: Float[Tensor, "n p"]


@dataclass(eq=False)
class Base:
    """A base model, frozen: an SDXL-shaped pipeline with its noise scheduler for training.

    The VAE is float32 whatever the rest is. VAE and text encoders may wait on the CPU (`release_encoders`); whatever
    needs them brings them back.
    """

    name: str
    parts: StableDiffusionXLPipeline
    noise_scheduler: DDPMScheduler
    device: torch.device
    dtype: torch.dtype

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoising network."""
        return self.parts.unet

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder between pixels and latents."""
        return self.parts.vae

    @property
    def resolution(self) -> int:
        """Height and width, in pixels, that the base was made for."""
        return int(self.unet.config.sample_size * self.parts.vae_scale_factor)

    def lora_shapes(self) -> dict[str, tuple[int, int]]:
        """See `lora_shapes` below."""
        return lora_shapes(self.parts)

    def _encoders(self) -> list[nn.Module]:
        return [self.parts.vae, self.parts.text_encoder, self.parts.text_encoder_2]

    def release_encoders(self) -> None:
        """Move the VAE and the text encoders off the device, when it is not the CPU itself."""
        for module in self._encoders():
            module.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The prompts in the vectors of both text encoders, in the UNet's dtype."""
        if not prompts:
            raise InputError("expected at least one prompt, got none")
        for encoder in (self.parts.text_encoder, self.parts.text_encoder_2):
            encoder.to(self.device)
        embeds, _, pooled, _ = self.parts.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return PromptEmbeds(embeds.to(self.dtype), pooled.to(self.dtype))

    def empty_prompt(self) -> PromptEmbeds:
        """What the pipeline's guidance takes as the prompt that says nothing: zeros, where the pipeline says so."""
        empty = self.encode_prompts([""])
        if not self.parts.config.force_zeros_for_empty_prompt:
            return empty
        return PromptEmbeds(torch.zeros_like(empty.embeds), torch.zeros_like(empty.pooled))

    @torch.no_grad()
    def encode_images(
        self, pixels: Float[Tensor, "n 3 height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Latents of pictures in [-1, 1], times the VAE's scaling factor, float32.

        The mean of the posterior; with a (CPU) generator a sample of it, which is the same on any device.
        """
        scale = self.parts.vae_scale_factor
        height, width = pixels.shape[2:]
        if height % scale or width % scale:
            raise InputError(
                f"pictures: height and width must be multiples of {scale}, got {height}×{width}; crop them"
            )
        self.vae.to(self.device)
        latents = []
        for part in torch.split(pixels, _at_once(height * width)):
            posterior = self.vae.encode(part.to(self.device, torch.float32)).latent_dist
            latents.append(posterior.mean)
            if generator is not None:
                noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
                latents[-1] = posterior.mean + posterior.std * noise
        scaling: float = self.vae.config.scaling_factor
        return torch.cat(latents) * scaling

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        """Pictures, about in [-1, 1], of latents as `encode_images` makes them; float32."""
        self.vae.to(self.device)
        scaled = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        area = latents.shape[2] * latents.shape[3] * self.parts.vae_scale_factor**2
        return torch.cat([self.vae.decode(part, return_dict=False)[0] for part in torch.split(scaled, _at_once(area))])

    def time_ids(self, n: int, height: int, width: int) -> Float[Tensor, "n 6"]:
        """SDXL's size conditions of n uncropped pictures: original size, corner of the crop, target size."""
        return torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=torch.float32).repeat(
            n, 1
        )

    def pipeline(self) -> StableDiffusionXLPipeline:
        """The whole pipeline on the device, with the base's own sampler.

        It is this base's own, so a LoRA loaded into it stays in the base until it is unloaded. Where the UNet is
        narrower than float32, ask it for `output_type="latent"` and use `decode`, because the VAE stays float32.
        """
        for module in self._encoders():
            module.to(self.device)
        return self.parts


def lora_shapes(parts: StableDiffusionXLPipeline) -> dict[str, tuple[int, int]]:
    """The (d_out, d_in) of every layer that a LoRA may change, by the names that adapters use.

    Those of text encoders are `text_encoder.text_model.…`, whatever this version of transformers calls them.
    """
    shapes = layer_shapes(parts.unet)
    for encoder in TEXT_ENCODERS:
        for name, shape in layer_shapes(getattr(parts, encoder)).items():
            bare = name.removeprefix("text_model.")
            shapes[f"{encoder}.{bare if bare == 'text_projection' else f'text_model.{bare}'}"] = shape
    return shapes


def _at_once(area: int) -> int:
    """How many pictures of `area` pixels the VAE takes at once, to bound its memory."""
    return max(1, PIXELS_AT_ONCE // area)


def load_base(
    base: str | Path = "atelier",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    config: str | Path | None = None,
) -> Base:
    """Load a base model, frozen and ready.

    Args:
        base: `atelier`, a diffusers folder, a single .safetensors checkpoint, or a hub id such as `owner/name`.
        device: where it runs; "auto" is CUDA where there is one.
        dtype: of UNet and text encoders; "auto" is float32 on the CPU and bfloat16 elsewhere.
        config: for a single file, a diffusers folder with the configs and tokenizers; otherwise they come from the hub.

    Raises:
        FileRefused: it is there, but unsafe, damaged or not an SDXL-shaped model.
        InputError: it is not there, or an argument cannot be used.
    """
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    kind = _dtype(dtype, where)
    parts = read_pipeline(str(base), kind, None if config is None else Path(config))
    for module in (parts.unet, parts.vae, parts.text_encoder, parts.text_encoder_2):
        module.requires_grad_(False).eval()
    parts.vae.to(where, torch.float32)
    for module in (parts.unet, parts.text_encoder, parts.text_encoder_2):
        module.to(where, kind)
    parts.set_progress_bar_config(disable=True)
    with refusing(Path(base)):
        noise_scheduler = DDPMScheduler.from_config(parts.scheduler.config)
    return Base(str(base), parts, noise_scheduler, where, kind)


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype in known.values() and isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in known:
        raise InputError(f"dtype: expected auto, {', '.join(known)}; got {dtype}")
    return known[str(dtype)]
