"""What becomes of a merge afterwards: parts, masks, other weights, other formats, less space."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from command import run
from duolora.api.compose import compose, compose_at_once
from duolora.api.convert import convert
from duolora.api.generate import applied
from duolora.api.merge import merge, options_of
from duolora.errors import FileRefused, InputError, Notice
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.verify import relative_error
from duolora.lora.write.file import write_adapter
from duolora.merging.mask_file import MaskFile, read_masks, write_masks
from duolora.model.architectures import SDXL
from duolora.model.blocks import target_modules
from duolora.model.sample import sample_images
from duolora.paper.lowrank import LowRank, concatenate

pytestmark = pytest.mark.usefixtures("unloaded")
FEED_FORWARD = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"
CONV, TEXT = "down_blocks.0.resnets.0.conv1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def sources(base, loras, tmp_path_factory):
    """The two LoRAs, the content one with feed-forward, convolution and text encoder besides."""
    adapter, shapes = read_adapter(loras[0]), base.lora_shapes()
    more = {}
    for name, kernel in ((FEED_FORWARD, None), (CONV, (3, 3)), (TEXT, None)):
        d_out, d_in = shapes[name]
        more[name] = LowRank(torch.randn(d_out, 2) / 8, torch.randn(2, d_in) / 8, 0.5, kernel)
    path = tmp_path_factory.mktemp("sources") / "content.safetensors"
    write_adapter(path, Adapter(adapter.modules | more, adapter.metadata), torch.float32)
    return path, loras[1]


@pytest.fixture(scope="module")
def merged(sources, base, photos):
    """Merges them."""

    def run(out, method="ziprank", **given):
        options = options_of(method, **{"steps": 2, **given.pop("options", {})})
        return merge(*sources, out, method, base, photos, photos / "1.png", options=options, progress=False, **given)

    return run


@pytest.fixture(scope="module")
def whole(merged, tmp_path_factory):
    """One merge, in float32."""
    out = tmp_path_factory.mktemp("whole") / "both.safetensors"
    return merged(out, dtype="float32", options={"threshold": 0.9}).path


def assert_sum(adapters, expected, limit=1e-5):
    names = {name for adapter in adapters for name in adapter.modules}
    assert names == set(expected.modules)
    for name in names:
        total = concatenate([a.modules[name] for a in adapters if name in a.modules])
        assert relative_error(expected.modules[name], total) < limit


def scaled(adapter, weight):
    modules = {n: LowRank(x.up, x.down, weight * x.scale, x.kernel) for n, x in adapter.modules.items()}
    return Adapter(modules, adapter.metadata)


@pytest.mark.parametrize("way", ["merge", "convert"])
def test_parts_add_up_to_the_merge(merged, whole, tmp_path, way):
    out = tmp_path / "x.safetensors"
    if way == "merge":
        done = merged(out, dtype="float32", format="split", options={"threshold": 0.9})
    else:
        done = convert(whole, out, "split", "float32")
    assert [p.name for p in done.paths] == ["x.content.safetensors", "x.style.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in done.paths]
    content, style = (read_adapter(path) for path in done.paths)
    assert_sum([content, style], read_adapter(whole))
    assert {FEED_FORWARD, CONV, TEXT} <= set(content.modules)
    assert {FEED_FORWARD, CONV, TEXT}.isdisjoint(style.modules)


@pytest.mark.parametrize("format", ["diffusers", "kohya", "uniform"])
def test_weights_after_the_fact_are_linear(whole, tmp_path, format):
    convert(whole, tmp_path / "k.safetensors", format, "float32")
    convert(
        tmp_path / "k.safetensors", tmp_path / "w.safetensors", format, "float32", content_weight=0.5, style_weight=2
    )
    done = convert(whole, tmp_path / "s.safetensors", "split", "float32")
    content, style = (read_adapter(path) for path in done.paths)
    assert_sum([scaled(content, 0.5), scaled(style, 2.0)], read_adapter(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("method", ["naive", "ziprank", "ziplora", "split"])
def test_masks_and_sources_are_the_merge(merged, sources, tmp_path, method):
    both, masks, again = (tmp_path / f"{k}.safetensors" for k in ("both", "masks", "again"))
    merged(both, method)
    merged(masks, method, format="masks")
    convert(masks, again, content=sources[0], style=sources[1])
    assert again.read_bytes() == both.read_bytes()
    weighed = tmp_path / "w.safetensors"
    convert(masks, weighed, dtype="float32", content=sources[0], style=sources[1], style_weight=0.25)
    convert(both, again, dtype="float32", style_weight=0.25)
    one, other = read_adapter(weighed), read_adapter(again)
    assert all(relative_error(one.modules[n], other.modules[n]) < 2e-3 for n in one.modules)


def test_masks_are_refused_where_they_do_not_belong(merged, sources, whole, tmp_path):
    masks = tmp_path / "masks.safetensors"
    merged(masks, format="masks")
    with pytest.raises(FileRefused, match="masks of a merge only; rebuild it with `duolora convert"):
        read_adapter(masks)
    with pytest.raises(FileRefused, match=r"expected the content LoRA of the merge, SHA-256 \w{12}….*the very file"):
        convert(masks, tmp_path / "x.safetensors", content=sources[1], style=sources[0])
    with pytest.raises(InputError, match="--content and --style"):
        convert(masks, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="expected masks"):
        convert(whole, tmp_path / "x.safetensors", content=sources[0])
    with pytest.raises(InputError, match="use `duolora merge --format masks`"):
        convert(whole, tmp_path / "x.safetensors", "masks")
    with pytest.raises(FileRefused, match="content_ranks"):
        convert(sources[0], tmp_path / "x.safetensors", "split")
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]


def test_masks_of_sdxl_are_a_third_of_a_megabyte(tmp_path):
    with torch.device("meta"):
        names = target_modules(UNet2DConditionModel(**SDXL))
    masks = {kind: {name: torch.rand(64) for name in names} for kind in ("content", "style")}
    size = write_masks(tmp_path / "m.safetensors", MaskFile(masks, {"content": "0" * 64, "style": "1" * 64}))
    assert 0.28e6 < size < 0.40e6
    back: MaskFile = read_masks(tmp_path / "m.safetensors")
    assert all(torch.equal(back.masks[k][n], masks[k][n]) for k in masks for n in names)


def test_squeezing_says_what_it_loses(whole, tmp_path):
    adapter, out = read_adapter(whole), tmp_path / "x.safetensors"
    for given in ({"rank": 2}, {"energy": 0.7}, {"threshold": 0.5}, {"threshold": 0.2, "rank": 3}):
        done = convert(whole, out, dtype="float32", **given)
        small = read_adapter(out)
        lost, size = 0.0, 0.0
        for name, lora in adapter.modules.items():
            there = small.modules[name].delta() if name in small.modules else torch.zeros(lora.d_out, lora.d_in)
            error, dense = float((there - lora.delta()).norm()), float(lora.delta().norm())
            assert done.lost.errors[name] == pytest.approx(error / dense, abs=1e-5)
            lost, size = lost + error**2, size + dense**2
        assert done.lost.whole == pytest.approx((lost / size) ** 0.5, abs=1e-5)
        assert 0 < done.lost.whole < 1
        if "rank" in given:
            assert max(lora.rank for lora in small.modules.values()) <= given["rank"]
    done = convert(whole, out, dtype="float32", energy=0.7)
    assert all(error**2 <= 0.3 + 1e-6 for error in done.lost.errors.values())
    with pytest.raises(InputError, match="energy: expected a number above 0 and at most 1, got 1.5"):
        convert(whole, out, energy=1.5)
    with pytest.raises(InputError, match="rank: expected a number, 1 or more, got 0"):
        convert(whole, out, rank=0)
    with pytest.warns(Notice, match="rank: 100000 leaves nothing out, since the file's highest is"):
        convert(whole, out, rank=100_000)
    with pytest.raises(InputError, match="threshold: expected a number from 0 to below 1"):
        convert(whole, out, threshold=1.0)


def test_pruning_keeps_the_parts_apart(whole, tmp_path):
    small = tmp_path / "small.safetensors"
    convert(whole, small, dtype="float32", threshold=0.3)
    done = convert(small, tmp_path / "s.safetensors", "split", "float32")
    assert_sum([read_adapter(path) for path in done.paths], read_adapter(small))
    source, content = read_adapter(whole), read_adapter(done.paths[0])
    wide = convert(whole, tmp_path / "w.safetensors", "split", "float32")
    bigger = read_adapter(wide.paths[0])
    assert all(content.modules[n].rank <= bigger.modules[n].rank for n in content.modules)
    assert sum(x.rank for x in content.modules.values()) < sum(x.rank for x in bigger.modules.values())
    assert source.modules[TEXT].delta().norm() > 0
    convert(whole, small, dtype="float32", rank=2)
    with pytest.raises(FileRefused, match="neither squeezed nor composed"):
        convert(small, tmp_path / "t.safetensors", "split")


@pytest.mark.parametrize("weights", [None, [2.0, -0.5, 0.25]])
def test_composing_is_the_weighted_sum(sources, whole, tmp_path, weights):
    files, out = [*sources, whole], tmp_path / "all.safetensors"
    verification = compose(files, out, weights, dtype="float32").verification
    assert verification.error < 1e-6
    expected = [scaled(read_adapter(f), w) for f, w in zip(files, weights or [1.0] * 3, strict=True)]
    found = read_adapter(out)
    assert_sum(expected, found)
    assert [s["weight"] for s in found.metadata["sources"]] == (weights or [1.0] * 3)
    assert (
        compose(files, tmp_path / "again.safetensors", weights, dtype="float32").verification.error
        == verification.error
    )
    assert out.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_wrong_compositions_are_named(sources, tmp_path):
    out = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="at least two LoRA files to compose, got 1"):
        compose(sources[:1], out)
    with pytest.raises(InputError, match="weights: expected 2 finite numbers"):
        compose(sources, out, [1.0])
    with pytest.raises(InputError, match="weights: expected 2 finite numbers"):
        compose(sources, out, [1.0, float("nan")])
    with pytest.raises(InputError, match="format: expected one of kohya, diffusers, uniform, got 'split'"):
        compose(sources, out, format="split")
    name = next(iter(read_adapter(sources[0]).modules))
    write_adapter(tmp_path / "wide.safetensors", Adapter({name: LowRank(torch.ones(9, 2), torch.ones(2, 9))}))
    with pytest.raises(InputError, match="expected one shape in all files"):
        compose([sources[0], tmp_path / "wide.safetensors"], out)
    assert not out.exists()


def test_composing_says_what_it_leaves_out(sources, tmp_path):
    bundle = tmp_path / "bundle.safetensors"
    with safe_open(sources[1], "pt") as file:
        save_file(load_file(sources[1]) | {"bundle_emb.sks.x": torch.zeros(2, 8)}, bundle, file.metadata())
    done = compose([sources[0], bundle], tmp_path / "all.safetensors")
    assert done.left_out == ("bundle_emb.sks",)
    assert read_adapter(done.path).metadata["left_out"] == ["bundle_emb.sks"]
    said = run("compose", sources[0], bundle, "--out", tmp_path / "again.safetensors")
    assert "not carried over: bundle_emb.sks" in said.stdout


def test_a_foreign_file_is_drawn_at_its_true_strength(sources, base, whole, tmp_path):
    """kohya's alphas that differ, which diffusers alone would mistake (`lora/test_peers.py`)."""
    convert(whole, tmp_path / "k.safetensors", "kohya", "float32")
    tensors = load_file(tmp_path / "k.safetensors")
    for k, key in enumerate([key for key in tensors if key.endswith(".alpha")]):
        tensors[key] = tensors[key] * (1 + k % 3)
        up = key.replace(".alpha", ".lora_up.weight")
        tensors[up] = tensors[up] / (1 + k % 3)
    save_file(tensors, tmp_path / "foreign.safetensors")
    drawn = []
    for file in (whole, tmp_path / "foreign.safetensors"):
        with applied(base, [file]):
            drawn.append(sample_images(base, ["a sks cat"], [3], steps=2))
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-4)


