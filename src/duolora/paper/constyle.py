"""Constyle: reconstruction and cycle consistency of the merged LoRA (Sec. 3.4), and the overall loss.

    I_cc  = x_c denoised with L_c, p_c           I_ss  = x_s denoised with L_s, p_s         the teachers
    I_cs  = x_c denoised with L_s, p_cs          I_sc  = x_s denoised with L_c, p_cs        style/content is added
    I_csc = I_cs re-noised, with L_s, p_c        I_scs = I_sc re-noised, with L_c, p_s      and removed again

    L_constyle = MSE(merged(x_c, p_c), I_cc) + MSE(merged(x_s, p_s), I_ss) + MSE(I_cc, I_csc) + MSE(I_ss, I_scs)

The paper prints the first two as norms ‖·‖; here they are mean squares, as it has the other two. As printed, no merged
LoRA occurs in the cycle, so it gives the masks no gradient. Hence the variants:

    masked    "via L_s" is the masked style adapter (0, m_s), "via L_c" the masked content adapter (m_c, 0)
    teacher   I_csc and I_scs are targets of the *merged* predictions, in place of I_cc and I_ss
    none      no cycle
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from duolora.paper.choices import Cycles, Gate, Multiplies, Variant

Latents = Float[Tensor, "batch c h w"]
Timesteps = Int[Tensor, " batch"]
Pass = tuple[Tensor, str, Gate]

_WHOLE: tuple[Gate, Gate] = ("content", "style")
_MASKED: tuple[Gate, Gate] = ("content_masked", "style_masked")


@runtime_checkable
class Denoise(Protocol):
    """The network's prediction (of whatever type it was trained for), each sample with its own prompt and gate."""

    def __call__(self, x: Latents, t: Timesteps, prompt: Sequence[str], gate: Sequence[Gate]) -> Latents:
        """Prediction at x_t = `x`."""
        ...


@dataclass(frozen=True)
class Process:
    """The diffusion process: x_t = add_noise(x_0, noise, t), and x̂_0 = predict_x0(x_t, t, prediction)."""

    add_noise: Callable[[Tensor, Tensor, Tensor], Tensor]
    predict_x0: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Prompts:
    """p_c "a <V1> object in <S1> style", p_s "a <V2> object in <S2> style" and p_cs "a <V1> object in <S2> style"."""

    content: str
    style: str
    merged: str


@dataclass(frozen=True)
class ConstyleTerms:
    """The parts of L_constyle, each a scalar."""

    reconstruction: Float[Tensor, ""]
    cycle_style: Float[Tensor, ""]
    cycle_content: Float[Tensor, ""]


def _mse(x: Tensor, y: Tensor) -> Tensor:
    return mse_loss(x.float(), y.float())


def _predict(denoise: Denoise, t: Tensor, *passes: Pass) -> tuple[Tensor, ...]:
    """The predictions of several passes (x_t, prompt, gate) at the same timesteps, by one call of the network."""
    prompt = [p for _, p, _ in passes for _ in t]
    gate = [g for _, _, g in passes for _ in t]
    return denoise(torch.cat([x for x, _, _ in passes]), t.repeat(len(passes)), prompt, gate).chunk(len(passes))


def constyle(
    denoise: Denoise,
    process: Process,
    x_c: Latents,
    x_s: Latents,
    t: Timesteps,
    noise: Latents,
    prompts: Prompts,
    variant: Variant,
) -> ConstyleTerms:
    """The terms of L_constyle for content latents x_c and style latents x_s, both at timesteps t with the same noise.

    Each "denoised" is one step to x̂_0(x_t, t). Cycles are compared as the network's own predictions. I_cs and I_sc are
    re-noised to the same t with the same noise. Two calls of the network without a cycle and three with one, of which
    the gradient passes through one (two in the `masked` variant).
    """
    x_ct, x_st = process.add_noise(x_c, noise, t), process.add_noise(x_s, noise, t)
    p_c, p_s, p_cs = prompts.content, prompts.style, prompts.merged
    learns = variant == "masked"
    via_c, via_s = _MASKED if learns else _WHOLE
    adding: list[Pass] = [] if variant == "none" else [(x_ct, p_cs, via_s), (x_st, p_cs, via_c)]
    with torch.no_grad():
        own: list[Pass] = [(x_ct, p_c, "content"), (x_st, p_s, "style")]
        i_cc, i_ss, *plain = _predict(denoise, t, *own, *([] if learns else adding))
    merged: list[Pass] = [(x_ct, p_c, "merged"), (x_st, p_s, "merged")]
    d_c, d_s, *masked = _predict(denoise, t, *merged, *(adding if learns else []))
    reconstruction = _mse(d_c, i_cc) + _mse(d_s, i_ss)
    if not adding:
        return ConstyleTerms(reconstruction, reconstruction.new_zeros(()), reconstruction.new_zeros(()))

    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        i_cs, i_sc = masked or plain
        x_cst = process.add_noise(process.predict_x0(x_ct, t, i_cs), noise, t)
        x_sct = process.add_noise(process.predict_x0(x_st, t, i_sc), noise, t)
        i_csc, i_scs = _predict(denoise, t, (x_cst, p_c, via_s), (x_sct, p_s, via_c))
    start_c, start_s = (d_c, d_s) if variant == "teacher" else (i_cc, i_ss)
    return ConstyleTerms(reconstruction, _mse(start_c, i_csc), _mse(start_s, i_scs))


def overall(
    terms: ConstyleTerms,
    layer_prior: Float[Tensor, ""],
    lambda_layer_prior: float,
    lambda_cycle: float,
    multiplies: Multiplies,
    cycles: Cycles,
) -> Float[Tensor, ""]:
    """The loss of the merge, L = λ_layer_prior L_layer_prior + λ_cycle L_constyle (Sec. 3.4).

    The formula multiplies all of L_constyle by λ_cycle ("all"); the text says that it "controls the weight of the
    cycle-consistency losses", so with "cycle" the reconstruction has weight 1 and only the cycle terms are multiplied.
    `cycles` says which of the two count (Table 8 has the style cycle without the content cycle).
    """
    both = terms.cycle_style + terms.cycle_content
    cycle = {"both": both, "style": terms.cycle_style, "content": terms.cycle_content}[cycles]
    weight = {"all": lambda_cycle, "cycle": 1.0}[multiplies]
    return lambda_layer_prior * layer_prior + weight * terms.reconstruction + lambda_cycle * cycle
