"""No command replaces a file unless it is told to, and none ever replaces what it reads."""

from pathlib import Path

import pytest
import torch

from command import run
from duolora.lora.adapter import Adapter
from duolora.lora.write.file import write_adapter
from duolora.paper.lowrank import LowRank

MODULE = "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"


@pytest.fixture
def loras(tmp_path) -> list[Path]:
    for name in "ab":
        modules = {MODULE: LowRank(torch.randn(8, 2), torch.randn(2, 8))}
        write_adapter(tmp_path / f"{name}.safetensors", Adapter(modules, {"prompt": name}))
    return [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


def told(verb: str, a: Path, b: Path, out: Path) -> list[object]:
    given = {"merge": ["--content", a, "--style", b, "--method", "naive", "--quiet"], "compose": [a, b], "convert": [a]}
    return [verb, *given[verb], "--out", out]


@pytest.mark.parametrize("verb", ["merge", "compose", "convert"])
def test_a_file_is_replaced_when_that_is_asked_for_and_an_input_never(loras, tmp_path, verb):
    out = tmp_path / "out.safetensors"
    (tmp_path / "link.safetensors").symlink_to(loras[0])
    before = loras[0].read_bytes()
    for target in (loras[0], tmp_path / "link.safetensors"):
        for more in ([], ["--overwrite"]):
            done = run(*told(verb, *loras, target), *more)
            assert done.exit_code == 1 and "it is one of the inputs" in done.stderr
    assert loras[0].read_bytes() == before and (tmp_path / "link.safetensors").is_symlink()
    out.write_bytes(b"work of a night")
    done = run(*told(verb, *loras, out))
    assert done.exit_code == 1 and "--overwrite" in done.stderr
    assert out.read_bytes() == b"work of a night"
    assert run(*told(verb, *loras, out), "--overwrite").exit_code == 0
    assert out.read_bytes() != b"work of a night"


def test_a_home_that_nobody_has_is_one_line(loras):
    done = run(*told("compose", *loras, "~nobody-of-that-name/x.safetensors"))
    assert done.exit_code == 1 and len(done.stderr.strip().splitlines()) == 1 and "begins with ~" in done.stderr


def test_a_half_of_a_merge_is_a_file_too(loras, tmp_path):
    half = tmp_path / "out.style.safetensors"
    half.write_bytes(b"work of a night")
    done = run(*told("merge", *loras, tmp_path / "out.safetensors"), "--format", "split")
    assert done.exit_code == 1 and str(half) in done.stderr
    assert half.read_bytes() == b"work of a night"


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_training_keeps_its_base(tmp_path, more):
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"seven gigabytes")
    done = run("train", "--images", tmp_path, "--prompt", "a cat", "--base", base, "--out", base, *more)
    assert done.exit_code == 1 and "it is one of the inputs" in done.stderr
    assert base.read_bytes() == b"seven gigabytes"


def test_training_keeps_another_lora(loras, tmp_path):
    before = loras[0].read_bytes()
    done = run("train", "--images", tmp_path, "--prompt", "a cat", "--out", loras[0])
    assert done.exit_code == 1 and "--overwrite" in done.stderr
    assert loras[0].read_bytes() == before
