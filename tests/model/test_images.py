"""Images as people have them: odd modes, rotation, animation, and files that are no images."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from duolora.errors import FileRefused, InputError
from duolora.metrics.cache import embed_files
from duolora.metrics.encoders import load_embedder
from duolora.model.image_files import image_paths, read_image
from duolora.model.images import load_image, load_images

RED_LEFT = np.zeros((5, 9, 3), np.uint8)
RED_LEFT[:, :4, 0] = 250
"""Height 5, width 9: red on the left, black on the right."""


def saved(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I"])
def test_every_mode_becomes_rgb_of_the_same_size(mode, tmp_path):
    image = Image.new(mode, (7, 3))
    kind = "tif" if mode in ("CMYK", "YCbCr", "LAB", "I", "I;16") else "png"
    if mode == "HSV":
        image = image.convert("RGB")
    found = read_image(saved(image, tmp_path / f"x.{kind}"))
    assert (found.mode, found.size) == ("RGB", (7, 3))


def test_colours_survive_cmyk_and_palettes(tmp_path):
    for mode, name in (("CMYK", "x.jpg"), ("P", "x.gif"), ("RGB", "x.webp")):
        found = read_image(saved(Image.new("RGB", (16, 16), (255, 0, 51)).convert(mode), tmp_path / name))
        assert np.abs(np.asarray(found, int) - [255, 0, 51]).max() < 12, mode


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    greys = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = np.asarray(read_image(saved(Image.fromarray(greys), tmp_path / "x.png")))
    assert found[..., 0].ravel().tolist() == list(range(256))


def test_floating_point_pixels_are_refused(tmp_path):
    path = saved(Image.fromarray(np.zeros((4, 4), np.float32)), tmp_path / "x.tif")
    with pytest.raises(FileRefused, match=r"x\.tif.*floating-point.*PNG"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_becomes_white(mode, tmp_path):
    clear = Image.new("RGBA", (6, 6), (10, 200, 30, 0))
    if mode == "P":
        path = saved(clear.convert("RGB").quantize(4), tmp_path / "x.png", transparency=bytes(256))
    else:
        path = saved(clear.convert("LA") if mode != "RGBA" else clear, tmp_path / "x.png")
    assert np.asarray(read_image(path)).min() == 255


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(1, (9, 5), (0, 0)), (2, (9, 5), (8, 0)), (3, (9, 5), (8, 4)), (6, (5, 9), (0, 0)), (8, (5, 9), (0, 8))],
)
def test_exif_rotation_is_applied(orientation, size, corner, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    found = read_image(saved(Image.fromarray(RED_LEFT), tmp_path / "x.png", exif=exif))
    assert found.size == size
    assert found.getpixel(corner)[0] == 250
    assert sum(np.asarray(found)[..., 0].ravel() == 250) == 20


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_its_first_frame(kind, tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "green")]
    path = saved(frames[0], tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:], duration=50)
    red, green, blue = np.asarray(read_image(path), int)[4, 4]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (333, 2)])
def test_odd_sizes_become_squares(size, tmp_path):
    assert load_image(saved(Image.new("RGB", size), tmp_path / "x.png"), 32).shape == (3, 32, 32)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff", "bmp"])
def test_damaged_files_are_refused_or_read_and_nothing_else(kind, tmp_path):
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind, exif=Image.Exif())
    whole, rng = buffer.getvalue(), np.random.default_rng(1)
    path, refused = tmp_path / "x.png", 0
    for trial in range(150):
        data = bytearray(whole)
        if trial % 2:
            del data[rng.integers(len(data)) :]
        else:
            for place in rng.integers(0, min(len(data), 200), 6):
                data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert read_image(path).mode == "RGB"
        except FileRefused as error:
            assert "x.png" in str(error)
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(FileRefused, match=r"x\.png: not a readable image"):
        read_image(tmp_path / "x.png")


def test_folders_say_what_they_lack(tmp_path):
    with pytest.raises(InputError, match="no images"):
        image_paths(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        image_paths(tmp_path / "nowhere")


def test_training_and_evaluation_see_odd_images_alike(tmp_path):
    """One image in many clothes: all are trained on and embedded as the plain one is."""
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)).resize((100, 60))
    turned = Image.Exif()
    turned[274] = 3
    grey, clear = scene.convert("L"), scene.convert("RGBA")
    clear.putalpha(Image.new("L", scene.size, 255))
    rgb = {
        "alpha.png": (clear, {}),
        "animated.png": (scene, {"save_all": True, "append_images": [scene.rotate(180)]}),
        "cmyk.tif": (scene.convert("CMYK"), {}),
        "plain.png": (scene, {}),
        "turned.png": (scene.rotate(180), {"exif": turned}),
    }
    deep = np.asarray(grey).astype(np.uint16) * 257
    greys = {
        "plain.png": (grey, {}),
        "sixteen.png": (Image.fromarray(deep), {}),
        "big-endian.tif": (Image.frombytes("I;16B", grey.size, deep.astype(">u2").tobytes()), {}),
    }
    encoder = load_embedder("atelier-image")
    for name, images in (("rgb", rgb), ("grey", greys)):
        folder = tmp_path / name
        folder.mkdir()
        files = [saved(image, folder / file, **options) for file, (image, options) in images.items()]
        learnt, seen = load_images(folder, 64), embed_files(encoder, sorted(files), None)
        assert len(learnt) == len(seen) == len(images)
        assert (learnt - learnt[0]).abs().max() < 0.02, name
        assert (seen - seen[0]).abs().max() < 0.02, name


def test_fit_decides_what_of_an_image_is_used(tmp_path):
    path = saved(Image.fromarray(RED_LEFT).resize((90, 50)), tmp_path / "x.png")
    crop, pad, resize = (load_image(path, 32, fit) for fit in ("crop", "pad", "resize"))
    assert crop.shape == pad.shape == resize.shape == (3, 32, 32)
    assert (pad[:, 0] == 1).all() and (pad[:, -1] == 1).all() and pad[1, 16].max() < -0.9
    red = [float((x[0, 16] > 0.5).float().mean()) for x in (crop, resize)]
    assert red[1] == pytest.approx(4 / 9, abs=0.04) and red[0] < red[1] - 0.02
    with pytest.raises(InputError, match="fit: expected one of crop, pad, resize, got 'stretch'"):
        load_image(path, 32, "stretch")
