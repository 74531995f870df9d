"""The command line: one clear line and the right exit status, JSON on stdout."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import typer
from safetensors import safe_open

from command import run
from duolora.cli.common import one_line
from duolora.cli.set_option import assigned
from duolora.errors import InputError
from duolora.merging.options import MergeOptions
from duolora.training import checkpoint as module


def refused(arguments, message):
    """The command ends with status 1, and with this message on a line of its own."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", ["demo", "train", "merge", "generate"])
def test_every_verb_explains_itself(verb):
    done = run(verb, "--help")
    assert done.exit_code == 0
    assert "--seed" in done.stdout


def test_wrong_usage_is_2():
    assert run("merge").exit_code == 2
    assert run("fly").exit_code == 2


def test_generate_and_merge_through_the_command_line(folder, loras, photos, tmp_path):
    out = tmp_path / "both.safetensors"
    done = run("merge", "--content", loras[0], "--style", loras[1], "--out", out, "--base", folder, "--steps", 2,
               "--content-images", photos, "--style-images", photos, "--quiet", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["trainable"] > 0
    assert facts["error"] < 2e-3
    done = run("generate", "--prompt", "a cat", "--lora", out, "--out", tmp_path / "p", "--base", folder, "--num", 2,
               "--steps", 2, "--quiet", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["files"]) == 2
    assert len(list((tmp_path / "p").glob("*.png"))) == 2


def test_options_come_from_a_file_and_the_command_line_wins(folder, loras, tmp_path):
    config, out = tmp_path / "run.toml", tmp_path / "both.safetensors"
    config.write_text(
        f"""[merge]
content = "{loras[0]}"
style = "{loras[1]}"
method = "naive"
base = "{folder}"
base-dtype = "float32"
dtype = "float16"
json = true
set = ["content_weight=0.5"]
"""
    )
    done = run("--config", config, "merge", "--out", out, "--dtype", "float32")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trainable"] == 0
    assert "down_blocks.2  content" in done.stderr, "the block map, though nothing is trained"
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["duolora"])["options"]["content_weight"] == 0.5
        assert json.loads(file.metadata()["duolora_verification"])["dtype"] == "float32"
    for text, message in (
        ("[fly]", "fly: expected a table"),
        ("[merge]\nstep = 1", "step: expected one of"),
        ("[", "TOML"),
    ):
        config.write_text(text)
        done = run("--config", config, "merge", "--out", out)
        assert done.exit_code == 1
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert run("--config", tmp_path / "none.toml", "merge", "--out", out).exit_code == 1


def test_the_base_runs_as_it_is_told_to(folder, tmp_path):
    told = ["generate", "--prompt", "a cat", "--base", folder, "--num", 1, "--steps", 1, "--out", tmp_path / "p"]
    done = run(*told, "--device", "cpu", "--base-dtype", "bfloat16", "--offload", "model")
    assert done.exit_code == 0, done.output
    assert f"{folder} on cpu in bfloat16, 16 pixels, offloading: none" in done.stderr
    for option, value in (("--device", "cuda:99"), ("--base-dtype", "int8"), ("--offload", "half")):
        done = run(*told, option, value)
        assert done.exit_code == 1
        assert f"{option.strip('-')}: expected" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("failure", [OSError(36, "File name too long", "aaa"), OSError("disk on fire")])
def test_what_the_system_refuses_is_one_line_too(capsys, failure):
    with pytest.raises(typer.Exit) as caught, one_line():
        raise failure
    assert caught.value.exit_code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "aaa: File name too long;" in said[0] or "disk on fire;" in said[0]


def test_full_memory_is_one_line_with_a_remedy(capsys):
    with pytest.raises(typer.Exit), one_line():
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "try --offload model" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a fault of ours"), one_line():
        raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("verb", ["train", "merge", "generate", "demo"])
def test_every_command_that_runs_a_base_says_where(verb):
    text = run(verb, "--help").stdout
    assert all(option in text for option in ("--device", "--base-dtype", "--offload"))


