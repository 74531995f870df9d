"""Photos as phones, browsers and other programs write them: every one is read as everybody sees it, or named."""

import os
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from duolora.errors import FileRefused, InputError, Notice
from duolora.model import image_files
from duolora.model.image_files import HEIF_SUFFIXES, LARGEST, REDUCED, image_paths, images_of, read_image

D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {
    "Display P3": ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)),
    "Adobe RGB": ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
    "swapped": ((0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141), (0.4361, 0.2225, 0.0139)),
}


def profile(primaries, gamma=2.2) -> bytes:
    """A display's profile: its primaries as XYZ under D50, and one gamma."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78), b"wtpt": xyz(D50)}
    tags |= {b"cprt": b"text\0\0\0\0none\0"}
    tags |= {name: xyz(v) for name, v in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I", start + len(data)) + b"lcms\x02\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head = head.ljust(68, b"\0") + b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def seen() -> Image.Image:
    """Colours of ordinary things."""
    image = Image.new("RGB", (96, 64), (205, 60, 50))
    image.paste((40, 150, 70), (8, 8, 50, 40))
    image.paste((230, 200, 60), (60, 5, 92, 40))
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks: bytes, data: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_converted_by_the_profile(name, mode, tmp_path):
    space = profile(PRIMARIES[name])
    srgb = ImageCms.createProfile("sRGB")
    stored = ImageCms.profileToProfile(seen(), srgb, ImageCms.ImageCmsProfile(BytesIO(space)), outputMode="RGB")
    image = stored.quantize(16) if mode == "P" else stored.convert(mode)
    image.save(tmp_path / "x.png", icc_profile=space)
    off = np.abs(np.asarray(read_image(tmp_path / "x.png"), int) - np.asarray(seen(), int))
    assert np.percentile(off, 95) <= 6
    assert np.abs(np.asarray(stored, int) - np.asarray(seen(), int)).max() > 12


@pytest.mark.parametrize("broken", [b"no profile", profile(PRIMARIES["Adobe RGB"])[:200]])
def test_a_broken_profile_changes_nothing(broken, tmp_path):
    seen().save(tmp_path / "x.png", icc_profile=broken)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), np.asarray(seen()))


def test_grey_and_transparent_images_may_have_a_profile(tmp_path):
    space = profile(PRIMARIES["Display P3"])
    seen().convert("L").save(tmp_path / "grey.jpg", icc_profile=space)
    assert read_image(tmp_path / "grey.jpg").size == (96, 64)
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png", icc_profile=space)
    assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_much_text_in_a_png_is_no_damage(kind, tmp_path):
    extra = {}
    if kind == "iCCP":
        extra["icc_profile"] = profile(PRIMARIES["Display P3"]) + bytes(3_000_000)
    else:
        extra["pnginfo"] = info = PngImagePlugin.PngInfo()
        add = info.add_itxt if kind == "iTXt" else info.add_text
        add("parameters", "workflow " * 400_000, zip=kind != "tEXt")
    seen().save(tmp_path / "x.png", **extra)
    limits = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    assert read_image(tmp_path / "x.png").size == (96, 64)
    assert limits == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("block", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x63"])
def test_broken_exif_costs_the_rotation_only(kind, block, tmp_path):
    seen().save(tmp_path / f"x.{kind}", exif=block)
    assert read_image(tmp_path / f"x.{kind}").size == (96, 64)


def test_exif_that_cannot_be_written_again_still_turns(tmp_path):
    exif = Image.Exif()
    exif[274], exif[0x9286] = 6, "a comment"
    exif.get_ifd(0x8769)[0x9003] = "2024"
    seen().save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (64, 96)


def test_everything_that_pillow_opens_is_used(tmp_path):
    kinds = {"a.jpg": "JPEG", "b.JFIF": "JPEG", "c.jpe": "JPEG", "d.jp2": "JPEG2000", "e.ppm": "PPM", "e.mpo": "MPO"}
    if features.check("avif"):
        kinds["f.avif"] = "AVIF"
    for name, kind in kinds.items():
        seen().save(tmp_path / name, kind)
    assert [p.name for p in image_paths(tmp_path)] == sorted(kinds)
    assert all(read_image(p).size == (96, 64) for p in image_paths(tmp_path))


def test_what_is_left_out_is_named_and_what_is_used_counted(tmp_path):
    seen().save(tmp_path / "a.png")
    for name in ("more/b.png", "more/c.png", "empty/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        seen().save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "IMG_1.xheic").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"")
    found = images_of(tmp_path)
    assert found.left_out == ("IMG_1.xheic", "empty/ (a folder)", "more/ (a folder with 2 images)", "notes.txt")
    assert str(found) == f"{tmp_path}: 1 image is used; left out: {', '.join(found.left_out)}"
    with pytest.warns(Notice, match="1 image is used; left out: IMG_1.xheic, empty/"):
        assert image_paths(tmp_path) == [tmp_path / "a.png"]
    for k in range(20):
        (tmp_path / f"z{k}.txt").write_text("")
    assert str(images_of(tmp_path)).endswith("z1.txt and 18 more")


def test_a_folder_whose_images_lie_one_folder_down_says_so(tmp_path):
    (tmp_path / "10_sks teapot").mkdir()
    seen().save(tmp_path / "10_sks teapot" / "a.png")
    with pytest.raises(InputError, match=r"no images in this folder, but 10_sks teapot/ \(a folder with 1 images\)"):
        images_of(tmp_path)


@pytest.mark.skipif(".heic" in image_files.SUFFIXES, reason="the plug-in is installed")
@pytest.mark.parametrize("suffix", HEIF_SUFFIXES)
def test_heic_names_its_plug_in(suffix, tmp_path):
    photo = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)
    (tmp_path / f"IMG_1{suffix}").write_bytes(photo)
    with pytest.raises(InputError, match=rf"IMG_1\{suffix}.*duolora\[heif\]"):
        images_of(tmp_path)
    (tmp_path / "renamed.jpg").write_bytes(photo)
    assert "duolora[heif]" in str(images_of(tmp_path))
    with pytest.raises(FileRefused, match=r"renamed\.jpg.*HEIC.*duolora\[heif\]"):
        read_image(tmp_path / "renamed.jpg")


def test_programs_are_no_images(tmp_path):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(FileRefused, match=r"x\.png: not a readable image"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(13_000, 13_000), (1, 80_000_000), (80_000_000, 1), (50_000, 50_000)])
def test_too_many_pixels_are_refused_before_one_is_decoded(size, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(png(*size))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(FileRefused, match=r"x\.png: expected an image of at most 134 megapixels.*make it smaller"):
        read_image(tmp_path / "x.png")


@pytest.mark.filterwarnings("error")
def test_large_jpegs_are_decoded_at_reduced_size(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "REDUCED", 64)
    seen().resize((384, 256)).save(tmp_path / "x.jpg", quality=98, subsampling=0)
    decoded = []
    monkeypatch.setattr(Image.Image, "reduce", lambda image, factor: decoded.append(factor))
    found = read_image(tmp_path / "x.jpg")
    assert found.size == (96, 64) and not decoded
    assert np.abs(np.asarray(found, int) - np.asarray(seen(), int)).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_large_images_become_smaller_and_keep_their_colours(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "REDUCED", 64)
    image = Image.fromarray(np.full((256, 384), 30_000, np.uint16)) if mode == "I;16" else seen().resize((384, 256))
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / "x.png")
    whole = np.asarray(read_image(tmp_path / "x.png").resize((12, 8)), int)
    assert read_image(tmp_path / "x.png").size == (96, 64)
    monkeypatch.setattr(image_files, "REDUCED", 4096)
    assert np.abs(whole - np.asarray(read_image(tmp_path / "x.png").resize((12, 8)), int)).max() < 6


def test_a_hundred_megapixels_are_taken():
    """A phone's: under the limit, and far above what training needs."""
    assert LARGEST > 12_000 * 9_000 and REDUCED >= 2 * 1024


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(FileRefused, match="expected an image, found a folder, pipe or device"):
        read_image(tmp_path / "a.png")


def test_a_long_strip_becomes_smaller_too(tmp_path):
    """Profile and transparency are dealt with on what is left of it."""
    Image.new("RGBA", (1000, 40_000), (10, 200, 30, 255)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.size == (500, 20_000)
    assert image.getpixel((250, 9000)) == (10, 200, 30)
