"""Train Atelier's classifier: `python -m recipes.atelier.classifier --help`."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from duolora.atelier.classifier import ANSWERS, Classifier
from duolora.atelier.data import as_input
from recipes.atelier.data import classifier_image
from recipes.atelier.muon import Muon


def spoilt(images: Tensor, rng: torch.Generator) -> Tensor:
    """The images with noise, and some of them blurred, so that a generated one's small faults don't mislead."""
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = (
        0.6
        * torch.rand((len(images), 1, 1, 1), generator=rng)
        * (torch.rand((len(images), 1, 1, 1), generator=rng) < 0.4)
    )
    noise = 0.15 * torch.rand((len(images), 1, 1, 1), generator=rng) * torch.randn(images.shape, generator=rng)
    return images.lerp(soft, share.to(images)) + noise.to(images)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 12.0,
    batch: int = 64,
    lr: float = 0.02,
    seed: int = 3,
) -> None:
    """Train the classifier on fresh renders for some minutes, from the weights in the folder if there are any."""
    started, device = time.time(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    network, path = Classifier().to(device), out / "classifier.safetensors"
    if path.exists():
        network.load_state_dict({k: v.to(network.state_dict()[k].dtype) for k, v in load_file(path).items()})
    matrices = [p for p in network.trunk.parameters() if p.ndim > 1]
    others = [p for name, p in network.named_parameters() if p.ndim < 2 or name.startswith("heads")]
    optimisers = [Muon(matrices, lr), torch.optim.AdamW(others, lr=lr / 10, weight_decay=0.02)]
    rates = [lr, lr / 10]
    step, right = 0, torch.zeros(4, 2)
    while (done := (time.time() - started) / (60 * minutes)) < 1:
        first = seed * 1_000_000_000 + int(started) % 1_000_000 * 1000 + step * batch
        made = [classifier_image(first + k) for k in range(batch)]
        images, truth = (
            as_input(np.stack([pixels for pixels, _ in made])),
            torch.tensor([t for _, t in made]).to(device),
        )
        logits = network(spoilt(images, torch.Generator().manual_seed(first)).to(device))
        losses = [F.cross_entropy(logits[name], truth[:, i], label_smoothing=0.02) for i, name in enumerate(ANSWERS)]
        torch.stack(losses).nansum().backward()
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * min(1, (step + 1) / 100) * max(0.01, 1 - done)
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        for i, name in enumerate(ANSWERS):
            asked = truth[:, i] >= 0
            right[i] += torch.tensor([(logits[name].argmax(1) == truth[:, i])[asked].sum().item(), asked.sum().item()])
        if step % 100 == 0:
            shares = {name: round(v, 3) for name, v in zip(ANSWERS, (right[:, 0] / right[:, 1]).tolist(), strict=True)}
            print(json.dumps({"step": step, "minutes": round((time.time() - started) / 60, 1)} | shares), flush=True)
            right.zero_()
    out.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in network.cpu().state_dict().items()}
    save_file(state, path)
    (out / "classifier.json").write_text(
        json.dumps({"batch": batch, "lr": lr, "seed": seed, "steps": step, "images": step * batch})
    )


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    typer.run(main)
