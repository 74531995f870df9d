"""Train Atelier's UNet from nothing, or go on: `python -m recipes.atelier.base --help`.

The latents are exact (`latents.py`), so that no VAE is needed. On a CPU every step's images are rendered for it, so
that none is seen twice, and two processes of one thread each average their gradients (by `torchrun`, see README.md).
A GPU outruns the cores beside it: one process trains compiled and in bfloat16 on what they have rendered so far.

The learning rate is constant, then falls to nothing over the last part (`--cooling`). What the constant part reached
stays in `steady.safetensors`, from which a longer run goes on.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree
from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from duolora.atelier.scene import SIZE
from recipes.atelier import latents
from recipes.atelier.architecture import new_scheduler, new_unet
from recipes.atelier.muon import Muon
from recipes.atelier.rendered import POOL, Pool, Rendered
from recipes.atelier.text import TextEncoders


@dataclass(frozen=True)
class Recipe:
    """How a base is trained."""

    batch: int = 32
    """Images of each process in a step."""
    muon_lr: float = 0.005
    """Of matrices and convolutions; 0 trains them by AdamW, too."""
    adam_lr: float = 5e-4
    """Of everything else."""
    dropped: float = 0.1
    """The chance that an image is shown without its caption."""
    noisy: float = 2.0
    """1 draws timesteps evenly; more favours the noisy ones, at which shapes are decided."""
    average: float = 0.998
    """What the averaged weights keep of themselves in a step."""
    poses: int = 8
    """Of how many poses the target is the mean, each by how well it explains the noisy image; 1 is the usual target."""
    seed: int = 11


class TextToImage(TextEncoders):
    """UNet and text encoders as one module; the encoders stay as `text.py` trained them."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__(tokenizer)
        self.requires_grad_(False)
        self.unet = new_unet()

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, dropped: Tensor) -> Tensor:
        """The predicted velocity; captions with `dropped` are zeros, as SDXL's pipeline has for an empty prompt."""
        states, pooled = super().forward(tokens)
        shown = (~dropped).to(noisy.dtype)[:, None]
        time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], device=noisy.device).expand(len(noisy), -1)
        condition = {"text_embeds": pooled * shown, "time_ids": time_ids.to(noisy.dtype)}
        embeds = states * shown[..., None]
        with torch.autocast("cuda", torch.bfloat16, enabled=noisy.is_cuda):
            return self.unet(noisy, timesteps, embeds, added_cond_kwargs=condition, return_dict=False)[0]


