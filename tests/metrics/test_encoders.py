"""One call shape; the right token of the right network; and no checkpoint loads that is not whole."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, CLIPConfig, ViTConfig, ViTModel

from duolora.atelier.classifier import classify, load_classifier
from duolora.atelier.data import as_input
from duolora.atelier.objects import OBJECTS
from duolora.atelier.scene import render
from duolora.atelier.styles import STYLES
from duolora.errors import FileRefused, InputError, Notice
from duolora.metrics import vision
from duolora.metrics.encoders import ATELIER, load_embedder
from duolora.metrics.similarity import all_pairs_mean, cosines
from duolora.metrics.transforms import CLIP, DINO
from duolora.model.image_files import read_image
from patterns import pattern
from recipes.atelier.architecture import save_tokenizer
from recipes.atelier.report import scenes_of

IMAGES = [pattern(90, 61), pattern(64, 64, 1), pattern(31, 47, 2)]


@pytest.fixture(params=["dino", "dinov2", "clip", *ATELIER])
def embedder(request):
    name = request.param
    return load_embedder(name, None if name in ATELIER else request.getfixturevalue(name), "cpu")


def test_images_in_unit_rows_out_in_any_batch(embedder):
    rows = embedder(IMAGES)
    assert rows.dtype == torch.float32
    assert rows.shape[0] == 3
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    one_by_one = torch.cat([embedder([image]) for image in IMAGES])
    torch.testing.assert_close(rows, one_by_one, atol=1e-5, rtol=0)
    assert (cosines(rows, rows) - torch.eye(3)).abs().max() < 1 + 1e-5
    assert all_pairs_mean(rows[:1], rows[1:]) < 1 - 1e-4


def test_the_card_says_what_it_is(embedder):
    card = embedder.card
    assert "resize" in card.transform
    assert len(card.fingerprint) == 64
    assert card.atelier == card.name.startswith("atelier")
    if card.name == "dino":
        assert card.architecture == "vit, width 32, patch 16"


def test_dino_is_the_normed_class_token(dino):
    network = AutoModel.from_pretrained(dino, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = network(torch.stack([DINO(i) for i in IMAGES]), output_hidden_states=True).hidden_states[-1]
        expected = torch.nn.functional.normalize(network.layernorm(hidden)[:, 0], dim=1)
    torch.testing.assert_close(load_embedder("dino", dino, "cpu")(IMAGES), expected, atol=1e-5, rtol=0)


def test_clip_is_both_projected_towers(clip):
    network = AutoModel.from_pretrained(clip).eval()
    embedder, texts = load_embedder("clip", clip, "cpu"), ["a red cat", "house"]
    from transformers import CLIPTokenizer

    tokens = CLIPTokenizer.from_pretrained(clip)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = network(**tokens, pixel_values=torch.stack([CLIP(i) for i in IMAGES]))
    torch.testing.assert_close(embedder(IMAGES), found.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(embedder(texts), found.text_embeds, atol=1e-5, rtol=0)


def test_clip_texts_do_not_depend_on_their_neighbours_or_end(clip):
    embedder = load_embedder("clip", clip, "cpu")
    with pytest.warns(Notice, match="longer than CLIP reads; .*house.* counts for nothing") as told:
        rows = embedder(["cat", "a red house " * 200])
    assert len(told) == 1
    torch.testing.assert_close(rows[:1], embedder(["cat"]), atol=1e-5, rtol=0)


def test_of_an_encoder_no_index_leads_to_a_pickle_and_no_pipe_is_read(clip, tmp_path, monkeypatch):
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / "evil.bin").write_bytes(b"\x80\x04")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"logit_scale": "evil.bin"}}))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(FileRefused, match=r"it names 'evil\.bin'.*pickles are never opened"):
        load_embedder("clip", folder, "cpu")
    index.unlink()
    os.mkfifo(folder / "preprocessor_config.json")
    with pytest.raises(FileRefused, match="expected a regular file, found a pipe"):
        load_embedder("clip", folder, "cpu")


def test_the_identity_is_the_weights_not_the_place(dino, tmp_path):
    shutil.copytree(dino, tmp_path / "copy")
    here, there = (load_embedder("dino", p, "cpu").card for p in (dino, tmp_path / "copy"))
    assert here.identity == there.identity
    change(tmp_path / "copy", lambda s: s | {next(iter(s)): next(iter(s.values())) + 1})
    assert load_embedder("dino", tmp_path / "copy", "cpu").card.identity != here.identity


def change(folder, edit):
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, {"format": "pt"})


def without(state, part):
    return {k: v for k, v in state.items() if part not in k}


@pytest.mark.parametrize("name", ["dino", "dinov2", "clip"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: dict(sorted(s.items())[1:]), "is missing"),
        (lambda s: s | {"extra.weight": torch.zeros(3)}, "extra.weight is unexpected"),
        (lambda s: {k: v[:-1].clone() if v.ndim == 2 else v for k, v in s.items()}, "is of another shape"),
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, "keys"),
    ],
)
def test_keys_that_do_not_match_are_an_error(name, edit, message, request, tmp_path):
    shutil.copytree(request.getfixturevalue(name), tmp_path / "x")
    change(tmp_path / "x", edit)
    with pytest.raises(FileRefused, match=f"{message}.*(expected|get the)"):
        load_embedder(name, tmp_path / "x", "cpu")


def test_a_pooling_layer_that_is_not_used_is_no_fault(tmp_path):
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    assert load_embedder("dino", tmp_path, "cpu")(IMAGES).shape == (3, 32)


def test_positions_that_openais_clip_stores_as_numbers_are_no_fault(clip, tmp_path):
    """The published checkpoint holds 0, 1, 2, … of both towers, which no network needs."""
    shutil.copytree(clip, tmp_path / "x")
    ids = {f"{t}_model.embeddings.position_ids": torch.arange(9)[None] for t in ("text", "vision")}
    change(tmp_path / "x", lambda s: s | {k: v.clone() for k, v in ids.items()})
    torch.testing.assert_close(
        load_embedder("clip", tmp_path / "x", "cpu")(IMAGES), load_embedder("clip", clip)(IMAGES)
    )


def test_wrong_damaged_pickled_and_missing_checkpoints_say_so(dino, clip, tmp_path):
    with pytest.raises(FileRefused, match="expected a model of type vit for dino, found clip"):
        load_embedder("dino", clip, "cpu")
    with pytest.raises(FileRefused, match="expected a model of type clip, found vit"):
        load_embedder("clip", dino, "cpu")
    with pytest.raises(FileRefused, match=r"no config\.json"):
        load_embedder("dino", tmp_path, "cpu")
    shutil.copy(dino / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(FileRefused, match=r"pickled.*model\.safetensors"):
        load_embedder("dino", tmp_path, "cpu")
    (tmp_path / "model.safetensors").write_bytes((dino / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(FileRefused, match="cannot be loaded"):
        load_embedder("dino", tmp_path, "cpu")
    with pytest.raises(InputError, match="expected a folder in transformers' layout or a hub id"):
        load_embedder("dino", "./nowhere", "cpu")
    with pytest.raises(InputError, match="expected one of dino, dinov2"):
        load_embedder("dino3", None, "cpu")
    with pytest.raises(InputError, match="leave the checkpoint out"):
        load_embedder("atelier-style", dino, "cpu")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no such folder here, and the hub gave no model of that id.*local copy"):
        load_embedder("dino", "nobody/no-such-model", "cpu")


def test_wrong_items_are_refused(dino, clip):
    with pytest.raises(InputError, match="at least one image or text"):
        load_embedder("dino", dino, "cpu")([])
    with pytest.raises(InputError, match="reads no texts; use clip"):
        load_embedder("dino", dino, "cpu")(["cat"])
    with pytest.raises(InputError, match="got a mixture"):
        load_embedder("clip", clip, "cpu")(["cat", IMAGES[0]])


@pytest.fixture(scope="module")
def renders():
    from PIL import Image

    scenes = scenes_of(tuple(OBJECTS), tuple(STYLES), 160, seed=5)
    return [Image.fromarray(render(s)) for s in scenes], scenes


def test_atelier_text_is_a_mean_over_the_questions_asked(renders):
    images, _ = renders
    embedder, logits = load_embedder("atelier-text", None, "cpu"), {}
    from duolora.metrics.transforms import ATELIER as AS_SHOWN

    with torch.no_grad():
        logits = load_classifier()(torch.stack([AS_SHOWN(i) for i in images[:5]]))
    p = {name: value.softmax(1) for name, value in logits.items()}
    cat, red = p["object"][:, tuple(OBJECTS).index("cat")], p["colour"][:, 0]
    found = cosines(embedder(images[:5]), embedder(["a red cat"]))[:, 0]
    torch.testing.assert_close(found, 2**0.5 / 2 * (cat.sqrt() + red.sqrt()) / 2, atol=1e-5, rtol=0)
    assert not torch.equal(embedder(["a cat in neon style"]), embedder(["a cat in sepia style"]))


@pytest.mark.parametrize(
    ("name", "truth"), [("atelier-content", "object"), ("atelier-style", "style"), ("atelier-csd", "style")]
)
def test_ateliers_encoders_see_what_they_are_for(name, truth, renders):
    """Two images with the same object (style) are closer than two with others in more than 95 of 100 cases."""
    images, scenes = renders
    labels = [s.objects[0].kind if truth == "object" else s.style for s in scenes]
    rows = load_embedder(name, None, "cpu")(images)
    table = cosines(rows, rows)
    same = torch.tensor([[a == b for a in labels] for b in labels])
    alike, other = table[same & ~torch.eye(len(labels), dtype=torch.bool)], table[~same]
    assert (alike[:, None] > other[None]).float().mean() > 0.95


def test_atelier_text_scores_what_the_image_shows(renders):
    images, scenes = renders
    embedder = load_embedder("atelier-text", None, "cpu")
    rows = embedder(images[:40])
    right = embedder([f"a {s.objects[0].kind} in {s.style} style" for s in scenes[:40]])
    wrong = right.roll(7, 0)
    scores = cosines(rows, right).diagonal()
    assert scores.mean() > cosines(rows, wrong).diagonal().mean() + 0.3
    assert 0.9 * 0.5**0.5 < scores.median() < 0.5**0.5 + 1e-5
    with pytest.raises(InputError, match="a sks thing in zwx.*say it in words"):
        embedder(["a sks thing in zwx style"])


def test_atelier_images_are_read_as_the_classifier_reads_them(renders):
    """The transform gives what the classifier was trained on, so both agree on a file."""
    images, _ = renders
    import numpy as np

    from duolora.metrics.transforms import ATELIER as AS_SHOWN

    shown = torch.stack([AS_SHOWN(i) for i in images[:20]])
    direct = as_input(np.stack([np.asarray(i) for i in images[:20]]))
    assert classify(load_classifier(), shown) == classify(load_classifier(), direct)


def test_a_file_and_its_image_are_the_same(generated, dino):
    embedder = load_embedder("dino", dino, "cpu")
    files = sorted(generated.iterdir())
    torch.testing.assert_close(embedder([read_image(f) for f in files]), embedder(IMAGES), atol=1e-5, rtol=0)


def test_heads_that_a_config_leaves_out_are_not_made_up(dino, tmp_path):
    """Transformers takes twelve, whatever the weights were trained with; their shapes do not tell."""
    shutil.copytree(dino, tmp_path / "dino")
    config = json.loads((dino / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "dino" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileRefused, match=r"config\.json: num_attention_heads: expected a number, found none"):
        load_embedder("dino", tmp_path / "dino", "cpu")


def changed(source, folder, tower, **changes):
    """A copy whose config has other values in a tower, or none where a value is None."""
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    config[tower] = {key: value for key, value in (config[tower] | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_heads_of_clip_that_a_config_leaves_out_are_not_made_up(clip, tmp_path):
    """Transformers takes eight in the tower for texts, and all weights fit."""
    spoilt = changed(clip, tmp_path / "clip", "text_config", num_attention_heads=None)
    with pytest.raises(FileRefused, match=r"config\.json: text_config: num_attention_heads: expected a number"):
        load_embedder("clip", spoilt, "cpu")


def test_a_config_that_the_hub_library_refuses_is_one_line(clip, tmp_path):
    """Its errors are of no class of Python's."""
    spoilt = changed(clip, tmp_path / "clip", "vision_config", num_attention_heads=5)
    with pytest.raises(FileRefused, match="clip: cannot be loaded: .*attention heads") as caught:
        load_embedder("clip", spoilt, "cpu")
    assert "\n" not in str(caught.value)