def test_a_peft_folder_is_a_source_like_any_other(base, loras, tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    modules = read_adapter(loras[0]).modules
    tensors = {}
    for name, lora in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = lora.down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = lora.up.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": sorted(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    done = merge(folder, loras[1], tmp_path / "both.safetensors", "naive", base, progress=False)
    compose([folder, loras[1]], tmp_path / "composed.safetensors", [1.0, 1.0])
    both = read_adapter(done.path)
    composed = read_adapter(tmp_path / "composed.safetensors")
    name = next(iter(modules))
    torch.testing.assert_close(both.modules[name].delta(), composed.modules[name].delta(), rtol=2e-3, atol=1e-4)
    first = both.metadata["content"]
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8}))
    assert (
        read_adapter(merge(folder, loras[1], done.path, "naive", base, progress=False).path).metadata["content"]
        != first
    )


def at_once(files, base, out, prompts=("a cat", "a cat in a house", "a house"), **given):
    options = options_of("oneshot", **{"calls": 2, **given.pop("changes", {})})
    return compose_at_once(files, out, base, prompts, options=options, dtype="float32", progress=False, **given)


def test_three_at_once_are_their_sum_where_masks_are_held_at_ones(sources, base, whole, photos, tmp_path):
    files = [*sources, whole]
    done = at_once(files, base, tmp_path / "sum.safetensors", images=[photos] * 3, changes={"ridge": 1e9})
    assert done.verification.error < 1e-6
    assert_sum([read_adapter(f) for f in files], read_adapter(done.path), 1e-4)
    metadata = read_adapter(done.path).metadata
    assert metadata["method"] == "oneshot" and [s["kind"] for s in metadata["sources"]] == ["content"] * 3


