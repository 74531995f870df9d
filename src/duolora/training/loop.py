"""LoRA training: one loop, for a LoRA alone and for PairCustomization's two.

    loss = Σ_tasks ‖target − prediction(x_t, p)‖² + ‖prediction of the base − prediction‖² on class images

The second term is prior preservation, where the options ask for it. Only the given factors are trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from duolora.errors import InputError
from duolora.model.base import Base, PromptEmbeds
from duolora.model.predict import NoiseSchedule, noise_schedule, predict
from duolora.model.sample import sample_images
from duolora.training.callbacks import Callback, wants_preview
from duolora.training.checkpoint import Training, check_loss, check_values, scaler_for, step_generator
from duolora.training.options import TrainOptions
from duolora.training.prior_preservation import ClassImages, class_batch, class_predictions

SAVE_EVERY = 100
"""Steps from one checkpoint to the next."""


@dataclass(frozen=True, eq=False)
class Task:
    """Images with a prompt, and which of PEFT's adapters are active while they are shown."""

    latents: Float[Tensor, "n c h w"]
    prompt: str
    adapters: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Sample:
    """What all tasks of a step share: numbers of images, timesteps, noise, and which prompts are not dropped."""

    rows: Int[Tensor, " batch"]
    t: Int[Tensor, " batch"]
    noise: Float[Tensor, "batch c h w"]
    shown: Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class _Trainer:
    """One training, step by step: each has a backward pass for every task, and trains the optimiser's factors."""

    base: Base
    schedule: NoiseSchedule
    tasks: Sequence[Task]
    options: TrainOptions
    preserved: ClassImages | None
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def step(self, step: int, prompts: Sequence[PromptEmbeds]) -> Tensor:
        """The loss of the images before the step, over all tasks."""
        options, seen = self.options, list[Tensor]()
        rng = step_generator(options.seed, step)
        sample = _sample(self.schedule, self.tasks[0].latents, options, rng)
        for task, prompt in zip(self.tasks, prompts, strict=True):
            if len(self.tasks) > 1:
                self.base.unet.set_adapters(list(task.adapters))
            some = None if self.preserved is None else self.preserved.some(class_batch(options.batch), rng)
            loss, changed = _losses(self.base, self.schedule, task, prompt, sample, some, options)
            check_loss(loss + changed, self.optimiser, step)
            self.scaler.scale(loss + changed).backward()
            seen.append(loss.detach())
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        return torch.stack(seen).sum()


def train_factors(
    base: Base,
    tasks: Sequence[Task],
    factors: Mapping[str, Tensor],
    options: TrainOptions,
    checkpoint: Path | None = None,
    progress: bool = True,
    callback: Callback | None = None,
    save_every: int = SAVE_EVERY,
) -> list[float]:
    """Train the factors in place by Adam; the loss of the images at every tenth step.

    Every step has a backward pass for each task. Goes on from `checkpoint` if that file is there, with its losses, and
    writes it every `save_every` steps, and when Ctrl-C is pressed. In float16 the gradients are scaled.

    Raises:
        DuoLoRAError: the loss is no longer finite.
    """
    schedule = noise_schedule(base)
    preserved = class_predictions(base, options.class_prompts, progress=progress) if options.class_prompts else None
    empty = base.empty_prompt()  # number 0, the dropped caption

    def read() -> list[PromptEmbeds]:
        """The prompts of each task, behind the empty one; anew at every step where their vectors are trained."""
        return [base.encode_prompts([task.prompt, *options.class_prompts]).after(empty) for task in tasks]

    prompts = read()
    if not options.learn_tokens:
        base.release_encoders()
    optimiser, scaler = optimiser_of(list(factors.values()), options), scaler_for(base)
    trainer = _Trainer(base, schedule, tasks, options, preserved, optimiser, scaler)
    checkpoint = checkpoint if options.optimiser == "adam" else None  # the others keep more than their state says
    training = Training(factors, optimiser, scaler, [], checkpoint)
    with training.steps("Training", options.steps, save_every, progress, leave=True) as left:
        for step in left:
            prompts = read() if options.learn_tokens else prompts
            loss = trainer.step(step, prompts)
            if step % 10 == 0:
                training.losses.append(float(loss))
                if callback is not None:
                    callback.losses(step + 1, options.steps, {"loss": float(loss)})
            if callback is not None and wants_preview(callback, step + 1, options.steps):
                images = sample_images(base, [tasks[-1].prompt] * 2, [options.seed, options.seed + 1])
                callback.preview(step + 1, images)
                if not options.learn_tokens:
                    base.release_encoders()
    check_values(factors.values(), optimiser, options.steps)
    return training.losses


def optimiser_of(parameters: Sequence[Tensor], options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser of that name.

    Raises:
        InputError: its library is not installed.
    """
    if options.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=options.lr)
    library, name = {"adam8bit": ("bitsandbytes", "optim.Adam8bit"), "prodigy": ("prodigyopt", "Prodigy")}[
        options.optimiser
    ]
    try:
        kind = attrgetter(name)(import_module(library))
    except ImportError as error:
        raise InputError(
            f"optimiser {options.optimiser}: expected the library {library}, which is not installed "
            f"(`pip install {library}`)"
        ) from error
    found: torch.optim.Optimizer = kind(parameters, lr=options.lr)
    return found


def _sample(schedule: NoiseSchedule, latents: Tensor, options: TrainOptions, rng: torch.Generator) -> _Sample:
    rows = torch.randint(len(latents), (options.batch,), generator=rng)
    noise = torch.randn((options.batch, *latents.shape[1:]), generator=rng).to(latents.device)
    t = schedule.sample_timesteps(options.batch, rng)
    shown = (torch.rand(options.batch, generator=rng) >= options.caption_dropout).long()
    return _Sample(rows, t, noise, shown)


def _losses(
    base: Base,
    schedule: NoiseSchedule,
    task: Task,
    prompts: PromptEmbeds,
    sample: _Sample,
    preserved: ClassImages | None,
    options: TrainOptions,
) -> tuple[Tensor, Tensor]:
    """The denoising loss of the images, and the change of the class images' predictions."""
    n, clean = len(sample.t), task.latents[sample.rows.to(task.latents.device)]
    noisy, target = schedule.add_noise(clean, sample.noise, sample.t), schedule.target(clean, sample.noise, sample.t)
    t, shown = sample.t, sample.shown
    if preserved is not None:
        noisy, t = torch.cat((noisy, preserved.noisy)), torch.cat((t, preserved.t))
        target, shown = torch.cat((target, preserved.predicted)), torch.cat((shown, preserved.prompt + 2))
    time_ids = base.time_ids()
    predicted = predict(base.unet, noisy, t, prompts.rows(shown), time_ids, mixed=True)
    if options.min_snr:
        error = F.mse_loss(predicted[:n], target[:n], reduction="none").mean((1, 2, 3))
        loss = (schedule.min_snr_weight(sample.t, options.min_snr) * error).mean()
    else:
        loss = F.mse_loss(predicted[:n], target[:n])
    return loss, F.mse_loss(predicted[n:], target[n:]) if preserved is not None else torch.zeros_like(loss)
