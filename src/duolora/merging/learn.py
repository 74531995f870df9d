"""Learning the masks of a merge, by Adam (Sec. 4): one loop for all methods."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from duolora.errors import InputError
from duolora.merging.closed_form import Part, one_shot
from duolora.merging.inputs import Calibration, Masks, Sources, first_masks
from duolora.merging.options import MergeOptions
from duolora.model.base import Base
from duolora.model.mount import Axis, Mount
from duolora.model.predict import NoiseSchedule, Remembering, denoiser, noise_schedule
from duolora.model.sample import sample_images
from duolora.paper import ziplora
from duolora.paper.choices import Role
from duolora.paper.constyle import constyle, overall
from duolora.paper.layer_prior import layer_prior_loss, layer_prior_loss_of_sums
from duolora.training.callbacks import Callback, wants_preview
from duolora.training.checkpoint import Training, check_loss, scaler_for, step_generator

SAVE_EVERY = 25
"""Steps from one checkpoint to the next."""


@dataclass(frozen=True, eq=False)
class TrainedMasks:
    """Masks, and how they came about: mean change, the loss's terms at every tenth step, and the checkpoint, if any."""

    content_masks: Masks
    style_masks: Masks
    mean_change: float
    losses: list[dict[str, float]]
    checkpoint: Path | None = None

    @property
    def trainable(self) -> int:
        """How many numbers the masks have."""
        return sum(m.numel() for masks in (self.content_masks, self.style_masks) for m in masks.values())


class Penalties:
    """Eq. 1 over all modules, and ZipLoRA's similarity, of a row of `mount` with a content and a style adapter.

    They are made from one row that holds all masks: a handful of operations, however many modules there are. What has
    no such form (a norm that is no sum, the cosine) is computed module by module from the same row.
    """

    def __init__(self, mount: Mount, roles: Mapping[str, Role], options: MergeOptions) -> None:
        """Where in the row everything is; found once."""
        self._mount, self._roles, self._options = mount, roles, options
        where = mount.unflat(torch.arange(mount.columns, device=mount.device))
        led = [name for name, role in roles.items() if role != "neutral"]
        self._led = len(led)
        self._content_leads = torch.tensor([roles[name] == "content" for name in led], device=mount.device).bool()
        owner = torch.full((mount.columns,), 2 * self._led, device=mount.device)
        for side, places in enumerate(where):
            for k, name in enumerate(led):
                owner[places.get(name, owner[:0])] = side * self._led + k
        self._owner = owner
        shared = [name for name in where[0] if name in where[1]] if options.masks in ("output", "input") else []
        nothing = owner[:0]
        self._pairs = [torch.cat([nothing, *(places[name] for name in shared)]) for places in where]
        sizes = [len(where[0][name]) for name in shared]
        self._shares = torch.cat([torch.full((n,), 1 / n, device=mount.device) for n in sizes] or [torch.zeros(0)])

    def layer_prior(self, row: Float[Tensor, " columns"]) -> Float[Tensor, ""]:
        """L_layer_prior (Eq. 1)."""
        o = self._options
        if o.norm != "diag":
            nothing = row.new_zeros(0)
            m_c, m_s = self._mount.unflat(row)
            layers = [(m_c.get(n, nothing), m_s.get(n, nothing), role) for n, role in self._roles.items()]
            return layer_prior_loss(layers, o.prior_lambda, o.norm, o.hinge, o.reduction, o.sparsity)
        sums = row.new_zeros(2 * self._led + 1).index_add(0, self._owner, row.abs())[:-1]
        c, s = sums[: self._led], sums[self._led :]
        return layer_prior_loss_of_sums(c, s, self._content_leads, o.prior_lambda, o.hinge, o.reduction, o.sparsity)

    def similarity(self, row: Float[Tensor, " columns"]) -> Float[Tensor, ""]:
        """ZipLoRA's penalty on masks that overlap."""
        if self._options.similarity != "product" or self._options.masks not in ("output", "input"):
            m_c, m_s = self._mount.unflat(row)
            return ziplora.similarity([(m_c[n], m_s[n]) for n in m_c if n in m_s], self._options.similarity)
        content, style = (row[places] for places in self._pairs)
        return (content * style).abs() @ self._shares


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
        return {"loss": loss, "reconstruction": terms.reconstruction, "cycle": cycle, "layer_prior": prior}


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
    return TrainedMasks(m_c, m_s, float((row - begun).abs().mean()), training.losses, checkpoint)
