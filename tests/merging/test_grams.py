"""Gram sums: what brute force gives, teacher by teacher, and nothing left behind."""

import pytest
import torch

from duolora.merging.closed_form import Grams
from duolora.model.blocks import target_modules
from duolora.model.mount import Mount
from tiny import random_adapter, tiny_inputs, tiny_unet


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def mount(unet):
    names = target_modules(unet)
    return Mount(unet, [random_adapter(unet, names, 3), random_adapter(unet, names[::2], 2, seed=2)])


def seen(unet, mount, gates, inputs):
    """Every module's inputs, by hooks of our own."""
    found = {}
    hooks = [
        unet.get_submodule(n).register_forward_pre_hook(lambda m, x, n=n: found.__setitem__(n, x[0]))
        for n in mount.modules
    ]
    with mount, mount.gating(gates), torch.no_grad():
        unet(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def test_sums_are_those_of_the_inputs_of_each_teacher(unet, mount):
    gates = torch.rand(3, mount.columns, generator=torch.Generator().manual_seed(0))
    grams, inputs = Grams(mount, 3), tiny_inputs(3)
    with mount, mount.gating(gates), torch.no_grad(), grams.recording(torch.tensor([2, 0, 2])):
        unet(**inputs)
    x = seen(unet, mount, gates, inputs)
    for name, means in grams.means().items():
        h = x[name].reshape(3, -1, x[name].shape[-1]) @ mount.modules[name].down.T
        each = h.mT @ h
        torch.testing.assert_close(means, torch.stack([each[1], 0 * each[0], (each[0] + each[2]) / 2]))


def test_only_watched_calls_count_and_no_hook_stays(unet, mount):
    grams, inputs = Grams(mount, 1), tiny_inputs(2)
    row = mount.owned()[:1]
    with mount, mount.gating(row), torch.no_grad():
        with grams.recording(torch.zeros(2, dtype=torch.long)):
            unet(**inputs)
        once = {n: g.clone() for n, g in grams.means().items()}
        unet(**inputs)
    assert all(torch.equal(once[n], g) for n, g in grams.means().items())
    assert not any(m._forward_pre_hooks for m in unet.modules())
