"""Merging: every method ends as a plain LoRA of the strength that its masks say."""

import json
import os
import shutil
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from duolora.api.generate import applied
from duolora.api.inspect import inspect
from duolora.api.merge import merge, options_of
from duolora.errors import BaseMismatch, FileRefused, InputError
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.merging import inputs, learn
from duolora.merging.inputs import merged_prompt_of
from duolora.merging.options import METHODS, WEIGHTS
from duolora.model import base as bases
from duolora.model.base import BaseChoice, load_base
from duolora.model.blocks import target_modules
from duolora.model.files import is_read, read_network
from duolora.model.mount import Mount
from duolora.model.predict import denoiser
from duolora.model.sample import sample_images
from duolora.paper.lowrank import LowRank, svd_basis

pytestmark = pytest.mark.usefixtures("unloaded")


def quick(method, **changes):
    return options_of(method, **{"steps": 2, "calibration_images": 2, **changes})


def merged(loras, base, tmp_path, method, photos=None, **changes):
    style = None if photos is None else photos / "1.png"
    return merge(
        *loras, tmp_path / f"{method}.safetensors", method, base, photos, style,
        options=quick(method, **changes), progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(base, loras, photos, tmp_path_factory):
    """The merge by a method with its own options, made once."""
    folder = tmp_path_factory.mktemp("plain")
    return cache(lambda method: merged(loras, base, folder, method, photos))


def drawn(base):
    return sample_images(base, ["a sks cat in zwx style"], [3], steps=2)


@pytest.fixture(scope="module")
def bare(base):
    return drawn(base)


def test_naive_is_the_sum(base, whole_loras, tmp_path):
    done = merged(whole_loras, base, tmp_path, "naive", content_weight=0.5)
    content, style, both = (read_adapter(p).modules for p in (*whole_loras, done.path))
    assert set(both) == set(target_modules(base.unet))
    for name, lora in both.items():
        expected = 0.5 * content[name].delta() + style[name].delta()
        torch.testing.assert_close(lora.delta(), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].combine == "masks"])
def test_file_draws_what_the_masked_forward_draws(base, whole_loras, photos, tmp_path, bare, method):
    done = merged(whole_loras, base, tmp_path, method, photos)
    content, style = ({n: svd_basis(x) for n, x in read_adapter(p).modules.items()} for p in whole_loras)
    axis = {"none": "rank"}.get(METHODS[method].masks, METHODS[method].masks)
    with applied(base, [done.path]):
        from_file = drawn(base)
    with Mount(base.unet, [content, style], axis) as mount:
        row = mount.flat([done.content_masks, done.style_masks])
        with mount.gating(row[None]):
            by_masks = drawn(base)
    assert not torch.allclose(from_file, bare, atol=1e-3)
    torch.testing.assert_close(from_file, by_masks, rtol=0, atol=6e-3)


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].masks != "none" and METHODS[m].steps])
def test_masks_move(plain, method):
    done = plain(method)
    assert 0.005 < done.mean_change <= 2 * 1.1 * METHODS[method].lr
    assert done.trainable == sum(m.numel() for ms in (done.content_masks, done.style_masks) for m in ms.values())
    assert [entry["step"] for entry in done.losses] == [0, 1]


def test_count_of_masks_follows_the_axis(base, loras, photos, tmp_path, plain):
    names = read_adapter(loras[0]).modules
    shapes = [base.unet.get_submodule(n).weight.shape for n in names]
    ranks, outputs = (plain(method).trainable for method in ("ziprank", "ziplora"))
    inputs = merged(loras, base, tmp_path, "ziplora", photos, masks="input").trainable
    assert (ranks, outputs, inputs) == (
        (4 + 3) * len(names),
        2 * sum(s[0] for s in shapes),
        2 * sum(s[1] for s in shapes),
    )


