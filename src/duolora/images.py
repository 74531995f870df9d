"""Pictures in and out: files to tensors, tensors to files."""

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
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; expected a picture or a folder of pictures")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"{path}: no pictures in this folder; expected files that end in {', '.join(SUFFIXES)}")
    return found


def read_picture(path: Path, size: int) -> Float[Tensor, "3 size size"]:
    """A picture as RGB in [-1, 1], turned as its EXIF says, scaled and cropped about its centre to a square.

    Transparent parts become white.

    Raises:
        FileRefused: the file is not a picture, or is damaged.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileRefused(f"{path}: not a readable picture ({error}); expected PNG, JPEG, WebP or the like") from error
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
