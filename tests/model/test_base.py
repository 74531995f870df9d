"""Bases from every place they come from, and what they refuse."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from duolora.errors import FileRefused, InputError
from duolora.model import base as bases, defaults, files as base_files
from duolora.model.architectures import ARCHITECTURES
from duolora.model.base import load_base
from duolora.model.blocks import roles
from duolora.provenance import weights_hash
from recipes.atelier.architecture import save_tokenizer
from tiny import narrow_unet, save_single_file, tiny_pipeline


@pytest.fixture(scope="module")
def base(base_folder):
    return load_base(base_folder, "cpu")


@pytest.fixture
def copied(base_folder, tmp_path) -> Path:
    """A copy of the base that a test may spoil."""
    return shutil.copytree(base_folder, tmp_path / "spoilt")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_weights(one, other) -> bool:
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    whole = one.pipeline(), other.pipeline()
    states = [[getattr(each, p).state_dict() for each in whole] for p in parts]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in states)


def test_folder_and_single_file_are_the_same_base(base, base_folder, base_file):
    single = load_base(base_file, "cpu", config=base_folder)
    assert same_weights(base, single)
    prompts = ["a cat in a house", "xyz"]
    assert torch.equal(base.encode_prompts(prompts).embeds, single.encode_prompts(prompts).embeds)


def test_atelier_is_read_from_the_package(base, base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults.resources, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"atelier.*install it again"):
        load_base("atelier", "cpu")
    shutil.copytree(base_folder, tmp_path.joinpath("atelier", "weights", "base"))
    found = load_base(device="cpu")
    assert found.name == "atelier" and same_weights(base, found)


def test_a_folder_of_half_precision_files_alone_is_read(base, copied):
    for file in [*copied.glob("*/*.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert same_weights(base, load_base(copied, "cpu"))


def test_everything_is_frozen_and_the_vae_stays_float32(base_folder):
    narrow = load_base(base_folder, "cpu", "bfloat16")
    modules = [narrow.unet, narrow.vae, *narrow.text_encoders]
    assert not any(p.requires_grad for m in modules for p in m.parameters())
    assert not any(m.training for m in modules)
    assert [m.dtype for m in modules] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    assert narrow.encode_prompts(["a cat"]).embeds.dtype == torch.bfloat16
    assert load_base(base_folder, "cpu").unet.dtype == torch.float32
    with pytest.raises(InputError, match="dtype: expected auto, float32, bfloat16, float16, float8, nf4; got int8"):
        load_base(base_folder, "cpu", "int8")


def test_prompts_are_encoded_as_the_pipeline_does(base):
    prompts = ["a cat", "a house in a house", ""]
    found = base.encode_prompts(prompts)
    for i, prompt in enumerate(prompts):
        embeds, _, pooled, _ = base.pipeline().encode_prompt(prompt, do_classifier_free_guidance=False)
        torch.testing.assert_close(found.embeds[[i]], embeds)
        torch.testing.assert_close(found.pooled[[i]], pooled)
    assert not torch.allclose(found.pooled[0], found.pooled[1])
    with pytest.raises(InputError, match="at least one prompt"):
        base.encode_prompts([])


def test_latents_are_scaled_and_undone_by_decode(base, monkeypatch):
    pixels = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = base.vae.encode(pixels).latent_dist.mean
    latents = base.encode_images(pixels)
    torch.testing.assert_close(latents, mean * 0.5)
    drawn = base.decode(latents)
    torch.testing.assert_close(drawn, base.vae.decode(mean).sample)
    monkeypatch.setattr("duolora.model.base.PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(base.encode_images(pixels), latents)
    torch.testing.assert_close(base.decode(latents), drawn)


def test_images_of_an_odd_size_are_refused(base):
    with pytest.raises(InputError, match="multiples of 2, got 15×16"):
        base.encode_images(torch.zeros(1, 3, 15, 16))


def test_time_ids_and_resolution(base):
    assert base.time_ids().tolist() == [[16, 16, 0, 0, 16, 16]]
    assert base.resolution == 16


def test_the_noise_scheduler_has_the_betas_of_the_pipelines(base):
    assert torch.equal(base.noise_scheduler.betas, base.parts.scheduler.betas)


def test_released_encoders_come_back_when_needed(base):
    base.release_encoders()
    assert base.encode_prompts(["a cat"]).embeds.shape[0] == 1
    image = base.pipeline()("a cat", num_inference_steps=1, height=16, width=16, output_type="pt").images
    assert image.shape == (1, 3, 16, 16)


def test_a_folder_of_pickles_is_refused(copied):
    for file in [*(copied / "vae").glob("*.safetensors")]:
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(FileRefused, match=r"vae: expected .safetensors, found pickled weights"):
        load_base(copied, "cpu")
    shutil.rmtree(copied / "vae")
    with pytest.raises(FileRefused, match=r"vae: expected .safetensors, found no weights"):
        load_base(copied, "cpu")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type 'text_time'.*found None"),
        ("unet/config.json", {"in_channels": 9}, "in_channels 4.*found 9"),
        ("unet/config.json", {"cross_attention_dim": 32}, "cross_attention_dim 56.*found 32"),
        ("model_index.json", {"_class_name": "PixArtSigmaPipeline"}, "expected a pipeline of .*found PixArtSigma"),
        ("model_index.json", {"unet": ["my_code", "UNet"]}, "unet would run code from 'my_code'"),
        ("scheduler/scheduler_config.json", None, "expected a scheduler with betas.*found EDMEulerScheduler"),
    ],
)
def test_a_base_of_another_shape_is_refused(copied, file, changes, message):
    if changes is None:
        (copied / file).write_text('{"_class_name": "EDMEulerScheduler"}')
    else:
        edit(copied / file, **changes)
    with pytest.raises(FileRefused, match=message):
        load_base(copied, "cpu")


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("model_index.json", {"feature_extractor": []}, "feature_extractor would run code from nowhere"),
        ("text_encoder/config.json", {"hidden_size": "x"}, "text_encoder/config.json: hidden_size: expected a number"),
        ("unet/config.json", {"addition_time_embed_dim": [1]}, "unet/config.json: addition_time_embed_dim: expected"),
        ("vae/config.json", {"scaling_factor": "x"}, "vae/config.json: scaling_factor: expected a number, found 'x'"),
        ("unet/config.json", {"norm_num_groups": 0}, "spoilt: cannot be read as a base model: .*zero"),
        ("unet/config.json", {"block_out_channels": [1, 2]}, "spoilt: cannot be read as a base model"),
        ("unet/config.json", {"down_block_types": ["Nope"] * 3}, "spoilt: cannot be read as a base model"),
        ("unet/config.json", {"attention_head_dim": None}, "attention_head_dim: expected a value, found none"),
        ("text_encoder/config.json", {"num_attention_heads": 0}, "spoilt: cannot be read as a base model"),
        ("text_encoder/config.json", {"vocab_size": -1}, "spoilt: cannot be read as a base model"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "spoilt: cannot be read as a base model"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, "spoilt: cannot be read as a base model"),
    ],
)
def test_configs_that_make_no_sense_are_refused_in_one_line(copied, file, changes, named):
    edit(copied / file, **changes)
    with pytest.raises(FileRefused, match=named) as caught:
        load_base(copied, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["x"], [f"w{k}" for k in range(999)]], ids=["fewer", "more"])
def test_a_tokenizer_that_is_another_encoders_is_refused(copied, words):
    """One with too few tokens would be read without a word, one with too many end in an IndexError."""
    shutil.rmtree(copied / "tokenizer")
    save_tokenizer(copied / "tokenizer", words)
    with pytest.raises(FileRefused, match=r"tokenizer: expected the \d+ tokens of text_encoder, found \d+"):
        load_base(copied, "cpu")


def test_damaged_folders_are_refused_in_one_line(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FileRefused, match="cannot be read as a base model") as caught:
        load_base(copied, "cpu")
    assert "\n" not in str(caught.value)
    (copied / "unet" / "config.json").write_text("{")
    with pytest.raises(FileRefused, match=r"config.json: not valid JSON"):
        load_base(copied, "cpu")
    (copied / "model_index.json").unlink()
    with pytest.raises(FileRefused, match=r"model_index.json: not there"):
        load_base(copied, "cpu")


def test_single_files_that_are_no_checkpoint_are_refused(base_folder, base_file, tmp_path):
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(FileRefused, match="pickled weights are never opened"):
        load_base(pickle, "cpu")
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, lora)
    with pytest.raises(FileRefused, match="whole checkpoint of SDXL"):
        load_base(lora, "cpu")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(base_file.read_bytes()[:5000])
    with pytest.raises(FileRefused, match="cannot be read"):
        load_base(cut, "cpu")
    with pytest.raises(InputError, match="expected a diffusers folder"):
        load_base(base_file, "cpu", config=tmp_path)


def without(path: Path, key: str) -> Path:
    """Take one weight out of a file."""
    tensors = load_file(path)
    save_file({k: v.clone() for k, v in tensors.items() if k != key}, path, {"format": "pt"})
    assert key in tensors
    return path


@pytest.mark.parametrize(
    ("part", "file", "key"),
    [
        ("unet", "diffusion_pytorch_model", "conv_out.bias"),
        ("vae", "diffusion_pytorch_model", "decoder.conv_in.bias"),
        ("text_encoder", "model", "encoder.layers.0.mlp.fc1.bias"),
        ("text_encoder_2", "model", "text_model.encoder.layers.1.layer_norm1.bias"),
    ],
)
def test_a_folder_that_lacks_a_weight_is_refused(copied, part, file, key):
    without(copied / part / f"{file}.safetensors", key)
    with pytest.raises(FileRefused, match=rf"{part}\.{key} is missing \(1 in all\)"):
        load_base(copied, "cpu")


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.conv_out.bias",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
        "conditioner.embedders.1.model.transformer.resblocks.0.ln_1.bias",
    ],
)
def test_a_single_file_that_lacks_a_weight_is_refused(base_folder, base_file, tmp_path, key):
    path = without(shutil.copy(base_file, tmp_path / "lacking.safetensors"), key)
    with pytest.raises(FileRefused, match="missing"):
        load_base(path, "cpu", config=base_folder).pipeline()


def test_what_is_nowhere_is_said_to_be_nowhere(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file or folder; expected `atelier`"):
        load_base(tmp_path / "none", "cpu")
    with pytest.raises(InputError, match="no such file or folder"):
        load_base("models/none.safetensors", "cpu")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/nothing: no such folder here, and the hub gave no model") as caught:
        load_base("nobody/nothing", "cpu")
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_downloaded_as_safetensors_and_checked(base, base_folder, copied, monkeypatch):
    from diffusers import DiffusionPipeline

    asked = {}
    monkeypatch.setattr("duolora.model.files.hub_answers", lambda: True)
    monkeypatch.setattr(
        DiffusionPipeline, "download", lambda name, **options: asked.update({name: options}) or str(base_folder)
    )
    assert same_weights(base, load_base("owner/name", "cpu"))
    assert asked == {"owner/name": {"use_safetensors": True, "local_files_only": False, "variant": None}}


def test_the_empty_prompt_is_what_guidance_takes(base_folder):
    base = load_base(base_folder)
    empty = base.empty_prompt()
    _, negative, _, pooled = base.pipeline().encode_prompt("a cat", do_classifier_free_guidance=True)
    torch.testing.assert_close(empty.embeds, negative)
    torch.testing.assert_close(empty.pooled, pooled)
    base.parts.register_to_config(force_zeros_for_empty_prompt=not base.parts.config.force_zeros_for_empty_prompt)
    empty = base.empty_prompt()
    _, negative, _, pooled = base.pipeline().encode_prompt("a cat", do_classifier_free_guidance=True)
    torch.testing.assert_close(empty.embeds, negative)


@pytest.mark.parametrize(
    ("architecture", "way"),
    [*((name, "folder") for name in ARCHITECTURES), ("segmind-vega", "single file"), ("segmind-vega", "hub id")],
)
def test_every_architecture_loads_in_every_way(tmp_path, monkeypatch, architecture, way):
    made = tiny_pipeline(tmp_path, narrow_unet(architecture))
    made.save_pretrained(tmp_path / "base")
    if way == "folder":
        found = load_base(tmp_path / "base", "cpu")
    elif way == "single file":
        path = save_single_file(made, tmp_path / "base.safetensors")
        found = load_base(path, "cpu", config=tmp_path / "base")
    else:
        monkeypatch.setattr(base_files, "hub_answers", lambda: True)
        monkeypatch.setattr(base_files.DiffusionPipeline, "download", lambda name, **given: str(tmp_path / "base"))
        found = load_base(f"someone/{architecture}", "cpu")
    state = made.unet.state_dict()
    assert found.unet.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.unet.state_dict().items())
    assert len(roles(found.unet)) == {"sdxl": 560, "ssd-1b": 272, "segmind-vega": 120}[architecture]


def test_a_published_base_is_known_by_config_and_hash_and_not_by_its_name(tmp_path, monkeypatch):
    place = tmp_path / "anything" / "unet"
    place.mkdir(parents=True)
    (place / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"weights")
    config = ARCHITECTURES["sdxl"]
    (place / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(base_files, "LARGE", 1)
    assert base_files.published_base(str(place.parent)) is None
    monkeypatch.setattr(base_files, "PUBLISHED", {hashlib.sha256(b"weights").hexdigest(): base_files.SDXL})
    assert base_files.published_base(str(place.parent)) == base_files.SDXL
    (place / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 768}))
    assert base_files.published_base(str(place.parent)) is None
    monkeypatch.setattr(base_files, "LARGE", 100)
    monkeypatch.setattr(base_files, "known_hash", lambda _: pytest.fail("a small file was hashed"))
    assert base_files.published_base(str(place.parent)) is None


def test_the_hash_of_the_weights_is_remembered_by_the_files_unless_they_were_changed_in_memory(copied, monkeypatch):
    files = [*copied.glob("*/*.safetensors")]
    for file in files:
        os.utime(file, (1e9, 1e9))
    expected, made = load_base(copied).weights_hash(), []
    monkeypatch.setattr(bases, "weights_hash", lambda networks: (made.append(1), weights_hash(networks))[1])
    again = load_base(copied)
    assert again.weights_hash() == expected and not made, "nothing was hashed again"
    with torch.no_grad():
        again.unet.conv_in.weight[0, 0, 0, 0] += 0.5
    assert again.weights_hash() != expected and len(made) == 1
    soon = time.time() + 60  # "just now" on a machine however slow
    os.utime(files[0], (soon, soon))
    assert load_base(copied).weights_hash() == expected and len(made) == 2
    assert load_base(copied).weights_hash() == expected and len(made) == 3, "a file of just now may change unseen"