def test_same_seed_same_bytes(base, loras, photos, tmp_path, monkeypatch, plain):
    other = merged(loras, base, tmp_path, "duolora", photos, seed=1)
    assert other.path.read_bytes() != plain("duolora").path.read_bytes()
    monkeypatch.setattr(inputs, "CALIBRATION_STEPS", 2)
    first = merged(loras, base, tmp_path, "duolora").path.read_bytes()
    assert merged(loras, base, tmp_path, "duolora").path.read_bytes() == first


def test_calibration_images_are_announced_with_their_cost(base, loras, photos, tmp_path, monkeypatch, capsys):
    said = []

    def generating(base, prompts, seeds, **how):
        said.append((len(prompts), how["steps"], capsys.readouterr().err))
        return torch.zeros(len(prompts), 3, 16, 16)

    monkeypatch.setattr(inputs, "sample_images", generating)
    for images in (None, photos, photos / "1.png"):
        merge(*loras, tmp_path / "out.safetensors", "duolora", base, images, None, options=quick("duolora"))
    (n, steps, both), (_, _, second), *one = said
    assert "for 2 of 2 LoRAs: generating 2 calibration images with each of those, 4 in all of 16 pixels" in both
    assert (n, steps) == (2, inputs.CALIBRATION_STEPS) and f"in {steps} steps each at guidance 5" in both
    assert "images are given" not in second
    assert len(one) == 2 and all("for 1 of 2 LoRAs: generating 2" in line and "2 in all" in line for *_, line in one)
    merged(loras, base, tmp_path, "duolora")
    assert "images are given" not in capsys.readouterr().err, "quiet"


def test_naive_merges_know_their_prompts_where_the_files_do(base, loras, tmp_path):
    metadata = read_adapter(merged(loras, base, tmp_path, "naive").path).metadata
    assert metadata["prompt"] == "a sks cat in zwx style"


@pytest.mark.parametrize("preset", WEIGHTS)
def test_presets_matter(base, loras, photos, tmp_path, preset, plain):
    other = read_adapter(merged(loras, base, tmp_path, "duolora", photos, **WEIGHTS[preset]).path).modules
    modules = read_adapter(plain("duolora").path).modules
    assert any(n not in other or not torch.equal(modules[n].delta(), other[n].delta()) for n in modules)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("ziprank", {"basis": "raw"}),
        ("ziplora", {"masks": "input"}),
        ("ziplora", {"lambda_similarity": 10.0}),
        ("ziplora", {"lambda_similarity": 10.0, "similarity": "cosine"}),
        ("duolora", {"init": "values"}),
        ("duolora", {"init": "all-ones"}),
        ("duolora", {"init": "split"}),
        ("duolora", {"block_map": "blora", "neutral": 0.5}),
        ("duolora", {"T_content": 0.75}),
        ("duolora", {"T_style": 0.5}),
        ("duolora", {"block_map": "blora"}),
        ("duolora", {"lambda_layer_prior": 5.0}),
        ("duolora", {"lambda_layer_prior": 5.0, "prior_lambda": 20.0}),
        ("duolora", {"lambda_layer_prior": 5.0, "norm": "vector"}),
        ("duolora", {"lambda_layer_prior": 5.0, "hinge": False}),
        ("duolora", {"lambda_layer_prior": 5.0, "reduction": "sum"}),
        ("duolora", {"lambda_layer_prior": 5.0, "sparsity": 0.0}),
        ("duolora", {"cycles": "style"}),
        ("duolora", {"cycles": "content"}),
        ("duolora", {"cycle_variant": "masked"}),
        ("duolora", {"cycle_variant": "none"}),
        ("duolora", {"lambda_cycle": 5.0}),
        ("duolora", {"multiplies": "all"}),
        ("duolora", {"batch": 2}),
        ("duolora", {"pool": 1}),
        ("duolora", {"lr": 0.05}),
        ("duolora", {"threshold": 0.985}),
        ("duolora", {"binary": True}),
        ("duolora", {"style_weight": 0.5}),
    ],
)
def test_every_option_matters(base, loras, photos, tmp_path, method, change, plain):
    modules = read_adapter(plain(method).path).modules
    other = read_adapter(merged(loras, base, tmp_path, method, photos, **change).path).modules
    assert any(n not in other or not torch.equal(modules[n].delta(), other[n].delta()) for n in modules)


