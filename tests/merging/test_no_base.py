"""Merges that ask no network need no base: names and shapes of the modules say all."""

import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from duolora.api import merge as verb
from duolora.api.compose import compose
from duolora.api.convert import convert
from duolora.api.merge import merge, options_of
from duolora.errors import BaseMismatch, InputError, Notice
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.merging.options import METHODS
from duolora.model import files as base_files
from duolora.model.architectures import ARCHITECTURES, attention_shapes, known_architectures, recognised, unet_config
from duolora.model.base import BaseChoice, outlined
from duolora.model.blocks import architecture_of, block_roles, roles
from duolora.paper.lowrank import LowRank
from tiny import save_single_file

PLAIN = [name for name, options in METHODS.items() if not options.asks_network]


@pytest.fixture
def no_base(monkeypatch):
    """Loading a base is an error."""

    def refuse(base):
        raise AssertionError(f"asked for {base}")

    monkeypatch.setattr(verb, "opened", refuse)


def lora(shapes, seed, prompt):
    rng = torch.Generator().manual_seed(seed)
    modules = {n: LowRank(torch.randn(o, 1, generator=rng), torch.randn(1, i, generator=rng)) for n, (o, i) in shapes}
    return Adapter(modules, {"prompt": prompt})


@pytest.fixture(scope="module")
def of_vega(tmp_path_factory):
    folder, shapes = tmp_path_factory.mktemp("vega"), attention_shapes(ARCHITECTURES["segmind-vega"])
    for k, kind in enumerate(("content", "style")):
        write_adapter(folder / f"{kind}.safetensors", lora(list(shapes.items())[::3], k, f"a sks {kind} in zwx style"))
    return folder / "content.safetensors", folder / "style.safetensors"


def meta(config):
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


@pytest.mark.parametrize("width", [None, 32])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_projections_by_arithmetic_are_those_of_the_network_in_its_order(name, width):
    config = unet_config(name, width)
    found = architecture_of(meta(config), name)
    assert list(attention_shapes(config).items()) == list(found.shapes.items())
    if width is None:
        assert found in known_architectures()
        assert recognised(found.shapes).name == name
        assert block_roles(found) == roles(meta(config))


def test_tiny_config_with_one_layer_a_block(base):
    assert attention_shapes(base.unet.config) == base.architecture.shapes


def test_modules_of_no_known_unet_are_recognised_as_such():
    shapes = dict(attention_shapes(ARCHITECTURES["sdxl"]))
    assert recognised(shapes | {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (8, 8)}).levels is None
    assert recognised({}).levels is None
    turned = {f"{name}.": shape for name, shape in reversed(shapes.items())}
    assert [name[:-1] for name in recognised(turned).shapes] == list(shapes)


@pytest.mark.parametrize("method", PLAIN)
def test_a_merge_without_a_base_is_the_merge_with_it(base, loras, tmp_path, no_base, monkeypatch, method):
    options = options_of(method, block_map="literal") if method == "split" else None
    without = merge(*loras, tmp_path / "without.safetensors", method, options=options, progress=False)
    monkeypatch.undo()
    with_base = merge(*loras, tmp_path / "with.safetensors", method, base, options=options, progress=False)
    one, other = (read_adapter(done.path) for done in (without, with_base))
    assert set(one.modules) == set(other.modules)
    for name, expected in other.modules.items():
        torch.testing.assert_close(one.modules[name].delta(), expected.delta(), rtol=1e-5, atol=1e-6)
    assert without.verification.diffusers is not None
    assert "base" not in one.metadata and one.metadata["architecture"] == "unknown"
    assert other.metadata["base"] == base.name


def test_roles_of_a_known_architecture_need_no_base(of_vega, tmp_path, no_base):
    done = merge(*of_vega, tmp_path / "x.safetensors", "split", progress=False)
    found = read_adapter(done.path)
    assert found.metadata["architecture"] == "segmind-vega"
    expected = block_roles(recognised(attention_shapes(ARCHITECTURES["segmind-vega"])))
    sources = {kind: read_adapter(path).modules for kind, path in zip(("content", "style"), of_vega, strict=True)}
    for name, module in found.modules.items():
        torch.testing.assert_close(module.delta(), sources[expected[name]][name].delta(), rtol=5e-3, atol=1e-2)


