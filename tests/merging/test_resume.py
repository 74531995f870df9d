"""A stopped merge goes on as if it had not been stopped, and never from what another merge left behind."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from duolora.api.merge import merge, options_of
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.merging import learn
from duolora.model.base import load_base
from duolora.provenance import tensor_hash, weights_hash

pytestmark = pytest.mark.usefixtures("unloaded")
STEPS, SAVED, STOP = 4, 2, 3
"""Of all updates, the one after which a checkpoint is written, and the one that is stopped."""


@pytest.fixture
def updates(monkeypatch):
    """Counts the updates, and stops when none is left."""
    counted, original = {"left": 10**6, "done": 0}, torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        counted["left"] -= 1
        if counted["left"] == 0:
            raise KeyboardInterrupt
        counted["done"] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr(learn, "SAVE_EVERY", SAVED)
    return counted


def run(base, loras, photos, out, method="ziprank-prior", **changes):
    options = options_of(method, steps=STEPS, **changes)
    return merge(*loras, out, method, base, photos, photos / "1.png", options=options, progress=False)


def stopped_and_again(updates, first, second):
    """The merge `second` after a stop of `first`, and how many updates it took."""
    updates["left"] = STOP
    with pytest.raises(KeyboardInterrupt):
        first()
    updates.update(left=10**6, done=0)
    return second(), updates["done"]


@pytest.mark.parametrize(("method", "changes"), [("duolora", {"pool": 4}), ("ziplora", {})])
def test_losses_of_a_resumed_merge_are_those_of_one_that_was_not_stopped(
    base, loras, photos, tmp_path, updates, method, changes
):
    whole = run(base, loras, photos, tmp_path / "whole.safetensors", method, **changes)

    def once():
        return run(base, loras, photos, tmp_path / "out.safetensors", method, **changes)

    again, done = stopped_and_again(updates, once, once)
    assert done == STEPS - SAVED
    assert [entry["step"] for entry in again.losses] == [0, STEPS - 1]
    assert again.losses == whole.losses
    assert again.mean_change == whole.mean_change
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [again.path, whole.path]


def test_in_float16_gradients_are_scaled_and_a_stopped_merge_goes_on_with_the_scale(
    folder, loras, photos, tmp_path, updates
):
    narrow = load_base(folder, dtype="float16")
    whole = run(narrow, loras, photos, tmp_path / "whole.safetensors")
    updates["left"] = STOP
    with pytest.raises(KeyboardInterrupt):
        run(narrow, loras, photos, tmp_path / "out.safetensors")
    (checkpoint,) = (path for path in tmp_path.iterdir() if path.stem.startswith((".out", "out")))
    with safe_open(checkpoint, "pt") as file:
        assert "value.gradient scaling" in file.keys()  # noqa: SIM118 (safe_open is no mapping)
    updates.update(left=10**6, done=0)
    again = run(narrow, loras, photos, tmp_path / "out.safetensors")
    assert updates["done"] <= STEPS - SAVED
    assert again.path.read_bytes() == whole.path.read_bytes()


def other_weights(folder):
    other = load_base(folder)
    with torch.no_grad():
        other.unet.conv_in.weight[0, 0, 0, 0] += 0.5
    return other


def other_noise(folder):
    other = load_base(folder)
    other.noise_scheduler.register_to_config(prediction_type="v_prediction")
    return other


@pytest.mark.parametrize("change", [other_weights, other_noise])
def test_a_merge_does_not_go_on_from_one_on_another_base_of_the_same_name(
    base, folder, loras, photos, tmp_path, updates, change
):
    other, out = change(folder), tmp_path / "out.safetensors"
    assert other.name == base.name
    again, done = stopped_and_again(
        updates, lambda: run(base, loras, photos, out), lambda: run(other, loras, photos, out)
    )
    assert done == STEPS and again.losses[0]["step"] == 0


def test_a_merge_does_not_go_on_from_one_of_another_lora_of_the_same_shape(base, loras, photos, tmp_path, updates):
    content = read_adapter(loras[0])
    turned = {name: replace(lora, up=-lora.up) for name, lora in content.modules.items()}
    write_adapter(tmp_path / "turned.safetensors", Adapter(turned, content.metadata))
    other, out = (tmp_path / "turned.safetensors", loras[1]), tmp_path / "out.safetensors"
    again, done = stopped_and_again(
        updates, lambda: run(base, loras, photos, out), lambda: run(base, other, photos, out)
    )
    assert done == STEPS and again.losses[0]["step"] == 0


def test_the_metadata_know_the_weights_of_the_base(base, folder, loras, photos, tmp_path):
    networks = (base.unet, base.vae, *base.text_encoders)
    for one, name in ((base, "one"), (other_weights(folder), "other")):
        metadata = read_adapter(run(one, loras, photos, tmp_path / f"{name}.safetensors", "naive").path).metadata
        assert (metadata["base_weights"] == weights_hash(networks)) == (one is base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_weight_of_any_type_changes_the_hash(dtype):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).to(dtype)
    same, found = deepcopy(network), weights_hash([network])
    assert weights_hash([same]) == found != weights_hash([same.double()])
    for key, value in network.state_dict().items():
        kept = value.clone()
        value.reshape(-1)[-1:].add_(1)
        assert weights_hash([network]) != found, key
        value.copy_(kept)
    assert weights_hash([network]) == found
    tensor = network[0].weight.detach()
    assert tensor_hash(tensor) != tensor_hash(-tensor)
