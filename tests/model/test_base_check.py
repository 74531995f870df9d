"""Base folders that would hang, fill the memory or run code: each is refused in one line, before a library reads it."""

import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from damage import CASES, DAMAGE, damaged, places
from duolora.errors import DuoLoRAError, FileRefused
from duolora.model import files
from duolora.model.architectures import shapes_in
from duolora.model.files import check_folder
from tiny import tiny_flux, tiny_pipeline, tiny_sd3, tiny_sd15


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    tiny_pipeline(place / "tokenizers").save_pretrained(place / "base")
    return place / "base"


@pytest.fixture
def base(sound, tmp_path) -> Path:
    """A copy of a sound base that a test may spoil."""
    return shutil.copytree(sound, tmp_path / "spoilt")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(base: Path) -> str:
    with pytest.raises(FileRefused) as caught:
        check_folder(base)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_a_sound_base_passes(sound):
    check_folder(sound)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("name", ["evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", "gone.safetensors", 7])
@pytest.mark.parametrize("index", ["text_encoder/" + INDEX, "unet/diffusion_pytorch_model.safetensors.index.json"])
def test_an_index_names_safetensors_beside_it_and_nothing_else(base, index, name):
    (base / index).write_text(json.dumps({"weight_map": {"a": name, "b": "model.safetensors"}}))
    assert Path(index).name in (said := refused(base))
    assert "it names" in said


def test_a_pickle_that_an_index_names_is_never_opened(base, monkeypatch):
    (base / "text_encoder" / "model.safetensors").rename(base / "text_encoder" / "other.safetensors")
    (base / "text_encoder" / "evil.bin").write_bytes(b"\x80\x04")
    (base / "text_encoder" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "evil.bin"}}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(FileRefused, match=r"names 'evil\.bin'.*pickles are never opened"):
        files.read_pipeline(str(base), torch.float32, None)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}'])
def test_an_index_without_a_map_is_refused(base, text):
    (base / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    assert "weight_map" in refused(base)


@pytest.mark.parametrize("file", ["unet/config.json", "tokenizer/tokenizer_config.json", "model_index.json"])
def test_pipes_and_devices_are_not_read(base, file):
    (base / file).unlink()
    os.mkfifo(base / file)
    assert "expected a regular file" in refused(base)
    (base / file).unlink()
    os.symlink("/dev/zero", base / file)
    assert "expected a regular file" in refused(base)


def test_deep_json_is_refused(base):
    (base / "scheduler" / "scheduler_config.json").write_text("[" * 100_000)
    assert "levels" in refused(base)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("text_encoder/config.json", "num_hidden_layers", 10**9),
        ("unet/config.json", "layers_per_block", 10**6),
        ("unet/config.json", "transformer_layers_per_block", [1, 1, 10**9]),
        ("unet/config.json", "block_out_channels", [32] * 1000),
        ("unet/config.json", "sample_size", -1),
        ("unet/config.json", "sample_size", "64"),
        ("unet/config.json", "sample_size", 10**400),
        ("vae/config.json", "scaling_factor", float("inf")),
        ("text_encoder_2/config.json", "attn_implementation", "kernels-community/flash-attn"),
        ("text_encoder/config.json", "_attn_implementation", "someone/kernel"),
        ("text_encoder/config.json", "quantization_config", {"quant_method": "gptq"}),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
        ("tokenizer/tokenizer_config.json", "model_max_length", 10**9),
        ("tokenizer_2/tokenizer_config.json", "model_max_length", 0),
        ("tokenizer/tokenizer_config.json", "model_max_length", None),
    ],
)
def test_numbers_out_of_proportion_and_foreign_code_are_named(base, file, key, value):
    edit(base / file, **{key: value})
    said = refused(base)
    assert file in said and f"{key}: expected" in said


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("vae/config.json", "scaling_factor"),
        ("vae/config.json", "layers_per_block"),
        ("text_encoder/config.json", "num_attention_heads"),
        ("text_encoder_2/config.json", "num_hidden_layers"),
        ("text_encoder_2/config.json", "hidden_act"),
        ("text_encoder_2/config.json", "eos_token_id"),
        ("unet/config.json", "attention_head_dim"),
        ("unet/config.json", "norm_num_groups"),
        ("unet/config.json", "transformer_layers_per_block"),
        ("scheduler/scheduler_config.json", "beta_start"),
        ("scheduler/scheduler_config.json", "beta_end"),
        ("scheduler/scheduler_config.json", "prediction_type"),
        ("scheduler/scheduler_config.json", "timestep_spacing"),
        ("scheduler/scheduler_config.json", "steps_offset"),
    ],
)
def test_what_a_config_leaves_out_is_not_made_up(base, file, key):
    """Each of these was a model that ran, and was another one."""
    config = json.loads((base / file).read_text())
    del config[key]
    (base / file).write_text(json.dumps(config))
    said = refused(base)
    assert file in said and f"{key}: expected a value, found none" in said


