"""A single checkpoint needs no hub: its configs and tokenizers are facts, and its scheduler is what its keys say."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from command import run
from duolora.errors import FileRefused
from duolora.model import sdxl
from duolora.model.architectures import ARCHITECTURES
from duolora.model.base import load_base
from tiny import narrow_unet, save_single_file, tiny_pipeline, tiny_sd15


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
        there = getattr(found.parts, name).state_dict()
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


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FLUX's weights; .* name one"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3's weights; .* name one"),
        ("cap_embedder.1.weight", "Z-Image's weights; .* name one"),
        ("transformer_blocks.0.attn.add_q_proj.weight", "Qwen-Image's weights; .* name one"),
        ("cond_stage_model.model.positional_embedding", "Stable Diffusion 2 .* name a diffusers folder"),
        ("lora_unet_x.lora_up.weight", "expected a whole checkpoint of SDXL or Stable"),
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
