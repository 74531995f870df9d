"""The nodes as ComfyUI calls them, with duolora itself on a tiny base."""

import inspect
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import duolora
from duolora.lora.read.file import read_adapter

PACK = Path(__file__).parents[2] / "comfyui"
GRAPH = {
    "1": {"ckpt_name": "tiny"},
    "2": {"model": ["1", 0], "lora_name": "other.safetensors"},
    "3": {"model": ["2", 0]},
    "4": {"unet_name": "tiny"},
    "5": {"model": ["4", 0]},
}
"""A checkpoint, a LoRA loader on it and our node 3 behind that; node 5 is behind a loader that names no checkpoint."""
pytestmark = pytest.mark.usefixtures("few_steps", "unloaded")


def images(seed):
    """Two of ComfyUI's images, as its nodes have them."""
    with torch.inference_mode():
        return torch.rand(2, 20, 24, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def graph(comfy, folder):
    """The graph, with the tiny base for its checkpoint."""
    (comfy.root / "checkpoints" / "tiny").symlink_to(folder)
    return SimpleNamespace(get_node=lambda node: {"inputs": GRAPH[node]})


@pytest.fixture
def merge(nodes, graph):
    """Our node 3, run as ComfyUI runs its nodes: where no gradient is possible."""

    def run(method="naive", content_strength=1.0, style_strength=1.0, steps=2, seed=0, **more):
        given = {"graph": graph, "node_id": "3", "content_images": images(0), "style_images": images(1)} | more
        node = nodes.NODE_CLASS_MAPPINGS["DuoLoRAMerge"]()
        names = ("content.safetensors", "style.safetensors")
        with torch.inference_mode():
            done = node.merge(
                ("m",), ("c",), *names, method, content_strength, style_strength, steps, seed,
                **given,
            )  # fmt: skip
        return done["result"]

    return run


def delta(tensors):
    """ΔW of each module of a file in kohya's names."""
    found = {}
    for key in (key for key in tensors if key.endswith(".lora_up.weight")):
        stem = key.removesuffix(".lora_up.weight")
        up, down = tensors[key].float(), tensors[f"{stem}.lora_down.weight"].float()
        found[stem] = up @ down * (tensors[f"{stem}.alpha"].item() / down.shape[0])
    return found


def added(patches):
    """ΔW of all patches together, each at its strength."""
    found = {}
    for lora, strength in patches:
        for name, value in delta(lora).items():
            found[name] = found.get(name, 0) + strength * value
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=2e-3, atol=1e-4)


def test_a_merge_is_saved_among_the_loras_and_applied_at_full_strength(comfy, merge, loras):
    model, clip, name = merge(content_strength=0.5)
    assert name in comfy.files("loras") and Path(name).parent.name == "duolora"
    (start, (lora, strength)), (_, (text, strength_clip)) = model, clip
    assert (start, strength, strength_clip) == ("m", 1, 1) and lora is text
    content, style = (read_adapter(path).modules for path in loras)
    written = read_adapter(comfy.root / "loras" / name).modules
    for module, value in written.items():
        expected = 0.5 * content[module].delta() + style[module].delta()
        torch.testing.assert_close(value.delta(), expected, rtol=2e-3, atol=1e-4)
    assert len(written) == len(delta(lora))


def test_masks_are_trained_on_the_checkpoint_that_the_model_is_from(comfy, merge, loras, base, tmp_path):
    *_, name = merge("duolora", content_images=None, style_images=None)
    options = duolora.options_of("duolora", steps=2)
    expected = duolora.merge(*loras, tmp_path / "own.safetensors", "duolora", base, options=options, progress=False)
    made, own = read_adapter(comfy.root / "loras" / name), read_adapter(expected.path)
    assert made.metadata["base_weights"] == base.weights_hash()
    for module, value in own.modules.items():
        assert torch.equal(value.up, made.modules[module].up)


def test_the_bar_ends_where_it_should_and_words_say_what_is_done(comfy, merge):
    merge("ziprank", steps=12)
    (bar,) = comfy.bars
    assert bar.seen == [(1, 12), (11, 12), (12, 12)]
    assert {node for node, _ in comfy.said} == {"3"}
    assert [text.split(":")[0] for _, text in comfy.said][:3] == [
        "Loading tiny", "Calibrating on images", "Training the masks",
    ]  # fmt: skip


