"""Merge a content LoRA and a style LoRA into one ordinary LoRA file."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from duolora.adapters.adapter import Adapter
from duolora.adapters.files import Proof, check_fits, read_adapter, write_adapter
from duolora.checkpoint import step_generator
from duolora.errors import InputError
from duolora.images import read_pictures
from duolora.methods import METHODS, MergeOptions
from duolora.networks.bases import Base, load_base
from duolora.networks.block_map import roles
from duolora.networks.denoise import MountedDenoise, NoiseSchedule, denoiser, noise_schedule
from duolora.networks.mount import Mount
from duolora.networks.targets import linear_shapes, target_modules
from duolora.paper import ziplora, ziprank
from duolora.paper.constyle import Prompts, constyle, overall
from duolora.paper.layer_prior import Role, initial_masks, layer_prior_loss
from duolora.paper.lowrank import LowRank, svd_basis, total
from duolora.provenance import file_hash, versions
from duolora.sampling import draw

Loras = dict[str, LowRank]
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Merged:
    """A finished merge: the file and the proof of its strength, and what was learnt on the way."""

    path: Path
    proof: Proof
    trainable: int
    """How many numbers were learnt."""
    moved: float
    """Mean change of a mask entry from the beginning to the end."""
    seconds: float
    losses: list[dict[str, float]]
    """The terms of the loss, at every tenth update."""
    content_masks: Masks
    style_masks: Masks
    left_out: tuple[str, ...] = ()
    """Parts of the two files that the merge does not carry over, such as LoRAs of text encoders."""


def merge(
    content: str | Path,
    style: str | Path,
    out: str | Path,
    method: str = "duolora",
    base: str | Base = "atelier",
    content_images: str | Path | None = None,
    style_images: str | Path | None = None,
    content_prompt: str | None = None,
    style_prompt: str | None = None,
    merged_prompt: str | None = None,
    options: MergeOptions | None = None,
    progress: bool = True,
    announce: Callable[[Mapping[str, Role]], object] | None = None,
) -> Merged:
    """Merge two LoRA files into one that draws the content in the style, and write it to `out`.

    Masks are learnt against the two LoRAs themselves, on the given pictures or, where there are none, on pictures that
    each LoRA draws from its own prompt. The result is folded: it is an ordinary LoRA whose rank varies by module.

    Args:
        content: the content LoRA, a .safetensors file.
        style: the style LoRA, likewise.
        out: the .safetensors file to write, in diffusers' format.
        method: a key of `METHODS`.
        base: a name, path or hub id (see `load_base`), or a loaded base.
        content_images: pictures of the content, a file or folder.
        style_images: pictures of the style, a file or folder.
        content_prompt: what brings out the content; by default the prompt in the file's recipe.
        style_prompt: what brings out the style, likewise.
        merged_prompt: the prompt for both; by default the content's subject with the style's ending.
        options: everything else; by default the method's own.
        progress: show bars on stderr.
        announce: called with the role of every module before the masks are trained.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    started = time.perf_counter()
    out, options = Path(out).expanduser(), options or options_of(method)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: expected an output file that ends in .safetensors")
    adapters = {"content": read_adapter(Path(content)), "style": read_adapter(Path(style))}
    loaded = load_base(base) if isinstance(base, str) else base
    shapes = linear_shapes(loaded.unet)
    for adapter, path in zip(adapters.values(), (content, style), strict=True):
        check_fits(adapter, shapes, Path(path))
    masked = set(target_modules(loaded.unet))
    loras = [_in_basis(a.modules, masked, options.basis) for a in adapters.values()]
    merging = _Merging(loaded, loras[0], loras[1], options, progress)
    prompts = None
    if options.masks != "none":
        if announce is not None:
            announce(merging.roles)
        prompts = _prompts(adapters, content_prompt, style_prompt, merged_prompt)
        merging.learn(prompts, content_images, style_images)
    modules = merging.folded() | _rest(adapters, masked, options)
    sources = {"content": file_hash(Path(content)), "style": file_hash(Path(style))}
    recipe = _recipe(method, loaded, merging, prompts) | sources
    if left_out := tuple(part for adapter in adapters.values() for part in adapter.left_out):
        recipe["left_out"] = list(left_out)
    proof = write_adapter(out, Adapter(modules, recipe))
    learnt = (merging.trainable, merging.moved, time.perf_counter() - started, merging.losses)
    return Merged(out, proof, *learnt, merging.m_c, merging.m_s, left_out)


