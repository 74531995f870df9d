"""The seam between the paper's equations and a network: its `Denoise` and its diffusion `Process`.

Whoever asks a UNet for a prediction does so by `predict`, and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from duolora.errors import InputError
from duolora.model.base import Base, Network, PromptEmbeds
from duolora.model.flux import STEPS
from duolora.model.kinds import kind_of_network
from duolora.model.mount import Mount
from duolora.model.prompts import refuse_unread
from duolora.paper.choices import Gate
from duolora.paper.constyle import Process

TEACHERS: frozenset[Gate] = frozenset(("base", "content", "style"))
GATES: tuple[Gate, ...] = ("base", "content", "style", "merged", "content_masked", "style_masked")
"""In the order of a denoiser's rows: 0, (1, 0), (0, 1), (m_c, m_s), (m_c, 0) and (0, m_s)."""


def predict(
    unet: Network,
    x: Float[Tensor, "batch c h w"],
    t: Int[Tensor, " batch"],
    prompt: PromptEmbeds,
    time_ids: Float[Tensor, "sizes 6"],
    mixed: bool = False,
) -> Float[Tensor, "batch c h w"]:
    """The UNet's prediction in float32; one prompt or one size holds for the whole batch.

    `mixed` is for trained float32 factors in a narrower network: the call runs under autocast then.
    """
    n, call = len(x), kind_of_network(unet).call
    conditions = prompt.embeds.expand(n, -1, -1), prompt.pooled.expand(n, -1), time_ids.expand(n, -1)
    with torch.autocast(x.device.type, unet.dtype, enabled=mixed and unet.dtype != torch.float32):
        return call(unet, x.to(unet.dtype), t, *conditions).float()


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """x_t = α_t x_0 + σ_t ε with α² + σ² = 1, and what the network predicts: ε, or v = α ε − σ x_0.

    With flow matching α_t = 1 − t, σ_t = t, and what is predicted is ε − x_0.

    Computes in float32 or wider. `alpha` and `sigma` hold one number for each of the T training timesteps.
    """

    alpha: Float[Tensor, " T"]
    sigma: Float[Tensor, " T"]
    velocity: bool
    flow: bool = False

    def _at(self, t: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        return self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]

    def add_noise(
        self, x0: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """x_t = α_t x_0 + σ_t ε."""
        alpha, sigma = self._at(t)
        return alpha * x0 + sigma * noise

    def target(
        self, x0: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """The prediction that would be exact: ε, or v = α_t ε − σ_t x_0, or ε − x_0."""
        if self.flow:
            return noise - x0
        alpha, sigma = self._at(t)
        return alpha * noise - sigma * x0 if self.velocity else noise

    def predict_x0(
        self, x_t: Float[Tensor, "batch c h w"], t: Int[Tensor, " batch"], prediction: Float[Tensor, "batch c h w"]
    ) -> Float[Tensor, "batch c h w"]:
        """x̂_0 = α_t x_t − σ_t v, or (x_t − σ_t ε) / α_t, or x_t − σ_t (ε − x_0)."""
        alpha, sigma = self._at(t)
        if self.flow:
            return x_t - sigma * prediction
        return alpha * x_t - sigma * prediction if self.velocity else (x_t - sigma * prediction) / alpha

    def min_snr_weight(self, t: Int[Tensor, " batch"], gamma: float) -> Float[Tensor, " batch"]:
        """min(SNR, γ) / SNR, or min(SNR, γ) / (SNR + 1) for v and flow; SNR = α² / σ² (Hang et al., 2023)."""
        snr = (self.alpha[t] / self.sigma[t]) ** 2
        return snr.clamp(max=gamma) / (snr + 1 if self.velocity or self.flow else snr)

    def process(self) -> Process:
        """The two conversions that the paper's losses need."""
        return Process(self.add_noise, self.predict_x0)

    def sample_timesteps(self, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Timesteps sampled uniformly from all by a CPU generator, so the same on any device."""
        return torch.randint(len(self.alpha), (n,), generator=generator).to(self.alpha.device)


def noise_schedule(base: Base) -> NoiseSchedule:
    """The schedule that a base was trained with, on its device.

    Raises:
        InputError: the scheduler predicts something else, or predicts noise where no signal is left.
    """
    if base.kind.flow:
        sigma = torch.arange(1, STEPS + 1, device=base.device) / STEPS
        return NoiseSchedule(1 - sigma, sigma, velocity=False, flow=True)
    kind = base.noise_scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"{base.name}: scheduler prediction_type is {kind!r}; expected 'epsilon' or 'v_prediction'")
    signal = base.noise_scheduler.alphas_cumprod.double()
    if kind == "epsilon" and signal.min() <= 0:
        raise InputError(
            f"{base.name}: its scheduler has zero terminal signal (rescale_betas_zero_snr) but predicts noise "
            "(epsilon), from which no image can be told there; set prediction_type to 'v_prediction' or switch the "
            "rescaling off"
        )
    alpha, sigma = (x.sqrt().float().to(base.device) for x in (signal, 1 - signal))
    return NoiseSchedule(alpha, sigma, kind == "v_prediction")


@dataclass(frozen=True, eq=False)
class MountedUNet:
    """Predictions of a UNet with any number of adapters, whatever mixture of prompts and gates a batch has."""

    unet: Network
    mount: Mount
    prompts: tuple[str, ...]
    embeds: PromptEmbeds
    time_ids: Float[Tensor, "1 6"]
    _rows: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = field(default_factory=dict, kw_only=True)

    def predict(
        self,
        x: Float[Tensor, "batch c h w"],
        t: Int[Tensor, " batch"],
        prompt: Sequence[str],
        gates: Float[Tensor, "rows columns"],
    ) -> Float[Tensor, "batch c h w"]:
        """The UNet's prediction in float32, each sample with its prompt, and one gate row a sample or one for all."""
        rows = self._index(tuple(prompt), self.prompts)
        with self.mount.gating(gates):
            return predict(self.unet, x, t, self.embeds.rows(rows), self.time_ids)

    def _index(self, names: tuple[str, ...], known: tuple[str, ...]) -> Tensor:
        """Positions of `names` in `known`, on the device; kept, since the same few batches come again every step."""
        if (names, known) not in self._rows:
            if unknown := set(names) - set(known):
                raise InputError(f"expected one of {list(known)}, got {min(unknown)!r}")
            rows = [known.index(name) for name in names]
            self._rows[names, known] = torch.tensor(rows, device=self.mount.device)
        return self._rows[names, known]


@dataclass(frozen=True, eq=False)
class MountedDenoise(MountedUNet):
    """A `Denoise` by one call of a UNet that carries a content and a style adapter.

    The merged gate row is asked for anew in each call, so an optimiser may change the masks in between.
    """

    merged: Callable[[], Float[Tensor, " columns"]]
    _owned: Float[Tensor, "2 columns"]

    def __call__(
        self, x: Float[Tensor, "batch c h w"], t: Int[Tensor, " batch"], prompt: Sequence[str], gate: Sequence[Gate]
    ) -> Float[Tensor, "batch c h w"]:
        """The UNet's prediction in float32, each sample with its own prompt and gate."""
        (content, style), merged = self._owned, self.merged()
        rows = torch.stack([torch.zeros_like(merged), content, style, merged, merged * content, merged * style])
        return self.predict(x, t, prompt, rows[self._index(tuple(gate), GATES)])


def mounted_unet(base: Base, mount: Mount, prompts: Sequence[str]) -> MountedUNet:
    """A base's UNet with its mounted adapters; the prompts are encoded here, once."""
    known = tuple(dict.fromkeys(prompts))
    refuse_unread(base.parts, known)
    embeds = base.encode_prompts(known)
    base.release_encoders()
    return MountedUNet(base.unet, mount, known, embeds, base.time_ids())


@dataclass(eq=False)
class Remembering:
    """A `Denoise` that computes what the teachers say once for each sample of images, timesteps and noise.

    `begin` says which sample comes next. Calls without a gradient in which no mask takes part are kept, in their order;
    those of the sample None are not.
    """

    denoise: MountedDenoise
    _sample: int | None = None
    _calls: int = 0
    _kept: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def begin(self, sample: int | None) -> None:
        """The next calls belong to this sample."""
        self._sample, self._calls = sample, 0

    def __call__(
        self, x: Float[Tensor, "batch c h w"], t: Int[Tensor, " batch"], prompt: Sequence[str], gate: Sequence[Gate]
    ) -> Float[Tensor, "batch c h w"]:
        """The prediction, from memory where it cannot have changed."""
        if self._sample is None or torch.is_grad_enabled() or not set(gate) <= TEACHERS:
            return self.denoise(x, t, prompt, gate)
        key = (self._sample, self._calls)
        self._calls += 1
        if key not in self._kept:
            self._kept[key] = self.denoise(x, t, prompt, gate)
        return self._kept[key]


def denoiser(
    base: Base, mount: Mount, prompts: Sequence[str], merged: Callable[[], Float[Tensor, " columns"]]
) -> MountedDenoise:
    """The `Denoise` of a base whose UNet carries a content and a style adapter; `merged` gives the merged gate row.

    The prompts are encoded here, once.

    Raises:
        ValueError: the mount does not hold two adapters.
    """
    if mount.adapters != 2:
        raise ValueError(f"expected a mount of two adapters, content and style, got {mount.adapters}")
    m = mounted_unet(base, mount, prompts)
    return MountedDenoise(m.unet, mount, m.prompts, m.embeds, m.time_ids, merged, mount.owned())