def optimisers_of(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices and convolutions, AdamW for embeddings, ends, norms and biases."""
    ends = ("conv_in", "conv_out", "embedding", "add_embedding")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inner = {n for n, p in trained.items() if p.ndim > 1 and not any(end in n for end in ends)}
    inner = inner if recipe.muon_lr else set()
    others = [p for n, p in trained.items() if n not in inner]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=1e-2)
    ]
    if inner:
        found.append(Muon([p for n, p in trained.items() if n in inner], recipe.muon_lr))
    return found


def tensors_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, each its own."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in values.items()}


def save_state(path: Path, run: "Run") -> None:
    """Everything that training goes on from, whole or not at all."""
    state = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    state |= {f"average.{k}": v for k, v in run.average.items()}
    for o, optimiser in enumerate(run.optimisers):
        for n, entries in optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{o}.{n}.{k}": torch.as_tensor(v) for k, v in entries.items()}
    part = path.with_suffix(".part")
    save_file(tensors_of(state), part, {"step": str(run.step), "seen": str(run.seen)})
    os.replace(part, path)


def load_state(path: Path, run: "Run") -> None:
    """Copy a state into the run."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    run.model.load_state_dict({k.removeprefix("model."): v for k, v in stored.items() if k.startswith("model.")})
    for key, value in run.average.items():
        value.copy_(stored[f"average.{key}"])
    for o, optimiser in enumerate(run.optimisers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.items():
            if key.startswith(f"optimiser.{o}."):
                n, name = key.removeprefix(f"optimiser.{o}.").split(".", 1)
                state.setdefault(int(n), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    run.step, run.seen = int(about["step"]), int(about["seen"])


class Run:
    """A training run: the networks, their average, the optimisers, and how far it is."""

    def __init__(self, recipe: Recipe, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.model = TextToImage(tokenizer).to(device)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimisers = optimisers_of(self.model, recipe)
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            self.model.unet.compile(dynamic=False)
        self.alphas = new_scheduler().alphas_cumprod.to(device)
        self.step = self.seen = 0

    def loss(self, pixels: Tensor, tokens: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The velocity's squared error for each image, and its timestep; all on the device, `rng` too.

        The image is shown in its first pose. What it should be denoised to is the mean of all its poses, each by how
        likely it makes the noisy image: the same in expectation as the first pose alone, with far less noise in it
        where noise hides the pose (Xu, Tong and Jaakkola: Stable target field, 2023).
        """
        count, device = len(tokens), self.device
        images = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        poses = latents.encode(images).unflatten(0, (count, -1))
        even = torch.rand(1, generator=rng, device=device) + torch.arange(count, device=device) / count
        spread = 1 - (even % 1) ** self.recipe.noisy
        timesteps = (spread * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(poses[:, 0].shape, generator=rng, device=device)
        dropped = torch.rand(count, generator=rng, device=device) < self.recipe.dropped
        signal, spoil = (a[timesteps, None, None, None] for a in (self.alphas.sqrt(), (1 - self.alphas).sqrt()))
        noisy = signal * poses[:, 0] + spoil * noise
        distance = (noisy[:, None] - signal[:, None] * poses).square().sum((2, 3, 4)) / spoil.square()[:, :, 0, 0]
        clean = (poses * (-distance / 2).softmax(1)[:, :, None, None, None]).sum(1)
        target = signal * (noisy - signal * clean) / spoil - spoil * clean
        predicted = self.model(noisy, timesteps, tokens, dropped)
        return F.mse_loss(predicted.float(), target, reduction="none").mean((1, 2, 3)), timesteps

    def update(self, factor: float) -> None:
        """One step of the optimisers at a share of their rates, and of the average, from the gradients there are."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if dist.is_initialized():
            whole = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            dist.all_reduce(whole)
            parts = (whole / dist.get_world_size()).split([p.numel() for p in parameters])
            for p, part in zip(parameters, parts, strict=True):
                p.grad = part.view_as(p)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        keep = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        torch._foreach_lerp_([self.average[n] for n, _ in trained], [p.detach() for _, p in trained], 1 - keep)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the state, the tokenizer and the averaged weights.")],
    text: Annotated[Path, typer.Option(help="Folder that `recipes.atelier.text` wrote, or a pipeline.")],
    minutes: Annotated[float, typer.Option(help="How long to train this time.")],
    cooling: Annotated[float, typer.Option(help="The share of the time in which the learning rate falls.")] = 0.25,
    batch: Annotated[int, typer.Option(help="Images of each process in a step.")] = Recipe.batch,
    poses: Annotated[int, typer.Option(help="Poses behind a target; each is rendered. 1 is the usual target.")] = 8,
    muon_lr: Annotated[float, typer.Option(help="Of matrices and convolutions; 0: by AdamW, too.")] = Recipe.muon_lr,
    adam_lr: Annotated[float, typer.Option(help="Of everything else.")] = Recipe.adam_lr,
    seed: int = Recipe.seed,
    start_from: Annotated[Path | None, typer.Option(help="A run, or a pipeline, whose UNet is the start.")] = None,
    save_every: Annotated[float, typer.Option(help="Minutes between two states.")] = 2.0,
) -> None:
    """Train for some minutes, from the state in the folder if there is one."""
    started = time.time()
    cuda = torch.cuda.is_available()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    if not cuda:
        torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        copytree(text / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    if world > 1:
        dist.barrier()
    recipe = Recipe(batch=batch, poses=poses, muon_lr=muon_lr, adam_lr=adam_lr, seed=seed)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    steady = out / "steady.safetensors"
    first = first_seed(recipe, steady) + rank
    device = torch.device("cuda" if cuda else "cpu")
    batches: Iterable[tuple[Tensor, Tensor]] = Rendered(tokenizer, batch, poses, first, world)
    if cuda:
        batches = Pool(tokenizer, batch, poses, POOL, first, max(1, len(os.sched_getaffinity(0)) - 3)).on(device)
    run = Run(recipe, tokenizer, device)
    if steady.exists():
        load_state(steady, run)
    else:
        weights = first_weights(text, start_from)
        run.model.load_state_dict(weights, strict=start_from is not None)
        run.average = {k: v.detach().clone() for k, v in run.model.state_dict().items()}
    rng, log = torch.Generator(device).manual_seed(first), Log(out / f"log.{rank}.jsonl", started, device)
    saved, begun = time.time(), run.step
    for pixels, tokens in batches:
        done = torch.tensor((time.time() - started) / (60 * minutes))
        if world > 1:
            dist.broadcast(done, 0)
        if done >= 1:
            break
        factor = min(1.0, (run.step - begun + 1) / (150 if begun == 0 else 30)) * min(
            1.0, max(0.0, (1 - float(done)) / cooling)
        )
        each, timesteps = run.loss(pixels, tokens, rng)
        each.mean().backward()
        run.update(factor)
        run.seen += batch * world
        log.add(each, timesteps / len(run.alphas))
        if run.step % 50 == 0:
            log.write(run.step, run.seen, factor)
        if rank == 0 and time.time() - saved > 60 * save_every:
            saved = time.time()
            if done < 1 - cooling:
                save_state(steady, run)
            save_average(out, run, world)
    if rank == 0:
        save_average(out, run, world)
    print(f"{run.step} steps, {run.seen} images", flush=True)


def first_seed(recipe: Recipe, steady: Path) -> int:
    """Of the images that are rendered from a state on: none that it has seen."""
    step = 0
    if steady.exists():
        with safe_open(steady, "pt") as file:
            step = int(file.metadata()["step"])
    return (recipe.seed * 1000 + step) * 10_000_000


def first_weights(text: Path, start_from: Path | None) -> dict[str, Tensor]:
    """What a run begins with: the text encoders and, from another run or a pipeline, the UNet; all in float32."""
    encoders = text / "text.safetensors"
    weights = load_file(encoders) if encoders.exists() else part_of(text, "text_encoder", "model")
    if not encoders.exists():
        weights |= part_of(text, "text_encoder_2", "model")
    if start_from is not None and (start_from / "average.safetensors").exists():
        average = load_file(start_from / "average.safetensors")
        weights |= {key: value for key, value in average.items() if key.startswith("unet.")}
    elif start_from is not None:
        weights |= part_of(start_from, "unet", "diffusion_pytorch_model")
    return weights


def part_of(pipeline: Path, name: str, file: str) -> dict[str, Tensor]:
    """The weights of one of a pipeline's networks, by their names in `TextToImage`."""
    stored = load_file(pipeline / name / f"{file}.safetensors")
    return {f"{name}.{key}": value.float() if value.is_floating_point() else value for key, value in stored.items()}


def save_average(out: Path, run: Run, world: int) -> None:
    """Write the averaged weights, which make the base, and how they came about."""
    save_file(tensors_of(run.average), out / "average.safetensors")
    facts = asdict(run.recipe) | {"steps": run.step, "images": run.seen, "processes": world}
    (out / "recipe.json").write_text(json.dumps(facts, indent=1))


class Log:
    """Mean losses of each quarter of the noise levels, and images a second, as lines of JSON."""

    def __init__(self, path: Path, started: float, device: torch.device) -> None:
        self.path, self.started = path, started
        self.sums, self.counts = torch.zeros(4, device=device), torch.zeros(4, device=device)

    def add(self, losses: Tensor, noise: Tensor) -> None:
        """The losses of a step, at noise levels from 0 to 1."""
        quarter = (noise * 4).long()
        self.sums.index_add_(0, quarter, losses.detach())
        self.counts.index_add_(0, quarter, torch.ones_like(losses))

    def write(self, step: int, seen: int, factor: float) -> None:
        """A line, and begin anew."""
        seconds = time.time() - self.started
        losses = [round(v, 4) for v in (self.sums / self.counts).tolist()]
        line = {
            "step": step,
            "images": seen,
            "losses": losses,
            "lr": round(factor, 3),
            "minutes": round(seconds / 60, 1),
        }
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)
        self.sums.zero_()
        self.counts.zero_()


if __name__ == "__main__":
    typer.run(main)