def test_metadata_are_in_the_file(plain):
    with safe_open(plain("duolora").path, "pt") as file:
        metadata = json.loads(file.metadata()["duolora"])
    assert metadata["method"] == "duolora"
    assert metadata["prompt"] == "a sks cat in zwx style"
    assert metadata["options"]["lambda_layer_prior"] == METHODS["duolora"].lambda_layer_prior
    assert {len(metadata[k]) for k in ("content", "style")} == {64}
    assert metadata["blocks"]["down_blocks.2"] == "content"


def test_roles_that_differ_within_a_block_are_in_the_file(base, loras, tmp_path):
    table = {"up_blocks.0.attentions.0": "content", "up_blocks.0.attentions.1": "style"}
    facts = inspect(merged(loras, base, tmp_path, "split", block_map=table, neutral=0.3).path)
    assert facts["metadata"]["blocks"].items() >= table.items()
    assert facts["blocks"]["up_blocks.0"]["role"] == "mixed"
    assert 0 < facts["energy_by_role"]["style"] < 1


def test_rest_follows_its_policy(base, loras, tmp_path):
    linear = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"
    shape = base.unet.get_submodule(linear).weight.shape
    extra = LowRank(torch.randn(shape[0], 2), torch.randn(2, shape[1]), 0.5)
    content = read_adapter(loras[0])
    path = tmp_path / "with_ff.safetensors"
    write_adapter(path, Adapter(content.modules | {linear: extra}, content.metadata), torch.float32)
    for unmasked, present in (("sum", True), ("content", True), ("style", False), ("drop", False)):
        done = merge(
            path,
            loras[1],
            tmp_path / "x.safetensors",
            "naive",
            base,
            options=quick("naive", unmasked=unmasked),
            progress=False,
        )
        both = read_adapter(done.path).modules
        assert (linear in both) is present
        if present:
            torch.testing.assert_close(both[linear].delta(), extra.delta(), rtol=2e-3, atol=1e-3)


def test_what_is_not_carried_over_is_said(base, loras, tmp_path):
    with safe_open(loras[0], "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = file.metadata()
    save_file(tensors | {"bundle_emb.sks.x": torch.zeros(2, 8)}, tmp_path / "bundle.safetensors", header)
    done = merge(tmp_path / "bundle.safetensors", loras[1], tmp_path / "o.safetensors", "naive", base, progress=False)
    assert done.left_out == ("bundle_emb.sks",)
    assert read_adapter(done.path).metadata["left_out"] == list(done.left_out)


def test_adapters_that_cover_different_modules(base, loras, photos, tmp_path):
    content = read_adapter(loras[0])
    half = dict(list(content.modules.items())[::2])
    write_adapter(tmp_path / "half.safetensors", Adapter(half, content.metadata))
    done = merged((tmp_path / "half.safetensors", loras[1]), base, tmp_path, "duolora", photos)
    assert set(done.content_masks) == set(half)
    assert len(done.style_masks) == len(content.modules)


def test_wrong_inputs_are_named(base, loras, tmp_path):
    out = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="expected one of naive"):
        merge(*loras, out, "magic", base)
    with pytest.raises(FileRefused, match="missing.safetensors"):
        merge(tmp_path / "missing.safetensors", loras[1], out, "naive", base)
    with pytest.raises(InputError, match="--content-prompt"):
        bare = Adapter(read_adapter(loras[0]).modules)
        write_adapter(tmp_path / "bare.safetensors", bare)
        merge(tmp_path / "bare.safetensors", loras[1], out, "ziprank", base, options=quick("ziprank"), progress=False)
    with pytest.raises(BaseMismatch, match=r"wide.safetensors.*9"):
        name = next(iter(read_adapter(loras[0]).modules))
        wide = Adapter({name: LowRank(torch.ones(9, 2), torch.ones(2, 9))}, {"prompt": "x"})
        write_adapter(tmp_path / "wide.safetensors", wide)
        merge(tmp_path / "wide.safetensors", loras[1], out, "naive", base)
    assert not out.exists()


