"""One-shot merge: a few calls of the network without a gradient, then every module's masks in closed form.

Any number of adapters, each with images and a prompt of its own that say when it is the teacher.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from duolora.errors import InputError
from duolora.merging.fold import Kind
from duolora.merging.inputs import Loras, Masks
from duolora.merging.options import MergeOptions
from duolora.model.base import Base
from duolora.model.mount import Mount
from duolora.model.predict import MountedUNet, NoiseSchedule, mounted_unet, noise_schedule
from duolora.paper import oneshot
from duolora.paper.choices import Role
from duolora.progress import counted
from duolora.training.checkpoint import step_generator


@dataclass(frozen=True, eq=False)
class Part:
    """One adapter of a merge: what it is for, and the latents and the prompt at which it is the teacher."""

    loras: Loras
    kind: Kind
    latents: Tensor
    prompt: str


class Grams:
    """Sums of (D x)(D x)ᵀ of every mounted module for each of several teachers, as the network runs.

    That is all of a module's inputs that a merge in closed form needs, and it is R×R, whatever the image's size.
    """

    def __init__(self, mount: Mount, teachers: int) -> None:
        """All zero; nothing is recorded yet."""
        self._mount = mount
        self._samples = torch.zeros(teachers, device=mount.device)
        self._sums = {
            name: torch.zeros(teachers, len(stacked.down), len(stacked.down), device=mount.device)
            for name, stacked in mount.modules.items()
        }

    @contextmanager
    def recording(self, teacher: Int[Tensor, " batch"]) -> Iterator[None]:
        """Add up what the modules see while the network is called once; sample i belongs to `teacher[i]`."""
        teacher = teacher.to(self._mount.device)
        handles = [
            self._mount.unet.get_submodule(name).register_forward_pre_hook(partial(self._add, name, teacher))
            for name in self._sums
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._samples.index_add_(0, teacher, torch.ones_like(teacher, dtype=torch.float32))

    @torch.no_grad()
    def _add(self, name: str, teacher: Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0]
        h = torch.nn.functional.linear(x, self._mount.modules[name].down).float()
        h = h.reshape(len(x), -1, h.shape[-1])
        self._sums[name].index_add_(0, teacher, h.mT @ h)

    def means(self) -> dict[str, Float[Tensor, "teachers R R"]]:
        """The sums divided by the number of samples of each teacher; zero for one that has had none."""
        return {name: total / self._samples.clamp(min=1)[:, None, None] for name, total in self._sums.items()}


@torch.no_grad()
def one_shot(
    base: Base, parts: Sequence[Part], roles: Mapping[str, Role], options: MergeOptions, progress: bool = False
) -> list[Masks]:
    """The rank masks of every adapter, in the order of the parts.

    Raises:
        InputError: the prior asked for is not a convex one.
    """
    if options.norm != "diag":
        raise InputError(f"norm: the one-shot merge needs 'diag', got {options.norm!r}")
    with Mount(base.unet, [part.loras for part in parts], "rank", base.device) as mount:
        unet = mounted_unet(base, mount, [part.prompt for part in parts])
        grams = _calibrated(unet, noise_schedule(base), parts, options, progress)
        return mount.unflat(_solved(mount, grams, [part.kind for part in parts], roles, options))


def _calibrated(
    unet: MountedUNet, schedule: NoiseSchedule, parts: Sequence[Part], options: MergeOptions, progress: bool
) -> Grams:
    """The modules' inputs under each teacher, at its own prompt."""
    K, device = len(parts), unet.mount.device
    grams, gates, prompts = Grams(unet.mount, K), unet.mount.owned(), [part.prompt for part in parts]
    for call in counted(range(options.calls), "Calibrating", progress):
        rng = step_generator(options.seed, call)
        share = float(torch.rand((), generator=rng))  # one for all, so that the order of adapters does not matter
        x = torch.stack([part.latents[int(share * len(part.latents))] for part in parts])
        t = schedule.sample_timesteps(1, rng).expand(K)
        noise = torch.randn((1, *x.shape[1:]), generator=rng).to(device)
        with grams.recording(torch.arange(K)):
            unet.predict(schedule.add_noise(x, noise.expand_as(x), t), t, prompts, gates)
    return grams


def _solved(
    mount: Mount, grams: Grams, kinds: Sequence[str], roles: Mapping[str, Role], options: MergeOptions
) -> Tensor:
    """The merged gate row; modules of the same R are solved together."""
    problems = {n: _problem(mount, n, gram, kinds, roles[n], options) for n, gram in grams.means().items()}
    found: dict[str, Tensor] = {}
    for R in {p.b.shape[1] for p in problems.values()}:
        alike = {n: p for n, p in problems.items() if p.b.shape[1] == R}
        columns = [torch.cat([getattr(p, f.name) for p in alike.values()]) for f in fields(oneshot.Problem)]
        found |= dict(zip(alike, oneshot.solve(oneshot.Problem(*columns), options.upper), strict=True))
    row = torch.cat([found[n] for n in mount.modules]) if found else torch.zeros(0, device=mount.device)
    return row.float()


def _problem(
    mount: Mount, name: str, gram: Tensor, kinds: Sequence[str], role: Role, options: MergeOptions
) -> oneshot.Problem:
    """One module's problem: teachers, their weights there, and Eq. 1."""
    o, stacked = options, mount.modules[name]
    owner = torch.cat([torch.full((r,), k) for k, r in zip(stacked.owners, stacked.ranks, strict=True)])
    owner = owner.to(mount.device)
    own = (owner == torch.arange(len(kinds), device=mount.device)[:, None]).double()
    leads = torch.tensor([kind == role for kind in kinds], device=mount.device).double()
    dominant = (leads[:, None] * own).sum(0)
    weights = torch.where(leads > 0, 1.0, 1.0 if role == "neutral" else o.off_role).double()
    H, b = oneshot.reconstruction(oneshot.curvature(stacked.up, gram)[None], own[None], weights[None], o.ridge)
    other = torch.zeros_like(dominant) if role == "neutral" else 1 - dominant
    sparsity, lam = o.lambda_layer_prior * o.sparsity, o.lambda_layer_prior * o.prior_lambda
    return oneshot.Problem(H, b, *oneshot.layer_prior(dominant[None], other[None], sparsity, lam, o.hinge))
