"""The distilled SDXLs, whose blocks nest their transformer depths, carry adapters as SDXL does."""

import pytest
import torch

from duolora.model.architectures import unet_config
from duolora.model.blocks import target_modules
from duolora.model.mount import Mount
from tiny import random_adapter, tiny_inputs, tiny_unet


@pytest.mark.parametrize(("architecture", "modules"), [("ssd-1b", 272), ("segmind-vega", 120)])
def test_distilled_unets_can_be_mounted(architecture, modules):
    unet, inputs = tiny_unet(**unet_config(architecture, width=8)), tiny_inputs(2)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][..., : unet.config.cross_attention_dim]
    names = target_modules(unet)
    assert len(names) == modules
    assert not any(name.startswith("mid_block") for name in names)
    mount = Mount(unet, [random_adapter(unet, names, 2, seed) for seed in (1, 2)])
    assert mount.columns == modules * 4
    bare = unet(**inputs)[0]
    row = mount.owned().sum(0).requires_grad_()
    with mount, mount.gating(torch.stack([torch.zeros_like(row), row])):
        mixed = unet(**inputs)[0]
    torch.testing.assert_close(mixed[0], bare[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1], bare[1], atol=1e-2)
    mixed.square().mean().backward()
    assert all(grad.abs().sum() > 0 for grad in mount.unflat(row.grad)[0].values())
    assert torch.equal(unet(**inputs)[0], bare)
