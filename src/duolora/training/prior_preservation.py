"""What a LoRA leaves as it is: the base's own predictions on pictures that the base draws itself.

Prior preservation as in DreamBooth (Ruiz et al., CVPR 2023), with the base's predictions for targets in place of the
noise, since these are what has to stay.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from duolora.model.base import Base
from duolora.model.predict import noise_schedule, predict
from duolora.model.sample import draw
from duolora.training.checkpoint import step_generator

DRAWS = 4
"""Noise levels of each picture, whose predictions are computed once."""
_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Kept:
    """Noisy latents at timesteps t, the numbers of their prompts, and what the base alone predicts for them."""

    noisy: Float[Tensor, "draws c h w"]
    t: Int[Tensor, " draws"]
    prompt: Int[Tensor, " draws"]
    predicted: Float[Tensor, "draws c h w"]

    def some(self, n: int, generator: torch.Generator) -> "Kept":
        """As many of the draws as asked for, taken at random."""
        rows = torch.randint(len(self.t), (n,), generator=generator)
        return Kept(self.noisy[rows], self.t[rows], self.prompt[rows], self.predicted[rows])


def beside(batch: int) -> int:
    """How many draws of what stays go with a batch of pictures: half as many, but one at least."""
    return max(1, batch // 2)


@lru_cache(maxsize=1)
@torch.no_grad()
def kept(base: Base, prompts: tuple[str, ...], seed: int = 0, progress: bool = False) -> Kept:
    """A picture of each prompt by the base without any LoRA, seen at `DRAWS` noise levels; all on the base's device.

    The last answer is remembered, since several LoRAs are trained on one base.
    """
    latents = base.encode_images(draw(base, prompts, range(seed, seed + len(prompts)), progress=progress).clamp(-1, 1))
    schedule, embeds = noise_schedule(base), base.encode_prompts(prompts)
    base.release_encoders()
    rng = step_generator(seed, 0)
    prompt = torch.arange(len(prompts)).repeat(DRAWS)
    t = schedule.sample_timesteps(len(prompt), rng)
    noise = torch.randn((len(prompt), *latents.shape[1:]), generator=rng).to(base.device)
    noisy = schedule.add_noise(latents.repeat(DRAWS, 1, 1, 1), noise, t)
    predicted, time_ids = [], base.time_ids(1, base.resolution, base.resolution)
    for i in range(0, len(prompt), _AT_ONCE):
        part = slice(i, i + _AT_ONCE)
        predicted.append(predict(base.unet, noisy[part], t[part], embeds.rows(prompt[part]), time_ids, mixed=True))
    return Kept(noisy, t, prompt, torch.cat(predicted))
