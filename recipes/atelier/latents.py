"""Atelier's latents, exactly: what its VAE is trained to encode to and to decode from.

An image's cell of 2×2 pixels becomes 12 numbers: brightness and two colour differences (an orthonormal turn of RGB), of
each the cell's mean and its three slopes (a Haar transform). Nothing is lost. Means vary more than slopes, so that
noise hides the fine before the coarse and the network learns to draw from the coarse to the fine; `GAINS` halve that
difference in logarithm and give the whole unit variance.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_COLOUR: Final = torch.tensor(
    [[3**-0.5, 3**-0.5, 3**-0.5], [2**-0.5, 0.0, -(2**-0.5)], [-(6**-0.5), 2 * 6**-0.5, -(6**-0.5)]]
)
_HAAR: Final = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
GAINS: Final = torch.tensor([1.04, 2.06, 2.03, 2.19, 1.52, 3.11, 3.13, 3.51, 2.0, 3.92, 4.0, 4.56])
"""For brightness, then red less blue, then green less both: mean, horizontal, vertical and diagonal slope."""


def encode(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 12 h/2 w/2"]:
    """The latents of images in [-1, 1]."""
    n, _, h, w = images.shape
    cells = images.reshape(n, 3, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 3, 4, h // 2, w // 2)
    turned = torch.einsum("ac,hp,ncpij->nahij", _COLOUR.to(images), _HAAR.to(images), cells)
    return turned.reshape(n, 12, h // 2, w // 2) * GAINS.to(images)[:, None, None]


def decode(latents: Float[Tensor, "n 12 h w"]) -> Float[Tensor, "n 3 2h 2w"]:
    """The images that have those latents: the inverse of `encode`."""
    n, _, h, w = latents.shape
    turned = (latents / GAINS.to(latents)[:, None, None]).reshape(n, 3, 4, h, w)
    cells = torch.einsum("ac,hp,nahij->ncpij", _COLOUR.to(latents), _HAAR.to(latents), turned)
    return cells.reshape(n, 3, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 3, 2 * h, 2 * w)