def test_weights_and_the_rest_follow_what_each_is_for(sources, base, photos, tmp_path):
    prompts, kinds, images = ("a cat", "a house"), ["content", "style"], [photos] * 2
    changes = {"ridge": 1e9, "off_role": 1.0, "style_weight": 0.5, "unmasked": "style"}
    done = at_once(sources, base, tmp_path / "x.safetensors", prompts, kinds=kinds, images=images, changes=changes)
    content, style = (read_adapter(f) for f in sources)
    masked = set(target_modules(base.unet))
    kept = Adapter({n: x for n, x in content.modules.items() if n in masked}, {})
    assert kept.modules.keys() < content.modules.keys()
    assert_sum([kept, scaled(style, 0.5)], read_adapter(done.path), 1e-4)


def test_masks_of_three_at_once_matter_and_do_not_hang_on_the_order(sources, base, whole, tmp_path, photos):
    files, prompts = [*sources, whole], ("a cat", "a cat in a house", "a house")
    there = at_once(files, base, tmp_path / "there.safetensors", prompts, images=[photos] * 3)
    back = at_once(files[::-1], base, tmp_path / "back.safetensors", prompts[::-1], images=[photos] * 3)
    one, other = (read_adapter(done.path).modules for done in (there, back))
    plain = compose(files, tmp_path / "sum.safetensors", [1.0] * 3, dtype="float32")
    moved = 0
    for name, lora in read_adapter(plain.path).modules.items():
        assert relative_error(one[name], other[name]) < 1e-3
        moved += relative_error(one[name], lora) > 0.01
    assert moved > 0