@pytest.mark.parametrize(("call", "given"), [(2, None), (12, images(0))])
def test_stop_ends_the_work_while_images_are_generated_and_while_masks_are_trained(comfy, merge, call, given):
    comfy.stop_at = call
    with pytest.raises(comfy.Interrupted):
        merge("ziprank", steps=300, content_images=given, style_images=given)
    assert bool(comfy.bars[0].seen) == (given is not None), "where it was stopped"
    assert not [name for name in comfy.files("loras") if name.endswith("safetensors") and "ziprank" in name]
    comfy.stop_at = None
    assert merge("ziprank", steps=1)[2] in comfy.files("loras")


def test_what_was_made_once_is_not_made_again(comfy, merge, monkeypatch):
    *_, name = merge("ziprank")
    monkeypatch.setattr(duolora, "merge", None)
    *_, again = merge("ziprank")
    assert again == name


@pytest.mark.parametrize(
    "change",
    [
        {"content_strength": 0.5}, {"style_strength": 0.5}, {"seed": 1}, {"steps": 3}, {"content_prompt": "a cat"},
        {"style_prompt": "a cat"}, {"merged_prompt": "a cat"}, {"content_images": images(2)},
        {"style_images": images(2)}, {"method": "ziplora"},
    ],
)  # fmt: skip
def test_every_input_makes_another_file(merge, monkeypatch, nodes, change):
    asked = []

    def remember(content, style, out, *more, **named):
        asked.append(out)
        return real(content, style, out, "naive")

    real = duolora.merge
    monkeypatch.setattr(duolora, "merge", remember)
    merge("ziprank")
    merge(**{"method": "ziprank"} | change)
    assert len(set(asked)) == 2


def test_another_file_under_the_same_name_is_noticed(comfy, nodes, merge):
    node, names = nodes.NODE_CLASS_MAPPINGS["DuoLoRAMerge"], ("content.safetensors", "style.safetensors")
    before, (*_, name) = node.IS_CHANGED(*names, method="naive"), merge()
    assert node.IS_CHANGED(*names, method="naive") == before
    style = comfy.root / "loras" / "style.safetensors"
    style.write_bytes((comfy.root / "loras" / "content.safetensors").read_bytes())
    assert node.IS_CHANGED(*names, method="naive") != before
    assert merge()[2] != name


def test_images_are_read_as_they_are(comfy, merge, base, loras, tmp_path):
    given = images(3)
    *_, name = merge("ziprank", content_images=given, style_images=given[:1])
    for k, pixels in enumerate(given):
        Image.fromarray((pixels * 255).round().byte().numpy()).save(tmp_path / f"{k}.png")
    own = duolora.merge(
        *loras, tmp_path / "own.safetensors", "ziprank", base, tmp_path, tmp_path / "0.png",
        options=duolora.options_of("ziprank", steps=2), progress=False,
    )  # fmt: skip
    made = read_adapter(comfy.root / "loras" / name)
    assert all(torch.equal(lora.up, made.modules[n].up) for n, lora in read_adapter(own.path).modules.items())


def test_a_model_of_no_checkpoint_is_refused_with_what_to_do(merge):
    with pytest.raises(duolora.InputError, match="no node above `model` names one; choose it under `base`"):
        merge("ziprank", node_id="5")
    merge("naive", node_id="5")
    merge("ziprank", node_id="5", base="tiny")


def test_a_transformers_base_is_one_of_the_folders_for_diffusers(comfy, nodes, merge, folder):
    (comfy.root / "diffusers" / "other").mkdir(parents=True)
    (comfy.root / "diffusers" / "FLUX").symlink_to(folder)
    shown = nodes.NODE_CLASS_MAPPINGS["DuoLoRAMerge"].INPUT_TYPES()["optional"]["base"][0]
    assert shown[-1] == "FLUX (diffusers)" and not any("other" in name for name in shown)
    *_, name = merge("ziprank", node_id="5", base="FLUX (diffusers)")
    assert read_adapter(comfy.root / "loras" / name).metadata["base"].endswith("FLUX")


