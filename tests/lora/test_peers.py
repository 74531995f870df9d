"""What other programs do with LoRAs, as installed here: what ours must equal, and the faults that we work around.

A test of a fault fails on the day that the fault is mended; then the workaround and the claim go.
"""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from test_formats import added
from torch import nn

from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.paper.lowrank import LowRank, concatenate
from tiny import tiny_pipeline

Q, K = (f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{side}" for side in "qk")


@pytest.fixture
def model() -> PeftModel:
    """Two adapters of one rank, with scales 2 and 0.5, and a third of another rank."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(9, 7)), LoraConfig(r=3, lora_alpha=6, target_modules=["0"]), "one")
    model.add_adapter("two", LoraConfig(r=3, lora_alpha=1.5, target_modules=["0"]))
    model.add_adapter("three", LoraConfig(r=2, lora_alpha=5, target_modules=["0"]))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight)
    return model


def lora(model: PeftModel, name: str) -> LowRank:
    layer = model.base_model.model[0]
    return LowRank(layer.lora_B[name].weight.data, layer.lora_A[name].weight.data, layer.scaling[name])


def weighed(model: PeftModel, how: str, names: list[str], weights: list[float], **given: object) -> torch.Tensor:
    model.add_weighted_adapter(names, weights, "both", combination_type=how, **given)
    return model.base_model.model[0].get_delta_weight("both").detach()


def summed(model: PeftModel, names: list[str], weights: list[float]) -> torch.Tensor:
    parts = [(lora(model, name), weight) for name, weight in zip(names, weights, strict=True)]
    return concatenate([LowRank(x.up, x.down, weight * x.scale) for x, weight in parts]).delta()


def test_our_sum_is_pefts_cat(model):
    names, weights = ["one", "two", "three"], [0.7, -0.4, 1.0]
    torch.testing.assert_close(weighed(model, "cat", names, weights), summed(model, names, weights))


def test_pefts_linear_adds_cross_terms(model):
    """(Σ√wU)(Σ√wD) has √(w₁w₂)(U₁D₂ + U₂D₁) beside the sum: the adapters of one are read by the other."""
    both, weights = ["one", "two"], [0.7, 0.4]
    one, two = (lora(model, name) for name in both)
    cross = (0.7 * one.scale * 0.4 * two.scale) ** 0.5 * (one.up @ two.down + two.up @ one.down)
    found, right = weighed(model, "linear", both, weights), summed(model, both, weights)
    torch.testing.assert_close(found, right + cross)
    assert (found - right).norm() > 0.5 * right.norm()


def test_pefts_svd_applies_the_scale_once_now(model):
    """It used to multiply by alpha / r twice; with PEFT 0.21.2 it does not: the claim is history."""
    both, weights = ["one", "two"], [0.7, 0.4]
    found = weighed(model, "svd", both, weights, svd_rank=6)
    torch.testing.assert_close(found, summed(model, both, weights), rtol=1e-4, atol=1e-5)


def pair(stem: str, x: LowRank, alpha: float | None = None) -> dict[str, torch.Tensor]:
    found = {f"{stem}.lora_down.weight": x.down, f"{stem}.lora_up.weight": x.up}
    return found | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)})


def square(pipeline, seed: int) -> LowRank:
    width, rng = pipeline.unet.get_submodule(Q).weight.shape[0], torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(width, 4, generator=rng) / 8, torch.randn(4, width, generator=rng) / 8)


def stem(module: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}"


def test_diffusers_ignores_alphas_of_attention_that_differ(tmp_path):
    """The rarer alpha of an attention layer in a kohya file is not found under the name that diffusers gives it."""
    pipeline, path = tiny_pipeline(tmp_path), tmp_path / "kohya.safetensors"
    one, two, three = (square(pipeline, seed) for seed in range(3))
    v = Q.replace("to_q", "to_v")
    save_file(pair(stem(Q), one, 4.0) | pair(stem(v), three, 4.0) | pair(stem(K), two, 1.0), path)
    ours = read_adapter(path).modules
    assert (ours[Q].scale, ours[K].scale) == (1.0, 0.25)
    change = added(pipeline, path)
    torch.testing.assert_close(change[f"{Q}.weight"], ours[Q].delta(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(change[f"{K}.weight"], 4 * ours[K].delta(), rtol=1e-4, atol=1e-6)
    write_adapter(path, Adapter(ours), torch.float32, "kohya")
    change = added(pipeline, path)
    torch.testing.assert_close(change[f"{K}.weight"], ours[K].delta(), rtol=1e-4, atol=1e-6)


def test_diffusers_drops_original_names_beside_its_own(tmp_path):
    """A kohya file with both spellings of block names: diffusers reads one kind only, and says nothing."""
    pipeline, path = tiny_pipeline(tmp_path), tmp_path / "mixed.safetensors"
    one, two = (square(pipeline, seed) for seed in range(2))
    sgm = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_k"
    save_file(pair(stem(Q), one, 4.0) | pair(sgm, two, 4.0), path)
    assert set(read_adapter(path).modules) == {Q, K}
    change = added(pipeline, path)
    assert change[f"{Q}.weight"].any()
    assert not change[f"{K}.weight"].any()


def test_diffusers_refuses_alphas_beside_adapter_metadata(tmp_path):
    """Which is why no file of ours has both."""
    pipeline, path = tiny_pipeline(tmp_path), tmp_path / "both.safetensors"
    header = {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 4}'}
    save_file(pair(stem(Q), square(pipeline, 0), 4.0), path, header)
    with pytest.raises(ValueError, match="network_alphas"):
        added(pipeline, path)


def test_a_folder_by_peft_has_the_strength_that_peft_gives_it(tmp_path):
    torch.manual_seed(0)
    unet = tiny_pipeline(tmp_path / "base").unet
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["to_q", "to_k", "conv1", "ff.net.2"],
        rank_pattern={"to_k": 2}, alpha_pattern={r"up_blocks.*to_q": 3, "^mid_block.attentions.0.*to_k": 1},
    )  # fmt: skip
    model = get_peft_model(unet, config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "peft")
    modules = read_adapter(tmp_path / "peft").modules
    assert read_adapter(tmp_path / "peft" / "adapter_model.safetensors").modules.keys() == modules.keys()
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "get_delta_weight")}
    assert layers.keys() == modules.keys()
    for name, layer in layers.items():
        expected = layer.get_delta_weight("default").detach().flatten(1)
        torch.testing.assert_close(modules[name].delta(), expected, rtol=1e-4, atol=1e-6)
