"""Train Atelier's style encoder: `python -m recipes.atelier.style_encoder --help`."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from duolora.atelier.data import as_input
from duolora.atelier.family import Improvised, Step, improvise
from duolora.atelier.objects import OBJECTS
from duolora.atelier.paint import Style
from duolora.atelier.scene import render, sample_scene
from duolora.atelier.style_encoder import StyleEncoder
from duolora.atelier.styles import NAMED_STYLES
from recipes.atelier.classifier import spoilt
from recipes.atelier.muon import Muon

ORDER = ("_natural", "_palette", "_ground", "_texture", "_shadow", "_lines", "_frame")
STYLES, IMAGES = 40, 5
"""Different styles in a batch, and images of each."""


def by_kind(style: Improvised) -> dict[str, Step]:
    """A style's steps by the function that made them."""
    return {step.__qualname__.partition(".")[0]: step for step in style.steps}


def neighbour(style: Improvised, rng: np.random.Generator) -> Improvised:
    """A style that differs in one of its steps: another, one more or one less."""
    own, kinds = by_kind(style), []
    while not kinds:
        other = by_kind(improvise(rng))
        kinds = [kind for kind in ORDER[2:] if kind in own or kind in other]
    kind = str(rng.choice(kinds))
    mixed = own | {kind: other[kind]} if kind in other else {name: own[name] for name in own if name != kind}
    steps = tuple(mixed[name] for name in ORDER if name in mixed)
    return Improvised(steps, (), style.keeps_colour, style.keeps_pattern)


def styles_of(rng: np.random.Generator, count: int) -> list[Style]:
    """Different styles: of the family, neighbours of these, and one in eight by name."""
    named = list(NAMED_STYLES.values())
    found: list[Style] = [named[k] for k in rng.permutation(len(named))[: count // 8]]
    while len(found) < count:
        style = improvise(rng)
        found += [style, neighbour(style, rng)] if rng.random() < 0.5 else [style]
    return found[:count]


def batch_of(seed: int) -> tuple[NDArray[np.uint8], Tensor]:
    """Images (n, 32, 32, 3) of random scenes, and the number of each one's style (n,)."""
    rng = np.random.default_rng((9, seed))
    styles = styles_of(rng, STYLES)
    scenes = [sample_scene(rng, tuple(OBJECTS), ("flat",)) for _ in range(STYLES * IMAGES)]
    images = [render(scene, styles[k // IMAGES]) for k, scene in enumerate(scenes)]
    return np.stack(images), torch.arange(STYLES * IMAGES) // IMAGES


def contrast(found: Tensor, styles: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss (Khosla et al. 2020, L_out) of unit vectors (n, d)."""
    itself = torch.eye(len(found), dtype=torch.bool)
    logits = (found @ found.T / temperature).masked_fill(itself, -torch.inf)
    same = (styles[:, None] == styles[None]) & ~itself
    return -logits.log_softmax(1)[same].mean()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 24.0,
    lr: float = 0.02,
    temperature: float = 0.07,
    seed: int = 4,
) -> None:
    """Train the style encoder on fresh renders for some minutes, from nothing."""
    started = time.time()
    torch.manual_seed(seed)
    network = StyleEncoder()
    matrices = [p for p in network.stages.parameters() if p.ndim > 1]
    others = [p for name, p in network.named_parameters() if p.ndim < 2 or name.startswith("out")]
    optimisers, rates = [Muon(matrices, lr), torch.optim.AdamW(others, lr=lr / 10, weight_decay=0.02)], [lr, lr / 10]
    step, total = 0, 0.0
    while (done := (time.time() - started) / (60 * minutes)) < 1:
        first = seed * 1_000_000_000 + step
        pixels, styles = batch_of(first)
        loss = contrast(network(spoilt(as_input(pixels), torch.Generator().manual_seed(first))), styles, temperature)
        loss.backward()
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50) * max(0.01, 1 - done)
            optimiser.step()
            optimiser.zero_grad()
        step, total = step + 1, total + loss.item()
        if step % 50 == 0:
            print(json.dumps({"step": step, "minutes": round(done * minutes, 1), "loss": total / 50}), flush=True)
            total = 0.0
    out.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in network.state_dict().items()}
    save_file(state, out / "style_encoder.safetensors")
    facts = {"lr": lr, "temperature": temperature, "seed": seed, "steps": step, "images": step * STYLES * IMAGES}
    (out / "style_encoder.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    typer.run(main)
