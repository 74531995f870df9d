"""What arguments and headers say is said at once; what has no effect is refused; what looks odd is remarked on."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from socket import create_server
from types import SimpleNamespace

import pytest
import torch

from command import run
from duolora.api.compose import compose
from duolora.api.merge import merge
from duolora.api.train import train
from duolora.errors import InputError, Notice
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.model.architectures import ARCHITECTURES, attention_shapes
from duolora.paper.lowrank import LowRank
from duolora.training.options import TrainOptions
from tiny import tiny_unet

SHORT = TrainOptions(rank=1, steps=1, batch=1)
pytestmark = pytest.mark.usefixtures("few_steps", "unloaded")
CODE = """
import json, os, sys
from duolora.cli.app import app

def seconds():
    used = os.times()
    return used.user + used.system

found = []
for words in json.loads(sys.argv[1]):
    begun = seconds()
    status = app(words, standalone_mode=False) or 0
    heavy = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
    found.append([status, seconds() - begun, heavy])
print(json.dumps(found))
"""


def test_what_can_be_said_at_once_is_said_at_once(folder, loras, of_sdxl, photos, tmp_path):
    content, style = map(str, loras)
    out, none = str(tmp_path / "x.safetensors"), str(tmp_path / "none.safetensors")
    merging = ["merge", content, style, "--out", out]
    taken = create_server(("127.0.0.1", 0))
    training = ["train", "--images", str(photos), "--prompt", "a cat", "--out", out, "--base", str(folder)]
    refused = [
        [*merging, "--method", "nosuch"],
        [*merging, "--steps", "-1"],
        [*merging, "--method", "naive", "--steps", "50"],
        [*merging, "--format", "nosuch"],
        [*merging, "--base", str(tmp_path / "nowhere")],
        ["merge", *map(str, of_sdxl), "--out", out],
        ["merge", content, none, "--out", out],
        ["compose", content, none, "--out", out],
        ["convert", none, "--out", out],
        ["inspect", none],
        ["inspect", content, "--plot", str(tmp_path / "x.bmp")],
        ["convert", content, "--out", out, "--rank", "0"],
        ["convert", content, "--out", out, "--energy", "1.5"],
        ["convert", content, "--out", out, "--threshold", "1"],
        ["compose", content, style, "--out", out, "--weight", "1"],
        ["generate", "--prompt", "a cat", "--lora", content, "--weight", "1", "--weight", "1", "--out", str(tmp_path)],
        ["evaluate", "--generated", none, "--prompt", "a cat"],
        ["generate", "--prompt", "", "--out", str(tmp_path)],
        ["generate", "--prompt", "a cat", "--guidance", "-2", "--out", str(tmp_path)],
        ["generate", "--prompt", "a cat", "--lora", none, "--out", str(tmp_path)],
        ["ui", "--out", content],
        ["ui", "--out", str(tmp_path), "--base", none],
        ["ui", "--out", str(tmp_path), "--port", str(taken.getsockname()[1])],
        ["ui", "--out", str(tmp_path), "--host", "999.0.0.1"],
        ["demo", "--out", str(tmp_path / "demo"), "--device", "nosuch"],
        ["evaluate", "--generated", str(photos), "--prompt", "a cat", "--metrics", "nosuch"],
        ["evaluate", "--generated", str(photos), "--prompt", "a cat", "--checkpoint", "nosuch=x"],
        ["bench", "report", none],
        ["bench", "report", str(photos)],
        ["bench", "study", "make", none, "--out", str(tmp_path)],
        ["bench", "study", "make", str(photos), "--out", str(tmp_path)],
        ["bench", "study", "score", none, "--key", content],
        ["bench", "rerun", none],
        ["bench", "figure3", "--base", none],
        ["bench", "table1", "--row", "nosuch"],
        ["bench", "table1", "--dataset", "nosuch"],
        ["bench", "table1", "--base", none],
        ["bench", "table1", "--manifest", none],
        ["checkpoints", "convert", "dino", none, "--out", str(tmp_path / "dino")],
        [*training, "--blocks", "nosuch"],
        [*training, "--rank", "100000"],
        [*training[:2], none, *training[3:]],
    ]
    commands = [["merge", "--set", "help"], *refused]
    with taken:
        done = subprocess.run([sys.executable, "-c", CODE, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [status for status, _, _ in found] == [0] + [1] * len(refused), done.stderr
    assert len(done.stderr.splitlines()) == len(refused), done.stderr
    for words, (_, used, heavy) in zip(commands, found, strict=True):
        assert not heavy, words
        assert used < 0.5, words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("host", "password", "warned"),
    [("127.0.0.1", "", False), ("localhost", "", False), ("::1", "", False), ("0.0.0.0", "", True),
     ("0.0.0.0", "sesame", False)],
)  # fmt: skip
def test_a_page_that_others_reach_has_a_password_or_is_warned_of(tmp_path, monkeypatch, host, password, warned):
    served = []
    monkeypatch.setitem(sys.modules, "duolora.ui.page", SimpleNamespace(serve=lambda *given: served.append(given)))
    monkeypatch.setattr("duolora.cli.app.check_place", lambda *_: None)
    monkeypatch.setenv("DUOLORA_PASSWORD", password)
    done = run("ui", "--out", tmp_path, "--host", host)
    assert served == [(tmp_path, "atelier", host, None, password)], done.output
    assert ("--password" in done.stderr) == warned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "naive", "--steps", "50"], "--steps 50: naive makes no use of it (it is for methods that train"),
        (["--method", "naive", "--set", "rank=4"], "--set rank=4: naive makes no use of it (it is for svd, ties"),
        (["--method", "svd", "--set", "density=0.2"], "it is for ties and dare_ties"),
        (["--method", "ziplora", "--set", "threshold=0.1"], "it is for masks=rank"),
        (["--method", "duolora", "--set", "calls=3"], "it is for the method oneshot"),
        (
            ["--method", "ziprank", "--set", "lambda_cycle=1"],
            "it is for cycle_variant=teacher and cycle_variant=masked",
        ),
        (["--method", "ties", "--preset", "table9"], "--preset table9: ties makes no use of it"),
        (["--method", "naive", "--preset", "released"], "--preset released: naive makes no use of it"),
        (["--method", "oneshot", "--preset", "released"], "--preset released: oneshot makes no use of it"),
        (["--method", "svd", "--content-images", "."], "--content-images: svd trains nothing"),
    ],
)
def test_options_without_effect_are_refused(loras, tmp_path, words, message):
    done = run("merge", *loras, "--out", tmp_path / "x.safetensors", *words)
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_options_that_another_one_gives_an_effect_are_taken(loras, folder, tmp_path):
    words = ["--method", "ziprank", "--set", "cycle_variant=teacher", "--set", "lambda_cycle=1", "--steps", 1]
    done = run(
        "merge", *loras, "--out", tmp_path / "x.safetensors", "--base", folder, "--set", "calibration_images=1", *words
    )
    assert done.exit_code == 0, done.output


def test_two_files_become_one_without_a_base_and_strengths_are_options(loras, tmp_path):
    out = tmp_path / "c.safetensors"
    done = run("merge", *loras, "--out", out, "--method", "naive", "--style-weight", 0.5, "--content-weight", 2)
    assert done.exit_code == 0, done.output
    content, style, both = (read_adapter(path).modules for path in (*loras, out))
    for name, module in both.items():
        expected = 2 * content[name].delta() + 0.5 * style[name].delta()
        assert (module.delta() - expected).norm() < 2e-3 * expected.norm()
    for words in ((loras[0],), (*loras, loras[0]), (loras[0], "--content", loras[0]), ("--content", loras[0])):
        assert run("merge", *words, "--out", out).exit_code == 2


@pytest.fixture(scope="module")
def of_sdxl(tmp_path_factory):
    where = tmp_path_factory.mktemp("sdxl")
    (name, (d_out, d_in)), *_ = attention_shapes(ARCHITECTURES["sdxl"]).items()
    deepest = next(n for n in reversed(attention_shapes(ARCHITECTURES["sdxl"])) if "transformer_blocks.9" in n)
    for k, kind in enumerate(("content", "style")):
        shapes = {name: (d_out, d_in), deepest: attention_shapes(ARCHITECTURES["sdxl"])[deepest]}
        loras = {n: LowRank(*numbers(k, o, i)) for n, (o, i) in shapes.items()}
        write_adapter(where / f"{kind}.safetensors", Adapter(loras, {"prompt": f"a sks {kind} in zwx style"}))
    return where / "content.safetensors", where / "style.safetensors"


def numbers(seed, d_out, d_in):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(d_out, 1, generator=rng), torch.randn(1, d_in, generator=rng)


def test_a_method_that_trains_masks_says_which_base_it_needs(of_sdxl, tmp_path):
    done = run("merge", *of_sdxl, "--out", tmp_path / "x.safetensors")
    assert done.exit_code == 1
    assert "the LoRAs are for the UNet of sdxl, and duolora trains masks on the base itself" in done.stderr
    assert "--base" in done.stderr and "naive" in done.stderr
    assert run("merge", *of_sdxl, "--out", tmp_path / "x.safetensors", "--method", "naive").exit_code == 0


def test_both_prompts_that_are_missing_are_asked_for_at_once_and_before_the_base(loras, tmp_path):
    bare = []
    for path in loras:
        write_adapter(tmp_path / path.name, Adapter(read_adapter(path).modules))
        bare.append(tmp_path / path.name)
    with pytest.raises(InputError, match="name no prompt .* --content-prompt and --style-prompt$"):
        merge(*bare, tmp_path / "x.safetensors", "duolora", "no/base", progress=False)


def test_prompts_and_base_that_are_missing_are_asked_for_at_once(of_sdxl, tmp_path):
    bare = []
    for path in of_sdxl:
        bare.append(tmp_path / path.name)
        write_adapter(bare[-1], Adapter(read_adapter(path).modules))
    missing = "two LoRAs: .* --content-prompt and --style-prompt; base: .* UNet of sdxl, and duolora trains masks"
    with pytest.raises(InputError, match=missing) as refused:
        merge(*bare, tmp_path / "x.safetensors", "duolora", progress=False)
    assert run("merge", *bare, "--out", tmp_path / "x.safetensors").stderr == f"duolora: {refused.value}\n"


def test_one_lora_twice_and_two_exchanged_are_remarked_on(base, photos, loras, tmp_path):
    with pytest.warns(Notice, match="are the same LoRA"):
        merge(loras[0], loras[0], tmp_path / "x.safetensors", "naive", progress=False)
    kinds, few = {}, replace(SHORT, blocks=("mid_block",))
    for kind in ("content", "style"):
        kinds[kind] = tmp_path / f"{kind}.safetensors"
        train(photos, "a sks cat in zwx style", kinds[kind], base, few, progress=False, kind=kind)
    with pytest.warns(Notice, match="are the two exchanged"):
        merge(kinds["style"], kinds["content"], tmp_path / "x.safetensors", "naive", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        merge(kinds["content"], kinds["style"], tmp_path / "y.safetensors", "naive", progress=False)


def test_a_sum_of_loras_is_a_plain_sum_and_the_mean_of_merges_is_said(loras, tmp_path):
    out = tmp_path / "sum.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        compose(loras, out)
    one, other, both = (read_adapter(path).modules for path in (*loras, out))
    for name, module in both.items():
        expected = one[name].delta() + other[name].delta()
        assert (module.delta() - expected).norm() < 2e-3 * expected.norm()
    merges = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for path in merges:
        merge(*loras, path, "naive", progress=False)
    with pytest.warns(Notice, match=r"Sec\. 3\.5, give each the weight 0\.5"):
        compose(merges, tmp_path / "all.safetensors")


def test_inspect_begins_with_what_people_look_for(loras, tmp_path):
    out = tmp_path / "both.safetensors"
    assert run("merge", *loras, "--out", out, "--method", "naive").exit_code == 0
    lines = run("inspect", out).stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == [
        "file",
        "base",
        "dialect",
        "rank",
        "trigger_words",
        "source_files",
    ]
    assert "unknown (by its shapes)" in lines[1] and "kohya" in lines[2]
    assert "a sks cat in zwx style" in lines[4] and "content.safetensors, style.safetensors" in lines[5]
    assert run("convert", out, "--out", tmp_path / "d.safetensors", "--format", "diffusers").exit_code == 0
    assert "diffusers" in run("inspect", tmp_path / "d.safetensors").stdout.splitlines()[2]


def test_a_rank_above_the_layers_and_unknown_blocks_are_refused_before_the_base_is_loaded(folder, photos, tmp_path):
    bare = tmp_path / "base"
    (bare / "unet").mkdir(parents=True)
    shutil.copy(folder / "unet" / "config.json", bare / "unet")
    told = ["train", "--images", photos, "--prompt", "a cat", "--out", tmp_path / "x.safetensors", "--base", bare]
    done = run(*told, "--rank", 65)
    assert "rank: expected at most 64" in done.stderr and done.exit_code == 1
    assert "blocks: expected a part of the UNet with attention" in run(*told, "--blocks", "nosuch").stderr
    assert tiny_unet().config.block_out_channels[-1] == 64
