"""Learning the masks of a merge, by Adam (Sec. 4): one loop for all methods."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from duolora.errors import InputError
from duolora.merging.closed_form import Part, one_shot
from duolora.merging.inputs import Loras, Masks, Sources, first_masks
from duolora.merging.options import MergeOptions
from duolora.merging.penalties import Penalties
from duolora.model.base import Base
from duolora.model.images import load_images
from duolora.model.mount import Axis, Mount
from duolora.model.predict import NoiseSchedule, Remembering, denoiser, noise_schedule
from duolora.model.sample import guidance_of, sample_images
from duolora.paper.constyle import Prompts, constyle, overall
from duolora.progress import say
from duolora.training.callbacks import Callback, wants_preview
from duolora.training.checkpoint import Training, check_loss, scaler_for, step_generator

Images = str | Path | None
CALIBRATION_STEPS = 15
"""Denoising steps of a calibration image, which is seen under noise (`docs/log.md`, 2026-11-28)."""
SAVE_EVERY = 25
"""Steps from one checkpoint to the next."""


@dataclass(frozen=True, eq=False)
class TrainedMasks:
    """Masks, and how they came about: their mean change, and the terms of the loss at every tenth step."""

    content_masks: Masks
    style_masks: Masks
    mean_change: float
    losses: list[dict[str, float]]

    @property
    def trainable(self) -> int:
        """How many numbers the masks have."""
        return sum(m.numel() for masks in (self.content_masks, self.style_masks) for m in masks.values())


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the masks are trained on: latents of content and of style images, and the three prompts."""

    x_c: Tensor
    x_s: Tensor
    prompts: Prompts


def calibration(
    base: Base,
    both: Sources,
    options: MergeOptions,
    prompts: Prompts,
    images: tuple[Images, Images],
    progress: bool,
) -> Calibration:
    """The latents of the given images or, where there are none, of images that each LoRA generates from its prompt."""
    taught = ((both.content, prompts.content, images[0]), (both.style, prompts.style, images[1]))
    x_c, x_s = latents_of(base, taught, options, progress)
    base.release_encoders()
    return Calibration(x_c, x_s, prompts)


def latents_of(
    base: Base, taught: Sequence[tuple[Loras, str, Images]], options: MergeOptions, progress: bool
) -> list[Tensor]:
    """For each LoRA with its prompt the latents of its images; those without any are generated with it."""
    seeds = range(options.seed, options.seed + options.calibration_images)
    found, missing = [], sum(images is None for _, _, images in taught)
    if missing:
        say(
            f"No images are given for {missing} of {len(taught)} LoRAs: generating {len(seeds)} calibration images "
            f"with each of those, {missing * len(seeds)} in all of {base.resolution} pixels, in "
            f"{CALIBRATION_STEPS} steps each at guidance {guidance_of(base):g} (--set calibration_images=N)",
            progress,
        )
    with Mount(base.unet, [loras for loras, _, _ in taught], "rank", base.device) as plain:
        for own, (_, prompt, images) in zip(plain.owned().split(1), taught, strict=True):
            if images is not None:
                found.append(base.encode_images(load_images(images, base.resolution)))
            else:
                with plain.gating(own):
                    prompts = [prompt] * len(seeds)
                    generated = sample_images(base, prompts, list(seeds), steps=CALIBRATION_STEPS, progress=progress)
                found.append(base.encode_images(generated))
    return found


@dataclass(frozen=True, eq=False)
class Learner:
    """Masks in the making, on a mounted network; each `step` is one step of Adam on all of them, as one row."""

    denoise: Remembering
    schedule: NoiseSchedule
    penalties: Penalties
    options: MergeOptions
    data: Calibration
    row: Tensor
    masks: list[Masks]
    """Those of content and style, which are parts of the row."""
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    preview: Callable[[], Tensor]
    """Two images of the merged prompt, as the masks are now."""
    first: Tensor | None = None
    """For each column the first one that shares its value, where masks are tied."""

    def step(self, step: int) -> dict[str, Tensor]:
        """Train the masks in place by one step; the loss and its terms before it."""
        pool = self.options.pool
        sample = step % pool if pool else step
        self.denoise.begin(sample if pool else None)
        terms = self._losses(step_generator(self.options.seed, sample))
        check_loss(terms["loss"], self.optimiser, step)
        self.scaler.scale(terms["loss"]).backward()
        self.scaler.unscale_(self.optimiser)
        self._condition_gradient()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        return {name: term.detach() for name, term in terms.items()}

    def _condition_gradient(self) -> None:
        """Add the gradients of tied entries, and keep the norm over all different ones within `clip`."""
        if self.first is not None and self.row.grad is not None:
            self.row.grad = torch.zeros_like(self.row).index_add(0, self.first, self.row.grad)
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_([self.row], self.options.clip)
        if self.first is not None and self.row.grad is not None:
            self.row.grad = self.row.grad[self.first]

    def _losses(self, rng: torch.Generator) -> dict[str, Tensor]:
        """The loss and its terms at one sample of images, timesteps and noise."""
        o, x_c, x_s = self.options, self.data.x_c, self.data.x_s
        rows_c, rows_s = (torch.randint(len(x), (o.batch,), generator=rng).to(x.device) for x in (x_c, x_s))
        t = self.schedule.sample_timesteps(o.batch, rng)
        noise = torch.randn((o.batch, *x_c.shape[1:]), generator=rng).to(x_c.device)
        terms = constyle(
            self.denoise, self.schedule.process(), x_c[rows_c], x_s[rows_s], t, noise,
            self.data.prompts, o.cycle_variant,
        )  # fmt: skip
        prior = self.penalties.layer_prior(self.row) if o.lambda_layer_prior else x_c.new_zeros(())
        loss = overall(terms, prior, o.lambda_layer_prior, o.lambda_cycle, o.multiplies, o.cycles)
        if o.lambda_similarity:
            loss = loss + o.lambda_similarity * self.penalties.similarity(self.row)
        cycle = terms.cycle_style + terms.cycle_content
        return {
            "loss": loss,
            "reconstruction": terms.reconstruction,
            "cycle": cycle,
            "layer_prior": prior,
        }


