"""Distilling smaller bases: the shapes of SSD-1B and Vega, exact resuming, and a folder that plain diffusers loads."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from duolora.errors import InputError
from duolora.model.architectures import SDXL
from duolora.model.base import load_base
from duolora.model.blocks import roles, target_modules
from duolora.training import distil as module
from duolora.training.distil import TEACHER, DistilRecipe, distil, smaller_config, student_of

RECIPE = DistilRecipe(steps=3, images=4, batch=1)
CPU = torch.device("cpu")


def test_shapes_are_nested_as_in_the_published_configs():
    full = {"down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2), "layers_per_block": 2}
    ssd1b = smaller_config(SDXL | full, "ssd1b")
    assert ssd1b["mid_block_type"] == "UNetMidBlock2D"
    assert ssd1b["transformer_layers_per_block"] == [0, [1, 1], [5, 5]]
    assert ssd1b["reverse_transformer_layers_per_block"] == [[5, 5, 10], [1, 1, 1], 0]
    assert smaller_config(SDXL | full, "vega")["reverse_transformer_layers_per_block"] == [[2, 2, 2], [1, 1, 1], 0]
    with pytest.raises(InputError, match="vega"):
        smaller_config(SDXL, "sd15")


def test_students_begin_as_the_teacher_where_they_have_its_layers():
    teacher = UNet2DConditionModel.from_pretrained(TEACHER / "unet")
    sizes = [sum(p.numel() for p in teacher.parameters())]
    for shape in ("ssd1b", "vega"):
        student = student_of(teacher, shape)
        weights = teacher.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
        assert not any(name.startswith("mid_block") for name in target_modules(student))
        sizes.append(sum(p.numel() for p in student.parameters()))
        attention = {name.partition(".attentions")[0] for name in target_modules(student)}
        assert ("down_blocks.0" in attention) == (shape == "ssd1b"), "Atelier has one block in each attention"
        assert {*roles(student).values()} == {"content", "style"}
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_stopped_run_goes_on_to_the_same_bytes_and_plain_diffusers_loads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 1)
    whole = distil("vega", tmp_path / "whole", RECIPE, CPU)
    calls, original = 0, torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        distil("vega", tmp_path / "parts", RECIPE, CPU)
    parts = distil("vega", tmp_path / "parts", RECIPE, CPU)
    assert calls == 4, "two steps, the stopped one, and that one again"
    assert [p.name for p in (tmp_path / "parts").iterdir()] == [whole.name] == [parts.name]
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (parts / weights).read_bytes() == (whole / weights).read_bytes()
    assert distil("vega", tmp_path / "parts", RECIPE, CPU) == parts
    assert calls == 4, "a finished one is not made again"
    pipeline = StableDiffusionXLPipeline.from_pretrained(whole)
    assert pipeline.unet.config.transformer_layers_per_block == [0, [1]]
    base = load_base(whole)
    before = UNet2DConditionModel.from_pretrained(TEACHER / "unet").state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in base.unet.state_dict().items())


def test_numbers_below_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="steps"):
        distil("vega", tmp_path, replace(RECIPE, steps=0), CPU)
