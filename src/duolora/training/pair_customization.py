"""PairCustomization (Jones et al. 2024), Table 2's baseline: two orthogonal LoRAs from an image and its stylised twin.

    content   ‖ε − ε_{θ_c}(x_content, p_c)‖²           both LoRAs   ‖ε − ε_{θ_c, θ_s}(x_style, p_s)‖²
    sampling  ε̂ = ε_c(∅) + w (ε_c(p) − ε_c(∅)) + w_style (ε_{c,s}(p_s) − ε_c(p))

The rows of the two `down` factors are one orthonormal set, sampled once and frozen; only the `up` factors learn. The
guidance by style exists at sampling time only, so no one LoRA file can hold it. What the options keep (ours, not
theirs) stays as it is under the content LoRA and under both.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from duolora.lora.adapter import Adapter
from duolora.model.architectures import modules_within
from duolora.model.base import Base
from duolora.model.defaults import STEPS
from duolora.model.mount import Mount
from duolora.model.predict import MountedUNet
from duolora.model.sample import guidance_of
from duolora.paper.lowrank import LowRank
from duolora.training.loop import Task, train_factors
from duolora.training.options import TrainOptions

KINDS = ("content", "style")
STYLE_GUIDANCE = 3.0


def train_pair(
    base: Base,
    content: Float[Tensor, "n 3 h w"],
    style: Float[Tensor, "n 3 h w"],
    content_prompt: str,
    style_prompt: str,
    options: TrainOptions,
    progress: bool = True,
) -> dict[str, Adapter]:
    """The content and the style LoRA of images and their stylised twins, trained together."""
    active = {"content": KINDS[:1], "style": KINDS}
    shown = {"content": (content, content_prompt), "style": (style, style_prompt)}
    tasks = [Task(base.encode_images(pixels), prompt, active[kind]) for kind, (pixels, prompt) in shown.items()]
    names = modules_within(base.architecture.shapes, options.blocks)
    with _orthogonal(base, names, options) as ups:
        train_factors(base, tasks, ups, replace(options, caption_dropout=0.0), progress=progress)
        return {kind: Adapter(_factors(base, names, kind)) for kind in KINDS}


@contextmanager
def _orthogonal(base: Base, names: list[str], options: TrainOptions) -> Iterator[dict[str, Tensor]]:
    """Two LoRAs with orthogonal frozen `down` factors on the base's attention; what learns is yielded."""
    ups: dict[str, Tensor] = {}
    config = LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two are meant
        for kind in KINDS:
            base.unet.add_adapter(config, adapter_name=kind)
    rng = torch.Generator().manual_seed(options.seed)
    try:
        with torch.no_grad():
            for name in names:
                layer = base.unet.get_submodule(name)
                rows, _ = torch.linalg.qr(torch.randn(layer.in_features, 2 * options.rank, generator=rng))
                for kind, part in zip(KINDS, rows.T.to(base.device).split(options.rank), strict=True):
                    layer.lora_A[kind].float()
                    layer.lora_B[kind].float()
                    layer.lora_A[kind].weight.copy_(part).requires_grad_(False)
                    layer.lora_B[kind].weight.zero_().requires_grad_(True)
                    ups[f"{name}.{kind}"] = layer.lora_B[kind].weight
        yield ups
    finally:
        base.unet.unload_lora()
        base.unet.requires_grad_(False).eval()


def _factors(base: Base, names: list[str], kind: str) -> dict[str, LowRank]:
    layers = {name: base.unet.get_submodule(name) for name in names}
    return {
        n: LowRank(m.lora_B[kind].weight.detach().clone(), m.lora_A[kind].weight.detach().clone())
        for n, m in layers.items()
    }


@torch.no_grad()
def sample_with_style_guidance(
    base: Base,
    pair: dict[str, Adapter],
    content_prompt: str,
    style_prompts: Sequence[str],
    seeds: Sequence[int],
    style_guidance: float = STYLE_GUIDANCE,
    guidance: float | None = None,
    steps: int = STEPS,
) -> Float[Tensor, "n 3 h w"]:
    """Images of the content in the style, by the three-way guidance above; one for each style prompt and seed."""
    w, n = guidance_of(base, guidance), len(seeds)
    known = ("", content_prompt, *dict.fromkeys(style_prompts))
    embeds = base.encode_prompts(known[1:]).after(base.empty_prompt())
    scheduler = type(base.parts.scheduler).from_config(base.parts.scheduler.config)
    scheduler.set_timesteps(steps, device=base.device)
    side = base.resolution // base.parts.vae_scale_factor
    shape = (base.unet.config.in_channels, side, side)
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(base.device)
    x = x * scheduler.init_noise_sigma
    base.bring_unet()
    with Mount(base.unet, [pair[kind].modules for kind in KINDS], "rank", base.device) as mount:
        unet = MountedUNet(base.unet, mount, known, embeds, base.time_ids())
        own = mount.owned()
        gates = torch.stack([own[0], own[0], own.sum(0)]).repeat_interleave(n, 0)
        prompts = [""] * n + [content_prompt] * n + list(style_prompts)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            nothing, plain, styled = unet.predict(
                scaled.repeat(3, 1, 1, 1), t.round().long().repeat(3 * n), prompts, gates
            ).chunk(3)
            guided = nothing + w * (plain - nothing) + style_guidance * (styled - plain)
            x = scheduler.step(guided, t, x).prev_sample
    return base.decode(x).cpu()
