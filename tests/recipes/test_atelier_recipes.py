"""How the weights are made: exact latents, a written encoder, Muon, and a run that goes on from its state."""

import json
import re
import time
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from duolora.atelier.data import as_input
from duolora.atelier.family import improvise
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.styles import BASE_STYLES
from duolora.model.defaults import base_path
from recipes.atelier import base, latents, probe, rendered, text, vae
from recipes.atelier.architecture import new_vae
from recipes.atelier.data import vae_image, vocabulary
from recipes.atelier.muon import Muon, orthogonalised


@cache
def images(number=6):
    return as_input(np.stack([vae_image(seed)[0] for seed in range(number)]))


@pytest.fixture(scope="module")
def words():
    """Those of a few scenes; of all that the base was trained on they are more."""
    return vocabulary(300)


@pytest.fixture(scope="module")
def tokenizer():
    """The one that ships."""
    return CLIPTokenizer.from_pretrained(base_path("atelier") / "tokenizer")


def test_words_of_captions_are_tokens(words, tokenizer):
    assert len(words) > 100
    assert all(tokenizer.tokenize(word) == [f"{word}</w>"] for word in words)


def test_latents_there_and_back():
    torch.testing.assert_close(latents.decode(latents.encode(images())), images(), rtol=0, atol=1e-5)


def test_latents_have_unit_variance_and_coarse_varies_more_than_fine():
    found = latents.encode(as_input(np.stack([vae_image(2 * seed)[0] for seed in range(100)])))
    assert found.std() == pytest.approx(1, abs=0.1)
    spread = found.std((0, 2, 3)).reshape(3, 4)
    assert (spread[:, 0] > spread[:, 1:].amax(1)).all()


def test_the_written_encoder_computes_the_exact_latents():
    network = new_vae()
    vae.write_encoder(network)
    with torch.no_grad():
        found = network.encode(images()).latent_dist
    torch.testing.assert_close(found.mean, latents.encode(images()), rtol=0, atol=2e-3)
    assert (found.std < 0.01).all()


def test_the_decoder_learns():
    torch.manual_seed(0)
    network = new_vae()
    optimiser = torch.optim.AdamW(network.decoder.parameters(), lr=3e-3)
    losses = []
    for step in range(6):
        loss = vae.decoder_loss(network, images(), torch.Generator().manual_seed(step))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 99))
