"""The dense reference: how the public programs merge, written out plainly; what ours must equal, and outrun.

One UNet call for every prediction, and in every module the dense weight W + Σ_k ΔW_k(mask) in every call. The losses
are spelled out here a second time, on purpose: `merging.learn` is compared with this, and shares no equation with it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duolora.errors import BaseMismatch, InputError
from duolora.merging.inputs import Calibration, Loras, Masks, Sources
from duolora.merging.options import MergeOptions
from duolora.model.base import Base, PromptEmbeds
from duolora.model.predict import NoiseSchedule, noise_schedule, predict
from duolora.paper.choices import Role
from duolora.training.checkpoint import step_generator

Using = tuple[Loras, Masks | None]


def dense(lora_up: Tensor, lora_down: Tensor, mask: Tensor | None, axis: str) -> Tensor:
    """One adapter's dense update under its mask, Def. 1 or Def. 2 to the letter."""
    if mask is None:
        return lora_up @ lora_down
    mask = mask.to(lora_up.dtype)
    if axis == "rank":
        return lora_up @ torch.diag(mask) @ lora_down
    delta = lora_up @ lora_down
    return delta * (mask[:, None] if axis == "output" else mask)


class DenseUNet:
    """A UNet whose modules use dense weights, by the adapters and masks in `using`."""

    def __init__(self, base: Base, both: Sources, axis: str, prompts: tuple[str, ...]) -> None:
        """The prompts are encoded here; the UNet is left alone until `mounted`."""
        self.base, self.axis, self.modules = base, axis, list(both.roles)
        self.using: tuple[Using, ...] = ()
        self.prompts, self.embeds = prompts, base.encode_prompts(prompts)
        self._time_ids = base.time_ids()

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Let every covered module use the dense weight."""
        with ExitStack() as undo:
            for name in self.modules:
                linear = self.base.unet.get_submodule(name)
                if not isinstance(linear, nn.Linear):
                    raise BaseMismatch(f"{name}: expected a linear layer, found {type(linear).__name__}; leave it out")
                undo.callback(linear.__dict__.pop, "forward")
                linear.__dict__["forward"] = self._forward(name, linear)
            yield

    def _forward(self, name: str, linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            """The layer's output by W + Σ_k ΔW_k(mask), summed anew at every call."""
            weight: Tensor = linear.weight
            for loras, masks in self.using:
                if name in loras:
                    lora, mask = loras[name], None if masks is None else masks[name]
                    up, down = (lora.scale * lora.up).to(weight.dtype), lora.down.to(weight.dtype)
                    weight = weight + dense(up, down, mask, self.axis)
            return F.linear(x, weight, linear.bias)

        return forward

    def __call__(self, x: Tensor, t: Tensor, prompt: str, *using: Using) -> Tensor:
        """The prediction for one or more images with one prompt and the same adapters."""
        self.using = using
        row = self.prompts.index(prompt)
        embeds = PromptEmbeds(self.embeds.embeds[row : row + 1], self.embeds.pooled[row : row + 1])
        return predict(self.base.unet, x, t, embeds, self._time_ids)


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference loop's state; each `step` is one of Adam."""

    unet: DenseUNet
    schedule: NoiseSchedule
    both: Sources
    options: MergeOptions
    data: Calibration
    masks: list[Masks]
    """Of content and style."""
    optimiser: torch.optim.Optimizer

    def step(self, step: int) -> dict[str, Tensor]:
        """The loss and its terms, and the masks a step further."""
        o, (m_c, m_s) = self.options, self.masks
        x_c, x_s, t, noise = self._sampled(step)
        reconstruction, cycle = self._constyle(x_c, x_s, t, noise)
        prior = _prior(self.both.roles, m_c, m_s, o) if o.lambda_layer_prior else torch.zeros(())
        loss = o.lambda_layer_prior * prior + reconstruction + o.lambda_cycle * cycle
        for name in m_c.keys() & m_s.keys() if o.lambda_similarity else ():
            loss = loss + o.lambda_similarity * (m_c[name] * m_s[name]).abs().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"loss": loss.detach(), "reconstruction": reconstruction.detach()}

    def _sampled(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, timesteps and noise: the samples of `merging.learn`, in the same order."""
        o, data, rng = self.options, self.data, step_generator(self.options.seed, step)
        rows_c = torch.randint(len(data.x_c), (o.batch,), generator=rng).to(data.x_c.device)
        rows_s = torch.randint(len(data.x_s), (o.batch,), generator=rng).to(data.x_s.device)
        t = self.schedule.sample_timesteps(o.batch, rng)
        noise = torch.randn((o.batch, *data.x_c.shape[1:]), generator=rng).to(data.x_c.device)
        return data.x_c[rows_c], data.x_s[rows_s], t, noise

    def _constyle(self, x_c: Tensor, x_s: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and, in the `teacher` variant, the cycle: four or eight calls of the UNet."""
        unet, p = self.unet, self.data.prompts
        L_c, L_s = (self.both.content, None), (self.both.style, None)
        merged = tuple(zip((self.both.content, self.both.style), self.masks, strict=True))
        x_ct, x_st = self.schedule.add_noise(x_c, noise, t), self.schedule.add_noise(x_s, noise, t)
        with torch.no_grad():
            i_cc, i_ss = unet(x_ct, t, p.content, L_c), unet(x_st, t, p.style, L_s)
            if self.options.cycle_variant == "teacher":
                i_csc = self._there_and_back(x_ct, t, noise, p.merged, p.content, L_s)
                i_scs = self._there_and_back(x_st, t, noise, p.merged, p.style, L_c)
        d_c, d_s = unet(x_ct, t, p.content, *merged), unet(x_st, t, p.style, *merged)
        reconstruction = F.mse_loss(d_c, i_cc) + F.mse_loss(d_s, i_ss)
        if self.options.cycle_variant == "none":
            return reconstruction, torch.zeros((), device=d_c.device)
        return reconstruction, F.mse_loss(d_c, i_csc) + F.mse_loss(d_s, i_scs)

    def _there_and_back(self, x_t: Tensor, t: Tensor, noise: Tensor, there: str, back: str, via: Using) -> Tensor:
        """One step with `via` at the prompt `there`, re-noised, and another one at the prompt `back`."""
        x_0 = self.schedule.predict_x0(x_t, t, self.unet(x_t, t, there, via))
        return self.unet(self.schedule.add_noise(x_0, noise, t), t, back, via)


def _prior(roles: Mapping[str, Role], m_c: Masks, m_s: Masks, options: MergeOptions) -> Tensor:
    """Eq. 1, module by module, averaged over those with a role."""
    losses = []
    for name, role in roles.items():
        if role == "neutral":
            continue
        c, s = m_c[name].abs().sum(), m_s[name].abs().sum()
        dominant, other = (c, s) if role == "content" else (s, c)
        losses.append(options.sparsity * dominant + options.prior_lambda * F.relu(other - dominant))
    return torch.stack(losses).mean()


@contextmanager
def reference(
    base: Base, both: Sources, options: MergeOptions, data: Calibration, m_c: Masks, m_s: Masks
) -> Iterator[Reference]:
    """The reference loop from the given masks; both adapters must cover the same modules.

    Raises:
        InputError: an option that the reference does not spell out.
    """
    plain = MergeOptions()
    known = ("norm", "hinge", "reduction", "multiplies", "cycles", "similarity", "tied", "weight_decay", "clip")
    for name in known:
        if getattr(options, name) != getattr(plain, name):
            raise InputError(
                f"{name}: the dense reference knows {getattr(plain, name)!r} only, got {getattr(options, name)!r}"
            )
    if options.cycle_variant not in ("none", "teacher"):
        raise InputError(
            f"cycle_variant: the dense reference knows 'none' and 'teacher', got {options.cycle_variant!r}"
        )
    prompts = (data.prompts.content, data.prompts.style, data.prompts.merged)
    unet = DenseUNet(base, both, options.masks, prompts)
    masks = [{name: mask.clone().requires_grad_() for name, mask in side.items()} for side in (m_c, m_s)]
    optimiser = torch.optim.Adam([mask for side in masks for mask in side.values()], lr=options.lr)
    with unet.mounted():
        yield Reference(unet, noise_schedule(base), both, options, data, masks, optimiser)
