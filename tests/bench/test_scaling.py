"""Weight scaling: what it multiplies, and that it leaves no trace."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel

from duolora.bench import scaling
from duolora.bench.scaling import block_groups, by_encoders, figure3, scaled
from duolora.errors import InputError
from duolora.metrics.encoders import load_embedder
from duolora.model.base import load_base
from duolora.model.blocks import architecture_of, block_roles
from duolora.model.predict import predict
from duolora.model.sample import sample_images
from duolora.textfiles import read_json
from tiny import tiny_flux, tiny_inputs, tiny_qwen_image, tiny_unet, tiny_z_image


@torch.no_grad()
def test_one_changes_nothing_and_zero_removes_attention():
    unet, inputs = tiny_unet(), tiny_inputs()
    plain = unet(**inputs)[0]
    with scaled(unet, ["mid_block"], 1.0):
        assert torch.equal(unet(**inputs)[0], plain)
    with scaled(unet, ["mid_block"], 0.0):
        off = unet(**inputs)[0]
    assert not torch.allclose(off, plain)
    assert torch.equal(unet(**inputs)[0], plain)
    for name, parameter in unet.named_parameters():
        if name.startswith("mid_block") and "to_out.0" in name:
            parameter.zero_()
    torch.testing.assert_close(unet(**inputs)[0], off)


@torch.no_grad()
def test_scaling_is_scaling_the_projection():
    unet, inputs = tiny_unet(), tiny_inputs()
    with scaled(unet, ["up_blocks.0"], 0.3):
        hooked = unet(**inputs)[0]
    for name, parameter in unet.named_parameters():
        if name.startswith("up_blocks.0") and "to_out.0" in name:
            parameter.mul_(0.3)
    torch.testing.assert_close(unet(**inputs)[0], hooked)


def test_groups_cover_all_blocks_with_attention():
    groups = block_groups(tiny_unet())
    assert set(groups["level 2"]) == {"down_blocks.2", "mid_block", "up_blocks.0"}
    assert set(groups["level 1"]) == {"down_blocks.1", "up_blocks.1"}
    assert groups["mid_block"] == ("mid_block",)
    assert groups["up_blocks.0.attentions.1"] == ("up_blocks.0.attentions.1",)
    assert "mid_block.attentions.0" not in groups, "it is all of its block"
    assert "down_blocks.0" not in groups


def test_a_transformers_blocks_go_a_few_together():
    with torch.device("meta"):
        qwen, flux = QwenImageTransformer2DModel(), FluxTransformer2DModel()
    groups = block_groups(qwen)
    assert len(groups) == 12 and groups["transformer_blocks.55 to 59"][0] == "transformer_blocks.55"
    of_flux = block_groups(flux)
    assert {name.partition(".")[0] for name in of_flux} == {"transformer_blocks", "single_transformer_blocks"}
    assert sum(map(len, of_flux.values())) == 19 + 38


@pytest.mark.parametrize("made", [tiny_flux, tiny_z_image, tiny_qwen_image])
def test_the_study_of_any_base_ends_in_a_map_for_it(tmp_path, monkeypatch, made):
    made(tmp_path / "tokenizers").save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", resolution=16)
    groups, x, t = block_groups(base.unet), torch.randn(1, 4, 8, 8), torch.tensor([499])
    asked = base.unet, x, t, base.encode_prompts(["a cat"]), base.time_ids()
    with torch.no_grad():
        plain = predict(*asked)
        for blocks in groups.values():
            with scaled(base.unet, blocks, 1.0):
                assert torch.equal(predict(*asked), plain)
            with scaled(base.unet, blocks, 0.5):
                assert not torch.allclose(predict(*asked), plain, rtol=0, atol=1e-6)
    monkeypatch.setattr(scaling, "sample_images", lambda *a, **k: sample_images(*a, **k | {"steps": 1}))
    encoders = [load_embedder(name) for name in ("atelier-content", "atelier-style")]
    measure = by_encoders(base, ["a cat", "a house"], 0, *encoders)
    curves = figure3(tmp_path / "out", base, measure, (0.0, 0.5, 1.0), progress=False)
    assert all(curve["object"][-1] == pytest.approx(1) for curve in curves.values()), "the base beside itself"
    table = read_json(tmp_path / "out" / "block_map.json")
    assert set(table) == {block for blocks in groups.values() for block in blocks}
    found = block_roles(architecture_of(base.unet), table)
    assert found.keys() == architecture_of(base.unet).shapes.keys()


def test_blocks_without_attention_are_refused():
    with pytest.raises(InputError, match=r"down_blocks\.0"), scaled(tiny_unet(), ["down_blocks.0"], 0.5):
        pass
