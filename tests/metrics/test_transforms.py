"""Our transforms against values recorded from torchvision, and against an explicit bicubic convolution."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from duolora.errors import InputError
from duolora.metrics.transforms import ATELIER, CLIP, DINO, resized
from patterns import pattern

RECORDED = json.loads(Path(__file__).with_name("transform_values.json").read_text())["values"]


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: f"{c['transform']} {c['size']}")
def test_values_are_torchvisions(case):
    """Recorded once: Resize(256 or 224, BICUBIC), CenterCrop(224), ToTensor, Normalize of torchvision 0.28."""
    x = {"DINO": DINO, "CLIP": CLIP}[case["transform"]](pattern(*case["size"])).double()
    np.testing.assert_allclose(x[:, 5::53, 7::41].flatten(), case["samples"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(x.mean((1, 2)), case["mean"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(x.std((1, 2)), case["std"], atol=1e-3, rtol=0)


def weights(length, target):
    """Bicubic weights (a = −1/2) of each target pixel, widened by the scale when shrinking, (target, length)."""
    scale = length / target
    width = max(scale, 1)
    distance = np.abs((np.arange(length) + 0.5)[None] - (np.arange(target)[:, None] + 0.5) * scale) / width
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    kernel = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return kernel / kernel.sum(1, keepdims=True)


def slow(image, transform, columns_first):
    """Resize as two matrix products, rounded to 8 bits in between as Pillow does; then crop and normalise."""
    height, width = image.height, image.width
    w, h = (int(transform.resize * side / min(height, width) + 1e-9) for side in (width, height))
    steps = [("xw,hwc->hxc", weights(width, w)), ("yh,hwc->ywc", weights(height, h))]
    pixels = np.asarray(image, float)
    for formula, kernel in steps if columns_first else steps[::-1]:
        pixels = np.rint(np.einsum(formula, kernel, pixels).clip(0, 255))
    top, left = round((h - transform.crop) / 2), round((w - transform.crop) / 2)
    cropped = pixels[top : top + transform.crop, left : left + transform.crop] / 255
    return ((cropped - transform.mean) / transform.std).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(300, 400), (97, 211), (31, 30), (401, 259)])
@pytest.mark.parametrize("transform", [DINO, CLIP, ATELIER], ids=str)
def test_resizing_is_an_antialiased_bicubic_convolution(size, transform):
    """Pillow goes by columns or by rows first, whichever it finds cheaper; up to ties, one of them is exact."""
    image = pattern(*size)
    found = transform(image).numpy()
    off = min((np.abs(found - slow(image, transform, first)) for first in (True, False)), key=np.mean)
    assert off.mean() < 1e-4
    assert off.max() < 1 / 255 / min(transform.std) + 1e-4  # a rounding tie that falls the other way


@pytest.mark.parametrize("size", [(300, 400), (224, 224), (90, 512)])
def test_clip_agrees_with_transformers_processor(size):
    """Where nothing is rounded; on odd margins transformers' crop is one pixel off torchvision's, which we follow."""
    image = pattern(*size)
    expected = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(CLIP(image), expected, atol=1e-3, rtol=0)


def test_atelier_images_are_shown_as_they_are():
    image = pattern(32, 32)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(ATELIER(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 427), (383, 256)), ((427, 640), (256, 383)), ((5, 5), (256, 256))]
)
def test_the_longer_side_is_rounded_down(size, expected):
    assert resized(size, 256) == expected


def test_unfit_images_are_refused_with_the_remedy():
    with pytest.raises(InputError, match="expected mode RGB, got L; read it with"):
        DINO(Image.new("L", (30, 30)))
    with pytest.raises(InputError, match="100 times.*crop it"):
        DINO(Image.new("RGB", (1, 101)))
