"""The one-shot merge on a network: alone, permuted, more than two at once, and against the loss that it minimises."""

from dataclasses import replace

import pytest
import torch

from duolora.api.merge import merge, options_of
from duolora.errors import InputError
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.merging.closed_form import Part, one_shot
from duolora.model.blocks import roles, target_modules
from tiny import random_adapter

pytestmark = pytest.mark.usefixtures("unloaded")
OPTIONS = options_of("oneshot", calls=2)
STRICT = options_of("oneshot", calls=2, off_role=1.0, lambda_layer_prior=0.2)


@pytest.fixture(scope="module")
def parts(base):
    names, size = target_modules(base.unet), base.unet.config.sample_size
    drawn = torch.randn(3, 2, 4, size, size, generator=torch.Generator().manual_seed(0))
    prompts = ("a cat", "a cat in a house", "a house")
    kinds = ("content", "content", "style")
    adapters = [random_adapter(base.unet, names[k % 2 :], 2 + k, seed=k) for k in range(3)]
    return [Part(*part) for part in zip(adapters, kinds, drawn, prompts, strict=True)]


@pytest.fixture(scope="module")
def strict(base, parts):
    return solved(base, parts, STRICT)


def solved(base, parts, options=OPTIONS):
    return one_shot(base, parts, roles(base.unet), options)


def test_one_adapter_alone_keeps_all_of_itself(base, parts):
    (masks,) = solved(base, parts[:1])
    assert set(masks) == set(parts[0].loras)
    for mask in masks.values():
        torch.testing.assert_close(mask, torch.ones_like(mask))


def test_three_adapters_permuted_have_permuted_masks(base, parts, strict):
    first, second, style = strict
    again = solved(base, [parts[2], parts[0], parts[1]], STRICT)
    for mine, theirs in zip((style, first, second), again, strict=True):
        assert set(mine) == set(theirs)
        for name, mask in mine.items():
            torch.testing.assert_close(mask, theirs[name], rtol=0, atol=2e-4)
    assert all(float(m.min()) >= 0 and float(m.max()) <= STRICT.upper for m in style.values())


@pytest.mark.parametrize(
    "change",
    [
        {"calls": 1},
        {"off_role": 0.1},
        {"ridge": 1.0},
        {"upper": 0.6},
        {"lambda_layer_prior": 1.0},
        {"prior_lambda": 0.02},
        {"hinge": False},
        {"sparsity": 0.0},
        {"seed": 1},
    ],
)
def test_every_option_matters(base, parts, change, strict):
    other = solved(base, parts, replace(STRICT, **change))
    assert any(not torch.equal(m, o[n]) for ms, o in zip(strict, other, strict=True) for n, m in ms.items())


def test_it_lowers_the_reconstruction_that_training_lowers(base, whole_loras, photos, tmp_path):
    """Of LoRAs four times as strong as a dozen steps make them, so that each disturbs the other."""
    strong = [tmp_path / path.name for path in whole_loras]
    for path, out in zip(whole_loras, strong, strict=True):
        adapter = read_adapter(path)
        stronger = {name: replace(lora, scale=4 * lora.scale) for name, lora in adapter.modules.items()}
        write_adapter(out, replace(adapter, modules=stronger))

    def first_loss(init):
        options = options_of("ziprank", steps=1, batch=4, init=init)
        done = merge(
            *strong, tmp_path / f"{init}.safetensors", "ziprank", base, photos, photos / "1.png",
            options=options, progress=False,
        )  # fmt: skip
        return done.losses[0]["reconstruction"]

    assert first_loss("oneshot") < 0.8 * first_loss("all-ones")


def test_same_seed_same_bytes_and_no_steps(base, loras, photos, tmp_path):
    done = [
        merge(*loras, tmp_path / f"{k}.safetensors", "oneshot", base, photos, photos / "1.png", progress=False)
        for k in range(2)
    ]
    assert done[0].path.read_bytes() == done[1].path.read_bytes()
    assert done[0].losses == [] and done[0].mean_change > 0.01 and done[0].trainable > 0
    assert read_adapter(done[0].path).metadata["options"]["init"] == "oneshot"


def test_wrong_options_are_named(base, loras, photos, tmp_path):
    for change, message in (({"norm": "vector"}, "norm.*diag"), ({"masks": "output"}, "init.*rank")):
        with pytest.raises(InputError, match=message):
            options = options_of("oneshot", **change)
            merge(*loras, tmp_path / "x.safetensors", "oneshot", base, photos, photos, options=options, progress=False)
