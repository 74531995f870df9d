"""Texts as Windows' editors save them, and files that are no texts."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from duolora.cli.config import options_of_file
from duolora.errors import FileRefused, InputError
from duolora.lora.read.file import read_adapter
from duolora.lora.read.header import PEFT_CONFIG, PEFT_WEIGHTS
from duolora.textfiles import DEEPEST, LARGEST, read_json, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_text(encoding, tmp_path):
    (tmp_path / "x").write_text('{"é": [1, "Δ"]}', encoding)
    assert read_text(tmp_path / "x") == '{"é": [1, "Δ"]}'
    assert read_json(tmp_path / "x") == {"é": [1, "Δ"]}


def test_options_may_begin_with_one(tmp_path):
    class Command:
        params = ()

    (tmp_path / "x.toml").write_text("[merge]\n", "utf-8-sig")
    assert options_of_file(tmp_path / "x.toml", {"merge": Command}) == {"merge": {}}
    with pytest.raises(InputError, match=r"none\.toml: expected a TOML file"):
        options_of_file(tmp_path / "none.toml", {})


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 100_000])
def test_json_is_of_bounded_depth(depth, tmp_path):
    (tmp_path / "x").write_text("[" * depth + "]" * depth)
    with pytest.raises(FileRefused, match=rf"x: expected JSON of at most {DEEPEST} levels"):
        read_json(tmp_path / "x")
    (tmp_path / "x").write_text("[" * DEEPEST + "]" * DEEPEST)
    assert read_json(tmp_path / "x")


@pytest.mark.parametrize("content", [b"\xff\xff", b"{", b"\xff\xfe1", b"1" * 5000])
def test_what_is_no_json_is_refused_by_name(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FileRefused, match="x: "):
        read_json(tmp_path / "x")


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "device")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", LARGEST + 1)
    for name, message in (("pipe", "regular"), ("device", "regular"), (".", "regular"), ("large", "at most 32 MiB")):
        with pytest.raises(FileRefused, match=message):
            read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


def test_a_peft_folder_may_have_one(tmp_path):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"base_model.model.{name}.lora_A.weight": torch.ones(2, 8)}
    save_file(tensors | {f"base_model.model.{name}.lora_B.weight": torch.ones(8, 2)}, tmp_path / PEFT_WEIGHTS)
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [name]})
    (tmp_path / PEFT_CONFIG).write_text(config, "utf-8-sig")
    assert read_adapter(tmp_path).modules[name].scale == 2
