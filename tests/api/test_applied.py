"""LoRA files while images are drawn: what counts are their factors and strengths, whatever else a header says."""

import json
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from damage import CASES, DAMAGE
from duolora.api.generate import applied
from duolora.errors import BaseMismatch, DuoLoRAError
from duolora.lora.read.file import read_adapter
from duolora.model.base import Base
from duolora.model.blocks import target_modules
from tiny import random_adapter, tiny_inputs

HEADERS = {
    "dropout": {"lora_dropout": 1.0},
    "an option of tomorrow": {"tomorrow_config": None, "use_tomorrow": False, "nosuch": 1},
    "no target modules": {"target_modules": None},
    "wrong target modules": {"target_modules": ["nosuch"], "exclude_modules": r"([\w.]+)+!"},
    "slow patterns": {"target_modules": r"([\w.]+)+!", "rank_pattern": {r"([\w.]+)+!": 4}},
    "biases": {"lora_bias": True, "bias": "all"},
    "modules to save": {"modules_to_save": ["conv_in"]},
    "another rank": {"r": 7, "rank_pattern": {"to_q": 9}},
    "nonsense": {"r": "x", "init_lora_weights": "eva", "megatron_config": {"a": 1}, "layers_pattern": 3},
}


def saved(base: Base, path: Path, **config: object) -> Path:
    """A LoRA of strength 2 whose header says so, and `config` beside it."""
    modules = random_adapter(base.unet, target_modules(base.unet)[::3])
    tensors = {}
    for name, lora in modules.items():
        tensors |= {f"unet.{name}.lora_A.weight": lora.down, f"unet.{name}.lora_B.weight": lora.up}
    found = {"r": 4, "lora_alpha": 8, "target_modules": sorted(modules)} | config
    header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in found.items()})}
    save_file(tensors, path, header)
    return path


def predicted(base: Base, *files: Path, weights: list[float] | None = None) -> torch.Tensor:
    with applied(base, files, weights), torch.no_grad():
        assert not any(module.training for module in base.unet.modules())
        return base.unet(**tiny_inputs())[0]


@pytest.mark.parametrize("header", HEADERS)
def test_what_else_a_header_says_changes_nothing(base, tmp_path, header):
    plain, odd = (
        saved(base, tmp_path / "plain.safetensors"),
        saved(base, tmp_path / "odd.safetensors", **HEADERS[header]),
    )
    bare = predicted(base)
    assert torch.equal(predicted(base, plain), predicted(base, odd))
    assert not torch.allclose(predicted(base, plain), bare)
    assert torch.equal(predicted(base), bare)


FIELDS = [*LoraConfig.__dataclass_fields__, "alpha_pattern", "lora_alpha", "r", "use_rslora", "use_dora", "tomorrow"]
ODD = [*map(json.loads, DAMAGE), {"to_q": 3}, {"attn1.*": 2.5}, r"([\w.]+)+!", {r"([\w.]+)+!": 4}, ["to_q"], 10**9]


def test_any_header_gives_the_factors_times_their_strengths_or_is_refused(base, tmp_path):
    """Whatever fields of a LoraConfig say, and other entries beside it: as if ΔW had been added to the weights."""
    rng, refused = random.Random(0), 0
    for case in range(CASES // 40):
        config = {rng.choice(FIELDS): rng.choice(ODD) for _ in range(rng.randint(1, 4))}
        path = saved(base, tmp_path / f"{case}.safetensors", **config)
        if case % 3 == 0:
            header = {
                rng.choice(["lora_adapter_metadata", "duolora", "duolora_proof", "format", "ss_x"]): rng.choice(DAMAGE)
            }
            save_file(load_file(path), path, header)
        try:
            found = predicted(base, path)
        except DuoLoRAError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        modules = read_adapter(path).modules
        with torch.no_grad():
            before = {name: base.unet.get_submodule(name).weight.clone() for name in modules}
            for name, lora in modules.items():
                base.unet.get_submodule(name).weight += lora.delta()
            expected = base.unet(**tiny_inputs())[0]
            for name, weight in before.items():
                base.unet.get_submodule(name).weight.copy_(weight)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found / scale, expected / scale, rtol=1e-3, atol=1e-4)
    assert 0 < refused < CASES // 40


def test_the_strength_in_the_header_counts(base, tmp_path):
    double, single = saved(base, tmp_path / "2.safetensors"), saved(base, tmp_path / "1.safetensors", lora_alpha=4)
    there = predicted(base, double)
    torch.testing.assert_close(there, predicted(base, single, weights=[2.0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there, predicted(base, single, single), rtol=1e-4, atol=1e-5)


def test_what_diffusers_cannot_put_on_is_one_line(base, tmp_path):
    """A convolution of 9×1 has as many inputs as one of 3×3."""
    path = saved(base, tmp_path / "a.safetensors")
    weight = base.unet.conv_in.weight
    conv = {"unet.conv_in.lora_A.weight": torch.ones(2, weight.shape[1], 9, 1)}
    conv["unet.conv_in.lora_B.weight"] = torch.ones(len(weight), 2, 1, 1)
    save_file(load_file(path) | conv, path)
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    with pytest.raises(BaseMismatch, match="diffusers cannot put it on this base"), applied(base, [path]):
        pass
    assert base.unet.state_dict().keys() == before.keys()
