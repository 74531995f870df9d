"""Training LoRAs: it learns, it resumes exactly, it leaves the base alone, it says what is wrong."""

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from damage import CASES, DAMAGE, damaged, places
from duolora.api.train import TrainOptions, default_options, train
from duolora.errors import DuoLoRAError, FileRefused, InputError
from duolora.lora.read.file import read_adapter
from duolora.model.base import load_base
from duolora.model.blocks import target_modules
from duolora.model.defaults import read_defaults
from duolora.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("unloaded")
OPTIONS = TrainOptions(rank=4, steps=12, batch=2, lr=1e-2)


def test_every_attention_layer_learns(base, whole_loras):
    adapter = read_adapter(whole_loras[0])
    assert set(adapter.modules) == set(target_modules(base.unet))
    assert all(lora.delta().abs().max() > 0 and lora.rank == 4 for lora in adapter.modules.values())
    assert adapter.metadata["prompt"] == "a sks cat in flat style"


def test_base_is_left_as_it_was(base, photos, tmp_path):
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    train(photos, "a cat", tmp_path / "x.safetensors", base, replace(OPTIONS, steps=2), progress=False)
    after = base.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_loss_falls(base, photos, tmp_path):
    options = replace(OPTIONS, steps=60)
    losses = train(photos, "a cat", tmp_path / "x.safetensors", base, options, progress=False).losses
    assert sum(losses[-2:]) < sum(losses[:2])


def test_same_seed_same_bytes(base, photos, tmp_path):
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path, seed in zip(paths, (5, 5, 6), strict=True):
        train(photos, "a cat", path, base, replace(OPTIONS, steps=2, seed=seed), progress=False)
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b
    assert a != c


def test_stopped_run_goes_on_to_the_same_bytes(base, photos, tmp_path, monkeypatch):
    out = tmp_path / "parts.safetensors"
    whole = train(photos, "a cat", tmp_path / "whole.safetensors", base, OPTIONS, progress=False)
    calls = 0
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(photos, "a cat", out, base, OPTIONS, progress=False, save_every=3)
    assert not out.exists()
    again = train(photos, "a cat", out, base, OPTIONS, progress=False)
    assert calls == 5 + OPTIONS.steps - 3
    assert again.losses == whole.losses
    assert out.read_bytes() == whole.path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]


def test_a_run_does_not_go_on_from_one_on_another_base_of_the_same_name(base, folder, photos, tmp_path, monkeypatch):
    other, options, out = load_base(folder), replace(OPTIONS, steps=3), tmp_path / "x.safetensors"
    assert other.name == base.name
    with torch.no_grad():
        other.unet.conv_in.weight[0, 0, 0, 0] += 0.5
    calls, original = 0, torch.optim.Adam.step

    def step(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(photos, "a cat", out, base, options, progress=False, save_every=1)
    calls = -1000
    train(photos, "a cat", out, other, options, progress=False)
    assert calls == -1000 + options.steps


def test_prompt_drop_out_matters_and_is_a_chance(base, photos, tmp_path):
    paths = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for path, chance in zip(paths, (0.0, 0.5), strict=True):
        train(photos, "a cat", path, base, replace(OPTIONS, steps=3, caption_dropout=chance), progress=False)
    plain, dropped = (read_adapter(path).modules for path in paths)
    assert any(not torch.equal(plain[n].delta(), dropped[n].delta()) for n in plain)
    with pytest.raises(InputError, match="caption_dropout"):
        train(photos, "a cat", paths[0], base, replace(OPTIONS, caption_dropout=1.0), progress=False)


def test_defaults_are_those_that_the_base_has_in_its_folder_whatever_its_name(tmp_path):
    own = {"training": {"rank": 16, "class_prompts": ["a cat"]}, "style_training": {"flip": True}, "guidance": 3.0}
    (tmp_path / "any").mkdir()
    (tmp_path / "any" / "duolora.json").write_text(json.dumps(own))
    assert default_options(str(tmp_path / "any")) == TrainOptions(rank=16, class_prompts=("a cat",))
    assert default_options(str(tmp_path / "any"), "style") == TrainOptions(rank=16, class_prompts=("a cat",), flip=True)
    assert read_defaults(str(tmp_path / "any")).guidance == 3.0
    for name in ("somewhere/else", str(tmp_path / "atelier-ghibli")):
        assert default_options(name) == default_options(name, "style") == TrainOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object of training"),
        ("[]", "expected a JSON object"),
        ('{"x": 1}', "it says 'x'"),
        ('{"guidance": "high"}', "wrong type"),
        ('{"training": {"width": 1}}', "training: .*width"),
        ('{"training": {"rank": 0}}', "training: rank: expected a whole number, 1 or more, got 0"),
    ],
)
def test_defaults_that_make_no_sense_are_refused(tmp_path, text, message):
    (tmp_path / "duolora.json").write_text(text)
    with pytest.raises(FileRefused, match=rf"duolora\.json.*{message}.*fix it"):
        default_options(str(tmp_path))