@pytest.fixture
def reweight(nodes):
    """One node, as ComfyUI keeps it from run to run."""
    node = nodes.NODE_CLASS_MAPPINGS["DuoLoRAReweight"]()
    return lambda *given, **more: node.reweight(("m",), ("c",), *given, **more)


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_parts_of_a_merge_are_weighed_without_training(comfy, merge, reweight, tmp_path, strengths):
    *_, name = merge("ziprank")
    model, clip, same = reweight(name, *strengths, False)
    own = duolora.convert(
        comfy.root / "loras" / name, tmp_path / "own.safetensors", dtype="float32",
        content_weight=strengths[0], style_weight=strengths[1],
    )  # fmt: skip
    assert_same(added(model[1:]), delta(load_file(own.paths[0])))
    assert same == name and [strength for _, strength in clip[1:]] == list(strengths)


def test_sliders_read_nothing_again_and_a_new_file_is_read(merge, reweight, monkeypatch):
    *_, first = merge()
    *_, second = merge(content_strength=0.5)
    whole = added(reweight(first, 0.5, 1.0, False)[0][1:])
    assert_same(whole, added(reweight("content.safetensors", 1.0, 1.0, False, merged=second)[0][1:]))
    monkeypatch.setattr(duolora, "convert", None)
    assert_same(whole, added(reweight(second, 1.0, 1.0, False)[0][1:]))


def test_the_weighed_merge_is_saved_if_asked(comfy, merge, reweight):
    *_, name = merge("naive")
    _, _, saved = reweight(name, 0.5, 1.5, True)
    assert saved in comfy.files("loras") and saved.endswith("-content0.5-style1.5.safetensors")
    written = read_adapter(comfy.root / "loras" / saved).metadata
    assert written["weights"] == {"content": 0.5, "style": 1.5}


def test_a_lora_that_is_no_merge_has_no_parts(reweight):
    with pytest.raises(duolora.FileRefused, match="expected a merge whose header says"):
        reweight("content.safetensors", 1.0, 1.0, False)


def test_inspect_gives_text_and_an_image(comfy, nodes, merge):
    *_, name = merge("naive")
    node = nodes.NODE_CLASS_MAPPINGS["DuoLoRAInspect"]()
    done = node.inspect("content.safetensors", merged=name)
    text, image = done["result"]
    assert name in text and "naive" in text and "content.safetensors, style.safetensors" in text
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[3] == 3
    assert 0 <= image.min() < image.max() <= 1
    (shown,) = done["ui"]["images"]
    assert (comfy.root / "temp" / shown["filename"]).is_file()
    compared = node.inspect(name, other="style.safetensors")["result"][0]
    assert "share_in_style_part" in compared and "share_in_style_part" not in text


def test_each_node_takes_what_it_asks_for(nodes):
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        asked = node.INPUT_TYPES()
        names = [name for part in asked.values() for name in part]
        taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert names == [name for name in taken if name != "self"] or set(names) == set(taken) - {"self"}
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)


def test_the_example_fits_the_nodes(nodes):
    found = json.loads((PACK / "example_workflows" / "merge.json").read_text())
    ours = [node for node in found["nodes"] if node["type"] in nodes.NODE_CLASS_MAPPINGS]
    assert {node["type"] for node in ours} == {"DuoLoRAMerge", "DuoLoRAInspect"}
    for node in ours:
        kind = nodes.NODE_CLASS_MAPPINGS[node["type"]]
        asked = {k: v for part in ("required", "optional") for k, v in kind.INPUT_TYPES().get(part, {}).items()}
        sockets = [
            k for k, (type_, *more) in asked.items() if type_ in ("MODEL", "CLIP", "IMAGE") or "forceInput" in str(more)
        ]
        assert [each["name"] for each in node["inputs"]] == sockets
        assert [(each["name"], each["type"]) for each in node["outputs"]] == list(
            zip(kind.RETURN_NAMES, kind.RETURN_TYPES, strict=True)
        )
        widgets = dict(zip([k for k in asked if k not in sockets], node["widgets_values"], strict=True))
        for name, value in widgets.items():
            type_ = asked[name][0]
            assert (
                value in type_
                if isinstance(type_, list)
                else isinstance(value, {"STRING": str, "FLOAT": float, "INT": int}[type_])
            )


def test_pickles_are_not_listed(comfy, nodes):
    (comfy.root / "loras" / "old.pt").write_bytes(b"")
    (listed, *_) = nodes.NODE_CLASS_MAPPINGS["DuoLoRAInspect"].INPUT_TYPES()["required"]["lora_name"]
    assert listed == ["content.safetensors", "style.safetensors"]


def test_the_pack_has_the_packages_version():
    assert tomllib.loads((PACK / "pyproject.toml").read_text())["project"]["version"] == duolora.__version__
