"""Facts about files, against dense ΔW."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import run
from duolora.api.convert import convert
from duolora.api.inspect import inspect
from duolora.api.merge import merge, options_of
from duolora.errors import InputError
from duolora.lora.read.file import read_adapter
from duolora.model.blocks import block_of


@pytest.fixture(scope="module")
def both(base, loras, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("inspect") / "both.safetensors"
    options = options_of("ziprank", steps=2, threshold=0.9)
    for name, format in (("both", "diffusers"), ("masks", "masks")):
        given = {"options": options, "progress": False, "format": format}
        merge(*loras, out.with_stem(name), "ziprank", base, photos, photos, **given)
    return out


def dense(path, block=None):
    modules = read_adapter(path).modules
    return torch.cat([modules[n].delta().flatten().double() for n in sorted(modules) if block in (None, block_of(n))])


def test_energy_and_norms_are_those_of_the_dense_update(loras):
    facts = inspect(loras[0])
    assert facts["norm"] == pytest.approx(float(dense(loras[0]).norm()), rel=1e-4)
    for block, row in facts["blocks"].items():
        share = float(dense(loras[0], block).norm() ** 2 / dense(loras[0]).norm() ** 2)
        assert row["energy"] == pytest.approx(share, rel=1e-3)
    assert sum(row["energy"] for row in facts["blocks"].values()) == pytest.approx(1)
    assert sum(facts["energy_by_role"].values()) == pytest.approx(1)
    assert facts["blocks"]["mid_block"]["role"] == "content"
    assert facts["metadata"]["prompt"] == "a sks cat in flat style"
    assert len(facts["sha256"]) == 64
    assert set(facts["verification"]) == {"dtype", "error", "diffusers", "tensors"}


@pytest.mark.parametrize("counted", ['{"10_sks cat": {"grass": 4, "sks cat": 20}, "x": {"grass": 1}}', "[1]", "{"])
def test_tags_of_the_training_are_told_the_commonest_first(loras, tmp_path, counted):
    path = tmp_path / "tagged.safetensors"
    save_file(load_file(loras[0]), path, {"ss_tag_frequency": counted})
    assert inspect(path)["training_tags"] == (["sks cat", "grass"] if "sks" in counted else [])


def test_cosine_is_that_of_the_dense_updates(loras):
    facts = inspect(*loras)["other"]["cosine"]
    for block, value in facts.items():
        one, other = (dense(path, None if block == "all" else block) for path in loras)
        assert value == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-5)
    assert inspect(loras[0], loras[0])["other"]["cosine"]["all"] == pytest.approx(1)


def test_a_merge_tells_what_it_did_to_each_source(loras, both, tmp_path):
    facts = inspect(both, loras[0])
    whole = convert(both, tmp_path / "s.safetensors", "split", "float32")
    content = dense(whole.paths[0])
    kept = sum(row["norm"] ** 2 for row in facts["parts"]["content"].values()) ** 0.5
    assert kept == pytest.approx(float(content.norm()), rel=1e-3)
    assert facts["other"]["cosine_of_content_part"]["all"] > 0.5
    assert abs(facts["other"]["cosine_of_style_part"]["all"]) < 0.5
    source = dense(loras[0])
    share = facts["other"]["share_in_content_part"]["all"]
    assert share == pytest.approx(float(content @ source / (source @ source)), rel=1e-3)
    assert {len(facts["metadata"][kind]) for kind in ("content", "style")} == {64}


def test_masks_are_summed_up_and_drawn(both, tmp_path):
    masks = both.with_stem("masks")
    facts = inspect(masks, plot=tmp_path / "p" / "masks.png")
    assert facts["masks"]["mid_block"]["content"]["entries"] > 0
    assert (tmp_path / "p" / "masks.png").read_bytes().startswith(b"\x89PNG")
    inspect(both, plot=tmp_path / "p" / "both.png")
    assert (tmp_path / "p" / "both.png").stat().st_size > 5000
    with pytest.raises(InputError, match=r"plot: expected one of \.png"):
        inspect(both, plot=tmp_path / "p.txt")
    with pytest.raises(InputError, match="holds masks only"):
        inspect(masks, both)


def test_commands_on_files(loras, both, tmp_path):
    done = run("inspect", both, "--other", loras[1], "--json")
    assert json.loads(done.stdout)["other"]["cosine"]["all"] > 0
    for path in (both, both.with_stem("masks"), loras[0]):
        done = run("inspect", path)
        assert done.exit_code == 0, done.output
        assert "mid_block" in done.stdout
    done = run(
        "convert", both, "--out", tmp_path / "k.safetensors", "--format", "kohya", "--dtype", "float32", "--json"
    )
    assert json.loads(done.stdout)["error"] < 1e-6
    done = run("convert", both, "--out", tmp_path / "k.safetensors", "--rank", 2, "--overwrite")
    assert "ΔW has lost" in done.stdout
    done = run("compose", *loras, "--out", tmp_path / "c.safetensors", "--weight", "0.7", "--weight", "0.3")
    assert done.exit_code == 0, done.output
    lines = run("inspect", tmp_path / "c.safetensors").stdout.splitlines()
    assert {"0.7", "0.3"} <= {line.split()[-1] for line in lines if line.strip()}
    for wrong, message in (
        (
            ("convert", both, "--out", tmp_path / "x.safetensors", "--format", "ckpt"),
            "format: expected one of kohya",
        ),
        (("convert", both, "--out", tmp_path / "x.safetensors", "--dtype", "int8"), "dtype: expected one of"),
        (("convert", both, "--out", tmp_path), "got a folder"),
        (("compose", *loras, "--out", tmp_path / "x.safetensors", "--weight", "nan", "--weight", "1"), "weights"),
    ):
        done = run(*wrong)
        assert (done.exit_code, len(done.stderr.strip().splitlines())) == (1, 1)
        assert message in done.stderr