def test_muon_brings_singular_values_near_one(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(orthogonalised(matrix[None]))[0]
    large = torch.linalg.svdvals(matrix / matrix.norm()) > 0.02
    assert (values[large] > 0.5).all()
    assert (values < 1.3).all()


def test_muon_goes_downhill():
    weight = torch.nn.Parameter(torch.zeros(6, 4, 3, 3))
    target = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimiser = Muon([weight], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture(scope="module")
def run(tokenizer):
    return base.Run(base.Recipe(batch=2, poses=3), tokenizer, torch.device("cpu"))


def test_the_mean_of_poses_is_the_usual_target_where_noise_hides_nothing(run, tokenizer):
    """With one pose the target is the usual one; more poses change it only at timesteps at which they are in doubt."""
    pixels, tokens = next(iter(rendered.Rendered(tokenizer, 8, 4, 0, 1)))
    with torch.no_grad():
        several, timesteps = run.loss(pixels, tokens, torch.Generator().manual_seed(3))
        usual, _ = run.loss(pixels[:, :1], tokens, torch.Generator().manual_seed(3))
    quiet = timesteps < 300
    assert quiet.any()
    torch.testing.assert_close(several[quiet], usual[quiet], rtol=1e-3, atol=1e-3)
    assert (several - usual)[~quiet].abs().max() > 1e-3


def test_processes_never_render_the_same(tokenizer):
    first, second = (next(iter(rendered.Rendered(tokenizer, 6, 1, rank, 2)))[0] for rank in (0, 1))
    again = next(iter(rendered.Rendered(tokenizer, 6, 1, 0, 2)))[0]
    assert torch.equal(first, again)
    assert not {image.numpy().tobytes() for image in first} & {image.numpy().tobytes() for image in second}


def told_images(batches):
    for pixels, tokens in batches:
        yield from zip(pixels, map(tuple, tokens.tolist()), strict=True)


def test_a_pool_samples_what_was_rendered_in_any_pose_until_it_is_full(tokenizer):
    pool = rendered.Pool(tokenizer, 8, 2, 64, 3, 2)
    batches = pool.on(torch.device("cpu"))
    next(batches)
    while pool.counts.sum() < 64:
        time.sleep(0.01)
    batch = [next(iter(rendered.Rendered(tokenizer, 32, 2, first, 2))) for first in (3, 4)]
    made = {(pose.numpy().tobytes(), told) for image, told in told_images(batch) for pose in image}
    shown = {(image[0].numpy().tobytes(), told) for image, told in told_images(next(batches) for _ in range(60))}
    assert shown <= made
    assert len(shown) > len(made) / 2


def test_text_encoders_learn_what_captions_say(words):
    """From the tokens' states and from the pooled vector; only what a scene has is asked."""
    truth = text.Truth(range(24), {word: n for n, word in enumerate(words)})
    for caption, places, style in zip(truth.texts, truth.places, truth.style, strict=True):
        asked = (places[:, 0] >= 0).nonzero().flatten().tolist()
        assert asked == [k for k, (number, _) in enumerate(text.SLOTS) if number == len(asked)]
        named = [kind for kind in BASE_OBJECTS if kind in re.findall("[a-z]+", caption)]
        assert {BASE_OBJECTS.index(kind) for kind in named} <= set(places[asked, 0].tolist())
        assert style == len(BASE_STYLES) or BASE_STYLES[style] in caption or BASE_STYLES[style] == "flat"


def test_every_said_word_of_a_feature_is_asked_where_it_stands():
    words = sorted({word for caption in text.Truth(range(60), {}).texts for word in caption.replace(",", "").split()})
    truth = text.Truth(range(60), {word: n for n, word in enumerate(words)})
    for caption, features in zip(truth.texts, truth.features, strict=True):
        read = [[words[n] for n in row.tolist() if n < len(words)] for row in features]
        told = [word for word in caption.replace(",", "").split() if word not in text.FILLING]
        assert all(" ".join(said) in " ".join(told) for said in read)
        assert any(read) == (" with " in caption)


@pytest.mark.parametrize("seed", range(200))
def test_features_are_told_apart_and_fit(seed):
    """No style has two of one feature, so that none hides another; each has a place for all its words."""
    found = [text.feature_of(phrase) for phrase in improvise(np.random.default_rng(seed)).words]
    assert len({feature for feature, _ in found}) == len(found)
    assert all(0 < len(said) <= text.FEATURE_WORDS for _, said in found)


def test_the_encoders_are_trained_before_the_unet_and_stay(tmp_path, monkeypatch, run, words):
    monkeypatch.setattr(text, "vocabulary", lambda: words)
    monkeypatch.setattr(text, "time", SimpleNamespace(time=count(0, 25).__next__))
    text.main(tmp_path, minutes=1, batch=4)
    again = tmp_path / "again"
    monkeypatch.setattr(text, "time", SimpleNamespace(time=count(0, 100).__next__))
    text.main(again, minutes=1, batch=4, start_from=tmp_path)
    for name, value in load_file(again / "text.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "text.safetensors")[name])
    assert json.loads((tmp_path / "text.json").read_text())["captions"] == 2 * 4
    weights = load_file(tmp_path / "text.safetensors")
    assert weights.keys() == {k for k in run.model.state_dict() if k.startswith("text_")}
    assert not any(p.requires_grad for k, p in run.model.named_parameters() if k.startswith("text_"))
    assert all(p.requires_grad for p in run.model.unet.parameters())


def test_a_run_goes_on_from_its_state(run, tokenizer, tmp_path):
    def steps(number):
        for _ in range(number):
            pixels, tokens = next(iter(rendered.Rendered(tokenizer, 2, 3, run.step * 100, 1)))
            run.loss(pixels, tokens, torch.Generator().manual_seed(run.step))[0].mean().backward()
            run.update(1.0)

    steps(1)
    base.save_state(tmp_path / "state.safetensors", run)
    steps(1)
    expected = {k: v.clone() for k, v in run.model.state_dict().items()}
    base.load_state(tmp_path / "state.safetensors", run)
    assert run.step == 1
    steps(1)
    for key, value in run.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    base.save_average(tmp_path, run, 1)
    assert load_file(tmp_path / "average.safetensors").keys() == expected.keys()


def test_the_trained_vae_keeps_images():
    """When it was made: 37 dB on 100 scenes, 33 on 100 images of nothing."""
    network = AutoencoderKL.from_pretrained(Path(vae.__file__).parent / "weights" / "vae").float()
    with torch.no_grad():
        found = network.encode(images(20)).latent_dist.mean
        torch.testing.assert_close(found, latents.encode(images(20)), rtol=0, atol=3e-2)
        error = (network.decode(found).sample.clamp(-1, 1) - images(20)) / 2
    decibels = -10 * error.square().mean((1, 2, 3)).log10()
    assert decibels[::2].mean() > 34
    assert decibels[1::2].mean() > 28


def test_a_run_can_begin_with_the_pipeline_that_ships(run):
    pipeline = Path(str(base_path("atelier")))
    weights = base.first_weights(pipeline, pipeline)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in run.model.state_dict().items()}
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("make", [probe.made_up, probe.named])
def test_a_probe_exchanges_one_part_of_a_caption(make):
    for image, caption, exchanged in make(12, 3):
        assert image.shape == (32, 32, 3)
        right = caption.split()
        for part, other in exchanged.items():
            changed = [(a, b) for a, b in zip(right, other.split(), strict=False) if a != b]
            assert changed or part == "pattern"  # to plain, which is not said
            assert part in ("palette", "style", "pattern", "ground") or len(changed) <= 2  # the article, too
    assert [each.caption for each in make(4, 3)] == [each.caption for each in make(12, 3)][:4]


def test_the_loss_rises_for_words_that_are_listened_to():
    questions = probe.named(6, 1)
    deaf = probe.rises(lambda captions: 0.5, questions)
    assert deaf == {"loss": 0.5, "kind": 0, "colour": 0, "pattern": 0, "style": 0}
    right = [each.caption for each in questions]
    keen = probe.rises(lambda captions: sum(a != b for a, b in zip(captions, right, strict=True)), questions)
    assert keen == {"loss": 0, "kind": 6, "colour": 6, "pattern": 6, "style": 6}


def test_a_probe_is_run_on_a_folder(run, tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    base.save_average(tmp_path / "run", run, 1)
    probe.main([tmp_path / "run"], count=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(probe.TIMESTEPS)
    assert all(line.startswith("run, ") and "loss +" in line for line in lines)
