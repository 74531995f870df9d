"""The style encoder: images of one style near each other, whatever they show, and of two styles apart, in CSD's place.

Trained on pairs of images of the same or of another style, as CSD is, on random members of the family and the named
styles; the held-out styles are in no image that it has seen. So, unlike the classifier, it knows no list of styles.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from duolora.atelier.classifier import Block, trained
from duolora.atelier.data import as_input
from duolora.atelier.objects import OBJECTS
from duolora.atelier.paint import Style
from duolora.atelier.scene import render, sample_scene

WIDTHS = (32, 48, 96, 128)
REFERENCES = 48
"""Renders that say what a style is."""
NEAR = 0.85
"""The least cosine with a style's mean at which an image is in it."""


class StyleEncoder(nn.Module):
    """Images (n, 3, 32, 32) in [-1, 1] → unit vectors (n, 128).

    From means and deviations of the features of each level over the image, which is where style is.
    """

    def __init__(self) -> None:
        super().__init__()
        stages = zip((3, *WIDTHS), WIDTHS, (1, 2, 2, 2), strict=False)
        self.stages = nn.ModuleList(Block(narrow, wide, stride) for narrow, wide, stride in stages)
        self.out = nn.Linear(2 * sum(WIDTHS), 128)

    def forward(self, images: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n 128"]:
        """Unit vectors; the cosine of two says how near their styles are."""
        x, found = images, []
        for stage in self.stages:
            x = stage(x)
            found += [x.mean((2, 3)), x.std((2, 3))]
        return F.normalize(self.out(torch.cat(found, 1)), dim=1)


def load_style_encoder() -> StyleEncoder:
    """The trained network that ships with the package."""
    return trained(StyleEncoder(), "style_encoder")


@torch.no_grad()
def style_mean(network: StyleEncoder, style: Style) -> Float[Tensor, " 128"]:
    """Where a style is: the direction of the mean over renders of random scenes, of length 1; always the same ones."""
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, tuple(OBJECTS), ("flat",)) for _ in range(REFERENCES)]
    return F.normalize(network(as_input(np.stack([render(scene, style) for scene in scenes]))).mean(0), dim=0)


@torch.no_grad()
def in_style(network: StyleEncoder, images: Float[Tensor, "n 3 32 32"], style: Style) -> list[bool]:
    """Which images are in a style, known to the classifier or not."""
    return (network(images) @ style_mean(network, style) >= NEAR).tolist()