@pytest.fixture(scope="module")
def written(of_vega, tmp_path_factory):
    """Two small LoRAs of which people said whose they are and what may be done with them."""
    said = {
        "content": {"modelspec.author": "Ayla", "modelspec.license": "CC BY-ND 4.0", "modelspec.title": "Teapot"},
        "style": {"modelspec.author": "Bo", "modelspec.license": "MIT"},
    }
    folder = tmp_path_factory.mktemp("written")
    for path in of_vega:
        adapter = read_adapter(path)
        few = dict([*adapter.modules.items()][::8])
        write_adapter(folder / path.name, replace(adapter, modules=few, notes=said[path.stem]))
    return folder / "content.safetensors", folder / "style.safetensors"


@pytest.mark.parametrize("way", ["diffusers", "kohya", "split", "masks", "compose"])
def test_a_merge_carries_along_whose_its_sources_are(written, tmp_path, no_base, way):
    out = tmp_path / "x.safetensors"
    with pytest.warns(Notice, match=r"(content|LoRA 1): its licence seems to forbid merging: CC BY-ND"):
        if way == "compose":
            paths = [compose(written, out).path]
        else:
            paths = merge(*written, out, "naive", progress=False, format=way).paths
    if way == "masks":
        paths = convert(out, tmp_path / "y.safetensors", content=written[0], style=written[1]).paths
    for path in paths:
        found = read_adapter(path).notes
        assert (found["modelspec.author"], found["modelspec.license"]) == ("Ayla; Bo", "CC BY-ND 4.0; MIT")
        assert found["modelspec.description"].startswith("A merge of Teapot (")


@pytest.mark.parametrize("kind", ["folder", "file", "hub id"])
def test_of_a_named_base_only_the_configs_are_read(kind, folder, base, loras, of_vega, tmp_path, monkeypatch):

    def given(found, once):
        """A base that is in memory already; weights are not read for it."""
        return found if found is base else pytest.fail("weights were read")

    monkeypatch.setattr(verb, "opened", given)
    configs, asked = tmp_path / "configs", []
    shutil.copytree(folder, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    choice = BaseChoice(str(configs))
    if kind == "hub id":
        monkeypatch.setattr(base_files, "snapshot_download", lambda name, **how: asked.append(how) or str(configs))
        choice = BaseChoice("owner/name")
    if kind == "file":
        path = save_single_file(base.parts, tmp_path / "base.safetensors")
        choice = BaseChoice(str(path), config=folder)
    assert outlined(choice).shapes == base.lora_shapes()
    found, expected = (
        read_adapter(merge(*loras, tmp_path / f"{k}.safetensors", "split", of, progress=False).path)
        for k, of in enumerate((choice, base))
    )
    assert found.metadata["base"] == choice.base and "base_weights" not in found.metadata
    assert all(how["allow_patterns"] == ["*.json", "*.txt", "*.model"] for how in asked)
    assert bool(asked) is (kind == "hub id")
    assert found.metadata["blocks"] == expected.metadata["blocks"]
    assert all(torch.equal(lora.up, expected.modules[name].up) for name, lora in found.modules.items())
    with pytest.raises(BaseMismatch, match="the LoRA was made for another base"):
        merge(*of_vega, tmp_path / "x.safetensors", "naive", choice, progress=False)


def test_levels_that_nobody_knows_are_asked_for(loras, tmp_path, no_base):
    with pytest.raises(InputError, match=r"'resolution' goes by the levels.*name the base"):
        merge(*loras, tmp_path / "x.safetensors", "split", progress=False)


def test_files_for_different_bases_are_told_apart(loras, of_vega, tmp_path, no_base):
    with pytest.raises(BaseMismatch, match=r"expected one shape in both files, found \(.*different bases"):
        merge(loras[0], of_vega[1], tmp_path / "x.safetensors", "naive", progress=False)


def test_masks_are_not_trained_without_a_base(loras, tmp_path, no_base):
    with pytest.raises(InputError, match="are for a UNet that is not known, and ziprank trains masks"):
        merge(*loras, tmp_path / "x.safetensors", "ziprank", progress=False)
