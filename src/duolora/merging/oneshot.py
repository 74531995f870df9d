"""One-shot merge: a few calls of the network without a gradient, then every module's masks in closed form.

Any number of adapters, each with pictures and a prompt of its own that say when it is the teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from tqdm import tqdm

from duolora.checkpoint import step_generator
from duolora.errors import InputError
from duolora.merging.fold import Kind
from duolora.merging.sources import Loras, Masks, Sources
from duolora.methods import MergeOptions
from duolora.networks.bases import Base
from duolora.networks.denoise import MountedUNet, NoiseSchedule, mounted_unet, noise_schedule
from duolora.networks.grams import Grams
from duolora.networks.mount import Mount
from duolora.paper import oneshot
from duolora.paper.constyle import Prompts
from duolora.paper.layer_prior import Role


@dataclass(frozen=True, eq=False)
class Part:
    """One adapter of a merge: what it is for, and the latents and the prompt at which it is the teacher."""

    loras: Loras
    kind: Kind
    latents: Tensor
    prompt: str


@dataclass(frozen=True, eq=False)
class Parts:
    """The adapters of a merge, and the prompt at which all should work together."""

    parts: tuple[Part, ...]
    merged_prompt: str


def pair_of(both: Sources, x_c: Tensor, x_s: Tensor, prompts: Prompts) -> Parts:
    """Content and style, with their latents."""
    content = Part(both.content, "content", x_c, prompts.content)
    return Parts((content, Part(both.style, "style", x_s, prompts.style)), prompts.merged)


@torch.no_grad()
def one_shot(
    base: Base, parts: Parts, roles: Mapping[str, Role], options: MergeOptions, progress: bool = False
) -> list[Masks]:
    """The rank masks of every adapter, in the order of the parts.

    The inputs are first those under the teachers (and, at the merged prompt, under the plain sum); in each of
    `options.refits` further rounds they are those of the merge so far, at the same pictures, timesteps and noise.

    Raises:
        InputError: the prior asked for is not a convex one.
    """
    o, adapters = options, [part.loras for part in parts.parts]
    if o.norm != "diag":
        raise InputError(f"norm: the one-shot merge needs 'diag', got {o.norm!r}")
    with Mount(base.unet, adapters, "rank", base.device) as mount:
        prompts = [part.prompt for part in parts.parts]
        unet = mounted_unet(base, mount, [*prompts, parts.merged_prompt], base.resolution, base.resolution)
        own = mount.owned()
        merged = own.sum(0)
        for round_ in tqdm(range(o.refits + 1), "Calibrating", disable=not progress, leave=False):
            gates = own if round_ == 0 else merged.expand_as(own)
            grams = _calibrated(unet, noise_schedule(base), parts, o, gates, merged)
            merged = _solved(mount, grams, [part.kind for part in parts.parts], roles, o)
        return mount.unflat(merged)


def _calibrated(
    unet: MountedUNet, schedule: NoiseSchedule, parts: Parts, options: MergeOptions, gates: Tensor, merged: Tensor
) -> Grams:
    """The modules' inputs at the teachers' prompts, and last at the merged prompt if it has a weight."""
    K, device = len(parts.parts), unet.mount.device
    grams = Grams(unet.mount, K + 1)
    prompts, teacher = [part.prompt for part in parts.parts], list(range(K))
    if options.mixed:
        prompts, teacher = prompts + [parts.merged_prompt] * K, teacher + [K] * K
        gates = torch.cat([gates, merged.expand(K, -1)])
    for call in range(options.calls):
        rng = step_generator(options.seed, call)
        share = float(torch.rand((), generator=rng))  # one for all, so that the order of adapters does not matter
        x = torch.stack([part.latents[int(share * len(part.latents))] for part in parts.parts])
        t = schedule.sample_timesteps(1, rng).expand(K)
        noise = torch.randn((1, *x.shape[1:]), generator=rng).to(device)
        x_t = schedule.add_noise(x, noise.expand_as(x), t).repeat(len(teacher) // K, 1, 1, 1)
        with grams.watching(torch.tensor(teacher)):
            unet.predict(x_t, t.repeat(len(teacher) // K), prompts, gates)
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
    asked = dominant if role != "neutral" and o.mixed_target == "role" else torch.ones_like(dominant)
    weights = torch.where(leads > 0, 1.0, 1.0 if role == "neutral" else o.off_role)
    weights = torch.cat([weights.double(), torch.full_like(leads[:1], o.mixed)])
    H, b = oneshot.reconstruction(
        oneshot.curvature(stacked.up, gram)[None], torch.cat([own, asked[None]])[None], weights[None], o.ridge
    )
    other = torch.zeros_like(dominant) if role == "neutral" else 1 - dominant
    sparsity, lam = o.lambda_layer_prior * o.sparsity, o.lambda_layer_prior * o.prior_lambda
    return oneshot.Problem(H, b, *oneshot.layer_prior(dominant[None], other[None], sparsity, lam, o.hinge))
