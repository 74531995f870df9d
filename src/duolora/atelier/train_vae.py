"""The VAE: sharp and general, since no method can draw a look that its VAE cannot."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from duolora.atelier.architecture import new_vae
from duolora.atelier.data import Pixels, as_input, cache_path, made, vae_picture
from duolora.atelier.made_by import write_provenance
from duolora.training.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint, step_generator


@dataclass(frozen=True)
class VaeRecipe:
    """How the VAE is trained. How the shipped one was is in `weights/provenance.json`: it was stopped earlier."""

    pictures: int = 24_000
    updates: int = 6_000
    batch: int = 16
    lr: float = 2e-3
    kl: float = 5e-4
    seed: int = 1


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def vae_loss(picture: Tensor, drawn: Tensor, mean: Tensor, logvar: Tensor, kl: float) -> Tensor:
    """L1 of the pixels, L1 of their slopes (sharp edges) and a little KL (tame latents)."""
    slopes = sum(F.l1_loss(a, b) for a, b in zip(_slopes(drawn), _slopes(picture), strict=True))
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return F.l1_loss(drawn, picture) + slopes + kl * divergence


def train_vae(folder: Path, recipe: VaeRecipe, device: torch.device) -> Path:
    """Train the VAE in `folder`; returns the folder of the VAE.

    Goes on from the checkpoint of this very recipe on these very pictures, if there is one.
    """
    cache = cache_path(folder, "vae-pictures", recipe.pictures, recipe.seed)
    pixels, _ = made(vae_picture, recipe.pictures, recipe.seed, cache)
    torch.manual_seed(recipe.seed)
    vae = new_vae().to(device, memory_format=torch.channels_last)
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimiser = torch.optim.AdamW(vae.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = checkpoint_path(folder / "vae", asdict(recipe) | {"pictures": cache.name})
    tensors = {f"vae.{k}": v for k, v in vae.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    start = load_checkpoint(checkpoint, tensors, optimiser) if checkpoint.exists() else 0
    bar = tqdm(range(start, recipe.updates), desc="VAE", initial=start, total=recipe.updates, mininterval=2)
    for step in bar:
        rng = step_generator(recipe.seed, step)
        rows = torch.randint(len(pixels), (recipe.batch,), generator=rng).numpy()
        x = as_input(pixels[rows]).to(device, memory_format=torch.channels_last)
        done = step / recipe.updates
        optimiser.param_groups[0]["lr"] = recipe.lr * min(1, (step + 1) / 100) * min(1, max(0.02, 2.2 * (1 - done)))
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(device)
        loss = vae_loss(
            x, vae.decode(posterior.mean + posterior.std * noise).sample, posterior.mean, posterior.logvar, recipe.kl
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update_parameters(vae)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 500 == 0 or step + 1 == recipe.updates:
            save_checkpoint(checkpoint, tensors, optimiser, step + 1)
    path = save_vae(cast(AutoencoderKL, average.module), pixels, folder)
    write_provenance(folder, "vae", recipe, start_from=None)
    return path


@torch.no_grad()
def save_vae(vae: AutoencoderKL, pixels: Pixels, folder: Path) -> Path:
    """Write the VAE with the scaling factor that gives its latents unit variance."""
    parts = as_input(pixels[:1000:2]).split(64)
    latents = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mean.cpu() for part in parts])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(folder / "vae")
    return folder / "vae"
