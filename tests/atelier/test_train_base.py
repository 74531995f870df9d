"""The recipe: starting from another pipeline's weights, and never from data or checkpoints of another recipe."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from duolora.atelier import data, train_vae
from duolora.atelier.architecture import new_vae, save_tokenizer
from duolora.atelier.data import as_input, base_picture, cache_path, made
from duolora.atelier.made_by import NAME, noted, weights_of
from duolora.atelier.train_base import BaseRecipe, TextToImage, take_weights, train_base
from duolora.atelier.train_recogniser import RecogniserRecipe
from duolora.atelier.train_recogniser import train_recogniser as train_judges
from duolora.atelier.train_vae import VaeRecipe, save_vae
from duolora.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(tmp_path):
    """A folder with the weights of an untrained base that knows two words."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer", ["house", "red"])
    model = TextToImage(tokenizer)
    for name, network in model.named_children():
        (tmp_path / name).mkdir()
        weights = "diffusion_pytorch_model" if name == "unet" else "model"
        save_file(network.state_dict(), tmp_path / name / f"{weights}.safetensors")
    return tmp_path, tokenizer, model


def test_weights_are_taken_and_words_matched_by_their_spelling(pipeline, tmp_path):
    folder, old_words, old = pipeline
    words = save_tokenizer(tmp_path / "new", ["blue", "house", "red"])
    model = TextToImage(words)
    fresh = {w: model.text_encoder.get_input_embeddings().weight[i].clone() for w, i in words.get_vocab().items()}
    take_weights(model, words, folder)
    for key, value in old.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[key], value)
    for name in ("text_encoder", "text_encoder_2"):
        mine, theirs = (getattr(m, name).get_input_embeddings().weight for m in (model, old))
        for word in ("house</w>", "red</w>", "<|endoftext|>", "q"):
            assert torch.equal(mine[words.get_vocab()[word]], theirs[old_words.get_vocab()[word]])
    blue = words.get_vocab()["blue</w>"]
    assert torch.equal(model.text_encoder.get_input_embeddings().weight[blue], fresh["blue</w>"])


def test_another_architecture_is_refused(pipeline, tmp_path):
    folder, words, model = pipeline
    state = {k: v[..., :1].contiguous() if v.ndim == 2 else v for k, v in model.unet.state_dict().items()}
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        take_weights(TextToImage(words), words, folder)


def test_pictures_of_another_renderer_seed_or_number_have_another_name(tmp_path, monkeypatch):
    path = cache_path(tmp_path, "base", 4, 1)
    assert path == cache_path(tmp_path, "base", 4, 1)
    others = {cache_path(tmp_path, "base", 5, 1), cache_path(tmp_path, "base", 4, 2)}
    monkeypatch.setattr(data, "renderer_hash", lambda: "another")
    others.add(cache_path(tmp_path, "base", 4, 1))
    assert len(others | {path}) == 4


def test_a_stopped_write_of_pictures_is_made_anew(tmp_path):
    cache = cache_path(tmp_path, "base", 3, 1)
    pixels, texts = made(base_picture, 3, 1, cache)
    cache.with_suffix(".json").unlink()
    np.save(cache.with_suffix(".npy"), pixels[:1])
    again, same = made(base_picture, 3, 1, cache)
    assert np.array_equal(pixels, again)
    assert texts == same
    assert np.array_equal(made(base_picture, 3, 1, cache)[0], pixels)


def test_the_vae_is_scaled_by_its_latents_in_batches(tmp_path, monkeypatch):
    torch.manual_seed(0)
    vae = new_vae()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), dtype=np.uint8)
    sizes, encode = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: sizes.append(len(x)) or encode(x))
    save_vae(vae, pixels, tmp_path)
    assert sizes == [64, 64, 22]
    with torch.no_grad():
        whole = encode(as_input(pixels[::2])).latent_dist.mean
    assert vae.config.scaling_factor == pytest.approx(float(1 / whole.std()), rel=1e-4)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with a VAE and judges of tiny recipes; and how many updates each call makes."""
    updates, step = [0], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda *a, **k: updates.__setitem__(0, updates[0] + 1) or step(*a, **k)
    )

    def count(train, recipe, *start):
        updates[0] = 0
        train(tmp_path, recipe, CPU, *start)
        return updates[0]

    return tmp_path, count


def test_another_recipe_or_vae_begins_anew_and_the_same_one_goes_on(runs):
    folder, count = runs
    vae, judges = VaeRecipe(pictures=4, updates=2, batch=2), RecogniserRecipe(pictures=4, updates=2, batch=2)
    assert count(train_vae.train_vae, vae) == 2
    assert count(train_vae.train_vae, vae) == 0, "it was finished"
    assert count(train_judges, judges) == 2
    assert count(train_judges, judges) == 0
    assert len(list(folder.glob("judged-pictures-*-vae-*.npy"))) == 1
    assert count(train_vae.train_vae, replace(vae, lr=1e-3)) == 2
    assert count(train_judges, judges) == 2, "the VAE is another"
    assert len(list(folder.glob("judged-pictures-*-vae-*.npy"))) == 2
    assert count(train_judges, replace(judges, seed=4)) == 2
    with pytest.raises(InputError, match="found no base"):
        noted(folder)
    facts = json.loads((folder / f"judges.{NAME}").read_text())
    assert facts["recipe"]["seed"] == 4
    assert (facts["updates"], facts["pictures_seen"]) == (2, 4)
    assert set(weights_of(folder / "vae")) == {"diffusion_pytorch_model.safetensors"}


def test_a_base_that_starts_from_another_one_is_another_and_notes_it(runs):
    folder, count = runs
    count(train_vae.train_vae, VaeRecipe(pictures=4, updates=1, batch=1))
    count(train_judges, RecogniserRecipe(pictures=4, updates=1, batch=2))
    recipe = BaseRecipe(pictures=8, updates=1, batch=2)
    assert count(train_base, recipe) == 1
    assert count(train_base, recipe) == 0
    assert noted(folder)["base"]["start_from"] is None
    shutil.move(folder / "base", folder / "first")
    start = weights_of(folder / "first")
    assert count(train_base, recipe, folder / "first") == 1
    assert noted(folder)["base"]["start_from"] == start