def test_gates_of_the_denoiser_are_the_adapters(base, loras):
    content, style = (dict(read_adapter(p).modules) for p in loras)
    masks = [{n: torch.ones(x.rank) for n, x in a.items()} for a in (content, style)]
    prompts = ["a cat", "a house"]
    with Mount(base.unet, [content, style]) as mount:
        denoise = denoiser(base, mount, prompts, lambda: mount.flat(masks))
        x = torch.randn(2, 4, base.unet.config.sample_size, base.unet.config.sample_size)
        t = torch.tensor([10, 500])
        content_only = denoise(x, t, prompts, ["content", "content"])
        together = denoise(x, t, prompts, ["content", "merged"])
    torch.testing.assert_close(content_only[0], together[0])
    assert not torch.allclose(content_only[1], together[1])


@pytest.mark.parametrize(
    ("content", "style", "both"),
    [
        ("a sks cup in flat style", "a house in zwx style", "a sks cup in zwx style"),
        ("a photo of sks dog", "a painting in zwx style", "a photo of sks dog in zwx style"),
        ("sks dog", "zwx painting", "sks dog, zwx painting"),
    ],
)
def test_merged_prompt(content, style, both):
    assert merged_prompt_of(content, style) == both


def test_a_merge_reads_of_its_base_what_it_needs_when_it_needs_it(folder, loras, photos, tmp_path, monkeypatch):
    """Of the networks, all are read one by one for the base's hash, which is remembered for files that are settled."""
    base = shutil.copytree(folder, tmp_path / "base")
    for file in base.glob("*/*.safetensors"):
        os.utime(file, (1e9, 1e9))
    encoders, read, seen = ("vae", "text_encoder", "text_encoder_2"), [], []

    def noted(parts, name, *given):
        read.append((name, *(each for each in encoders if is_read(getattr(parts, each)))))
        read_network(parts, name, *given)

    def stepped(self, step):
        seen.append([each for each in encoders if is_read(getattr(opened[-1].parts, each))])
        return original(self, step)

    def loaded(*given):
        opened.append(load_base(*given))
        return opened[-1]

    original, opened, made = learn.Learner.step, [], []
    monkeypatch.setattr(bases, "read_network", noted)
    monkeypatch.setattr(bases, "load_base", loaded)
    monkeypatch.setattr(learn.Learner, "step", stepped)
    for hashed in (encoders, ()):
        made.append(merged(loras, BaseChoice(str(base), "cpu"), tmp_path, "duolora", photos).path.read_bytes())
        *before, for_images, first, second = read
        assert for_images == ("vae",), "alone, and the first"
        assert (first, second) == (("text_encoder",), ("text_encoder_2", "text_encoder")), "the VAE is given up by then"
        assert before == [(each,) for each in hashed]
        read.clear()
    assert seen == [[]] * 4, "the masks are trained beside the UNet alone"
    merged(loras, BaseChoice(str(base), "cpu"), tmp_path, "naive", photos)
    assert read == [] and len(opened) == 2
    monkeypatch.undo()
    kept = load_base(base, "cpu")
    made.append(merged(loras, kept, tmp_path, "duolora", photos).path.read_bytes())
    assert made[0] == made[1] == made[2]
    assert all(is_read(getattr(kept.parts, each)) for each in encoders), "the caller's are kept for the next merge"
