"""What people wrote about a LoRA goes along with it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from duolora.api.convert import convert
from duolora.lora.read.file import read_adapter
from duolora.lora.read.notes import forbidden, notes_of, notes_of_merge
from duolora.lora.write.file import FORMATS

WRITTEN = {
    "modelspec.author": "Ayla",
    "modelspec.license": "CC BY-NC 4.0",
    "modelspec.title": "Grandmother's teapot",
    "modelspec.description": "One teapot,\nfour photos.",
    "modelspec.tags": "teapot, blue",
    "modelspec.trigger_phrase": "sks teapot",
    "modelspec.resolution": "1024x1024",
    "ss_tag_frequency": json.dumps({"10_teapot": {"teapot": 4}}),
    "ssmd_author": "Ayla",
}
FACTS = {
    "modelspec.hash_sha256": "0x00",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "ss_network_dim": "99",
    "ss_network_alpha": "99.0",
    "ss_output_name": "old",
    "sshs_model_hash": "00",
    "ss_network_args": '{"algo": "lora"}',
}
MODULE = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"


def header(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.fixture
def source(tmp_path):
    tensors = {f"{MODULE}.lora_A.weight": torch.randn(4, 8), f"{MODULE}.lora_B.weight": torch.randn(8, 4)}
    save_file(tensors, tmp_path / "source.safetensors", WRITTEN | FACTS | {"other": "x"})
    return tmp_path / "source.safetensors"


@pytest.mark.parametrize("format", FORMATS)
def test_converting_carries_along_what_people_wrote_and_computes_the_rest(source, tmp_path, format):
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    convert(source, out, format)
    found = header(out)
    assert {key: found.get(key) for key in WRITTEN} == WRITTEN
    assert not [key for key, text in FACTS.items() if found.get(key) == text]
    assert "other" not in found
    convert(out, again, "kohya", rank=2)
    assert {key: header(again).get(key) for key in WRITTEN} == WRITTEN
    assert header(again)["ss_network_dim"] == "2"


def test_the_name_of_a_file_is_no_title(source, tmp_path):
    convert(source, tmp_path / "first.safetensors", "kohya")
    assert "modelspec.title" not in notes_of({"modelspec.title": "first", "ss_output_name": "first"})
    assert read_adapter(tmp_path / "first.safetensors").notes["modelspec.title"] == WRITTEN["modelspec.title"]


def test_notes_are_plain_and_bounded():
    found = notes_of({"modelspec.author": "A\x1b[31m\ud800", "modelspec.thumbnail": "x" * 1_000_001, "ss_x": " "})
    assert found == {"modelspec.author": "A[31m?"}
    many = notes_of({f"ss_{k}": "x" * 900_000 for k in range(9)})
    assert sum(map(len, many.values())) <= 3_000_000


def test_a_merge_names_its_sources_and_whose_they_are():
    other = {
        "modelspec.author": "Bo",
        "modelspec.license": "MIT",
        "modelspec.tags": "blue, ink",
        "ss_tag_frequency": "{}",
    }
    found = notes_of_merge({"content": WRITTEN, "style": other})
    assert found == {
        "modelspec.author": "Ayla; Bo",
        "modelspec.license": "CC BY-NC 4.0; MIT",
        "modelspec.tags": "teapot, blue, ink",
        "modelspec.resolution": "1024x1024",
        "modelspec.description": "A merge of Grandmother's teapot (content) and a LoRA without a title (style).",
    }
    assert notes_of_merge({"content": {}, "style": {}}) == {}


@pytest.mark.parametrize(
    ("licence", "what"),
    [
        ("CC BY-NC-SA 4.0", ["selling"]),
        ("cc-by-nc-nd-4.0", ["merging", "selling"]),
        ("No derivatives", ["merging"]),
        ("non-commercial", ["selling"]),
        ("MIT", []),
        ("Apache-2.0", []),
        ("", []),
    ],
)
def test_licences_that_forbid_are_told(licence, what):
    lines = forbidden({"style": {"modelspec.license": licence}, "content": {}})
    assert [line.split(" forbid ")[1].split(":")[0] for line in lines] == what
