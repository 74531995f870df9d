"""A single checkpoint needs no hub: its configs and tokenizers are facts, and its scheduler is what its keys say."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import single_file_model, single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from command import run
from duolora.errors import FileRefused
from duolora.model import sdxl
from duolora.model.architectures import ARCHITECTURES
from duolora.model.base import BaseChoice, load_base, outlined
from duolora.model.files import weight_files
from tiny import (
    narrow_unet,
    original_transformer,
    save_single_file,
    tiny_flux,
    tiny_pipeline,
    tiny_qwen_image,
    tiny_sd3,
    tiny_sd15,
    tiny_z_image,
)


@pytest.fixture
def no_hub(monkeypatch):
    """Whatever would ask the hub is an error."""

    def refuse(*args, **given):
        raise AssertionError("asked the hub")

    monkeypatch.setattr("diffusers.loaders.single_file.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", refuse)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "sd-1.5"])
def test_a_single_file_is_read_without_the_hub(tmp_path, monkeypatch, no_hub, architecture):
    made = tiny_sd15(tmp_path) if architecture == "sd-1.5" else tiny_pipeline(tmp_path, narrow_unet(architecture))
    path = save_single_file(made, tmp_path / "base.safetensors")
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    parts = {name: part for name in names if (part := getattr(made, name, None)) is not None}
    known, asked = {}, []
    for name, part in parts.items():
        known[name] = dict(part.config) if name in ("unet", "vae") else part.config.to_dict()
    monkeypatch.setattr(sdxl, "networks", lambda name: asked.append(name) or known)
    found = load_base(path, "cpu")
    assert asked == [architecture]
    for name, part in parts.items():
        there = getattr(found.pipeline(), name).state_dict()
        assert all(torch.equal(value, there[key]) for key, value in part.state_dict().items())
    assert found.noise_scheduler.config.prediction_type == "epsilon"
    assert found.parts.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]


def test_the_networks_have_sdxls_sizes():
    """Parameters as published: UNet 2.567 B, CLIP-L 123.1 M, CLIP-G 694.7 M, VAE 83.7 M."""
    configs = sdxl.networks("sdxl")
    with torch.device("meta"):
        found = [
            UNet2DConditionModel.from_config(configs["unet"]),
            CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"])),
            AutoencoderKL.from_config(configs["vae"]),
        ]
    counts = [sum(value.numel() for value in network.parameters()) for network in found]
    assert counts == [2_567_463_684, 123_060_480, 694_659_840, 83_653_863]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(sdxl.networks("sd-1.5")["unet"])
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964


TRANSFORMERS = {"FLUX.1": tiny_flux, "SD 3": tiny_sd3, "Z-Image": tiny_z_image, "Qwen-Image": tiny_qwen_image}
FULL = {
    "FLUX.1": lambda: FluxTransformer2DModel(guidance_embeds=True),
    "SD 3": lambda: SD3Transformer2DModel(
        num_layers=38, attention_head_dim=64, num_attention_heads=38, qk_norm="rms_norm", joint_attention_dim=4096,
        caption_projection_dim=2432, out_channels=16, pos_embed_max_size=192,
    ),
    "Z-Image": lambda: ZImageTransformer2DModel(),
}  # fmt: skip


class Narrow:
    """Torch for diffusers' converter of FLUX, which splits q, k, v and the feed-forward at the published width only."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def split(self, tensor, sizes, dim):
        return torch.split(tensor, [tensor.shape[dim] * size // sum(sizes) for size in sizes], dim)


@pytest.fixture(params=TRANSFORMERS)
def transformer(request, tmp_path, monkeypatch, no_hub):
    """A family, its tiny pipeline, and a folder of it without the transformer's weights."""
    monkeypatch.setattr(single_file_utils, "torch", Narrow())
    made = TRANSFORMERS[request.param](tmp_path / "tokenizers")
    made.save_pretrained(tmp_path / "base")
    for path in (tmp_path / "base" / "transformer").glob("*.safetensors"):
        path.unlink()
    return request.param, made, tmp_path / "base"


@pytest.mark.parametrize("spelling", ["original", "ComfyUI", "float8", "diffusers"])
def test_a_transformers_file_is_read_beside_a_folder_with_the_rest(transformer, tmp_path, spelling):
    family, made, folder = transformer
    state = made.transformer.state_dict()
    dtype = torch.float8_e4m3fn if spelling == "float8" else torch.float32
    written = dict(state) if spelling == "diffusers" else original_transformer(family, state)
    prefix = "model.diffusion_model." if spelling == "ComfyUI" and family != "Qwen-Image" else ""
    also = {"vae.decoder.conv_in.weight": torch.ones(2)} if prefix else {}
    save_file({prefix + k: v.to(dtype).contiguous() for k, v in written.items()} | also, tmp_path / "x.safetensors")
    found = load_base(tmp_path / "x.safetensors", "cpu", config=folder)
    for key, value in found.unet.state_dict().items():
        assert torch.equal(value, state[key].to(dtype).float()), key
    assert torch.equal(
        found.encode_prompts(["a cat"]).embeds, load_base_of(made, tmp_path).encode_prompts(["a cat"]).embeds
    )
    shapes = outlined(BaseChoice(str(tmp_path / "x.safetensors"), config=folder)).shapes
    assert shapes == found.lora_shapes()
    assert {path.parent.name for path in weight_files(found.name, found.parts)} >= {
        tmp_path.name,
        "vae",
        "text_encoder",
    }


def load_base_of(made, folder):
    made.save_pretrained(folder / "whole")
    return load_base(folder / "whole", "cpu")


def test_what_a_transformers_file_lacks_is_said(transformer, base_folder, tmp_path):
    family, made, folder = transformer
    state = original_transformer(family, made.transformer.state_dict())
    path, name = tmp_path / "x.safetensors", {"SD 3": "Stable Diffusion 3"}.get(family, family)
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    with pytest.raises(FileRefused, match=rf"the transformer of {name}; name by --base-config a folder of {name} in"):
        load_base(path, "cpu")
    with pytest.raises(FileRefused, match=f"expected the configs of {name}, found an SDXL-shaped model's"):
        load_base(path, "cpu", config=base_folder)
    lost = next(key for key in state if "blocks." in key or "layers." in key)
    save_file({k: v.contiguous() for k, v in state.items() if k != lost}, path)
    with pytest.raises(FileRefused, match=r"x\.safetensors: .*(missing|cannot be read as a base model: KeyError)"):
        load_base(path, "cpu", config=folder)
    save_file({k: v.contiguous() for k, v in state.items()} | {f"{lost}.scale_weight": torch.ones(1)}, path)
    with pytest.raises(FileRefused, match="scale_weight says that its weights are quantised; get it in bfloat16"):
        load_base(path, "cpu", config=folder)
    for each in (folder / "vae").glob("*.safetensors"):
        each.unlink()
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    with pytest.raises(FileRefused, match=r"vae: expected \.safetensors, found no weights"):
        load_base(path, "cpu", config=folder)


@pytest.mark.parametrize("family", FULL)
def test_diffusers_converter_knows_all_weights_at_full_size(family):
    with torch.device("meta"):
        state = FULL[family]().state_dict()
        written = original_transformer(family, state)
    converters = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    name = {"FLUX.1": "Flux", "SD 3": "SD3", "Z-Image": "ZImage"}[family] + "Transformer2DModel"
    found = converters[name]["checkpoint_mapping_fn"](written, config={})
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("cond_stage_model.model.positional_embedding", "Stable Diffusion 2 .* name a diffusers folder"),
        ("lora_unet_x.lora_up.weight", "expected a whole checkpoint of SDXL or Stable"),
        ("model.diffusion_model.input_blocks.0.0.weight.absmax", "says that its weights are quantised"),
    ],
)
def test_single_files_of_other_kinds_are_refused_with_what_to_do(tmp_path, key, reason):
    save_file({key: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(FileRefused, match=reason):
        load_base(tmp_path / "x.safetensors", "cpu")


def test_the_tokenizers_are_clips(tmp_path):
    sdxl.write_configs(tmp_path, "sdxl")
    one, two = (CLIPTokenizer.from_pretrained(tmp_path / name) for name in ("tokenizer", "tokenizer_2"))
    for each in (one, two):
        assert each("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert each("Sks, TEAPOT!").input_ids[1:-1] == each("sks , teapot !").input_ids[1:-1]
        assert (len(each), each.model_max_length) == (49408, 77)
    assert (one.pad_token_id, two.pad_token_id) == (49407, 0)


def spoken(base_file, path, keys, metadata=None):
    """The checkpoint with keys that say what its scheduler is."""
    save_file(load_file(base_file) | {key: torch.zeros(0) for key in keys}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("keys", "metadata", "kind", "zero"),
    [
        (["v_pred"], None, "v_prediction", False),
        (["v_pred", "ztsnr"], None, "v_prediction", True),
        ([], {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ([], {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
    ],
)
def test_the_scheduler_is_what_the_checkpoint_says(base_folder, base_file, tmp_path, keys, metadata, kind, zero):
    found = load_base(spoken(base_file, tmp_path / "v.safetensors", keys, metadata), "cpu", config=base_folder)
    for scheduler in (found.noise_scheduler, found.parts.scheduler):
        assert scheduler.config.prediction_type == kind
        assert bool(scheduler.config.rescale_betas_zero_snr) == zero
    assert (found.noise_scheduler.alphas_cumprod[-1] == 0) == zero


def test_noise_levels_that_no_scheduler_here_has_are_refused(base_folder, base_file, tmp_path):
    path = spoken(base_file, tmp_path / "edm.safetensors", ["edm_vpred.sigma_max"])
    with pytest.raises(FileRefused, match="edm_vpred.sigma_max"):
        load_base(path, "cpu", config=base_folder)


def test_the_command_line_names_the_folder_of_configs(base_folder, base_file, tmp_path):
    told = ["generate", "--prompt", "a cat", "--base", base_file, "--num", 1, "--steps", 1, "--out", tmp_path / "x"]
    done = run(*told)
    assert done.exit_code == 1 and "--base-config" in done.stderr, "a UNet that is none of the three"
    assert run(*told, "--base-config", base_folder).exit_code == 0