def test_towers_of_the_usual_width_may_leave_out_their_heads(monkeypatch):
    """As older versions of transformers save CLIP ViT-B/32: only what is not as in the class."""
    usual = CLIPConfig()
    monkeypatch.setattr(
        vision, "_opened", lambda source, load: {"text_config": {}, "vision_config": {"patch_size": 32}}
    )
    vision._check_heads("here", usual, "text_config", "vision_config")
    wider = CLIPConfig(vision_config={"hidden_size": 1536})
    with pytest.raises(FileRefused, match="vision_config: num_attention_heads"):
        vision._check_heads("here", wider, "text_config", "vision_config")


def test_the_end_of_a_text_is_the_tokenizers(clip, tmp_path):
    """Left out, it is the published tokenizer's, which these texts do not have, so that the first token's counts."""
    spoilt = changed(clip, tmp_path / "clip", "text_config", eos_token_id=None)
    with pytest.raises(FileRefused, match="eos_token_id: expected .*, the tokenizer's, found 49407"):
        load_embedder("clip", spoilt, "cpu")


def test_a_clip_without_its_own_tokenizer_is_refused(clip, tmp_path):
    """Transformers makes one of two words up, for which every text is the same."""
    bare = tmp_path / "bare"
    shutil.copytree(clip, bare, ignore=shutil.ignore_patterns("vocab.json", "merges.txt", "tokenizer*", "special*"))
    with pytest.raises(FileRefused, match="its tokenizer has .* tokens, its text encoder"):
        load_embedder("clip", bare, "cpu")


def test_published_sizes_must_read_as_published(clip, monkeypatch):
    monkeypatch.setattr(vision, "PUBLISHED", AutoConfig.from_pretrained(clip).text_config.vocab_size)
    with pytest.raises(FileRefused, match="its tokenizer reads 'a photo of a cat' as"):
        load_embedder("clip", clip, "cpu")


def test_the_tokens_are_in_the_fingerprint(clip, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clip, other)
    save_tokenizer(other, ["dog", "house", "red"])
    here, there = (load_embedder("clip", place, "cpu").card.fingerprint for place in (clip, other))
    assert here != there
