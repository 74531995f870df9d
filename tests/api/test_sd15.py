"""Stable Diffusion 1.5: the same verbs on a pipeline with one text encoder, no size conditions and four levels."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from duolora.api.generate import applied, generate
from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.errors import BaseMismatch, FileRefused
from duolora.lora.read.file import read_adapter
from duolora.model.base import Base, load_base
from duolora.model.blocks import architecture_of, block_roles
from duolora.model.mount import Mount
from duolora.model.sample import sample_images
from duolora.paper.lowrank import svd_basis
from tiny import tiny_sd15

PROMPT = "a sks cat in zwx style"


@pytest.fixture(scope="module")
def sd15_folder(tmp_path_factory) -> Path:
    """A folder as the hub has them, which names a safety checker."""
    made = tmp_path_factory.mktemp("sd15")
    tiny_sd15(made / "tokenizers").save_pretrained(made / "base")
    index = json.loads((made / "base" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (made / "base" / "model_index.json").write_text(json.dumps(index))
    return made / "base"


@pytest.fixture(scope="module")
def sd15(sd15_folder) -> Base:
    return load_base(sd15_folder)


@pytest.fixture(scope="module")
def two(sd15, photos, tmp_path_factory) -> tuple[Path, Path]:
    """A content LoRA and a style LoRA on it."""
    made = tmp_path_factory.mktemp("loras")
    options = TrainOptions(rank=3, steps=6, batch=2, lr=1e-2)
    train(photos, "a sks cat in flat style", made / "content.safetensors", sd15, options, progress=False)
    train(photos / "1.png", "a house in zwx style", made / "style.safetensors", sd15, options, progress=False)
    return made / "content.safetensors", made / "style.safetensors"


def test_prompts_are_encoded_and_images_generated_as_the_pipeline_does(sd15):
    assert isinstance(sd15.parts, StableDiffusionPipeline) and sd15.parts.safety_checker is None
    encoded = sd15.encode_prompts(["a cat", ""])
    expected, empty = sd15.parts.encode_prompt("a cat", sd15.device, 1, True)
    torch.testing.assert_close(encoded.embeds, torch.cat((expected, empty)))
    torch.testing.assert_close(sd15.empty_prompt().embeds, empty)
    assert encoded.pooled.shape == (2, 0)
    long = " ".join(["cat", "house"] * 40)
    assert sample_images(sd15, [long, "a cat"], [0, 1], steps=2).shape == (2, 3, sd15.resolution, sd15.resolution)


def test_roles_follow_the_resolutions_of_four_levels(sd15):
    found = block_roles(sd15.architecture)
    by_block = {name.partition(".attentions")[0]: role for name, role in found.items()}
    assert by_block == {
        "down_blocks.0": "neutral", "down_blocks.1": "neutral", "down_blocks.2": "style", "mid_block": "content",
        "up_blocks.1": "style", "up_blocks.2": "neutral", "up_blocks.3": "neutral",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["ziprank", "duolora", "oneshot"])
def test_file_generates_what_the_masked_forward_generates(sd15, two, photos, tmp_path, method):
    options = options_of(method, steps=0 if method == "oneshot" else 3, calibration_images=2, calls=2)
    done = merge(
        *two, tmp_path / "x.safetensors", method, sd15, photos, photos / "1.png", options=options, progress=False,
        dtype="float32",
    )  # fmt: skip
    assert done.verification.diffusers is not None and read_adapter(done.path).families[0] == "SD 1.5"
    content, style = ({n: svd_basis(x) for n, x in read_adapter(path).modules.items()} for path in two)
    with applied(sd15, [done.path]):
        from_file = sample_images(sd15, [PROMPT], [3], steps=3)
    with Mount(sd15.unet, [content, style], "rank") as mount:
        row = mount.flat([done.content_masks, done.style_masks])[None]
        with mount.gating(row):
            by_masks = sample_images(sd15, [PROMPT], [3], steps=3)
    assert not torch.allclose(from_file, sample_images(sd15, [PROMPT], [3], steps=3), atol=1e-3)
    torch.testing.assert_close(from_file, by_masks, rtol=0, atol=6e-3)


def test_generate_takes_the_file(sd15, two, tmp_path):
    done = generate(PROMPT, tmp_path / "images", [two[0]], sd15, num=1, steps=2, progress=False)
    assert [path.is_file() for path in done] == [True]


def test_a_lora_of_another_family_does_not_fit(sd15, loras):
    with pytest.raises(BaseMismatch, match="the LoRA was made for another base"), applied(sd15, [loras[0]]):
        pass


def test_a_unet_of_another_text_width_is_refused(sd15_folder, tmp_path):
    from shutil import copytree

    copytree(sd15_folder, tmp_path / "base")
    config = tmp_path / "base" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": 99}))
    with pytest.raises(FileRefused, match="expected cross_attention_dim 24 as Stable Diffusion has it, found 99"):
        load_base(tmp_path / "base")


def test_counts_at_full_size():
    """The numbers in docs/families.md, rank 64, two LoRAs: diffusers' defaults are Stable Diffusion's blocks."""
    with torch.device("meta"):
        shapes = architecture_of(UNet2DConditionModel(cross_attention_dim=768), "SD 1.5").shapes
    assert len(shapes) == 128 and 2 * 64 * len(shapes) == 16_384
    assert 2 * sum(d_out for d_out, _ in shapes.values()) == 199_680
