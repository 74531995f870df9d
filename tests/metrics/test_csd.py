"""CSD against a slow reference written from its formulas on the original keys, and refusals of wrong files."""

import argparse

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from duolora.errors import FileRefused, InputError
from duolora.metrics.csd import Shape, load_csd
from duolora.metrics.encoders import load_embedder
from duolora.metrics.pickled import convert
from duolora.metrics.similarity import all_pairs_mean
from duolora.metrics.transforms import CLIP
from patterns import pattern

SMALL = Shape(width=128, layers=3, patch=56, image=224, out=20)
IMAGES = [pattern(90, 61), Image.new("RGB", (64, 64), "red")]


@pytest.fixture(scope="module")
def state():
    rng = torch.Generator().manual_seed(0)
    return {k: torch.randn(v, generator=rng) * (v[-1] ** -0.5) for k, v in SMALL.keys.items()}


@pytest.fixture
def path(state, tmp_path):
    save_file(state, tmp_path / "csd.safetensors")
    return tmp_path / "csd.safetensors"


def load(path):
    return load_csd(str(path), CLIP, torch.device("cpu"), shape=SMALL)


def norm(x, state, name):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def slow(image, s, size):
    """OpenAI's image encoder on one image, patch by patch and head by head, in float64; then the style head."""
    s = {k: v.double() for k, v in s.items()}
    pixels, p, w = CLIP(image).double(), size.patch, size.width
    side = size.image // p
    filters = s["backbone.conv1.weight"].reshape(w, -1)
    patches = [filters @ pixels[:, y * p : (y + 1) * p, x * p : (x + 1) * p].flatten()
               for y in range(side) for x in range(side)]  # fmt: skip
    x = torch.stack([s["backbone.class_embedding"], *patches]) + s["backbone.positional_embedding"]
    x = norm(x, s, "backbone.ln_pre")
    for k in range(size.layers):
        stem = f"backbone.transformer.resblocks.{k}"
        h = norm(x, s, f"{stem}.ln_1") @ s[f"{stem}.attn.in_proj_weight"].T + s[f"{stem}.attn.in_proj_bias"]
        heads = []
        for start in range(0, w, 64):
            q, key, v = (h[:, part * w + start : part * w + start + 64] for part in range(3))
            weights = (q @ key.T / 8).exp()
            heads.append(weights / weights.sum(1, keepdim=True) @ v)
        x = x + torch.cat(heads, 1) @ s[f"{stem}.attn.out_proj.weight"].T + s[f"{stem}.attn.out_proj.bias"]
        h = norm(x, s, f"{stem}.ln_2") @ s[f"{stem}.mlp.c_fc.weight"].T + s[f"{stem}.mlp.c_fc.bias"]
        h = h / (1 + (-1.702 * h).exp())
        x = x + h @ s[f"{stem}.mlp.c_proj.weight"].T + s[f"{stem}.mlp.c_proj.bias"]
    e = norm(x[0], s, "backbone.ln_post") @ s["last_layer_style"]
    return (e / (e @ e).sqrt()).float()


def test_it_is_the_slow_reference(path, state):
    expected = torch.stack([slow(image, state, SMALL) for image in IMAGES])
    torch.testing.assert_close(load(path)(IMAGES), expected, atol=1e-5, rtol=0)
    assert all_pairs_mean(expected[:1], expected[1:]) < 0.99


def test_the_style_head_is_used_and_the_content_head_is_not(path, state):
    rows = load(path)(IMAGES)
    save_file(state | {"last_layer_content": torch.zeros(128, 20)}, path)
    torch.testing.assert_close(load(path)(IMAGES), rows)
    save_file(state | {"last_layer_style": state["last_layer_content"].clone()}, path)
    assert (load(path)(IMAGES) - rows).abs().max() > 0.01


def test_keys_as_the_authors_save_them_load_too(path, state):
    rows = load(path)(IMAGES)
    save_file({f"module.{k}": v for k, v in state.items()}, path)
    torch.testing.assert_close(load(path)(IMAGES), rows)


def test_the_published_shape_has_the_published_number_of_keys():
    assert len(Shape().keys) == 297
    assert Shape().keys["last_layer_style"] == (1024, 768)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "last_layer_style"}, "last_layer_style is missing"),
        (lambda s: s | {"backbone.proj": torch.zeros(3)}, "backbone.proj is unexpected"),
        (lambda s: s | {"last_layer_style": torch.zeros(128, 21)}, r"last_layer_style has the shape \(128, 21\)"),
        (lambda s: {f"visual.{k}": v for k, v in s.items()}, "is missing"),
    ],
)
def test_another_network_is_refused(edit, message, path, state):
    save_file(edit(state), path)
    with pytest.raises(FileRefused, match=message):
        load(path)


def test_a_tiny_one_is_not_taken_for_the_published_one(path):
    with pytest.raises(FileRefused, match="not CSD ViT-L/14"):
        load_embedder("csd", path, "cpu")


def test_a_pickle_is_not_opened_and_the_conversion_is_told(tmp_path):
    (tmp_path / "csd.pth").write_bytes(b"\x80\x02never opened")
    with pytest.raises(FileRefused, match="pickle, which is never opened.*duolora checkpoints convert csd"):
        load_embedder("csd", tmp_path / "csd.pth", "cpu")
    with pytest.raises(InputError, match="got none; .*convert it once with"):
        load_embedder("csd", None, "cpu")
    with pytest.raises(InputError, match="found no such file"):
        load_embedder("csd", tmp_path / "nowhere.safetensors", "cpu")
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(FileRefused, match="expected a whole .safetensors file"):
        load_embedder("csd", tmp_path / "x.safetensors", "cpu")


def test_a_published_file_is_converted(tmp_path, state, monkeypatch):
    """Of the published structure: tensors behind `module.`, and the options of its training beside them."""
    stored = {"model_state_dict": {f"module.{k}": v for k, v in state.items()}, "args": argparse.Namespace(lr=1)}
    torch.save(stored, tmp_path / "CSD.pth")
    with pytest.raises(FileRefused, match="not CSD ViT-L/14"):
        convert("csd", tmp_path / "CSD.pth", tmp_path / "csd.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["CSD.pth"], "another network leaves nothing behind"
    monkeypatch.setattr("duolora.metrics.pickled.load_embedder", lambda name, made, device: load(made))
    assert load(convert("csd", tmp_path / "CSD.pth", tmp_path / "csd.safetensors"))(IMAGES).shape == (2, 20)
