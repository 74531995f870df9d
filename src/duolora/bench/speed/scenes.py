"""What speed is measured on: a base, two random LoRAs and random latents. No images, no training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from duolora.bench.options import Setting
from duolora.errors import InputError
from duolora.merging.inputs import Calibration, Sources
from duolora.model.architectures import unet_config
from duolora.model.base import Base, PromptEmbeds, load_base
from duolora.model.blocks import roles, target_modules
from duolora.model.device import DTYPES
from duolora.paper.constyle import Prompts
from duolora.paper.lowrank import LowRank

IMAGES = 4
BASES = {"sdxl-random": "sdxl", "ssd-1b-random": "ssd-1b", "vega-random": "segmind-vega"}
SMALL, SMALL_WIDTH = "sdxl-small", 64
"""SDXL's blocks at a fifth of its width: about 100 M parameters."""
TOKENS, LATENT_SCALE = 77, 8


class RandomBase(Base):
    """A base of a UNet alone; prompts become random vectors, always the same for the same position in a call."""

    def release_encoders(self) -> None:
        """There are none."""

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Random vectors of the right size."""
        rng, config = torch.Generator().manual_seed(0), self.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        embeds = torch.randn(len(prompts), TOKENS, config.cross_attention_dim, generator=rng)
        place = (self.device, self.dtype)
        return PromptEmbeds(embeds.to(*place), torch.randn(len(prompts), pooled, generator=rng).to(*place))


def random_base(
    architecture: str,
    width: int | None = None,
    resolution: int = 1024,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> RandomBase:
    """A UNet of an exact architecture (`unet_config`) with torch's usual first weights, made on the device itself."""
    config = unet_config(architecture, width) | {"sample_size": resolution // LATENT_SCALE}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    unet = unet.to(dtype).to_empty(device=device)
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in unet.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    unet.requires_grad_(False).eval()
    noise_scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = StableDiffusionXLPipeline(None, None, None, None, None, unet, noise_scheduler)
    return RandomBase(f"{architecture}-random", parts, noise_scheduler, where, dtype)


def random_lora(base: Base, rank: int, seed: int = 0) -> dict[str, LowRank]:
    """A LoRA of every attention projection with random factors, as strong as a tenth of a module's weight."""
    rng, lora = torch.Generator().manual_seed(seed), {}
    for name in target_modules(base.unet):
        d_out, d_in = base.unet.get_submodule(name).weight.shape
        up, down = torch.randn(d_out, rank, generator=rng), torch.randn(rank, d_in, generator=rng)
        lora[name] = LowRank(up.to(base.device), (down * (d_in * rank) ** -0.5).to(base.device), 0.1)
    return lora


@dataclass(frozen=True, eq=False)
class Scene:
    """A merge to measure."""

    name: str
    base: Base
    both: Sources
    data: Calibration


def scene_of(setting: Setting) -> Scene:
    """A scene on `atelier`, on an SDXL-shaped UNet of about 100 M random parameters, or on an exact random one.

    Raises:
        InputError: there is no such base.
    """
    s, dtype = setting, DTYPES[setting.dtype or ("float32" if setting.device == "cpu" else "bfloat16")]
    if s.base == "atelier":
        loaded = load_base("atelier", s.device, dtype)
    elif s.base == SMALL:
        loaded = random_base("sdxl", s.width or SMALL_WIDTH, s.resolution or 256, s.device, dtype, s.seed)
    elif s.base in BASES:
        loaded = random_base(BASES[s.base], s.width, s.resolution or 1024, s.device, dtype, s.seed)
    else:
        raise InputError(f"base: expected atelier, {SMALL} or one of {', '.join(BASES)}, got {s.base!r}")
    if s.checkpointing:
        loaded.unet.enable_gradient_checkpointing()
    size, channels = loaded.unet.config.sample_size, loaded.unet.config.in_channels
    rng = torch.Generator().manual_seed(s.seed)
    x_c, x_s = torch.randn(2, IMAGES, channels, size, size, generator=rng).to(loaded.device)
    both = Sources(random_lora(loaded, s.rank, 1), random_lora(loaded, s.rank, 2), {}, {}, roles(loaded.unet))
    data = Calibration(
        x_c, x_s, Prompts("a sks thing in flat style", "a house in zwx style", "a sks thing in zwx style")
    )
    return Scene(s.base, loaded, both, data)
