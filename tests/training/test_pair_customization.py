"""PairCustomization: two LoRAs, orthogonal, trained together, and the guidance by style."""

import pytest
import torch

from duolora.api.train import TrainOptions
from duolora.model.base import load_base
from duolora.model.blocks import target_modules
from duolora.model.images import load_images
from duolora.training.pair_customization import sample_with_style_guidance, train_pair

OPTIONS = TrainOptions(rank=4, steps=3, batch=2, lr=1e-2)


def trained(base, photos):
    images = load_images(photos, base.resolution)
    return train_pair(base, images, images.flip(0), "a sks cat", "a sks cat in zwx style", OPTIONS, progress=False)


@pytest.fixture(scope="module")
def pair(base, photos):
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    found = trained(base, photos)
    after = base.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before), "the base is left as it was"
    return found


def test_the_two_are_orthogonal_and_both_learn(base, pair):
    assert set(pair["content"].modules) == set(pair["style"].modules) == set(target_modules(base.unet))
    for name, content in pair["content"].modules.items():
        style = pair["style"].modules[name]
        torch.testing.assert_close(content.down @ style.down.T, torch.zeros(4, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(content.down @ content.down.T, torch.eye(4), atol=1e-5, rtol=0)
        assert content.up.abs().max() > 0
        assert style.up.abs().max() > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_base_trains_float32_factors(folder, photos, dtype):
    pair = trained(load_base(folder, dtype=dtype), photos)
    for lora in (lora for adapter in pair.values() for lora in adapter.modules.values()):
        assert lora.up.dtype == torch.float32
        assert lora.up.isfinite().all() and lora.up.abs().max() > 0


def test_style_guidance_of_zero_leaves_the_content_alone(base, pair):
    def drawn(strength: float, prompt: str = "a sks cat in zwx style") -> torch.Tensor:
        return sample_with_style_guidance(base, pair, "a sks cat", [prompt], [3], strength, 2.0, steps=3)

    plain = drawn(0.0)
    assert torch.equal(plain, drawn(0.0, "a house"))
    assert not torch.allclose(plain, drawn(3.0))
    assert torch.equal(drawn(3.0), drawn(3.0))
