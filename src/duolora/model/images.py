"""Images in and out: files to tensors, tensors to files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from duolora.errors import InputError
from duolora.model.defaults import FITS
from duolora.model.image_files import image_paths, read_image
from duolora.options import word

GAP = 2
"""Pixels between the images of a sheet."""


def load_image(path: Path, size: int, fit: str = "crop") -> Float[Tensor, "3 size size"]:
    """An image (see `read_image`) as RGB in [-1, 1], made a square as `FITS` says.

    Raises:
        FileRefused: the file is not an image, or is damaged.
        InputError: there is no such fit.
    """
    image, fit = read_image(path), word("fit", fit, list(FITS))
    if fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    elif fit == "pad":
        image = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, "white")
    else:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def load_images(where: str | Path, size: int, fit: str = "crop") -> Float[Tensor, "n 3 size size"]:
    """All images of a folder, or the one of a file, as RGB in [-1, 1], made squares as `FITS` says."""
    return torch.stack([load_image(path, size, fit) for path in image_paths(where)])


def as_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """A tensor in [-1, 1] as a Pillow image; values outside are clipped."""
    bytes_ = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).cpu().numpy())


def as_pixels(images: Iterable[Image.Image]) -> Float[Tensor, "n 3 h w"]:
    """Pillow images of one size as a tensor in [-1, 1]."""
    return torch.stack(
        [torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1 for i in images]
    )


def tiled(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Images of one size laid out in rows on white."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (max(map(len, rows)) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + GAP), y * (height + GAP)))
    return sheet


def untiled(sheet: Image.Image, rows: int) -> list[list[Image.Image]]:
    """The square images of a sheet with so many rows, as `tiled` laid them out.

    Raises:
        InputError: it is no such sheet.
    """
    side, rest = divmod(sheet.height + GAP, rows)
    columns, over = divmod(sheet.width + GAP, side)
    if rest or over or not columns:
        raise InputError(f"expected {rows} rows of square images with {GAP} pixels between, found {sheet.size}")
    corners = [[(x * side, y * side) for x in range(columns)] for y in range(rows)]
    return [[sheet.crop((x, y, x + side - GAP, y + side - GAP)) for x, y in row] for row in corners]