def test_configs_of_stable_diffusion_are_older_and_say_less(tmp_path):
    tiny_sd15(tmp_path / "tokenizers").save_pretrained(tmp_path / "base")
    for file, key in (("vae", "scaling_factor"), ("unet", "transformer_layers_per_block")):
        path = tmp_path / "base" / file / "config.json"
        config = json.loads(path.read_text())
        del config[key]
        path.write_text(json.dumps(config))
    check_folder(tmp_path / "base")


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler"])
def test_what_a_scheduler_makes_up_is_right_on_stable_diffusion_for_some(tmp_path, name):
    """The published config has no spacing: PNDM takes leading, as was meant, and Euler linspace."""
    base = tmp_path / "base"
    tiny_sd15(tmp_path / "tokenizers").save_pretrained(base)
    edit(base / "model_index.json", scheduler=["diffusers", name])
    published = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "steps_offset": 1}
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name} | published))
    if name == "PNDMScheduler":
        check_folder(base)
    else:
        assert "prediction_type: expected a value, found none" in refused(base)


def test_what_flux_takes_is_not_made_up(tmp_path):
    tiny_flux(tmp_path / "tokenizers").save_pretrained(tmp_path / "base")
    check_folder(tmp_path / "base")
    for file, key in (
        ("transformer/config", "guidance_embeds"),
        ("vae/config", "shift_factor"),
        ("scheduler/scheduler_config", "use_dynamic_shifting"),
    ):
        path = tmp_path / "base" / f"{file}.json"
        before = path.read_text()
        path.write_text(json.dumps({name: value for name, value in json.loads(before).items() if name != key}))
        assert f"{key}: expected a value, found none" in refused(tmp_path / "base")
        path.write_text(before)


def test_what_a_config_leaves_out_of_a_transformer_does_not_go_unseen(tmp_path):
    """Diffusers leaves weights unread that are not in the network by its config, here those of a norm."""
    tiny_sd3(tmp_path / "tokenizers").save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["qk_norm"]
    path.write_text(json.dumps(config))
    with pytest.raises(FileRefused, match=r"transformer\.transformer_blocks\.\S+norm\S+ is in the weights, and by its"):
        files.read_pipeline(str(tmp_path / "base"), torch.float32, None)


def test_tokenizers_are_missed_by_name(base):
    shutil.rmtree(base / "tokenizer_2")
    assert "tokenizer_2: expected a tokenizer's files" in refused(base)


def test_a_base_with_an_adapter_of_its_own_is_refused(base):
    (base / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "adapter_config.json" in refused(base)


@pytest.mark.parametrize("value", [["transformers", "AutoModel"], {"a": 1}, None, 7])
def test_other_classes_are_refused(base, value):
    edit(base / "model_index.json", text_encoder=value)
    assert "text_encoder: expected CLIPTextModel, found " in refused(base)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("scheduler", ["antigravity", "fly"], "scheduler would run code from 'antigravity'"),
        ("scheduler", ["diffusers", "StableDiffusionXLPipeline"], "scheduler: expected one of diffusers' schedulers"),
        ("scheduler", ["diffusers", ["DDIMScheduler"]], "scheduler: expected one of diffusers' schedulers"),
        ("tokenizer", ["transformers", "AutoTokenizer"], "tokenizer: expected CLIPTokenizer or "),
        ("tokenizer_2", ["transformers", "PreTrainedTokenizerFast"], "tokenizer_2: expected CLIPTokenizer or "),
        ("unet", ["diffusers", "FluxTransformer2DModel"], "unet: expected UNet2DConditionModel"),
        ("image_encoder", ["antigravity", "fly"], "image_encoder would run code from 'antigravity'"),
    ],
)
def test_no_class_but_known_ones_is_imported_for_a_folder_or_for_the_configs_of_a_file(
    base, base_file, part, value, said
):
    """`antigravity` is a module of Python's own, which opens a browser when it is imported."""
    edit(base / "model_index.json", **{part: value})
    assert said in refused(base)
    with pytest.raises(FileRefused, match=re.escape(said)):
        files.read_pipeline(str(base_file), torch.float32, base)
    assert "antigravity" not in sys.modules