class _Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("kind", ["text", "pickle", "hidden pickle", "truncated", "missing", "folder"])
def test_bad_lora_is_one_line_and_exit_1(kind, folder, loras, tmp_path):
    marker, bad = tmp_path / "opened", tmp_path / "bad.safetensors"
    if kind == "text":
        bad.write_text("this is no LoRA")
    elif kind == "truncated":
        bad.write_bytes(loras[0].read_bytes()[:-100])
    elif kind == "folder":
        bad.mkdir()
    elif kind != "missing":
        bad = bad.with_suffix(".pt") if kind == "pickle" else bad
        bad.write_bytes(pickle.dumps(_Bomb(str(marker))))
    done = run("merge", "--content", bad, "--style", loras[1], "--out", tmp_path / "o.safetensors", "--base", folder)
    assert done.exit_code == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "bad" in lines[0]
    assert not marker.exists()
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "magic=1"], "magic=1: no option of that name"),
        (["--set", "__class__=1"], "no option of that name"),
        (["--set", "lr"], "lr=: expected a number above 0"),
        (["--set", "lr=fast"], "lr=fast: expected a number above 0"),
        (["--set", "lr=nan"], "lr: expected a finite number above 0, got nan"),
        (["--set", "lr=0"], "lr: expected a finite number above 0, got 0.0"),
        (["--set", "style_weight=inf"], "style_weight: expected a finite number"),
        (["--set", "norm=banana"], "norm: expected one of diag, vector, got 'banana'"),
        (["--set", "init=banana"], "init: expected one of ones, values, all-ones, split, oneshot"),
        (["--set", "block_map=banana"], "block_map: expected one of resolution"),
        (["--set", "block_map=nowhere.json"], "block_map=nowhere.json: cannot be read (No such file"),
        (["--set", "hinge=banana"], "hinge=banana: expected true or false"),
        (["--set", "batch=0"], "batch: expected a whole number, 1 or more, got 0"),
        (["--set", "batch=1.5"], "batch=1.5: expected a whole number, 1 or more"),
        (["--steps", "-1"], "steps: expected a whole number, 0 or more, got -1"),
        (["--set", "steps=-1"], "steps: expected a whole number, 0 or more, got -1"),
        (["--set", "threshold=-1e-9"], "threshold: expected a finite number, 0 or more"),
        (["--set", "density=0"], "density: expected a finite number above 0 and at most 1"),
        (["--set", "density=1.01"], "density: expected a finite number above 0 and at most 1"),
        (["--set", "T_content=2"], "T_content: expected a finite number from 0 to 1, got 2.0"),
        (["--set", "lambda_cycle=-1"], "lambda_cycle: expected a finite number, 0 or more"),
        (["--preset", "table10"], "section4"),
        (["--method", "magic"], "naive"),
        (["--format", "magic"], "diffusers"),
        (["--dtype", "magic"], "float16"),
    ],
)
def test_bad_option_is_named_before_anything_is_read(arguments, message, tmp_path):
    out, nowhere = tmp_path / "o.safetensors", tmp_path / "nowhere.safetensors"
    refused(["merge", "--content", nowhere, "--style", nowhere, "--out", out, "--base", nowhere, *arguments], message)


def test_a_block_map_is_read_from_a_file(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"mid_block": "content", "up_blocks.1": "style"}')
    assert assigned([f"block_map={path}"], MergeOptions()) == {
        "block_map": {"mid_block": "content", "up_blocks.1": "style"}
    }
    path.write_text('["mid_block"]')
    with pytest.raises(InputError, match="as `bench figure3` writes it"):
        assigned([f"block_map={path}"], MergeOptions())


