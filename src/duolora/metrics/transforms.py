"""Images as the published encoders were shown them: resize, centre crop, normalise; Pillow's own resampling.

The sizes round as in torchvision, which the published numbers were made with (`docs/evaluation.md`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from duolora.errors import InputError

Triple = tuple[float, float, float]
LONGEST = 100


@dataclass(frozen=True)
class Transform:
    """RGB images of any size → (3, crop, crop), (x / 255 − mean) / std."""

    resize: int
    """The shorter side becomes this long, by Pillow's antialiased bicubic filter on 8-bit pixels."""
    crop: int
    mean: Triple
    std: Triple
    values: str
    """Where mean and std come from, for reports."""

    def __str__(self) -> str:
        return f"resize {self.resize} bicubic, centre crop {self.crop}, {self.values} normalisation"

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 crop crop"]:
        """The image as the network wants it.

        Raises:
            InputError: the image is not RGB (see `image_files.read_image`), or far too long to be resized whole.
        """
        if image.mode != "RGB":
            raise InputError(f"image: expected mode RGB, got {image.mode}; read it with `image_files.read_image`")
        if max(image.size) > LONGEST * min(image.size):
            raise InputError(f"image: expected one side at most {LONGEST} times the other, got {image.size}; crop it")
        size = resized(image.size, self.resize)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - self.crop) / 2) for side in size)
        pixels = np.array(image.crop((left, top, left + self.crop, top + self.crop)))
        scaled = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        return (scaled - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


def resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side `shorter` long; the other keeps the proportion, rounded down."""
    width, height = size
    if width <= height:
        return shorter, shorter * height // width
    return shorter * width // height, shorter


IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_VALUES: tuple[Triple, Triple] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

DINO = Transform(256, 224, *IMAGENET, "ImageNet")
"""DINO and DINOv2, as DreamBooth's DINO metric has it."""
CLIP = Transform(224, 224, *CLIP_VALUES, "CLIP")
"""OpenAI's CLIP, and CSD."""
ATELIER = Transform(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "[-1, 1]")
"""Atelier's classifier; a 32×32 image stays as it is."""
