"""FLUX.1: the same verbs on a transformer with flow matching, tiny; its counts at full size on the meta device."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from duolora.api.generate import applied, generate
from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.errors import BaseMismatch, FileRefused
from duolora.lora.read.file import read_adapter
from duolora.model import flux
from duolora.model.base import Base, load_base
from duolora.model.blocks import architecture_of
from duolora.model.mount import Mount
from duolora.model.predict import noise_schedule, predict
from duolora.model.sample import sample_images
from duolora.paper.lowrank import svd_basis
from tiny import tiny_flux

PROMPT = "a sks cat in zwx style"


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("flux")
    tiny_flux(made / "tokenizers").save_pretrained(made / "base")
    return made / "base"


@pytest.fixture(scope="module")
def flux_base(flux_folder) -> Base:
    return load_base(flux_folder, resolution=16)


@pytest.fixture(scope="module")
def two(flux_base, photos, tmp_path_factory) -> tuple[Path, Path]:
    """A content LoRA and a style LoRA on it."""
    made, options = tmp_path_factory.mktemp("loras"), TrainOptions(rank=3, steps=4, batch=2, lr=1e-2)
    train(photos, "a sks cat in flat style", made / "content.safetensors", flux_base, options, progress=False)
    train(photos / "1.png", "a house in zwx style", made / "style.safetensors", flux_base, options, progress=False)
    return made / "content.safetensors", made / "style.safetensors"


def test_patches_are_the_pipelines_and_go_back():
    latents = torch.randn(2, 4, 6, 8)
    theirs = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    assert torch.equal(flux.packed(latents), theirs)
    assert torch.equal(flux.unpacked(theirs, 6), latents)
    places = FluxPipeline._prepare_latent_image_ids(2, 3, 4, torch.device("cpu"), torch.float32)
    assert torch.equal(flux.places(3, 4, torch.device("cpu")), places)


def test_a_step_of_ours_is_a_step_of_the_pipelines_scheduler(flux_base):
    """With the exact flow ε − x_0, x_t − σ (ε − x_0) is x_0, and the scheduler's step leads there."""
    schedule, (x0, noise) = noise_schedule(flux_base), torch.randn(2, 1, 4, 8, 8)
    t = torch.tensor([499])
    x_t, exact = schedule.add_noise(x0, noise, t), schedule.target(x0, noise, t)
    torch.testing.assert_close(x_t, (x0 + noise) / 2)
    torch.testing.assert_close(schedule.predict_x0(x_t, t, exact), x0, rtol=1e-5, atol=1e-5)
    flux_base.parts.scheduler.set_timesteps(sigmas=[0.5], mu=0.0)
    stepped = flux_base.parts.scheduler.step(exact, flux_base.parts.scheduler.timesteps[0], x_t, return_dict=False)[0]
    torch.testing.assert_close(stepped, x0, rtol=1e-5, atol=1e-5)


def test_a_prediction_is_the_transformers_own(flux_base):
    embeds, pooled, ids = flux_base.parts.encode_prompt("a cat")
    encoded = flux_base.encode_prompts(["a cat"])
    torch.testing.assert_close(encoded.embeds, embeds)
    torch.testing.assert_close(encoded.pooled, pooled)
    x = torch.randn(1, 4, 8, 8)
    expected = flux_base.parts.transformer(
        hidden_states=FluxPipeline._pack_latents(x, 1, 4, 8, 8), timestep=torch.tensor([0.25]),
        guidance=torch.tensor([1.0]), pooled_projections=pooled, encoder_hidden_states=embeds, txt_ids=ids,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 4, x.device, x.dtype), return_dict=False,
    )[0]  # fmt: skip
    with torch.no_grad():
        found = predict(flux_base.unet, x, torch.tensor([249]), encoded, flux_base.time_ids(1, 16, 16))
    torch.testing.assert_close(found, FluxPipeline._unpack_latents(expected, 16, 16, 2))


def test_latents_have_shift_and_scale_and_go_back(flux_base):
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = flux_base.encode_images(pixels)
    mean = flux_base.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents, (mean - 0.1) * 0.5)
    torch.testing.assert_close(flux_base.decode(latents), flux_base.vae.decode(mean).sample)
    assert (flux_base.defaults.guidance, flux_base.resolution) == (3.5, 16)


@pytest.mark.parametrize("method", ["ziprank", "duolora", "oneshot"])
def test_file_generates_what_the_masked_forward_generates(flux_base, two, photos, tmp_path, method):
    options = options_of(method, steps=0 if method == "oneshot" else 2, calibration_images=2, calls=1)
    said = {}
    done = merge(
        *two, tmp_path / "x.safetensors", method, flux_base, photos, photos / "1.png", options=options, progress=False,
        dtype="float32", announce=said.update,
    )  # fmt: skip
    assert set(said.values()) == {"neutral"} and len(said) == 8 + 2 * 3
    assert done.verification.diffusers < 1e-6 and read_adapter(done.path).families == ("FLUX.1",)
    content, style = ({n: svd_basis(x) for n, x in read_adapter(path).modules.items()} for path in two)
    with applied(flux_base, [done.path]):
        from_file = sample_images(flux_base, [PROMPT], [3], steps=2)
    with Mount(flux_base.unet, [content, style], "rank") as mount:
        row = mount.flat([done.content_masks, done.style_masks])[None]
        with mount.gating(row):
            by_masks = sample_images(flux_base, [PROMPT], [3], steps=2)
    assert not torch.allclose(from_file, sample_images(flux_base, [PROMPT], [3], steps=2), atol=1e-3)
    torch.testing.assert_close(from_file, by_masks, rtol=0, atol=6e-3)


def test_generate_takes_the_file(flux_base, two, tmp_path):
    done = generate(PROMPT, tmp_path / "images", [two[0]], flux_base, num=1, steps=1, progress=False)
    assert [path.is_file() for path in done] == [True]


def test_what_does_not_fit_is_refused(flux_base, loras, flux_folder, tmp_path):
    with pytest.raises(BaseMismatch, match="the LoRA was made for another base"), applied(flux_base, [loras[0]]):
        pass
    config = flux_folder / "scheduler" / "scheduler_config.json"
    before = config.read_text()
    config.write_text('{"_class_name": "DDPMScheduler", "beta_schedule": "linear"}')
    try:
        with pytest.raises(FileRefused, match=r"expected a scheduler of flow matching, as FLUX\.1's, found DDPM"):
            load_base(flux_folder)
    finally:
        config.write_text(before)


def test_counts_at_full_size():
    """The numbers in docs/families.md: q, k, v and out of images and texts, 19 and 38 blocks, rank 64, two LoRAs."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)
    shapes = architecture_of(network, "FLUX.1").shapes
    assert len(shapes) == 19 * 8 + 38 * 3 == 266
    assert 2 * 64 * len(shapes) == 34_048
    assert 2 * sum(d_out for d_out, _ in shapes.values()) == 1_634_304
    assert sum(p.numel() for p in network.parameters()) == 11_901_408_320