def test_only_the_named_blocks_learn(base, photos, tmp_path):
    blocks = ("up_blocks.0.attentions.1", "mid_block")
    path = tmp_path / "x.safetensors"
    train(photos, "a cat", path, base, replace(OPTIONS, steps=2, blocks=blocks), progress=False)
    found = set(read_adapter(path).modules)
    assert found == {name for name in target_modules(base.unet) if name.startswith(blocks)}
    assert {name.split(".")[0] for name in found} == {"up_blocks", "mid_block"}
    with pytest.raises(InputError, match=r"blocks.*up_blocks\.0\.attentions\.0.*got 'up'"):
        train(photos, "a cat", path, base, replace(OPTIONS, blocks=("up_blocks.0.attentions", "up")), progress=False)


def test_checkpoint_holds_tensors_and_optimiser(tmp_path):
    def fresh():
        value = torch.nn.Parameter(torch.ones(3))
        return value, torch.optim.Adam([value], lr=0.1)

    def step(value, optimiser):
        (value**2).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    value, optimiser = fresh()
    step(value, optimiser)
    save_checkpoint(tmp_path / "c.safetensors", {"v": value}, optimiser, 1)
    step(value, optimiser)
    other, its_optimiser = fresh()
    assert load_checkpoint(tmp_path / "c.safetensors", {"v": other}, its_optimiser, 2) == (1, [])
    step(other, its_optimiser)
    assert torch.equal(value, other)


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "text",
        "folder",
        "pipe",
        "no progress",
        "other shape",
        "tensor missing",
        "other optimiser",
        "no optimiser",
        "part of the optimiser",
        "-1",
        "3",
        "1000000000",
        "1e400",
        "0.5",
        '"1"',
        "other losses",
        "deep",
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_and_change_nothing(tmp_path, damage):
    path = tmp_path / "c.safetensors"
    value = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([value], lr=0.1)
    value.sum().backward()
    optimiser.step()
    save_checkpoint(path, {"v": value}, optimiser, 1, [0.25])
    with safe_open(path, "pt") as file:
        progress = file.metadata()["progress"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        changes = {
            "other shape": {"value.v": torch.ones(1)},
            "tensor missing": {"value.v": None},
            "other optimiser": {"optimiser.0.exp_avg": torch.ones(4)},
            "no optimiser": dict.fromkeys(key for key in tensors if key.startswith("optimiser")),
            "part of the optimiser": {"optimiser.0.exp_avg_sq": None},
        }.get(damage, {})
        kept = {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}
        if damage[0] in '-0123456789"':
            progress = progress.replace('"step": 1,', f'"step": {damage},')
        progress = progress.replace("0.25", "0.5") if damage == "other losses" else progress
        progress = "[" * 100_000 if damage == "deep" else progress
        save_file(kept, path, None if damage == "no progress" else {"progress": progress})
    before = value.detach().clone()
    with pytest.raises(FileRefused, match=r"c\.safetensors: no whole checkpoint of this run .*delete it"):
        load_checkpoint(path, {"v": value}, optimiser, 2)
    assert torch.equal(value, before)


def test_checkpoints_with_any_damage_are_refused_or_are_as_they_were(tmp_path):
    """Other text in any place of the progress, other tensors, flipped bits, lost ends."""
    rng, path, value = random.Random(0), tmp_path / "c.safetensors", torch.nn.Parameter(torch.arange(3.0))
    optimiser = torch.optim.Adam([value], lr=0.1)
    value.sum().backward()
    optimiser.step()
    save_checkpoint(path, {"v": value}, optimiser, 1, [0.25])
    whole, state, at = path.read_bytes(), optimiser.state_dict()["state"][0], value.detach().clone()
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    refused = 0
    for case in range(CASES):
        if case % 2:
            data = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        elif case % 4:
            place = rng.choice([*places(progress)])
            save_file(tensors, path, {"progress": damaged(progress, place, rng.choice(DAMAGE))})
        else:
            key, other = rng.choice([*tensors]), rng.choice([torch.zeros(3), torch.zeros(()), torch.ones(9).int()])
            changed = tensors | {rng.choice([key, "optimiser.7.step", "optimiser.x.y", "value.w", ""]): other}
            save_file(changed, path, {"progress": json.dumps(progress)})
        with torch.no_grad():
            value.fill_(7)
        try:
            assert load_checkpoint(path, {"v": value}, optimiser, 2) == (1, [0.25])
        except FileRefused as error:
            refused += 1
            assert "\n" not in str(error) and torch.equal(value, torch.full((3,), 7.0))
        else:
            assert torch.equal(value, at)
        assert optimiser.state_dict()["state"][0].keys() == state.keys()
        assert all(torch.equal(held, state[key]) for key, held in optimiser.state_dict()["state"][0].items())
    assert refused > 0.9 * CASES
    path.write_bytes(whole)
    assert load_checkpoint(path, {"v": value}, optimiser, 2) == (1, [0.25]) and torch.equal(value, at)


def test_a_full_disk_at_a_checkpoint_is_one_line_and_keeps_the_last_one(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    path, value = tmp_path / "c.safetensors", torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([value], lr=0.1)
    save_checkpoint(path, {"v": value}, optimiser, 1)
    whole = path.read_bytes()
    monkeypatch.setattr("duolora.training.checkpoint.save_file", full)
    with pytest.raises(DuoLoRAError, match=r"c\.safetensors: the checkpoint cannot .*No space left.*make room"):
        save_checkpoint(path, {"v": value}, optimiser, 2)
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": float("nan")}, "lr: expected a finite number above 0, got nan"),
        ({"lr": float("inf")}, "lr: expected a finite number above 0, got inf"),
        ({"lr": -1.0}, "lr: expected"),
        ({"steps": 0}, "steps: expected"),
        ({"rank": 0}, "rank: expected"),
        ({"batch": -1}, "batch: expected"),
        ({"caption_dropout": float("nan")}, "caption_dropout: expected"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path / "none", "a cat", tmp_path / "x.safetensors", "nowhere", replace(OPTIONS, **changes))


@pytest.mark.parametrize(
    ("images", "prompt", "out", "message"),
    [
        ("nowhere", "a cat", "x.safetensors", "no such file or folder"),
        ("empty", "a cat", "x.safetensors", "no images"),
        ("photos", "  ", "x.safetensors", "prompt"),
        ("photos", "a cat", "x.bin", ".safetensors"),
    ],
)
def test_wrong_inputs_are_named(base, photos, tmp_path, images, prompt, out, message):
    (tmp_path / "empty").mkdir()
    where = {"photos": photos, "empty": tmp_path / "empty"}.get(images, tmp_path / images)
    with pytest.raises(InputError, match=message):
        train(where, prompt, tmp_path / out, base, OPTIONS, progress=False)
    assert not (tmp_path / out).exists()


def test_text_is_no_image(base, tmp_path):
    (tmp_path / "words.png").write_text("hello")
    with pytest.raises(FileRefused, match=r"words.png: not a readable image"):
        train(tmp_path, "a cat", tmp_path / "x.safetensors", base, OPTIONS, progress=False)


def trained(base, photos, path, **changes):
    done = train(photos, "a cat", path, base, replace(OPTIONS, steps=3, **changes), progress=False)
    return {name: lora.delta() for name, lora in read_adapter(done.path).modules.items()}


def test_min_snr_changes_what_is_trained_and_a_large_one_changes_nothing_of_noise(base, photos, tmp_path):
    plain, bounded, free = (trained(base, photos, tmp_path / f"{g}.safetensors", min_snr=g) for g in (0.0, 0.1, 1e9))
    assert any(not torch.allclose(plain[name], bounded[name], atol=1e-4) for name in plain)
    for name, delta in plain.items():
        torch.testing.assert_close(free[name], delta, atol=1e-3, rtol=0)


def test_gradient_checkpointing_learns_the_same(folder, base, photos, tmp_path):
    saving = load_base(folder, "cpu", gradient_checkpointing="on")
    plain, twice = (trained(b, photos, tmp_path / f"{k}.safetensors") for k, b in enumerate((base, saving)))
    for name, delta in plain.items():
        torch.testing.assert_close(twice[name], delta, atol=1e-4, rtol=0)


def test_at_another_resolution(folder, photos, tmp_path):
    larger, once = load_base(folder, "cpu", resolution=24), replace(OPTIONS, steps=1)
    done = train(photos, "a cat", tmp_path / "x.safetensors", larger, once, progress=False)
    found = read_adapter(done.path)
    assert (found.metadata["resolution"], found.notes["modelspec.resolution"]) == (24, "24x24")


def test_other_optimisers_are_those_of_their_libraries(base, photos, tmp_path, monkeypatch):
    out = tmp_path / "x.safetensors"
    for name, library in (("prodigy", "prodigyopt"), ("adam8bit", "bitsandbytes")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(InputError, match=f"optimiser {name}: expected the library {library}"):
            train(photos, "a cat", out, base, replace(OPTIONS, optimiser=name), progress=False)
    made = []

    class Prodigy(torch.optim.SGD):
        def __init__(self, parameters, lr):
            made.append(lr)
            super().__init__(parameters, lr=lr)

    monkeypatch.setitem(sys.modules, "prodigyopt", SimpleNamespace(Prodigy=Prodigy))
    trained(base, photos, out, optimiser="prodigy", lr=1.0)
    assert made == [1.0]
