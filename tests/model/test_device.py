"""Where and how a base runs; offloading changes where its weights are, and never what it draws."""

from types import SimpleNamespace

import pytest
import torch

from duolora.errors import InputError
from duolora.model import device as placing
from duolora.model.base import BaseChoice, load_base, opened
from duolora.model.blocks import target_modules
from duolora.model.device import chosen_checkpointing, chosen_device, chosen_dtype, chosen_offload
from duolora.model.mount import Mount
from duolora.model.sample import images_at_once, sample_images
from tiny import random_adapter

WAYS = ["none", "model", "sequential"]


def test_what_is_not_here_is_refused(base_folder):
    assert chosen_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="device: expected auto, cpu, cuda, cuda:N or mps, got 'fast'"):
        chosen_device("fast")
    for device in ("meta", "cuda:99"):
        with pytest.raises(InputError, match=rf"device: expected one that is here \(.*cpu.*\), got {device}"):
            chosen_device(device)
    with pytest.raises(InputError, match="offload: expected one of auto, none, model, sequential, got 'half'"):
        load_base(base_folder, "cpu", offload="half")


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_old_gpus_get_float16(monkeypatch, capability, dtype):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert chosen_dtype("auto", torch.device("cuda")) == dtype
    assert chosen_dtype("auto", torch.device("cpu")) == torch.float32
    assert chosen_dtype("float32", torch.device("cuda")) == torch.float32


def test_offloading_follows_the_free_memory(base_folder, monkeypatch):
    parts, cuda = load_base(base_folder, "cpu").pipeline(), torch.device("cuda")
    unet, others = placing._bytes(parts.unet), [parts.vae, parts.text_encoder, parts.text_encoder_2]
    whole = unet + sum(map(placing._bytes, others))
    found = []
    for free in (2 * whole, 1.4 * unet, 1.2 * unet):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (int(free), 10 * whole))
        found.append(chosen_offload("auto", cuda, parts.unet, others))
    assert found == WAYS
    assert chosen_offload("auto", torch.device("cpu"), parts.unet, others) == "none"
    assert chosen_offload("sequential", cuda, parts.unet, others) == "sequential"


def hooked(base) -> bool:
    return any(hasattr(module, "_hf_hook") for module in base.unet.modules())


def test_images_are_the_same_when_networks_take_turns(base_folder):
    """On the CPU, where diffusers' hooks run all the same; with a mounted adapter, as in calibration."""
    drawn, seen = [], []
    for way in ("none", "model"):
        base = load_base(base_folder, "cpu", offload=way)
        assert base.offload == "none", "there is nothing to leave"
        base.offload = way
        adapter = random_adapter(base.unet, target_modules(base.unet))
        with Mount(base.unet, [adapter], "rank", base.device) as mount, mount.gating(mount.owned()):
            images = sample_images(
                base, ["a cat", "a house"], [1, 2], steps=2, before_step=lambda share, b=base: seen.append(hooked(b))
            )
        assert not hooked(base)
        base.release_encoders()
        assert torch.isfinite(base.encode_images(images.clamp(-1, 1))).all()
        drawn.append(torch.cat([images, sample_images(base, ["a cat"], [1], steps=2)]))
    assert seen == [False, False, True, True]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_offloading_holds_while_it_draws_and_no_longer(base_folder, monkeypatch, way):
    """accelerate cannot offload layers from the CPU to the CPU, so that only the calls are recorded."""
    base, calls = load_base(base_folder, "cpu"), []
    base.offload = way
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "remove_all_hooks"):
        monkeypatch.setattr(base.parts, name, lambda name=name, **given: calls.append((name, given)))
    with pytest.raises(KeyboardInterrupt), base.sampling() as pipeline:
        assert pipeline is base.parts
        raise KeyboardInterrupt
    enabled = (f"enable_{way}_cpu_offload", {"device": base.device})
    assert calls == ([] if way == "none" else [enabled, ("remove_all_hooks", {})])


def test_networks_take_turns_on_the_device(base_folder, monkeypatch):
    """`meta` stands for a GPU: a network that has been there would lose its weights, so only moves are recorded."""
    base, moves = load_base(base_folder, "cpu"), []
    base.pipeline()
    base.offload = "model"
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        monkeypatch.setattr(getattr(base.parts, name), "to", lambda *a, name=name: moves.append((name, str(a[0]))))
    base.device = torch.device("meta")
    base.bring_unet()
    assert moves == [("vae", "cpu"), ("text_encoder", "cpu"), ("text_encoder_2", "cpu"), ("unet", "meta")]


def test_a_choice_is_loaded_once_it_is_needed(base_folder):
    said = []
    found = opened(BaseChoice(str(base_folder), "cpu", "bfloat16", "model", said.append))
    assert (found.dtype, found.offload) == (torch.bfloat16, "none")
    assert said == [f"{base_folder} on cpu in bfloat16, 16 pixels, offloading: none"]
    assert opened(found) is found


def test_activations_are_computed_twice_where_the_card_is_small(base_folder, monkeypatch):
    assert not load_base(base_folder, "cpu").unet.is_gradient_checkpointing
    assert load_base(base_folder, "cpu", gradient_checkpointing="on").unet.is_gradient_checkpointing
    for memory, expected in ((8e9, True), (80e9, False)):
        card = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        assert chosen_checkpointing("auto", torch.device("cuda")) is expected
    assert not chosen_checkpointing("off", torch.device("cpu"))
    with pytest.raises(InputError, match="expected auto, on or off, got 'yes'"):
        load_base(base_folder, "cpu", gradient_checkpointing="yes")


def test_another_resolution(base_folder):
    found = opened(BaseChoice(str(base_folder), "cpu", resolution=24))
    assert found.resolution == 24
    assert sample_images(found, ["a cat"], [1], steps=2).shape == (1, 3, 24, 24)
    with pytest.raises(InputError, match="resolution: expected a multiple of 8 pixels, got 20"):
        load_base(base_folder, "cpu", resolution=20)


@pytest.mark.parametrize(
    ("side", "offload", "expected"),
    [(64, "none", 16), (512, "none", 16), (768, "none", 7), (1024, "none", 4), (1024, "model", 1), (2048, "none", 1)],
)
def test_how_many_images_at_once(side, offload, expected):
    assert images_at_once(side, offload) == expected
