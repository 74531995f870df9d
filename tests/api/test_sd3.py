"""Stable Diffusion 3.5: the same verbs on a transformer whose blocks attend twice, with three text encoders, tiny."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from duolora.api.generate import applied
from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.lora.read.file import read_adapter
from duolora.model.base import Base, load_base
from duolora.model.blocks import architecture_of
from duolora.model.mount import Mount
from duolora.model.predict import predict
from duolora.model.sample import sample_images
from duolora.paper.lowrank import svd_basis
from tiny import tiny_sd3

PROMPT = "a sks cat in zwx style"


@pytest.fixture(scope="module")
def sd3(tmp_path_factory) -> Base:
    made = tmp_path_factory.mktemp("sd3")
    tiny_sd3(made / "tokenizers").save_pretrained(made / "base")
    return load_base(made / "base")


@pytest.fixture(scope="module")
def two(sd3, photos, tmp_path_factory) -> tuple[Path, Path]:
    """A content LoRA and a style LoRA on it."""
    made, options = tmp_path_factory.mktemp("loras"), TrainOptions(rank=3, steps=4, batch=2, lr=1e-2)
    train(photos, "a sks cat in flat style", made / "content.safetensors", sd3, options, progress=False)
    train(photos / "1.png", "a house in zwx style", made / "style.safetensors", sd3, options, progress=False)
    return made / "content.safetensors", made / "style.safetensors"


def test_a_prediction_is_the_transformers_own(sd3):
    embeds, _, pooled, _ = sd3.parts.encode_prompt("a cat", None, None, do_classifier_free_guidance=False)
    encoded = sd3.encode_prompts(["a cat"])
    torch.testing.assert_close(encoded.embeds, embeds)
    torch.testing.assert_close(encoded.pooled, pooled)
    x = torch.randn(1, 4, 8, 8)
    expected = sd3.parts.transformer(
        hidden_states=x, timestep=torch.tensor([250.0]), encoder_hidden_states=embeds, pooled_projections=pooled,
        return_dict=False,
    )[0]  # fmt: skip
    with torch.no_grad():
        found = predict(sd3.unet, x, torch.tensor([249]), encoded, sd3.time_ids(1, 16, 16))
    torch.testing.assert_close(found, expected)
    assert (sd3.defaults.guidance, sd3.resolution) == (7.0, 16)


@pytest.mark.parametrize("method", ["ziprank", "duolora", "oneshot"])
def test_file_generates_what_the_masked_forward_generates(sd3, two, photos, tmp_path, method):
    options = options_of(method, steps=0 if method == "oneshot" else 2, calibration_images=2, calls=1)
    done = merge(
        *two, tmp_path / "x.safetensors", method, sd3, photos, photos / "1.png", options=options, progress=False,
        dtype="float32",
    )  # fmt: skip
    assert done.verification.diffusers < 1e-6
    content, style = ({n: svd_basis(x) for n, x in read_adapter(path).modules.items()} for path in two)
    assert "transformer_blocks.0.attn2.to_q" in content
    with applied(sd3, [done.path]):
        from_file = sample_images(sd3, [PROMPT], [3], steps=2)
    with Mount(sd3.unet, [content, style], "rank") as mount:
        row = mount.flat([done.content_masks, done.style_masks])[None]
        with mount.gating(row):
            by_masks = sample_images(sd3, [PROMPT], [3], steps=2)
    assert not torch.allclose(from_file, sample_images(sd3, [PROMPT], [3], steps=2), atol=1e-3)
    torch.testing.assert_close(from_file, by_masks, rtol=0, atol=6e-3)


def test_counts_at_full_size():
    """The numbers in docs/families.md: Stable Diffusion 3.5 Large, 38 blocks of 2432 channels."""
    with torch.device("meta"):
        network = SD3Transformer2DModel(
            num_layers=38, attention_head_dim=64, num_attention_heads=38, qk_norm="rms_norm"
        )
    shapes = architecture_of(network, "SD 3").shapes
    assert len(shapes) == 37 * 8 + 7
    assert 2 * 64 * len(shapes) == 38_784
    assert 2 * sum(d_out for d_out, _ in shapes.values()) == 1_473_792
