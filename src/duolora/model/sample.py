"""Images from prompts and seeds, by the base's own pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from duolora.model.base import Base
from duolora.model.defaults import STEPS
from duolora.model.prompts import chunks, tell_unread
from duolora.progress import counting

MOST = 16
PIXELS, PIXELS_OFFLOADED = 4 * 1024**2, 1024**2
"""Of all images that are generated at once, each of them twice with guidance; fewer where networks take turns."""


def guidance_of(base: Base, guidance: float | None = None) -> float:
    """The guidance scale as given, or what suits the base."""
    return base.defaults.guidance if guidance is None else guidance


def images_at_once(side: int, offload: str) -> int:
    """How many images are generated at once: at most 16, of so many pixels together that a card holds them."""
    return max(1, min(MOST, (PIXELS if offload == "none" else PIXELS_OFFLOADED) // side**2))


@torch.no_grad()
def sample_images(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = STEPS,
    guidance: float | None = None,
    batch: int | None = None,
    progress: bool = False,
    before_step: Callable[[float], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """One image for each prompt and seed, in [-1, 1]; a seed's noise is the same in any batch and on any device.

    `batch` is how many are generated at once, by default what memory allows (`images_at_once`). `guidance` is that of
    classifier-free guidance; by default what suits the base, 1 is none.
    `before_step` is called before each denoising step with the share of the steps that are done.
    """
    tell_unread(base.parts, prompts)
    generated, conditions = [], _conditions(base, prompts)
    batch = batch or images_at_once(base.resolution, base.offload)
    starts = range(0, len(prompts), batch)
    with counting("Generating", len(starts) * steps, progress=progress) as count, base.sampling() as pipeline:

        def after_step(_: object, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            """Diffusers' callback at the end of a step: move the bar, and prepare the next step."""
            count()
            if before_step is not None and step + 1 < steps:
                before_step((step + 1) / steps)
            return tensors

        for i in starts:
            if before_step is not None:
                before_step(0.0)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[i : i + batch]]
            latents = pipeline(
                **{name: values[i : i + batch] for name, values in conditions.items()},
                height=base.resolution,
                width=base.resolution,
                num_inference_steps=steps,
                **base.kind.guided(guidance_of(base, guidance), len(generators)),
                generator=generators,
                callback_on_step_end=after_step,
                output_type="latent",
            ).images
            generated.append(base.kind.unpacked(latents, base.resolution // base.parts.vae_scale_factor))
    return torch.cat([base.decode(latents).cpu() for latents in generated])


def _conditions(base: Base, prompts: Sequence[str]) -> dict[str, Any]:
    """The prompts for the pipeline, which cuts long ones: where there are some, what they are encoded to."""
    if all(len(chunks(base.parts, prompt)) == 1 for prompt in dict.fromkeys(prompts)):
        return {"prompt": list(prompts)}
    known = list(dict.fromkeys(prompts))
    encoded = base.encode_prompts(known).after(base.empty_prompt())
    rows = encoded.rows(torch.tensor([1 + known.index(prompt) for prompt in prompts]))
    none = encoded.rows(torch.zeros(len(prompts), dtype=torch.long))
    found = {"prompt_embeds": rows.embeds, "negative_prompt_embeds": none.embeds}
    if rows.pooled.shape[1]:
        found |= {"pooled_prompt_embeds": rows.pooled, "negative_pooled_prompt_embeds": none.pooled}
    return found
