"""PairCustomization (Jones et al. 2024), Table 2's baseline: two orthogonal LoRAs from a picture and its stylised twin.

    content   ‖ε − ε_{θ_c}(x_content, p_c)‖²           both LoRAs   ‖ε − ε_{θ_c, θ_s}(x_style, p_s)‖²
    sampling  ε̂ = ε_c(∅) + w (ε_c(p) − ε_c(∅)) + w_style (ε_{c,s}(p_s) − ε_c(p))

The rows of the two `down` factors are one orthonormal set, drawn once and frozen; only the `up` factors learn. The
guidance by style exists at sampling time only, so no one LoRA file can hold it. What the options keep (ours, not
theirs) stays as it is under the content LoRA and under both.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor
from tqdm import tqdm

from duolora.lora.adapter import Adapter
from duolora.model.base import Base, PromptEmbeds
from duolora.model.blocks import modules_within
from duolora.model.defaults import STEPS
from duolora.model.mount import Mount
from duolora.model.predict import MountedUNet, noise_schedule
from duolora.model.sample import guidance_of
from duolora.paper.lowrank import LowRank
from duolora.training.checkpoint import step_generator
from duolora.training.finite import check_loss
from duolora.training.options import TrainOptions
from duolora.training.prior_preservation import beside, kept

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
    """The content and the style LoRA of pictures and their stylised twins, trained together."""
    x = {"content": base.encode_images(content), "style": base.encode_images(style)}
    stays, others = (kept(base, options.keep), beside(options.batch)) if options.keep else (None, 0)
    said = dict(zip(KINDS, (content_prompt, style_prompt), strict=True))
    embeds = {kind: base.encode_prompts([prompt, *options.keep]) for kind, prompt in said.items()}
    schedule = noise_schedule(base)
    time_ids = base.time_ids(options.batch + others, base.resolution, base.resolution)
    names = modules_within(base.unet, options.blocks)
    base.bring_unet()
    with _orthogonal(base, names, options) as ups:
        optimiser = torch.optim.Adam(ups, lr=options.lr)
        for step in tqdm(range(options.steps), "Training the pair", disable=not progress):
            rng = step_generator(options.seed, step)
            rows = torch.randint(len(content), (options.batch,), generator=rng)
            noise = torch.randn((options.batch, *x["content"].shape[1:]), generator=rng).to(base.device)
            t = schedule.sample_timesteps(options.batch, rng)
            for kind, active in (("content", KINDS[:1]), ("style", KINDS)):
                base.unet.set_adapters(list(active))
                clean = x[kind][rows.to(base.device)]
                noisy, target, at = schedule.add_noise(clean, noise, t), schedule.target(clean, noise, t), t
                shown = torch.zeros(options.batch, dtype=torch.long)
                if stays is not None:
                    some = stays.some(others, rng)
                    noisy, at = torch.cat((noisy, some.noisy)), torch.cat((t, some.t))
                    target, shown = torch.cat((target, some.predicted)), torch.cat((shown, some.prompt + 1))
                told, shown = embeds[kind], shown.to(base.device)
                conditions = {"text_embeds": told.pooled[shown], "time_ids": time_ids}
                predicted = base.unet(
                    noisy.to(base.dtype), at, told.embeds[shown], added_cond_kwargs=conditions, return_dict=False
                )[0].float()
                loss = F.mse_loss(predicted[: options.batch], target[: options.batch])
                changed = F.mse_loss(predicted[options.batch :], target[options.batch :]) if others else 0.0
                check_loss(loss + changed, optimiser, step)
                (loss + changed).backward()
            optimiser.step()
            optimiser.zero_grad()
        return {kind: Adapter(_factors(base, names, kind)) for kind in KINDS}


@contextmanager
def _orthogonal(base: Base, names: list[str], options: TrainOptions) -> Iterator[list[torch.nn.Parameter]]:
    """Two LoRAs with orthogonal frozen `down` factors on the base's attention; what learns is yielded."""
    ups = []
    config = LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names)
    for kind in KINDS:
        base.unet.add_adapter(config, adapter_name=kind)
    rng = torch.Generator().manual_seed(options.seed)
    try:
        with torch.no_grad():
            for name in names:
                layer = base.unet.get_submodule(name)
                rows, _ = torch.linalg.qr(torch.randn(layer.in_features, 2 * options.rank, generator=rng))
                for kind, part in zip(KINDS, rows.T.to(base.device).split(options.rank), strict=True):
                    layer.lora_A[kind].weight.copy_(part).requires_grad_(False)
                    layer.lora_B[kind].weight.zero_().requires_grad_(True)
                    ups.append(layer.lora_B[kind].weight)
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
def draw_with_style_guidance(
    base: Base,
    pair: dict[str, Adapter],
    content_prompt: str,
    style_prompts: Sequence[str],
    seeds: Sequence[int],
    style_guidance: float = STYLE_GUIDANCE,
    guidance: float | None = None,
    steps: int = STEPS,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of the content in the style, by the three-way guidance above; one for each style prompt and seed."""
    w, n = guidance_of(base, guidance), len(seeds)
    known = ("", content_prompt, *dict.fromkeys(style_prompts))
    said, empty = base.encode_prompts(known[1:]), base.empty_prompt()
    embeds = PromptEmbeds(torch.cat([empty.embeds, said.embeds]), torch.cat([empty.pooled, said.pooled]))
    scheduler = type(base.parts.scheduler).from_config(base.parts.scheduler.config)
    scheduler.set_timesteps(steps, device=base.device)
    shape = (base.unet.config.in_channels, base.unet.config.sample_size, base.unet.config.sample_size)
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(base.device)
    x = x * scheduler.init_noise_sigma
    base.bring_unet()
    with Mount(base.unet, [pair[kind].modules for kind in KINDS], "rank", base.device) as mount:
        unet = MountedUNet(base.unet, mount, known, embeds, base.time_ids(1, base.resolution, base.resolution))
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
