"""Make Atelier's VAE: `python -m recipes.atelier.vae --help`.

What it is to encode to is known (`latents.py`), so the encoder's weights are written down, not trained: every layer
passes on what it gets, the strided convolution turns each cell of 2×2 pixels, and the group normalisation at the end
finds beside each value its negative and large constants, which leave it nothing to normalise. The decoder is trained:
after its nearest-neighbour enlargement it has to tell from what is around a pixel where in its cell it is.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from torch import Tensor

from duolora.atelier.data import as_input
from recipes.atelier import latents
from recipes.atelier.architecture import new_vae
from recipes.atelier.data import vae_image

LOG_VARIANCE = -12.0
"""Of the latents: they are known, not guessed."""
_LARGE, _LINEAR = 200.0, 16.0


@torch.no_grad()
def write_encoder(vae: AutoencoderKL) -> None:
    """Set the encoder's weights so that it computes `latents.encode`, to about 1e-4."""
    encoder = vae.encoder
    for parameter in (*encoder.parameters(), *vae.quant_conv.parameters()):
        parameter.zero_()
    for channel in range(3):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1
    turn = encoder.down_blocks[0].downsamplers[0].conv
    for colour in range(3):
        impulses = torch.zeros(4, 3, 2, 2)
        for pixel in range(4):
            impulses[pixel, colour, pixel // 2, pixel % 2] = 1
        turn.weight[:12, colour, :2, :2] = latents.encode(impulses)[..., 0, 0].T.reshape(12, 2, 2)
    widen, norm = encoder.down_blocks[1].resnets[0].conv_shortcut, encoder.conv_norm_out
    norm.weight.fill_(_LARGE / 3**0.5)
    norm.bias.fill_(_LINEAR)
    for group in range(8):
        for slot in range(2):
            value, row = 2 * group + slot, 6 * group + 2 * slot
            if value < 12:
                widen.weight[row, value, 0, 0], widen.weight[row + 1, value, 0, 0] = 1, -1
                encoder.conv_out.weight[value, row, 1, 1], encoder.conv_out.weight[value, row + 1, 1, 1] = 0.5, -0.5
        widen.bias[6 * group + 4 : 6 * group + 6] = _LARGE * torch.tensor([1.0, -1.0])
    encoder.conv_out.bias[12:] = LOG_VARIANCE
    vae.quant_conv.weight[:, :, 0, 0] = torch.eye(24)


def decoder_loss(vae: AutoencoderKL, images: Tensor, rng: torch.Generator) -> Tensor:
    """How far the decoder is from the images, and from their slopes, given their latents with some noise (L1).

    The noise is of the size of a base's mistakes, which the decoder so learns to mend.
    """
    known = latents.encode(images)
    size = 0.2 * torch.rand((len(known), 1, 1, 1), generator=rng)
    spoilt = known + (size * torch.randn(known.shape, generator=rng)).to(known)
    decoded = vae.decoder(vae.post_quant_conv(spoilt))
    slopes = F.l1_loss(decoded.diff(dim=-1), images.diff(dim=-1)) + F.l1_loss(decoded.diff(dim=-2), images.diff(dim=-2))
    return F.l1_loss(decoded, images) + 0.5 * slopes


def main(
    out: Annotated[Path, typer.Option(help="Folder for the VAE and the state of its training.")],
    minutes: Annotated[float, typer.Option(help="How long to train; the state in the folder goes on.")] = 20.0,
    batch: int = 24,
    lr: float = 2e-3,
    seed: int = 1,
) -> None:
    """Train the VAE for some minutes."""
    started, device = time.time(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    vae = new_vae().to(device)
    if (out / "vae").exists():
        vae = AutoencoderKL.from_pretrained(out / "vae").to(device)
    write_encoder(vae)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    step = 0
    while (done := (time.time() - started) / (60 * minutes)) < 1:
        first = seed * 100_000_000 + int(started) % 100_000 * 1000 + step * batch
        images = as_input(np.stack([vae_image(first + k)[0] for k in range(batch)])).to(device)
        loss = decoder_loss(vae, images, torch.Generator().manual_seed(first))
        optimiser.param_groups[0]["lr"] = lr * min(1, (step + 1) / 100) * min(1, max(0.01, 1.6 * (1 - done)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % 100 == 0:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4), "done": round(done, 2)}), flush=True)
    vae.register_to_config(scaling_factor=1.0)
    out.mkdir(parents=True, exist_ok=True)
    vae.save_pretrained(out / "vae")
    facts = {"batch": batch, "lr": lr, "seed": seed, "steps": step, "images": step * batch}
    (out / "vae.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    typer.run(main)
