"""Smaller bases shaped like SSD-1B and Segmind-Vega, distilled from Atelier (for Table 5).

    loss = ‖v_student − v‖² + matching · ‖v_student − v_teacher‖²

The student is the teacher without some of its transformer blocks and without attention in the middle; what it keeps, it
begins with. Text encoders, tokenizers, VAE and scheduler are the teacher's own, and don't learn.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm

from duolora.atelier.data import as_input, base_image
from duolora.errors import InputError
from duolora.model.base import Base, PromptEmbeds, load_base
from duolora.model.predict import noise_schedule, predict
from duolora.options import word
from duolora.provenance import file_hash
from duolora.textfiles import read_json
from duolora.training.checkpoint import Training, checkpoint_path, scaler_for, step_generator

SHAPES = ("ssd1b", "vega")
TEACHER = Path(str(files("duolora.atelier").joinpath("weights", "base")))
KEPT = 250
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class DistilRecipe:
    """How a smaller base is distilled."""

    steps: int = 3_000
    images: int = 8_000
    batch: int = 32
    lr: float = 5e-4
    matching: float = 1.0
    """Weight of the teacher's prediction beside the image's own."""
    caption_dropout: float = 0.1
    seed: int = 3


def smaller_config(config: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """The arguments of a UNet with fewer transformer blocks, nested as in SSD-1B's and Segmind-Vega's own configs.

    ssd1b   half of the blocks of each attention, rounded up; the last of the lowest up block stays whole
    vega    a quarter of them, at least one; where there is one alone, none in the first down block with attention

    Raises:
        InputError: there is no such shape.
    """
    word("shape", shape, SHAPES)
    layers, depths = config["layers_per_block"], config["transformer_layers_per_block"]
    down_types = list(config["down_block_types"])
    depths = [depths] * len(down_types) if isinstance(depths, int) else list(depths)
    with_attention = [depth if "Cross" in kind else 0 for kind, depth in zip(down_types, depths, strict=True)]
    less = [math.ceil(d / 2) if shape == "ssd1b" else max(1, d // 4) for d in with_attention]
    down: list[Any] = [[n] * layers if d else 0 for d, n in zip(with_attention, less, strict=True)]
    up: list[Any] = [[n] * (layers + 1) if d else 0 for d, n in zip(with_attention, less, strict=True)][::-1]
    if shape == "ssd1b" and up[0]:
        up[0][-1] = with_attention[-1]
    if shape == "vega" and max(with_attention) == 1:
        first = with_attention.index(1)
        down[first], down_types[first] = 0, "DownBlock2D"
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    return known | {
        "down_block_types": down_types,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": up,
    }


def student_of(teacher: UNet2DConditionModel, shape: str) -> UNet2DConditionModel:
    """A smaller UNet that begins with the teacher's weights wherever it has the same layer."""
    student = UNet2DConditionModel(**smaller_config(teacher.config, shape))
    weights = teacher.state_dict()
    student.load_state_dict({name: weights[name] for name in student.state_dict()})
    return student.to(teacher.device)


def distil(shape: str, folder: Path, recipe: DistilRecipe, device: torch.device) -> Path:
    """Distil a base into `folder`, going on from its checkpoint if there is one; returns the pipeline's folder.

    The name tells shape, steps, teacher and config apart; a finished one is returned as it is.

    Raises:
        InputError: there is no such shape, or a number of the recipe is too small.
    """
    if recipe.steps < 1 or recipe.images < 1 or recipe.batch < 1:
        raise InputError(f"distil: expected steps, images and batch above 0, got {recipe}")
    teacher = file_hash(TEACHER / "unet" / "diffusion_pytorch_model.safetensors")
    config = smaller_config(read_json(TEACHER / "unet" / "config.json"), shape)
    mark = hashlib.sha256(json.dumps([teacher, config], sort_keys=True).encode()).hexdigest()
    out = folder / f"atelier-{shape}-{recipe.steps}-{mark[:8]}"
    if out.exists():
        return out
    base = load_base(TEACHER, device, "float32")
    student = student_of(base.unet, shape).requires_grad_(True).train()
    checkpoint = checkpoint_path(out, asdict(recipe) | {"shape": shape, "teacher": mark})
    _learn(base, student, recipe, checkpoint, shape)
    part = out.with_name(f".{out.name}.part")
    rmtree(part, ignore_errors=True)
    copytree(TEACHER, part, ignore=ignore_patterns("unet"))
    student.half().save_pretrained(part / "unet", safe_serialization=True)
    os.replace(part, out)
    checkpoint.unlink(missing_ok=True)
    return out


def _learn(base: Base, student: UNet2DConditionModel, recipe: DistilRecipe, checkpoint: Path, shape: str) -> None:
    """The steps, in place."""
    latents, texts = _rendered(base, range(recipe.seed * 10_000_000, recipe.seed * 10_000_000 + recipe.images))
    optimiser = torch.optim.AdamW(student.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-2)
    tensors = student.state_dict()
    training = Training(tensors, optimiser, scaler_for(base), [], checkpoint)
    with training.steps(f"Distilling {shape}", recipe.steps, KEPT, True, leave=True) as left:
        for step in left:
            loss = _loss(base, student, recipe, latents, texts, step_generator(recipe.seed, step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.param_groups[0]["lr"] = recipe.lr * min(1, (step + 1) / 100) * (1 - step / recipe.steps)
            optimiser.step()
            optimiser.zero_grad()


def _rendered(base: Base, seeds: range) -> tuple[Tensor, list[str]]:
    """The latents of the world's images of these seeds, and their captions."""
    latents, texts = [], []
    for first in tqdm(range(0, len(seeds), 128), "Rendering", unit="×128"):
        made = [base_image(seed) for seed in seeds[first : first + 128]]
        latents.append(base.encode_images(as_input(np.stack([pixels for pixels, _ in made]))).cpu())
        texts += [text for _, text in made]
    return torch.cat(latents), texts


def _loss(
    base: Base,
    student: UNet2DConditionModel,
    recipe: DistilRecipe,
    latents: Tensor,
    texts: list[str],
    rng: torch.Generator,
) -> Tensor:
    """The loss above on one batch of images, some of them without their captions."""
    schedule = noise_schedule(base)
    rows = torch.randint(len(latents), (recipe.batch,), generator=rng)
    noise = torch.randn((recipe.batch, *latents.shape[1:]), generator=rng).to(base.device)
    t = schedule.sample_timesteps(recipe.batch, rng)
    told = (torch.rand(recipe.batch, generator=rng) >= recipe.caption_dropout).float().to(base.device)
    clean = latents[rows].to(base.device)
    noisy = schedule.add_noise(clean, noise, t)
    prompts = base.encode_prompts([texts[row] for row in rows.tolist()])
    prompts = PromptEmbeds(prompts.embeds * told[:, None, None], prompts.pooled * told[:, None])
    with torch.no_grad():
        taught = predict(base.unet, noisy, t, prompts, base.time_ids())
    predicted = predict(student, noisy, t, prompts, base.time_ids())
    return F.mse_loss(predicted, schedule.target(clean, noise, t)) + recipe.matching * F.mse_loss(predicted, taught)
