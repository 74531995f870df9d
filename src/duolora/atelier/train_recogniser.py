"""Training of the judges, on pictures as drawn and as the VAE gives them back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from duolora.atelier.data import Pixels, as_input, cache_path, judged_picture, made
from duolora.atelier.looks import KEEP_COLOUR, KEEP_PATTERN, LOOKS
from duolora.atelier.made_by import vae_hash, write_provenance
from duolora.atelier.recognisers import ANSWERS, Recogniser
from duolora.training.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint, step_generator


@dataclass(frozen=True)
class RecogniserRecipe:
    """How the judges are trained; how the shipped ones were is in `weights/provenance.json`."""

    pictures: int = 20_000
    updates: int = 2_200
    batch: int = 64
    lr: float = 2e-3
    seed: int = 3


def truth_tensor(truths: Sequence[Sequence[int]]) -> Tensor:
    """Truths as (n, 4) class numbers; -100 (ignored) where the look hides the colour or the pattern."""
    truth = torch.tensor([list(row) for row in truths])
    looks = tuple(LOOKS)
    for column, keeping in ((2, KEEP_COLOUR), (3, KEEP_PATTERN)):
        kept = torch.isin(truth[:, 1], torch.tensor([looks.index(name) for name in keeping]))
        truth[~kept, column] = -100
    return truth


@torch.no_grad()
def through_vae(vae: AutoencoderKL, pictures: Tensor, device: torch.device) -> Tensor:
    """The pictures as the VAE gives them back, (n, 3, 64, 64) in [-1, 1]."""
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    batches = tqdm(pictures.split(64), desc="Through the VAE", unit="×64")
    return torch.cat([vae.decode(vae.encode(x.to(device)).latent_dist.mean).sample.clamp(-1, 1).cpu() for x in batches])


def _shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """The batch moved by up to three pixels and with a little noise."""
    dy, dx = torch.randint(0, 7, (2,), generator=rng).tolist()
    x = F.pad(x, (3, 3, 3, 3), mode="replicate")[..., dy : dy + 64, dx : dx + 64]
    return x + 0.06 * torch.rand(1, generator=rng) * torch.randn(x.shape, generator=rng)


def _halved_through_vae(pixels: Pixels, cache: Path, folder: Path, device: torch.device) -> Pixels:
    """The pictures, every second one as the VAE gives it back; kept in the file `cache`."""
    import numpy as np

    if not cache.exists():
        blurred = through_vae(AutoencoderKL.from_pretrained(folder / "vae"), as_input(pixels[1::2]), device)
        pixels = pixels.copy()
        pixels[1::2] = ((blurred + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        part = cache.with_suffix(".part.npy")
        np.save(part, pixels)
        part.replace(cache)
    return np.load(cache, allow_pickle=False)


def train_recogniser(folder: Path, recipe: RecogniserRecipe, device: torch.device) -> Path:
    """Train the judges in `folder`; returns their file.

    Goes on from the checkpoint of this very recipe, pictures and VAE, if there is one.
    """
    cache = cache_path(folder, "judged-pictures", recipe.pictures, recipe.seed)
    drawn, truths = made(judged_picture, recipe.pictures, recipe.seed, cache)
    halved = folder / f"{cache.name}-vae-{vae_hash(folder)[:12]}.npy"
    pixels, truth = _halved_through_vae(drawn, halved, folder, device), truth_tensor(truths)
    torch.manual_seed(recipe.seed)
    network = Recogniser().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=0.02)
    checkpoint = checkpoint_path(folder / "recogniser", asdict(recipe) | {"pictures": halved.name})
    tensors = network.state_dict()
    start = load_checkpoint(checkpoint, tensors, optimiser) if checkpoint.exists() else 0
    bar = tqdm(range(start, recipe.updates), desc="Judges", initial=start, total=recipe.updates, mininterval=5)
    for step in bar:
        rng = step_generator(recipe.seed, step)
        rows = torch.randint(len(pixels), (recipe.batch,), generator=rng)
        x = _shifted(as_input(pixels[rows.numpy()]), rng).to(device, memory_format=torch.channels_last)
        logits = network(x)
        losses = [F.cross_entropy(logits[name], truth[rows, i].to(device)) for i, name in enumerate(ANSWERS)]
        optimiser.param_groups[0]["lr"] = recipe.lr * min(1, (step + 1) / 100) * max(0.01, 1 - step / recipe.updates)
        torch.stack(losses).nansum().backward()
        optimiser.step()
        optimiser.zero_grad()
        if step % 50 == 0:
            bar.set_postfix({name: f"{loss.item():.2f}" for name, loss in zip(ANSWERS, losses, strict=True)})
        if (step + 1) % 500 == 0 or step + 1 == recipe.updates:
            save_checkpoint(checkpoint, tensors, optimiser, step + 1)
    write_provenance(folder, "judges", recipe, start_from=None)
    path = folder / "recogniser.safetensors"
    state = network.cpu().state_dict()
    save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}, path)
    return path
