"""The benchmarks of time and memory run, at a small width, and say what they should."""

import json
from dataclasses import replace

import pytest
import torch

from command import run
from duolora.api.merge import options_of
from duolora.bench.options import GrowthOptions, Setting, SpeedOptions
from duolora.bench.speed import floor
from duolora.bench.speed.floor import Floor, operations, passes
from duolora.bench.speed.growth import growth, slope
from duolora.bench.speed.speed import TRAINED, WAYS, peak, scene_of, timed, way_of
from duolora.errors import InputError
from duolora.merging.options import METHODS
from duolora.model.architectures import ARCHITECTURES, known_architectures
from duolora.model.blocks import target_modules

SMALL = ["--base", "vega-random", "--width", "4", "--resolution", "64", "--rank", "2", "--dtype", "bfloat16"]
SETTING = Setting("vega-random", 2, 64, "cpu", "float32", 4)


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """Vega's UNet with one layer in a block and one transformer block in a layer, since a step costs by the module."""
    known_architectures()  # which is kept, and so must not be made of this one
    up = [[1, 1], [1, 1], 0]
    depths = {"transformer_layers_per_block": [0, [1], [1]], "reverse_transformer_layers_per_block": up}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "segmind-vega", ARCHITECTURES["segmind-vega"] | {"layers_per_block": 1} | depths)
        yield


@pytest.fixture(scope="module")
def made():
    """A scene that no test changes."""
    return scene_of(SETTING)


def test_command_writes_what_it_measured(tmp_path, monkeypatch, made):
    monkeypatch.setitem(floor.SIDE, "cpu", 64)
    turns = ["--steps", "1", "--repeats", "1", "--method", "duolora", "--no-memory", "--quiet"]
    done = run("bench", "speed", "--out", tmp_path, *SMALL, *turns)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "speed-vega-random.json").read_text())
    row = found["methods"]["duolora"]
    assert set(row["seconds"]) == set(WAYS) and min(row["seconds"].values()) > 0
    new, cached = row["seconds"]["ours"], row["seconds"]["cached"]
    assert row["new_samples"] == 0.25 and row["seconds_in_a_merge"] == pytest.approx(0.25 * new + 0.75 * cached)
    assert row["to_floor"] == pytest.approx(row["seconds"]["ours"] / row["seconds"]["floor"])
    assert row["trainable"] == 2 * 2 * len(target_modules(made.base.unet)) and row["samples"] == 8
    assert {"commit", "versions", "hardware", "seed", "clock", "matrix_rate"} <= found.keys()
    assert "| duolora |" in done.output


def test_all_that_learn_by_updates_are_timed():
    assert set(TRAINED) == {name for name, options in METHODS.items() if options.asks_network and options.steps}


def test_every_way_takes_its_turns(made):
    how = SpeedOptions(steps=2, repeats=2, quiet=True)
    times = timed(made, {"ziprank": METHODS["ziprank"]}, how)
    counts = {way: len(seconds) for way, seconds in times["ziprank"].items()}
    assert counts == dict.fromkeys(WAYS, 4) | {"dense": 2}


def test_cached_samples_need_no_teachers(made):
    seen = []
    options = options_of("duolora", pool=1)
    hook = made.base.unet.register_forward_pre_hook(lambda m, args: seen.append(torch.is_grad_enabled()))
    for way in ("ours", "cached floor"):
        with way_of(way, made, options) as learning:
            learning.step(0)
            seen.clear()
            learning.step(1)
        assert seen == [True], "one call, with a gradient"
    hook.remove()


@pytest.mark.parametrize(("cycle_variant", "samples"), [("none", 4), ("teacher", 8), ("masked", 8)])
def test_passes_are_those_of_an_update(made, cycle_variant, samples):
    options = options_of("duolora", cycle_variant=cycle_variant, batch=2)
    seen = []
    hook = made.base.unet.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((len(args[0]), torch.is_grad_enabled())), with_kwargs=True
    )
    with way_of("ours", made, options) as learning:
        learning.step(0)
    ours, found = sorted(seen), passes(options)
    seen.clear()
    Floor(made, options).step(0)
    hook.remove()
    assert sorted(seen) == ours
    assert found.samples == 2 * samples == sum(n for n, _ in ours)


def test_operations_grow_with_the_samples(made):
    one, two = (operations(Floor(made, options_of("ziprank", batch=n))) for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.1)


def test_checkpointing_changes_nothing_but_memory(made):
    losses = []
    for each in (made, scene_of(replace(SETTING, checkpointing=True))):
        with way_of("ours", each, METHODS["duolora"]) as learning:
            losses.append(torch.stack([learning.step(step)["loss"] for step in range(2)]))
    torch.testing.assert_close(*losses)


def test_peak_is_beyond_the_bare_network():
    found = peak(SETTING, "ziprank", "ours", 1)
    assert found["bare"] > 0 and found["process"] >= 0 and found["device"] == 0


def test_unknown_base_is_named():
    with pytest.raises(InputError, match=r"base: expected atelier.*got 'sd15'"):
        scene_of(Setting("sd15"))


def test_growth_plots_every_axis(tmp_path):
    sizes = {"rank": (1, 2), "resolution": (32, 64), "adapters": (1, 2), "steps": (1, 2)}
    text = growth(GrowthOptions(out=tmp_path, base="vega-random", width=4, repeats=1, memory=False, quiet=True), sizes)
    assert (tmp_path / "growth.png").stat().st_size > 5000
    found = json.loads((tmp_path / "growth.json").read_text())["axes"]
    assert list(found) == list(sizes) and all(axis in text for axis in sizes)
    assert all(min(f["seconds"]) > 0 for f in found.values())


def test_slope_is_the_exponent():
    assert slope((1, 2, 4), (3, 12, 48)) == pytest.approx(2)
