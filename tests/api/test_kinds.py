"""Every kind of base by the same verbs, tiny: trained on, merged by training and in closed form, generated with."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import nn

from duolora.api.generate import applied, generate
from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.errors import BaseMismatch, FileRefused, InputError
from duolora.lora.read.file import read_adapter
from duolora.model import flux
from duolora.model.base import Base, load_base
from duolora.model.blocks import architecture_of, block_roles
from duolora.model.kinds import kind_of
from duolora.model.mount import Mount
from duolora.model.predict import noise_schedule, predict
from duolora.model.prompts import unread
from duolora.model.sample import sample_images
from duolora.paper.lowrank import svd_basis
from tiny import tiny_flux, tiny_qwen_image, tiny_sd3, tiny_sd15, tiny_z_image

PROMPT = "a sks cat in zwx style"


@dataclass(frozen=True)
class Case:
    """A kind of base: tiny, and the numbers of docs/families.md at full size, for rank 64 and two LoRAs."""

    tiny: Callable[[Path], Any]
    modules: int
    """Attention layers that the tiny one has."""
    full: Callable[[], nn.Module]
    layers: int
    outputs: int
    weights: int
    config: tuple[str, str] = ("joint_attention_dim", "99")
    """What another base would have in the network's config."""


CASES = {
    "SD 1.5": Case(
        tiny_sd15, 10 * 8, lambda: UNet2DConditionModel(cross_attention_dim=768), 128, 199_680, 859_520_964,
        ("cross_attention_dim", "24"),
    ),
    "SD 3": Case(
        tiny_sd3, 8 + 4 + 7, lambda: SD3Transformer2DModel(
            num_layers=38, attention_head_dim=64, num_attention_heads=38, qk_norm="rms_norm", joint_attention_dim=4096,
            caption_projection_dim=2432, out_channels=16, pos_embed_max_size=192,
        ), 303, 1_473_792, 8_056_627_520,
        ("joint_attention_dim", "64"),
    ),
    "FLUX.1": Case(
        tiny_flux, 8 + 2 * 3, lambda: FluxTransformer2DModel(guidance_embeds=True), 266, 1_634_304, 11_901_408_320,
        ("joint_attention_dim", "16"),
    ),
    "Z-Image": Case(
        tiny_z_image, 4 * 4, lambda: ZImageTransformer2DModel(), 136, 1_044_480, 6_154_908_736, ("cap_feat_dim", "16")
    ),
    "Qwen-Image": Case(
        tiny_qwen_image, 2 * 8, lambda: QwenImageTransformer2DModel(), 480, 2_949_120, 20_430_401_088,
        ("joint_attention_dim", "16"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def family(request) -> str:
    """All that is parametrised by this runs for one kind after the other."""
    return request.param


@pytest.fixture(scope="module")
def home(family, tmp_path_factory) -> Path:
    """The folder of a tiny base; Stable Diffusion's names a safety checker, as on the hub."""
    made = tmp_path_factory.mktemp("base")
    CASES[family].tiny(made / "tokenizers").save_pretrained(made / "base")
    if family == "SD 1.5":
        index = json.loads((made / "base" / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        (made / "base" / "model_index.json").write_text(json.dumps(index))
    return made / "base"


@pytest.fixture(scope="module")
def kind_base(home) -> Base:
    return load_base(home, resolution=16)


@pytest.fixture(scope="module")
def two(kind_base, photos, tmp_path_factory) -> tuple[Path, Path]:
    """A content LoRA and a style LoRA on it."""
    made, options = tmp_path_factory.mktemp("loras"), TrainOptions(rank=3, steps=4, batch=2, lr=1e-2)
    train(photos, "a sks cat in flat style", made / "content.safetensors", kind_base, options, progress=False)
    train(photos / "1.png", "a house in zwx style", made / "style.safetensors", kind_base, options, progress=False)
    return made / "content.safetensors", made / "style.safetensors"


@pytest.mark.parametrize("method", ["ziprank", "duolora", "oneshot"])
def test_the_file_generates_what_the_masked_forward_does(family, kind_base, two, photos, tmp_path, method):
    options = options_of(method, steps=0 if method == "oneshot" else 2, calibration_images=2, calls=1)
    said = {}
    done = merge(
        *two, tmp_path / "x.safetensors", method, kind_base, photos, photos / "1.png", options=options, progress=False,
        dtype="float32", announce=said.update,
    )  # fmt: skip
    assert len(said) == CASES[family].modules
    assert ({*said.values()} == {"neutral"}) == (family != "SD 1.5")
    assert done.verification.diffusers < 1e-6 and family in read_adapter(done.path).families
    content, style = ({n: svd_basis(x) for n, x in read_adapter(path).modules.items()} for path in two)
    with applied(kind_base, [done.path]):
        from_file = sample_images(kind_base, [PROMPT], [3], steps=2)
    with Mount(kind_base.unet, [content, style], "rank") as mount:
        row = mount.flat([done.content_masks, done.style_masks])[None]
        with mount.gating(row):
            by_masks = sample_images(kind_base, [PROMPT], [3], steps=2)
    assert not torch.allclose(from_file, sample_images(kind_base, [PROMPT], [3], steps=2), atol=1e-3)
    torch.testing.assert_close(from_file, by_masks, rtol=0, atol=6e-3)


def test_a_prediction_is_the_pipelines_own(kind_base):
    """One step from noise, σ to 0, takes σ times the prediction away; of two prompts, one long, at once."""
    if not kind_base.kind.flow:
        pytest.skip("the scheduler has no such step")
    prompts, pipeline = ["a cat", "a cat in a house in a house"], kind_base.pipeline()
    left = pipeline(
        list(prompts), height=16, width=16, sigmas=[0.25], output_type="latent", num_inference_steps=1,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)], **kind_base.kind.guided(1.0, 2),
    ).images  # fmt: skip
    t = pipeline.scheduler.timesteps[0]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    encoded = kind_base.encode_prompts(prompts)
    with torch.no_grad():
        found = predict(kind_base.unet, noise, t.round().long().repeat(2) - 1, encoded, kind_base.time_ids())
    expected = (noise - kind_base.kind.unpacked(left, 8)) / (t / 1000)
    torch.testing.assert_close(t.round(), t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_as_guidance_is_none_and_more_leads_away_from_the_empty_prompt(family, kind_base):
    if family == "FLUX.1" or not kind_base.kind.flow:
        pytest.skip("guidance is a number that the network reads" if family == "FLUX.1" else "as SDXL's")
    pipeline = kind_base.pipeline()

    def left(prompt: str, scale: float) -> torch.Tensor:
        """What one step takes from noise."""
        start = torch.Generator().manual_seed(0)
        return pipeline(
            prompt, height=16, width=16, sigmas=[0.5], output_type="latent", num_inference_steps=1, generator=start,
            **kind_base.kind.guided(scale, 1),
        ).images  # fmt: skip

    wanted, other, guided = left("a cat", 1.0), left(" " if family == "Qwen-Image" else "", 1.0), left("a cat", 3.0)
    away = other + 3 * (wanted - other)
    if family == "Qwen-Image":  # which keeps the length that each patch's prediction has without guidance
        assert not torch.allclose(guided, wanted, atol=1e-5)
    else:
        torch.testing.assert_close(guided, away, rtol=1e-4, atol=1e-5)


def test_latents_have_shift_and_scale_and_go_back(family, kind_base):
    pixels, vae = torch.rand(2, 3, 16, 16) * 2 - 1, kind_base.vae
    latents = kind_base.encode_images(pixels)
    if family == "Qwen-Image":
        mean = vae.encode(pixels[:, :, None]).latent_dist.mean
        shift, std = (torch.tensor(x)[:, None, None] for x in (vae.config.latents_mean, vae.config.latents_std))
        torch.testing.assert_close(latents, (mean[:, :, 0] - shift) / std)
        torch.testing.assert_close(kind_base.decode(latents), vae.decode(mean).sample[:, :, 0])
    else:
        mean = vae.encode(pixels).latent_dist.mean
        torch.testing.assert_close(latents, (mean - (vae.config.shift_factor or 0)) * 0.5)
        torch.testing.assert_close(kind_base.decode(latents), vae.decode(mean).sample)
    assert kind_base.resolution == 16 and kind_base.defaults.guidance == kind_base.kind.guidance


def test_prompts_of_any_length_stand_beside_each_other(kind_base):
    """Alone and beside a longer one a prompt is predicted with the same."""
    alone, beside = kind_base.encode_prompts(["a cat"]), kind_base.encode_prompts(["a cat", "a house in a house"])
    after = alone.after(kind_base.empty_prompt())
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([300])
    with torch.no_grad():
        found = [
            predict(kind_base.unet, x, t, each.rows(torch.tensor([row])), kind_base.time_ids())
            for each, row in ((alone, 0), (beside, 0), (after, 1))
        ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-5)
    assert unread(kind_base.parts, " ".join(["cat"] * 600)) and not unread(kind_base.parts, "a cat")


def test_generate_takes_the_file(kind_base, two, tmp_path):
    done = generate(PROMPT, tmp_path / "images", [two[0]], kind_base, num=1, steps=1, progress=False)
    assert [path.is_file() for path in done] == [True]


def test_what_does_not_fit_is_refused(family, kind_base, home, loras, tmp_path):
    with pytest.raises(BaseMismatch, match="the LoRA was made for another base"), applied(kind_base, [loras[0]]):
        pass
    copytree(home, tmp_path / "base")
    key, was = CASES[family].config
    config = tmp_path / "base" / kind_base.kind.network / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {key: 99}))
    with pytest.raises(FileRefused, match=f"expected {key} {was} as {kind_base.kind.name} has it, found 99"):
        load_base(tmp_path / "base")
    config.write_text(before)
    schedule = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    schedule.write_text('{"_class_name": "DDPMScheduler"}')
    needed = f"flow matching, as {kind_base.kind.name}'s" if kind_base.kind.flow else "betas"
    with pytest.raises(FileRefused, match=f"expected a scheduler (of|with) {needed}, .*found DDPM"):
        load_base(tmp_path / "base")


@pytest.mark.parametrize("dtype", ["float8", "nf4"])
def test_blocks_are_kept_small_and_masks_are_trained_on_them(family, kind_base, home, two, photos, tmp_path, dtype):
    """Beside the same base with its weights rounded, and computed in float32."""
    if not kind_base.kind.flow:
        with pytest.raises(InputError, match=f"{dtype} is for the blocks of a transformer, and Stable Diffusion has"):
            load_base(home, dtype=dtype)
    if family not in ("FLUX.1", "Z-Image"):
        pytest.skip("one with blocks of two kinds, and one whose last layer is in no block, are enough")
    if dtype == "nf4" and find_spec("bitsandbytes") is None:
        with pytest.raises(InputError, match="nf4 needs bitsandbytes, which is not installed; pip install"):
            load_base(home, dtype=dtype)
        pytest.skip("bitsandbytes is not installed")
    small, plain = load_base(home, dtype=dtype, resolution=16), load_base(home, resolution=16)
    kept = torch.float8_e4m3fn if dtype == "float8" else torch.uint8
    names = {name for name, weight in small.unet.named_parameters() if weight.dtype == kept}
    assert names and all(name.partition(".")[0].endswith(("blocks", "layers", "refiner")) for name in names)
    plain.unet.load_state_dict(widened(small.unet))
    assert small.lora_shapes() == plain.lora_shapes() and small.weights_hash() != plain.weights_hash()
    options, masks, images = options_of("duolora", steps=2, calibration_images=2), [], []
    for k, base in enumerate((small, plain)):
        out = tmp_path / f"{k}.safetensors"
        done = merge(*two, out, "duolora", base, photos, photos / "1.png", options=options, progress=False)
        masks.append(done.content_masks)
        with applied(base, [two[0]]):
            images.append(sample_images(base, [PROMPT], [3], steps=1))
    assert small.dtype == torch.float32 and len({weight.dtype for weight in small.unet.parameters()}) == 2
    for name, mask in masks[0].items():
        torch.testing.assert_close(mask, masks[1][name])
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-4)
    short = TrainOptions(rank=2, steps=1, batch=1)
    train(photos / "1.png", "a house", tmp_path / "t.safetensors", small, short, progress=False)
    assert read_adapter(tmp_path / "t.safetensors").modules.keys() == read_adapter(two[0]).modules.keys()


def widened(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network in float32, whatever they are kept in."""
    found = {name: value.float() for name, value in network.named_parameters()} | dict(network.named_buffers())
    for name, weight in network.named_parameters():
        if (how := getattr(weight, "quant_state", None)) is not None:
            from bitsandbytes.functional import dequantize_4bit

            found[name] = dequantize_4bit(weight.data, how).float()
    return {name: found[name] for name in network.state_dict() if name in found}


@pytest.mark.parametrize("name", CASES)
def test_counts_at_full_size(name):
    """The numbers in docs/families.md."""
    case = CASES[name]
    with torch.device("meta"):
        network = case.full()
    shapes = architecture_of(network, name).shapes
    assert len(shapes) == case.layers
    assert 2 * sum(d_out for d_out, _ in shapes.values()) == case.outputs
    assert sum(p.numel() for p in network.parameters()) == case.weights


def test_roles_of_stable_diffusion_follow_the_resolutions_of_four_levels(tmp_path):
    parts = tiny_sd15(tmp_path)
    assert isinstance(parts, StableDiffusionPipeline)
    found = block_roles(architecture_of(parts.unet, "SD 1.5"))
    by_block = {name.partition(".attentions")[0]: role for name, role in found.items()}
    assert by_block == {
        "down_blocks.0": "neutral", "down_blocks.1": "neutral", "down_blocks.2": "style", "mid_block": "content",
        "up_blocks.1": "style", "up_blocks.2": "neutral", "up_blocks.3": "neutral",
    }  # fmt: skip
    assert kind_of(parts).name == "Stable Diffusion"


def test_stable_diffusions_prompts_are_the_pipelines(kind_base, family):
    if family != "SD 1.5":
        pytest.skip("see the predictions above")
    encoded = kind_base.encode_prompts(["a cat", ""])
    expected, empty = kind_base.pipeline().encode_prompt("a cat", kind_base.device, 1, True)
    torch.testing.assert_close(encoded.embeds, torch.cat((expected, empty)))
    torch.testing.assert_close(kind_base.empty_prompt().embeds, empty)
    assert encoded.pooled.shape == (2, 0) and kind_base.parts.safety_checker is None


def test_patches_are_the_pipelines_and_go_back():
    latents = torch.randn(2, 4, 6, 8)
    theirs = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    assert torch.equal(flux.packed(latents), theirs)
    assert torch.equal(flux.unpacked(theirs, 6), latents)
    places = FluxPipeline._prepare_latent_image_ids(2, 3, 4, torch.device("cpu"), torch.float32)
    assert torch.equal(flux.places(3, 4, torch.device("cpu")), places)


def test_the_exact_flow_leads_to_the_image(kind_base):
    """With ε − x_0, x_t − σ (ε − x_0) is x_0."""
    if not kind_base.kind.flow:
        pytest.skip("predicts noise")
    schedule, (x0, noise), t = noise_schedule(kind_base), torch.randn(2, 1, 4, 8, 8), torch.tensor([499])
    x_t, exact = schedule.add_noise(x0, noise, t), schedule.target(x0, noise, t)
    torch.testing.assert_close(x_t, (x0 + noise) / 2)
    torch.testing.assert_close(schedule.predict_x0(x_t, t, exact), x0, rtol=1e-5, atol=1e-5)
