"""Image files as people have them: found in a folder, and read as what everybody sees in them."""

import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from duolora.errors import FileRefused, InputError, Notice

with suppress(ImportError):  # the extra `heif`
    from pillow_heif import register_heif_opener

    register_heif_opener()

_READ = (
    "PNG", "JPEG", "WEBP", "AVIF", "HEIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "TGA", "ICO", "PSD",
    "SGI", "QOI", "PCX",
)  # fmt: skip
"""Pillow's formats of pixels; of the others some hand a file to another program, as EPS does."""
Image.init()
FORMATS = tuple(name for name in _READ if name in Image.OPEN)
SUFFIXES = tuple(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_HELP = "install duolora[heif] to read HEIC, or save it as JPEG"

REDUCED = 2048
"""Images are read at a half, a third, … of their size as long as their shorter side keeps so many pixels."""
LARGEST = 2**27
LARGEST_JPEG = 2**28
"""Pixels of an image; a JPEG is decoded at the reduced size at once, whatever else is decoded whole."""
LONGEST = 65_535
"""Pixels of a side."""
TEXT = 2**26
"""Bytes of a PNG's text or profile, which Pillow limits to a megabyte."""
_NAMED = 6


@dataclass(frozen=True)
class Found:
    """The images of a folder, in the order of their names, and what else lies there."""

    where: Path
    files: tuple[Path, ...]
    left_out: tuple[str, ...]
    """Other files by name, and sub-folders with the number of their images."""

    def __str__(self) -> str:
        return f"{self.used()}; left out: {self._left()}" if self.left_out else self.used()

    def used(self) -> str:
        """How many images are used, in words."""
        return f"{self.where}: {'1 image is' if len(self.files) == 1 else f'{len(self.files)} images are'} used"

    def tell(self) -> "Found":
        """Itself; warns of what is left out."""
        if self.left_out:
            warnings.warn(str(self), Notice, stacklevel=3)
        return self

    def _left(self) -> str:
        more = len(self.left_out) - _NAMED
        text = ", ".join(self.left_out[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        lacking = any(name.lower().endswith(HEIF_SUFFIXES) for name in self.left_out)
        return text + (f" ({HEIF_HELP})" if lacking else "")


def images_of(where: str | Path) -> Found:
    """The images of a folder, sub-folders left out, or the one file itself.

    Raises:
        InputError: there is no such file or folder, or the folder holds no images; what it holds is named.
    """
    path = Path(where).expanduser()
    if os.path.isfile(path):
        return Found(path, (path,), ())
    if not os.path.isdir(path):
        raise InputError(f"{path}: no such file or folder; expected an image or a folder of images")
    seen = sorted(p for p in path.iterdir() if not p.name.startswith(".") and p.name not in _LITTER)
    files = tuple(p for p in seen if _is_image(p))
    found = Found(path, files, tuple(_named(p) for p in seen if p not in set(files)))
    if not files:
        held = f", but {found._left()}; give a folder with" if found.left_out else "; expected"
        raise InputError(f"{path}: no images in this folder{held} files that end in {', '.join(_COMMON)} or the like")
    return found


_COMMON = (".png", ".jpg", ".webp", ".avif", ".tif")
GENERATED = "generated.json"
"""The list that `duolora generate` writes beside its images."""
_LITTER = ("Thumbs.db", "desktop.ini", GENERATED)


def image_paths(where: str | Path) -> list[Path]:
    """The image files of a folder in the order of their names, or the one file itself (see `images_of`).

    Warns of what is left out.
    """
    return list(images_of(where).tell().files)


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder in the order of their names; none if there is no such folder."""
    return tuple(sorted(p for p in folder.iterdir() if _is_image(p))) if folder.is_dir() else ()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _named(path: Path) -> str:
    """What was left out, in a few words."""
    if not path.is_dir():
        return path.name
    try:
        count = sum(map(_is_image, path.iterdir()))
    except OSError:
        count = 0
    return f"{path.name}/ (a folder{f' with {count} images' if count else ''})"


_UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error,
    zlib.error,
)  # fmt: skip
"""All that Pillow raises for damaged files."""


def read_image(path: Path) -> Image.Image:
    """An image file as sRGB, turned as its EXIF says, of its own size or reduced (`REDUCED`); the first frame.

    Colours are converted by the file's profile. Transparent parts become white, 16-bit greys are scaled to 8 bits.

    Raises:
        FileRefused: the file is not an image, is damaged or too large, or holds floating-point pixels, whose range
            nobody knows.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileRefused(f"{path}: expected an image, found a folder, pipe or device; name a file")
    try:
        with _own_limits(), Image.open(path, formats=FORMATS) as file:
            width, height = file.size  # before a pixel is decoded, since some would fill the memory
            largest = LARGEST_JPEG if file.format in ("JPEG", "MPO") else LARGEST
            if max(width, height) > LONGEST or width * height > largest:
                raise _too_large(path, f"{width} × {height}")
            file.draft(file.mode, (REDUCED, REDUCED))
            file.load()
            turn = _turn(file)
            profile = file.info.get("icc_profile")
            image = _reduced(_eight_bits(path, file))
    except Image.DecompressionBombError as error:
        raise _too_large(path, "more") from error
    except _UNREADABLE as error:
        raise FileRefused(f"{path}: not a readable image ({_reason(path, error)})") from error
    image = image if turn is None else image.transpose(turn)
    image = _in_srgb(image, profile) if profile else image
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


_LOCK = Lock()


@contextmanager
def _own_limits() -> Iterator[None]:
    """Pillow with our limits in place of its own, which are the same for all threads."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our limits refuse, and damage that costs nothing is not worth a line
        kept = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
        Image.MAX_IMAGE_PIXELS = LARGEST_JPEG // 2  # it refuses twice as many
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = TEXT, 2 * TEXT
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = kept


def _too_large(path: Path, found: str) -> FileRefused:
    return FileRefused(
        f"{path}: expected an image of at most {LARGEST // 10**6} megapixels ({LARGEST_JPEG // 10**6} for a JPEG) and "
        f"{LONGEST} pixels a side, found {found}; make it smaller, {REDUCED} pixels are plenty"
    )


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do."""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(12)
        if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
            return f"HEIC; {HEIF_HELP}"
    return f"{error}; expected PNG, JPEG, WebP or the like"


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image to stand upright; not at all where its EXIF is damaged."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # whatever a block of bytes can provoke, the pixels are sound
        return None


def _eight_bits(path: Path, image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and no palette; greys of 16 bits, 0 to 65535, are rounded."""
    if image.mode == "F":
        raise FileRefused(f"{path}: expected whole numbers as pixels, found floating-point ones; save it as PNG")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if not image.mode.startswith("I"):
        return image
    import numpy as np  # half of what importing this file would cost, for 16 bits only

    greys = np.asarray(image)
    out = np.empty(greys.shape, np.uint8)
    for row in range(0, len(out), 64):  # a few rows at once, since large numbers need much memory
        out[row : row + 64] = (greys[row : row + 64].astype(np.int64).clip(0, 65535) + 128) // 257
    return Image.fromarray(out)


def _reduced(image: Image.Image) -> Image.Image:
    """The image at a whole fraction of its size, if it is large; a copy that outlives its file.

    A long strip keeps fewer pixels in its short side, since what comes after makes copies of all of them.
    """
    factor = max(min(image.size) // REDUCED, math.isqrt(image.width * image.height // (2 * REDUCED**2)))
    return image.reduce(factor) if factor > 1 else image.copy()


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The colours that the profile means, in sRGB; as they are where the profile is damaged or for another mode."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = image.convert({"RGB": "RGB", "GRAY": "L"}.get(space, image.mode))
        done = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
        return image
    if done is None:
        return image
    if alpha is not None:
        done.putalpha(alpha)
    return done