def test_the_configs_of_a_file_are_checked_as_those_of_a_folder(base, base_file, tmp_path):
    edit(base / "unet" / "config.json", layers_per_block=10**9)
    with pytest.raises(FileRefused, match="layers_per_block: expected"):
        files.read_pipeline(str(base_file), torch.float32, base)
    tiny_sd15(tmp_path / "tokenizers").save_pretrained(tmp_path / "sd15")
    with pytest.raises(
        FileRefused, match=r"sd15: expected the configs of an SDXL-shaped model, found Stable Diffusion's"
    ):
        files.read_pipeline(str(base_file), torch.float32, tmp_path / "sd15")


def test_a_scheduler_that_needs_another_library_is_one_line(base):
    edit(base / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    with pytest.raises(FileRefused, match="DPMSolverSDEScheduler requires the torchsde library") as caught:
        files.read_pipeline(str(base), torch.float32, None)
    assert "\n" not in str(caught.value)


def test_weights_under_another_name_are_refused(base):
    """transformers follows that name, and would open a pickle that an index there names."""
    edit(base / "text_encoder" / "config.json", transformers_weights="sub/x.safetensors.index.json")
    assert "transformers_weights: expected weights under their usual name" in refused(base)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"layers_per_block": 200, "transformer_layers_per_block": [1, 1, 250]}),
        ("unet/config.json", {"layers_per_block": 9, "transformer_layers_per_block": [1, [1, 60], 1]}),
        ("vae/config.json", {"layers_per_block": 256}),
    ],
)
def test_numbers_that_are_large_together_are_refused(base, file, changes):
    edit(base / file, **changes)
    assert "layers_per_block: expected at most 512 blocks in all" in refused(base)


def test_shapes_of_a_hostile_base_are_not_counted(base):
    """`train` asks for them before it loads the base."""
    assert shapes_in(str(base))
    config = base / "unet" / "config.json"
    edit(config, layers_per_block=10**9)
    with pytest.raises(FileRefused, match="layers_per_block: expected"):
        shapes_in(str(base))
    config.write_text("[" * 10**5)
    with pytest.raises(FileRefused, match="config.json"):
        shapes_in(str(base))
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(FileRefused, match="expected a regular file"):
        shapes_in(str(base))
    config.unlink()
    assert shapes_in(str(base)) is None


KEYS = ["attn_implementation", "_attn_implementation", "quantization_config", "auto_map", "transformers_weights",
        "use_kernels", "_class_name", "architectures", "model_type", "dtype", "torch_dtype"]  # fmt: skip
CODE = ['["antigravity", "fly"]', '"antigravity"', '{"AutoModel": "evil.Model"}', '"../evil.bin"', "1048576", "4096"]


def test_any_damage_of_a_base_is_one_line_or_a_base(base):
    """Any value of its JSON files is another one, or stands under another key, or a file is none."""
    rng, refused = random.Random(0), 0
    whole = {path: path.read_bytes() for path in sorted(base.glob("**/*.json")) if path.name != "tokenizer.json"}
    for case in range(CASES // 20):
        path = rng.choice([*whole])
        found = json.loads(whole[path])
        if case % 10 == 0:
            path.unlink()
            rng.choice(
                [path.mkdir, lambda path=path: os.mkfifo(path), lambda path=path: os.symlink("/dev/zero", path)]
            )()
        else:
            found |= {rng.choice(KEYS): "x"} if case % 3 == 0 else {}
            path.write_text(damaged(found, rng.choice([*places(found)][1:]), rng.choice([*DAMAGE, *CODE])))
        try:
            files.read_pipeline(str(base), torch.float32, None)
        except DuoLoRAError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 900
        assert "antigravity" not in sys.modules
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(whole[path])
    assert 0.2 < refused / (CASES // 20) < 0.98
    check_folder(base)
