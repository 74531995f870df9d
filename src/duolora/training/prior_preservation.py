"""What a LoRA leaves as it is: the base's own predictions on images that the base generates itself.

Prior preservation as in DreamBooth (Ruiz et al., CVPR 2023), with the base's predictions for targets in place of the
noise, since these are what has to stay.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from duolora.errors import DuoLoRAError
from duolora.lora.write.atomic import whole_files
from duolora.model.base import Base
from duolora.model.predict import noise_schedule, predict
from duolora.model.sample import sample_images
from duolora.progress import counted
from duolora.training.checkpoint import step_generator

NOISE_LEVELS = 4
"""Noise levels of each image, whose predictions are computed once."""
_AT_ONCE = 8
CACHED = 8
"""How many sets of class images are kept on disk, those that were used last."""


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Noisy latents at timesteps t, the numbers of their prompts, and what the base alone predicts for them."""

    noisy: Float[Tensor, "n c h w"]
    t: Int[Tensor, " n"]
    prompt: Int[Tensor, " n"]
    predicted: Float[Tensor, "n c h w"]

    def some(self, n: int, generator: torch.Generator) -> "ClassImages":
        """As many as asked for, sampled at random."""
        rows = torch.randint(len(self.t), (n,), generator=generator)
        return ClassImages(self.noisy[rows], self.t[rows], self.prompt[rows], self.predicted[rows])


def class_batch(batch: int) -> int:
    """How many class images go with a batch of images: half as many, but one at least."""
    return max(1, batch // 2)


@lru_cache(maxsize=1)
@torch.no_grad()
def class_predictions(base: Base, prompts: tuple[str, ...], seed: int = 0, progress: bool = False) -> ClassImages:
    """A class image of each prompt by the base alone, seen at `NOISE_LEVELS` noise levels; all on the base's device.

    The last answer is remembered, since several LoRAs are trained on one base; class images also from run to run.
    """
    latents = class_images(base, prompts, seed, progress)
    schedule, embeds = noise_schedule(base), base.encode_prompts(prompts)
    base.release_encoders()
    rng = step_generator(seed, 0)
    prompt = torch.arange(len(prompts)).repeat(NOISE_LEVELS)
    t = schedule.sample_timesteps(len(prompt), rng)
    noise = torch.randn((len(prompt), *latents.shape[1:]), generator=rng).to(base.device)
    noisy = schedule.add_noise(latents.repeat(NOISE_LEVELS, 1, 1, 1), noise, t)
    predicted, time_ids = [], base.time_ids()
    for i in counted(range(0, len(prompt), _AT_ONCE), "Class images", progress):
        part = slice(i, i + _AT_ONCE)
        predicted.append(predict(base.unet, noisy[part], t[part], embeds.rows(prompt[part]), time_ids, mixed=True))
    return ClassImages(noisy, t, prompt, torch.cat(predicted))


def class_images(base: Base, prompts: Sequence[str], seed: int, progress: bool = False) -> Float[Tensor, "n c h w"]:
    """Latents of an image of each prompt by the base alone, from the user's cache where they were generated before.

    There they go by the name of all that they depend on.
    """
    known = (base.weights_hash(), base.resolution, base.dtype, base.device.type, base.defaults.guidance, *prompts, seed)
    key = hashlib.sha256(repr((known, torch.__version__)).encode()).hexdigest()
    path = user_cache_path("duolora") / "class-images-1" / f"{key[:32]}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):
        latents = load_file(path)["latents"].to(base.device)
        path.touch()
        return latents
    seeds = range(seed, seed + len(prompts))
    latents = base.encode_images(sample_images(base, prompts, seeds, progress=progress).clamp(-1, 1)).contiguous()
    with suppress(OSError, DuoLoRAError), whole_files() as stage:  # a cache that cannot be written is none
        stage(path, [save({"latents": latents.cpu()})])
    with suppress(OSError):
        for old in sorted(path.parent.glob("*.safetensors"), key=lambda each: -each.stat().st_mtime)[CACHED:]:
            old.unlink()
    return latents
