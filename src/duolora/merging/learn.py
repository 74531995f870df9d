"""Learning the masks of a merge, by Adam (Sec. 4): one loop for all methods."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from duolora.checkpoint import load_checkpoint, save_checkpoint, step_generator
from duolora.images import read_pictures
from duolora.merging.oneshot import one_shot, pair_of
from duolora.merging.sources import Masks, Sources, first_masks
from duolora.methods import MergeOptions
from duolora.networks.bases import Base
from duolora.networks.denoise import MountedDenoise, NoiseSchedule, denoiser, noise_schedule
from duolora.networks.mount import Mount
from duolora.paper import ziplora
from duolora.paper.constyle import Prompts, constyle, overall
from duolora.paper.layer_prior import layer_prior_loss
from duolora.sampling import draw

Images = str | Path | None


@dataclass(frozen=True, eq=False)
class Learnt:
    """Masks, and how they came about: their mean change, and the terms of the loss at every tenth update."""

    content_masks: Masks
    style_masks: Masks
    moved: float
    losses: list[dict[str, float]]

    @property
    def trainable(self) -> int:
        """How many numbers the masks have."""
        return sum(m.numel() for masks in (self.content_masks, self.style_masks) for m in masks.values())


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the masks are learnt on: latents of content and of style pictures, and the three prompts."""

    x_c: Tensor
    x_s: Tensor
    prompts: Prompts


def calibration(
    base: Base,
    both: Sources,
    options: MergeOptions,
    prompts: Prompts,
    content_images: Images,
    style_images: Images,
    progress: bool,
) -> Calibration:
    """The latents of the given pictures or, where there are none, of pictures that each LoRA draws from its prompt."""
    seeds = range(options.seed, options.seed + options.pictures)

    def latents(images: Images, prompt: str, gating: Callable[[], AbstractContextManager[None]]) -> Tensor:
        if images is not None:
            return base.encode_images(read_pictures(images, base.resolution))
        with gating():
            return base.encode_images(draw(base, [prompt] * len(seeds), list(seeds), progress=progress))

    with Mount(base.unet, [both.content, both.style], "rank") as plain:
        own = plain.owned()
        x_c = latents(content_images, prompts.content, lambda: plain.gating(own[:1]))
        x_s = latents(style_images, prompts.style, lambda: plain.gating(own[1:]))
    return Calibration(x_c, x_s, prompts)


@dataclass(frozen=True, eq=False)
class Learner:
    """Masks in the making, on a mounted network; each `update` is one step of Adam."""

    denoise: MountedDenoise
    schedule: NoiseSchedule
    both: Sources
    options: MergeOptions
    data: Calibration
    content_masks: Masks
    style_masks: Masks
    optimiser: torch.optim.Optimizer

    def update(self, step: int) -> dict[str, Tensor]:
        """Update the masks in place, at the draw of this step; the loss and its terms before the update."""
        o, masks = self.options, (self.content_masks, self.style_masks)
        rng = step_generator(o.seed, step)
        terms = losses_of(self.denoise, self.schedule, self.both, o, self.data, rng, *masks)
        terms["loss"].backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {name: term.detach() for name, term in terms.items()}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All masks by name."""
        named = (("content", self.content_masks), ("style", self.style_masks))
        return {f"{kind}.{name}": mask for kind, masks in named for name, mask in masks.items()}


@contextmanager
def learner(
    base: Base, both: Sources, options: MergeOptions, data: Calibration, m_c: Masks, m_s: Masks
) -> Iterator[Learner]:
    """A learner that begins at the given masks; the network is as before on leaving."""
    o, p = options, data.prompts
    with Mount(base.unet, [both.content, both.style], "rank" if o.masks == "none" else o.masks) as mount:
        names = (p.content, p.style, p.merged)
        denoise = denoiser(base, mount, names, m_c, m_s, base.resolution, base.resolution)
        base.release_encoders()
        masks = [m.requires_grad_() for m in (*m_c.values(), *m_s.values())]
        yield Learner(denoise, noise_schedule(base), both, o, data, m_c, m_s, torch.optim.Adam(masks, lr=o.lr))
    for mask in masks:
        mask.requires_grad_(False)


def learn(
    base: Base,
    both: Sources,
    options: MergeOptions,
    data: Calibration,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Learnt:
    """Train the masks; goes on from `checkpoint` if that file is there, and writes it at every 25th update."""
    o = options
    if o.init == "oneshot" and o.masks == "rank":
        m_c, m_s = one_shot(base, pair_of(both, data.x_c, data.x_s, data.prompts), both.roles, o, progress)
    else:
        m_c, m_s = first_masks(both, o, base.device)
    losses = []
    with learner(base, both, o, data, m_c, m_s) as learning:
        masks = learning.parameters
        begun = torch.cat([torch.ones_like(m) if o.init == "oneshot" else m.detach().clone() for m in masks.values()])
        start = load_checkpoint(checkpoint, masks, learning.optimiser) if checkpoint and checkpoint.exists() else 0
        bar = tqdm(range(start, o.steps), "Merging", initial=start, total=o.steps, disable=not progress, leave=False)
        for step in bar:
            terms = learning.update(step)
            if step % 10 == 0 or step + 1 == o.steps:
                losses.append({"update": step, **{k: float(v) for k, v in terms.items()}})
            if checkpoint and (step + 1) % 25 == 0 and step + 1 < o.steps:
                save_checkpoint(checkpoint, masks, learning.optimiser, step + 1)
    moved = float((torch.cat(list(masks.values())) - begun).abs().mean())
    return Learnt(m_c, m_s, moved, losses)


def losses_of(
    denoise: MountedDenoise,
    schedule: NoiseSchedule,
    both: Sources,
    options: MergeOptions,
    data: Calibration,
    rng: torch.Generator,
    m_c: Masks,
    m_s: Masks,
) -> dict[str, Tensor]:
    """The loss and its terms at one draw of pictures, timesteps and noise."""
    o, x_c, x_s = options, data.x_c, data.x_s
    rows_c, rows_s = (torch.randint(len(x), (o.batch,), generator=rng).to(x.device) for x in (x_c, x_s))
    t = schedule.sample_timesteps(o.batch, rng)
    noise, other = (torch.randn((o.batch, *x_c.shape[1:]), generator=rng).to(x_c.device) for _ in range(2))
    terms = constyle(
        denoise, schedule.process(), x_c[rows_c], x_s[rows_s], t, noise, data.prompts, o.reading, o.space,
        other if o.fresh_noise else None,
    )  # fmt: skip
    prior = x_c.new_zeros(())
    if o.lambda_layer_prior:
        nothing = x_c.new_zeros(0)
        layers = [(m_c.get(n, nothing), m_s.get(n, nothing), role) for n, role in both.roles.items()]
        prior = layer_prior_loss(layers, o.prior_lambda, o.norm, o.hinge, o.reduction, o.sparsity)
    loss = overall(terms, prior, o.lambda_layer_prior, o.lambda_cycle, o.multiplies, o.cycles)
    if o.lambda_similarity:
        pairs = [(m_c[n], m_s[n]) for n in m_c if n in m_s]
        loss = loss + o.lambda_similarity * ziplora.similarity(pairs, o.similarity)
    cycle = terms.cycle_style + terms.cycle_content
    return {"loss": loss, "reconstruction": terms.reconstruction, "cycle": cycle, "layer_prior": prior}
