"""Pictures from prompts and seeds, by the base's own pipeline."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from duolora.model.base import Base
from duolora.model.defaults import STEPS
from duolora.model.prompts import tell_unread


def guidance_of(base: Base, guidance: float | None = None) -> float:
    """The guidance scale as given, or what suits the base."""
    return base.defaults.guidance if guidance is None else guidance


@torch.no_grad()
def draw(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = STEPS,
    guidance: float | None = None,
    batch: int = 16,
    progress: bool = False,
    before_step: Callable[[float], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """One picture for each prompt and seed, in [-1, 1]; a seed's noise is the same in any batch and on any device.

    `guidance` is that of classifier-free guidance; by default what suits the base, 1 is none.
    `before_step` is called before each denoising step with the share of the steps that are done.
    """
    tell_unread(base.parts, prompts)
    drawn = []
    starts = range(0, len(prompts), batch)
    bar = tqdm(total=len(starts) * steps, desc="Generating", disable=not progress, leave=False)

    def after_step(_: object, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        bar.update()
        if before_step is not None and step + 1 < steps:
            before_step((step + 1) / steps)
        return tensors

    with bar, base.sampling() as pipeline:
        for i in starts:
            if before_step is not None:
                before_step(0.0)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[i : i + batch]]
            latents = pipeline(
                prompt=list(prompts[i : i + batch]),
                height=base.resolution,
                width=base.resolution,
                num_inference_steps=steps,
                guidance_scale=guidance_of(base, guidance),
                generator=generators,
                callback_on_step_end=after_step,
                output_type="latent",
            ).images
            drawn.append(latents)
    return torch.cat([base.decode(latents).cpu() for latents in drawn])
