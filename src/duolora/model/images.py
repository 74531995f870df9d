"""Pictures in and out: files to tensors, tensors to files."""

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from duolora.errors import FileRefused, InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def picture_files(where: str | Path) -> list[Path]:
    """The picture files of a folder in the order of their names, or the one file itself.

    Raises:
        InputError: there is no such file or folder, or the folder holds no pictures.
    """
    path = Path(where).expanduser()
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise InputError(f"{path}: no such file or folder; expected a picture or a folder of pictures")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"{path}: no pictures in this folder; expected files that end in {', '.join(SUFFIXES)}")
    return found


_UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""All that Pillow raises for damaged files."""


def read_image(path: Path) -> Image.Image:
    """A picture file as an RGB image of its own size, turned as its EXIF says; of an animation the first frame.

    Transparent parts become white, 16-bit greys are scaled to 8 bits.

    Raises:
        FileRefused: the file is not a picture, is damaged, or holds floating-point pixels, whose range nobody knows.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except _UNREADABLE as error:
        raise FileRefused(f"{path}: not a readable picture ({error}); expected PNG, JPEG, WebP or the like") from error
    if image.mode == "F":
        raise FileRefused(f"{path}: expected whole numbers as pixels, found floating-point ones; save it as PNG")
    if image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, 0 to 65535, as greys of 8 bits, rounded."""
    return Image.fromarray((np.asarray(image, np.float64) / 257 + 0.5).clip(0, 255).astype(np.uint8))


def read_picture(path: Path, size: int) -> Float[Tensor, "3 size size"]:
    """A picture (see `read_image`) as RGB in [-1, 1], scaled and cropped about its centre to a square.

    Raises:
        FileRefused: the file is not a picture, or is damaged.
    """
    image = ImageOps.fit(read_image(path), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def read_pictures(where: str | Path, size: int) -> Float[Tensor, "n 3 size size"]:
    """All pictures of a folder, or the one of a file, as RGB in [-1, 1]."""
    return torch.stack([read_picture(path, size) for path in picture_files(where)])


def as_image(picture: Float[Tensor, "3 h w"]) -> Image.Image:
    """A tensor in [-1, 1] as a Pillow image; values outside are clipped."""
    bytes_ = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).cpu().numpy())


def as_pictures(images: Iterable[Image.Image]) -> Float[Tensor, "n 3 h w"]:
    """Pillow images of one size as a tensor in [-1, 1]."""
    return torch.stack(
        [torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1 for i in images]
    )


def tiled(rows: Sequence[Sequence[Image.Image]], gap: int = 2) -> Image.Image:
    """Images of one size laid out in rows on white."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (max(map(len, rows)) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + gap), y * (height + gap)))
    return sheet


def untiled(sheet: Image.Image, rows: int, gap: int = 2) -> list[list[Image.Image]]:
    """The square images of a sheet with so many rows, as `tiled` laid them out.

    Raises:
        InputError: it is no such sheet.
    """
    side, rest = divmod(sheet.height + gap, rows)
    columns, over = divmod(sheet.width + gap, side)
    if rest or over or not columns:
        raise InputError(f"expected {rows} rows of square pictures with {gap} pixels between, found {sheet.size}")
    corners = [[(x * side, y * side) for x in range(columns)] for y in range(rows)]
    return [[sheet.crop((x, y, x + side - gap, y + side - gap)) for x, y in row] for row in corners]