@pytest.mark.parametrize("place", ["a file", "under a file", "no place"])
@pytest.mark.parametrize("verb", ["demo", "generate", "train", "merge"])
def test_places_that_cannot_be_written_are_named_before_any_work(verb, place, photos, tmp_path):
    (tmp_path / "a").write_text("a file")
    out = {"a file": tmp_path / "a", "under a file": tmp_path / "a" / "b", "no place": Path("/proc/x")}[place]
    out, none = out / "x.safetensors" if verb in ("train", "merge") else out, tmp_path / "none"
    told = {
        "demo": [],
        "generate": ["--prompt", "a cat", "--base", none],
        "train": ["--prompt", "a cat", "--images", photos, "--base", none],
        "merge": ["--content", none, "--style", none, "--base", none],
    }[verb]
    refused([verb, *told, "--out", out], f"{out}: ")
    assert (tmp_path / "a").read_text() == "a file"


def test_numbers_that_nothing_can_be_made_with_are_one_line(photos, tmp_path):
    none, out = tmp_path / "none", tmp_path / "x.safetensors"
    told = ["train", "--prompt", "a cat", "--images", photos, "--out", out, "--base", none]
    refused([*told, "--lr", "nan"], "lr: expected a finite number above 0, got nan")
    refused([*told, "--caption-dropout", "nan"], "caption_dropout: expected a finite number from 0 to below 1, got nan")
    told = ["generate", "--prompt", "a cat", "--out", tmp_path / "p", "--base", none]
    refused([*told, "--steps", 0], "steps: expected a whole number, 1 or more, got 0")
    refused([*told, "--num", 0], "num: expected a whole number, 1 or more, got 0")
    refused([*told, "--guidance", "nan"], "guidance: expected a finite number, 0 or more, got nan")
    refused(
        [*told, "--lora", none, "--weight", "inf"], "weights: expected 1 finite number, one for each LoRA file, got inf"
    )
    assert not (tmp_path / "p").exists()


def test_damaged_checkpoint_is_one_line(folder, photos, tmp_path):
    told = ["train", "--prompt", "a cat", "--images", photos, "--out", tmp_path / "x.safetensors", "--base", folder,
            "--steps", 2, "--save-every", 1, "--rank", 1, "--batch", 1, "--quiet"]  # fmt: skip
    save = module.save_checkpoint

    def damaged(path, *rest):
        save(path, *rest)
        path.write_bytes(path.read_bytes()[:-3])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_checkpoint", damaged)
        assert run(*told).exit_code != 0
    done = run(*told)
    assert done.exit_code == 1, done.output
    assert "ckpt.safetensors: no whole checkpoint of this run" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--set", "steps=0"], ["--set", "density=1", "--method", "ties"]])
def test_values_at_the_end_of_their_range_are_taken(arguments, folder, loras, photos, tmp_path):
    out = tmp_path / "o.safetensors"
    arguments = arguments if "ties" in arguments else [*arguments, "--content-images", photos, "--style-images", photos]
    done = run("merge", "--content", loras[0], "--style", loras[1], "--out", out, "--base", folder, "--quiet",
               *arguments)  # fmt: skip
    assert done.exit_code == 0, done.output


def test_bench_lists_its_tables_quickly():
    done = run("bench", "--help")
    assert done.exit_code == 0
    assert all(name in done.stdout for name in ("table1", "table8", "figure3", "tuning"))


def test_train_says_what_it_used_of_which_images(folder, photos, tmp_path):
    there = tmp_path / "photos"
    (there / "more").mkdir(parents=True)
    for path in photos.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    (there / "notes.txt").touch()
    told = ["train", "--images", there, "--prompt", "a sks cat", "--base", folder, "--steps", 1, "--rank", 1]
    done = run(*told, "--out", tmp_path / "a.safetensors")
    assert done.exit_code == 0, done.output
    count = f"{there}: {len(list(photos.iterdir()))} images are used; "
    assert done.stderr.count(f"{count}left out: more/ (a folder), notes.txt") == 1
    assert f"{count}the square about the centre of each is used (--fit)" in done.stderr
    assert run(*told, "--out", tmp_path / "b.safetensors", "--fit", "pad").exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "b.safetensors").read_bytes()
    refused([*told, "--out", tmp_path / "c.safetensors", "--fit", "stretch"], "fit: expected one of crop, pad, resize")