def options_of(method: str, **changes: object) -> MergeOptions:
    """The options of a method, some of them changed.

    Raises:
        InputError: there is no such method.
    """
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return replace(METHODS[method], **changes)  # type: ignore[arg-type]


def merged_prompt_of(content: str, style: str) -> str:
    """The content's subject in the style's words.

    "a sks cup in flat style" and "a house in zwx style" make "a sks cup in zwx style".
    """
    subject, _, _ = content.partition(" in ")
    _, found, look = style.rpartition(" in ")
    return f"{subject} in {look}" if found else f"{content}, {style}"


class _Merging:
    """The masks of one merge, and how they are learnt and folded."""

    def __init__(self, base: Base, content: Loras, style: Loras, options: MergeOptions, progress: bool) -> None:
        self.base, self.content, self.style, self.options, self.progress = base, content, style, options, progress
        found = roles(base.unet, options.block_map)
        self.roles: dict[str, Role] = {name: found[name] for name in found if name in content or name in style}
        self.m_c, self.m_s = self._initial()
        self.losses: list[dict[str, float]] = []
        self.moved = 0.0

    @property
    def trainable(self) -> int:
        """How many numbers the masks have."""
        return 0 if self.options.masks == "none" else sum(m.numel() for ms in (self.m_c, self.m_s) for m in ms.values())

    def _width(self, lora: LowRank | None) -> int:
        if lora is None:
            return 0
        return {"none": lora.rank, "rank": lora.rank, "output": lora.d_out, "input": lora.d_in}[self.options.masks]

    def _initial(self) -> tuple[Masks, Masks]:
        o, rng = self.options, torch.Generator().manual_seed(self.options.seed)
        m_c, m_s = {}, {}
        for name, role in self.roles.items():
            n_c, n_s = self._width(self.content.get(name)), self._width(self.style.get(name))
            first = initial_masks(n_c, n_s, role, o.T_content, o.T_style, o.init, rng)
            m_c[name], m_s[name] = (m.to(self.base.device) for m in first)
        return {n: m for n, m in m_c.items() if n in self.content}, {n: m for n, m in m_s.items() if n in self.style}

    def learn(self, prompts: Prompts, content_images: str | Path | None, style_images: str | Path | None) -> None:
        """Train the masks by Adam (Sec. 4), in place."""
        o, base = self.options, self.base
        with Mount(base.unet, [self.content, self.style], "rank") as plain:
            own = plain.owned()
            x_c = self._latents(content_images, prompts.content, lambda: plain.gating(own[:1]))
            x_s = self._latents(style_images, prompts.style, lambda: plain.gating(own[1:]))
        parameters = [m.requires_grad_() for masks in (self.m_c, self.m_s) for m in masks.values()]
        before = [p.detach().clone() for p in parameters]
        optimiser = torch.optim.Adam(parameters, lr=o.lr)
        schedule = noise_schedule(base)
        axis = "rank" if o.masks == "none" else o.masks
        with Mount(base.unet, [self.content, self.style], axis) as mount:
            names = (prompts.content, prompts.style, prompts.merged)
            denoise = denoiser(base, mount, names, self.m_c, self.m_s, base.resolution, base.resolution)
            base.release_encoders()
            for step in tqdm(range(o.steps), "Merging", disable=not self.progress, leave=False):
                terms = self._loss(denoise, schedule, x_c, x_s, prompts, step_generator(o.seed, step))
                terms["loss"].backward()
                optimiser.step()
                optimiser.zero_grad()
                if step % 10 == 0 or step + 1 == o.steps:
                    self.losses.append({"update": step, **{k: float(v.detach()) for k, v in terms.items()}})
        moved = torch.cat([(p.detach() - b).abs() for p, b in zip(parameters, before, strict=True)])
        self.moved = float(moved.mean())
        for p in parameters:
            p.requires_grad_(False)

    def _latents(
        self, images: str | Path | None, prompt: str, gating: Callable[[], AbstractContextManager[None]]
    ) -> Tensor:
        """Latents of the given pictures, or of pictures drawn under the given gate."""
        if images is not None:
            return self.base.encode_images(read_pictures(images, self.base.resolution))
        seeds = range(self.options.seed, self.options.seed + self.options.pictures)
        with gating():
            return self.base.encode_images(draw(self.base, [prompt] * len(seeds), list(seeds), progress=self.progress))

    def _loss(
        self,
        denoise: MountedDenoise,
        schedule: NoiseSchedule,
        x_c: Tensor,
        x_s: Tensor,
        prompts: Prompts,
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """The terms of the loss at one draw of pictures, timesteps and noise."""
        o = self.options
        rows_c, rows_s = (torch.randint(len(x), (o.batch,), generator=rng).to(x.device) for x in (x_c, x_s))
        t = schedule.sample_timesteps(o.batch, rng)
        noise, other = (torch.randn((o.batch, *x_c.shape[1:]), generator=rng).to(x_c.device) for _ in range(2))
        terms = constyle(
            denoise, schedule.process(), x_c[rows_c], x_s[rows_s], t, noise, prompts, o.reading, o.space,
            other if o.fresh_noise else None,
        )  # fmt: skip
        prior = x_c.new_zeros(())
        if o.lambda_layer_prior:
            layers = [(self._mask(self.m_c, n), self._mask(self.m_s, n), role) for n, role in self.roles.items()]
            prior = layer_prior_loss(layers, o.prior_lambda, o.norm, o.hinge, o.reduction)
        loss = overall(terms, prior, o.lambda_layer_prior, o.lambda_cycle, o.multiplies)
        if o.lambda_similarity:
            pairs = [(self.m_c[n], self.m_s[n]) for n in self.m_c if n in self.m_s]
            loss = loss + o.lambda_similarity * ziplora.similarity(pairs, o.similarity)
        cycle = terms.cycle_style + terms.cycle_content
        return {"loss": loss, "reconstruction": terms.reconstruction, "cycle": cycle, "layer_prior": prior}

    def _mask(self, masks: Masks, name: str) -> Tensor:
        return masks[name] if name in masks else torch.zeros(0, device=self.base.device)

    def folded(self) -> Loras:
        """The masked merge as one ordinary LoRA; modules with nothing left are left out."""
        o, out = self.options, {}
        for name in self.roles:
            parts = []
            for lora, masks, weight in (
                (self.content.get(name), self.m_c, o.content_weight),
                (self.style.get(name), self.m_s, o.style_weight),
            ):
                if lora is not None:
                    parts.append(self._masked(replace(lora, scale=lora.scale * weight), masks[name].detach()))
            if (left := total(parts)) is not None:
                out[name] = left
        return out

    def _masked(self, lora: LowRank, mask: Tensor) -> LowRank | None:
        o = self.options
        if o.masks in ("output", "input"):
            return (ziplora.output_masked if o.masks == "output" else ziplora.input_masked)(lora, mask)
        return ziprank.kept(lora, mask, o.threshold, o.binary)


def _in_basis(modules: Mapping[str, LowRank], masked: set[str], basis: str) -> Loras:
    """The modules that get masks, in the basis in which masks act."""
    return {n: svd_basis(lora) if basis == "svd" else lora for n, lora in modules.items() if n in masked}


def _rest(adapters: Mapping[str, Adapter], masked: set[str], options: MergeOptions) -> Loras:
    """The modules without masks, by the stated policy."""
    weights = {"content": options.content_weight, "style": options.style_weight}
    keep = {"sum": ("content", "style"), "content": ("content",), "style": ("style",), "drop": ()}[options.rest]
    found: dict[str, list[LowRank]] = {}
    for kind in keep:
        for name, lora in adapters[kind].modules.items():
            if name not in masked:
                found.setdefault(name, []).append(replace(lora, scale=lora.scale * weights[kind]))
    return {name: both for name, loras in found.items() if (both := total(loras)) is not None}


def _prompts(adapters: Mapping[str, Adapter], content: str | None, style: str | None, merged: str | None) -> Prompts:
    """The three prompts: as given, or from the files' own recipes."""
    chosen = {}
    for kind, given in (("content", content), ("style", style)):
        prompt = given or adapters[kind].recipe.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{kind} LoRA: its file names no prompt or trigger word; give --{kind}-prompt")
        chosen[kind] = prompt
    return Prompts(**chosen, merged=merged or merged_prompt_of(chosen["content"], chosen["style"]))


def _recipe(method: str, base: Base, merging: "_Merging", prompts: Prompts | None) -> dict[str, object]:
    """What the file says of its making."""
    recipe: dict[str, object] = {
        "made_by": "duolora merge",
        "method": method,
        "base": base.name,
        "options": asdict(merging.options),
        "blocks": _block_table(merging.roles),
        "versions": versions(),
    }
    if prompts is not None:
        recipe |= {"prompt": prompts.merged, "content_prompt": prompts.content, "style_prompt": prompts.style}
    return recipe


def _block_table(found: Mapping[str, Role]) -> dict[str, str]:
    """The role of each block that has attention, such as {"down_blocks.2": "content"}."""
    return {name.split(".attentions")[0]: role for name, role in found.items()}