def test_wrong_merges_at_once_are_named(sources, base, tmp_path):
    out = tmp_path / "x.safetensors"
    for given, message in (
        ({"prompts": ["a"]}, "prompts: expected 2, one for each file, got 1"),
        ({"prompts": ["a", " "]}, "names no prompt or trigger word; give one for each file with --prompt"),
        ({"kinds": ["content", "look"]}, "kinds: expected one of content, style, got 'look'"),
        ({"changes": {"masks": "output"}}, "masks: many LoRAs at once need 'rank'"),
        ({"format": "masks"}, "format: expected one of"),
    ):
        with pytest.raises(InputError, match=message):
            at_once(sources, base, out, **{"prompts": (), **given})
    with pytest.raises(InputError, match="at least two LoRA files"):
        at_once(sources[:1], base, out, ("a cat",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "oneshot", "--weight", "1"], "--weight: one-shot masks weigh the files"),
        (["--prompt", "a"], "--prompt: the exact sum trains nothing"),
        (["--method", "best"], "--method: expected one of sum, oneshot, got 'best'"),
    ],
)
def test_the_command_names_what_does_not_fit(sources, tmp_path, words, message):
    done = run("compose", *sources, "--out", tmp_path / "x.safetensors", *words)
    assert done.exit_code == 1 and message in done.stderr
