"""The dense reference and ours: the same losses, the same masks."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline

from duolora.api.merge import options_of
from duolora.bench.speed.reference import reference
from duolora.bench.speed.scenes import RandomBase, Scene, random_lora
from duolora.errors import InputError
from duolora.merging.inputs import Calibration, Sources, first_masks
from duolora.merging.learn import learner
from duolora.model.blocks import roles
from duolora.paper.constyle import Prompts
from tiny import tiny_unet

STEPS = 4


@pytest.fixture(scope="module")
def scene():
    process = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    unet = tiny_unet(transformer_layers_per_block=1)
    parts = StableDiffusionXLPipeline(None, None, None, None, None, unet, process)
    base = RandomBase("tiny", parts, process, torch.device("cpu"), torch.float32)
    x_c, x_s = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    content, style = (
        {n: replace(x, scale=0.5 * k) for n, x in random_lora(base, 2 + k, seed=k).items()} for k in (1, 2)
    )
    both = Sources(content, style, {}, {}, roles(base.unet))
    return Scene("tiny", base, both, Calibration(x_c, x_s, Prompts("content", "style", "merged")))


def run(loop, scene, options):
    masks = first_masks(scene.both, options, scene.base.device)
    with loop(scene.base, scene.both, options, scene.data, *masks) as learning:
        losses = [learning.step(step)["loss"] for step in range(STEPS)]
    return torch.stack(losses), learning.masks


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("duolora", {"lambda_layer_prior": 0.1, "cycle_variant": "teacher", "init": "values"}),
        ("ziplora", {"batch": 2}),
        ("ziplora", {"masks": "input"}),
        ("ziprank", {}),
    ],
)
def test_same_losses_and_masks_as_the_reference(scene, method, changes):
    options = options_of(method, **changes)
    (losses, masks), (expected, slow) = run(learner, scene, options), run(reference, scene, options)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    off = torch.cat([(m - y[n]).abs() for mine, y in zip(masks, slow, strict=True) for n, m in mine.items()])
    assert off.quantile(0.999) < 1e-4
    assert off.max() < 1e-3  # Adam divides by the gradient: where there is next to none, rounding makes a step
    assert (masks[0][next(iter(masks[0]))] - 1).abs().max() > 0.01


def test_both_leave_the_network_as_it_was(scene):
    for loop in (learner, reference):
        options = options_of("ziprank")
        with loop(scene.base, scene.both, options, scene.data, *first_masks(scene.both, options, scene.base.device)):
            pass
    assert not any("forward" in m.__dict__ for m in scene.base.unet.modules())


def test_what_it_does_not_know_is_refused(scene):
    for changes, message in (({"cycle_variant": "masked"}, "cycle_variant"), ({"hinge": False}, "hinge.*True")):
        options = options_of("ziprank", **changes)
        with pytest.raises(InputError, match=message), reference(scene.base, scene.both, options, scene.data, {}, {}):
            pass
