"""A teacher for the merged prompt, which the paper has none for (ours, not the paper's).

Nothing in ZipLoRA's or DuoLoRA's loss asks the merge what it does at p_cs, the prompt that it is made for: the content
LoRA has learnt its photos' look along with the thing, and brings it there. But a picture that is begun with the content
LoRA at p_c and finished with the style LoRA at p_cs has the thing and the look (`docs/log.md`). So at p_cs the merge is
taught by the one from high noise down to a handover, and by the other from there on.

A look that is in fine texture is handed over to early; one that changes all colours leads from the start. Which it is
shows in how much each LoRA changes the base's prediction (`found_handover`).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from duolora.checkpoint import step_generator
from duolora.networks.denoise import NoiseSchedule
from duolora.paper.constyle import Denoise, Gate, Prompts

LEVELS = 10
"""Noise levels at which the two LoRAs are compared."""
_PICTURES = 4


@torch.no_grad()
def found_handover(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_c: Float[Tensor, "n c h w"],
    prompts: Prompts,
    seed: int,
    levels: int = LEVELS,
) -> float:
    """The noise level, from 0 to 1, below which the style LoRA is the teacher of the merged prompt.

    It is the upper end of the highest of `levels` bands of timesteps in which the style LoRA at p_cs changes the base's
    prediction, in mean square over noised content pictures, at least as much as the content LoRA does at p_c.
    """
    x, found, rng = x_c[:_PICTURES], 0.0, step_generator(seed, 0)
    sides: tuple[tuple[str, Gate], ...] = ((prompts.content, "content"), (prompts.merged, "style"))
    for level in range(levels):
        t = torch.full((len(x),), int((level + 0.5) / levels * len(schedule.alpha)), device=x.device)
        x_t = schedule.add_noise(x, torch.randn(x.shape, generator=rng).to(x.device), t)
        content, style = (_change(denoise, x_t, t, prompt, gate) for prompt, gate in sides)
        if style >= content:
            found = (level + 1) / levels
    return found


def _change(denoise: Denoise, x_t: Tensor, t: Tensor, prompt: str, gate: Gate) -> float:
    """The mean square of what a LoRA changes in the base's prediction at a prompt."""
    gates: list[Gate] = [each for each in ("base", gate) for _ in t]
    plain, changed = denoise(x_t.repeat(2, 1, 1, 1), t.repeat(2), [prompt] * len(gates), gates).chunk(2)
    return float(mse_loss(changed, plain))


def merged_prompt_loss(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_c: Float[Tensor, "batch c h w"],
    t: Int[Tensor, " batch"],
    noise: Float[Tensor, "batch c h w"],
    prompts: Prompts,
    handover: float,
) -> Float[Tensor, ""]:
    """MSE of the merge at p_cs to its teacher, on content latents x_c noised to t.

    The teacher is the style LoRA at p_cs where t is below the share `handover` of all timesteps, and the content LoRA
    at p_c elsewhere. Two calls of the network, the second with a gradient.
    """
    x_t, late = schedule.add_noise(x_c, noise, t), (t < handover * len(schedule.alpha)).tolist()
    with torch.no_grad():
        gates: list[Gate] = ["style" if each else "content" for each in late]
        taught = denoise(x_t, t, [prompts.merged if each else prompts.content for each in late], gates)
    return mse_loss(denoise(x_t, t, [prompts.merged] * len(late), ["merged"] * len(late)), taught)