def tied(mount: Mount) -> Tensor:
    """For each column of a mount the column that stands for it, where an attention's projections share one mask.

    Raises:
        InputError: the projections of an attention have masks of different lengths.
    """
    first = torch.arange(mount.columns, device=mount.device)
    for places in mount.unflat(first.clone()):
        leaders: dict[str, Tensor] = {}
        for name, columns in places.items():
            leader = leaders.setdefault(name.rpartition(".to_")[0], columns)
            if len(leader) != len(columns):
                raise InputError(
                    f"tied: expected masks of one length in an attention, got {len(columns)} in {name} beside "
                    f"{len(leader)}; set tied=false"
                )
            first[columns] = leader
    return first


@contextmanager
def learner(
    base: Base, both: Sources, options: MergeOptions, data: Calibration, m_c: Masks, m_s: Masks
) -> Iterator[Learner]:
    """A learner that begins at the given masks; the network is as before on leaving."""
    o, p = options, data.prompts
    axis: Axis = "rank" if o.masks == "none" else o.masks
    with Mount(base.unet, [both.content, both.style], axis, base.device) as mount:
        row = mount.flat([m_c, m_s]).clone()
        first = tied(mount) if o.tied else None
        row = (row if first is None else row[first]).detach().requires_grad_()
        names = (p.content, p.style, p.merged)
        denoise = Remembering(denoiser(base, mount, names, lambda: row))
        penalties = Penalties(mount, both.roles, o)
        optimiser = torch.optim.AdamW([row], lr=o.lr, weight_decay=o.weight_decay)

        def preview() -> Tensor:
            """Two images of the merged prompt with the masks as they are now."""
            with mount.gating(row.detach()[None]):
                images = sample_images(base, [p.merged] * 2, [o.seed, o.seed + 1])
            base.release_encoders()
            return images

        schedule, masks = noise_schedule(base), mount.unflat(row.detach())
        yield Learner(denoise, schedule, penalties, o, data, row, masks, optimiser, scaler_for(base), preview, first)


def learn(
    base: Base,
    both: Sources,
    options: MergeOptions,
    data: Calibration,
    checkpoint: Path | None = None,
    progress: bool = True,
    callback: Callback | None = None,
) -> TrainedMasks:
    """Train the masks; goes on from `checkpoint` if that file is there, and writes it every `SAVE_EVERY` steps.

    The checkpoint must be one of this very merge, as its name says (see `checkpoint_path`). `callback` is told the
    terms and the masks at every tenth step, and shown previews.
    """
    o = options
    if o.init == "oneshot" and o.masks == "rank":
        content = Part(both.content, "content", data.x_c, data.prompts.content)
        style = Part(both.style, "style", data.x_s, data.prompts.style)
        m_c, m_s = one_shot(base, (content, style), both.roles, o, progress)
    else:
        m_c, m_s = first_masks(both, o, base.device)
    images = max(len(data.x_c), len(data.x_s))
    total = math.ceil(o.steps / images) if o.per_image else o.steps
    with learner(base, both, o, data, m_c, m_s) as learning:
        row, (m_c, m_s) = learning.row.detach(), learning.masks
        begun = torch.ones_like(row) if o.init == "oneshot" else row.clone()
        training = Training({"masks": learning.row}, learning.optimiser, learning.scaler, [], checkpoint)
        with training.steps("Merging", total, SAVE_EVERY, progress) as left:
            for step in left:
                seen = learning.step(step)
                if step % 10 == 0 or step + 1 == total:
                    terms = {name: float(term) for name, term in seen.items()}
                    training.losses.append({"step": step, **terms})
                    if callback is not None:
                        callback.losses(step + 1, total, terms)
                        callback.masks(step + 1, {"content": m_c, "style": m_s})
                if callback is not None and wants_preview(callback, step + 1, total):
                    callback.preview(step + 1, learning.preview())
    return TrainedMasks(m_c, m_s, float((row - begun).abs().mean()), training.losses)
