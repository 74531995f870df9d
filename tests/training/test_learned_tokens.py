"""Learned tokens: the identifiers' vectors are trained, kept in the file, carried along, and read again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import run
from duolora.api.convert import convert
from duolora.api.generate import applied
from duolora.api.merge import merge, options_of
from duolora.api.train import TrainOptions, train
from duolora.errors import BaseMismatch, InputError, Notice
from duolora.lora.read.file import read_adapter
from duolora.model.base import load_base
from duolora.model.prompts import own_vectors, replaced
from tiny import tiny_flux, tiny_qwen_image, tiny_sd15, tiny_z_image

OPTIONS = TrainOptions(rank=2, steps=3, batch=1, lr=1e-2, learn_tokens=True)


@pytest.fixture(scope="module")
def learnt(base, photos, tmp_path_factory):
    """A LoRA of a content with its token."""
    out = tmp_path_factory.mktemp("tokens") / "sks.safetensors"
    return train(photos, "a sks cat", out, base, OPTIONS, progress=False).path


def read(base, prompt):
    return base.encode_prompts([prompt]).embeds


@pytest.fixture(scope="module")
def beside(learnt):
    """The token as a file of its own, as diffusers wants it."""
    out = learnt.with_name("d.safetensors")
    convert(learnt, out, "diffusers")
    return load_file(out.with_name("d.sks.embedding.safetensors"))


def test_vectors_are_trained_and_kept_in_the_bundled_form_or_beside_it(base, learnt, beside):
    found, own = read_adapter(learnt).embeddings, own_vectors(base.pipeline(), ["sks"])
    assert found.keys() == own.keys() == {"sks"}
    for key in ("clip_l", "clip_g"):
        assert found["sks"][key].shape == own["sks"][key].shape
        assert not torch.allclose(found["sks"][key], own["sks"][key], atol=1e-4), "they have moved"
        assert torch.equal(load_file(learnt)[f"bundle_emb.sks.{key}"], found["sks"][key])
        assert torch.equal(beside[key], found["sks"][key])


def test_the_file_is_read_with_its_tokens_and_the_encoders_stay_as_they_are(base, learnt):
    with_word, without = read(base, "a sks cat"), read(base, "a cat")
    with applied(base, [learnt]):
        assert not torch.allclose(read(base, "a sks cat"), with_word, atol=1e-4)
        assert torch.equal(read(base, "a cat"), without), "other words are read as before"
    assert torch.equal(read(base, "a sks cat"), with_word)


def test_a_word_is_replaced_wherever_its_tokens_stand(base):
    own = own_vectors(base.pipeline(), ["house"])
    plain = read(base, "a house in a house")
    with replaced(base.parts, own):
        assert torch.equal(read(base, "a house in a house"), plain), "its own vectors change nothing"
    zeros = {"house": {key: torch.zeros_like(rows) for key, rows in own["house"].items()}}
    with replaced(base.parts, zeros):
        assert not torch.allclose(read(base, "a house in a house"), plain)
    narrow = {"house": {key: rows[:, :1] for key, rows in own["house"].items()}}
    with pytest.raises(BaseMismatch, match=r"house: expected .* made for another base"), replaced(base.parts, narrow):
        pass
    strange = own_vectors(base.pipeline(), ["", " ".join(["house"] * 200)])
    with replaced(base.parts, strange):
        assert torch.equal(read(base, "a house in a house"), plain)
    more = {"house": {key: torch.cat((rows, rows)) for key, rows in zeros["house"].items()}}
    with pytest.warns(Notice, match="house: .* so not read"), replaced(base.parts, more):
        assert torch.equal(read(base, "a house in a house"), plain)


def test_diffusers_reads_what_lies_beside(folder, base, learnt, beside):
    other = load_base(folder)
    with applied(base, [learnt]):
        ours = base.pipeline().text_encoder(base.pipeline().tokenizer("a sks cat", return_tensors="pt").input_ids)[0]
    parts = other.pipeline()
    parts.load_textual_inversion(
        {"sks": beside["clip_l"]}, token="<sks>", text_encoder=parts.text_encoder, tokenizer=parts.tokenizer
    )
    prompt = parts.maybe_convert_prompt("a <sks> cat", parts.tokenizer)
    theirs = parts.text_encoder(parts.tokenizer(prompt, return_tensors="pt").input_ids)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_merge_carries_them_and_trains_its_masks_with_them(base, loras, learnt, photos, tmp_path):
    for method in ("naive", "ziprank"):
        out = tmp_path / f"{method}.safetensors"
        options = None if method == "naive" else options_of(method, steps=2)
        merge(learnt, loras[1], out, method, base, photos, photos, options=options, progress=False)
        carried, own = (read_adapter(path).embeddings["sks"]["clip_g"] for path in (out, learnt))
        assert torch.equal(carried, own)
    done = merge(learnt, loras[1], tmp_path / "peft", "naive", format="peft", progress=False)
    assert done.left_out == ("bundle_emb.sks",), "PEFT has no place for them"
    masks = merge(learnt, loras[1], tmp_path / "m.safetensors", "naive", format="masks", progress=False).path
    whole = convert(masks, tmp_path / "w.safetensors", content=learnt, style=loras[1]).paths[0]
    assert "sks" in read_adapter(whole).embeddings, "masks are rebuilt with the tokens of their sources"
    halves = convert(tmp_path / "naive.safetensors", tmp_path / "both.safetensors", "split").paths
    assert all("sks" in read_adapter(path).embeddings for path in halves)


def test_a_file_that_is_there_is_not_replaced_by_a_token(learnt, tmp_path):
    (tmp_path / "x.sks.embedding.safetensors").write_bytes(b"work of a night")
    with pytest.raises(InputError, match=r"x\.sks\.embedding\.safetensors: there is a file already"):
        convert(learnt, tmp_path / "x.safetensors", "diffusers")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"work of a night"]


def test_words_that_are_none_and_bases_with_one_encoder_are_one_line(base, learnt, tmp_path):
    tensors = load_file(learnt)
    for word in ("\x1b[31m", *(f"word{k}" for k in range(99))):
        tensors |= {f"bundle_emb.{word}.{key}": torch.ones(1, 4) for key in ("clip_l", "clip_g")}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_adapter(tmp_path / "x.safetensors")
    assert len(found.embeddings) == 64 and not any("\x1b" in word for word in found.embeddings)
    sks = read_adapter(learnt).embeddings
    one = SimpleNamespace(tokenizer=base.pipeline().tokenizer, text_encoder=base.pipeline().text_encoder)
    with pytest.raises(BaseMismatch, match="expected a base with two text encoders"), replaced(one, sks):
        pass


def test_a_stopped_training_goes_on_with_its_vectors(base, photos, tmp_path):
    class Stop:
        previews = 0

        def losses(self, done, of, terms):
            if done > 10:
                raise KeyboardInterrupt

        def masks(self, done, masks): ...

        def preview(self, done, images): ...

    options = replace(OPTIONS, steps=12)
    whole = train(photos, "a sks cat", tmp_path / "whole.safetensors", base, options, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(photos, "a sks cat", tmp_path / "o.safetensors", base, options, False, callback=Stop(), save_every=5)
    again = train(photos, "a sks cat", tmp_path / "o.safetensors", base, options, progress=False, save_every=5)
    assert again.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("made", [tiny_sd15, tiny_flux, tiny_z_image, tiny_qwen_image])
def test_other_kinds_of_bases_have_none(made, learnt, photos, tmp_path):
    """Files have no place for vectors of their text encoders; a file with SDXL's does not fit them either."""
    made(tmp_path / "tokenizers").save_pretrained(tmp_path / "base")
    other = load_base(tmp_path / "base", resolution=16)
    with pytest.raises(
        InputError, match=f"learn_tokens: expected .* two text encoders are CLIP's, got {other.kind.name}"
    ):
        train(photos, "a sks cat", tmp_path / "x.safetensors", other, OPTIONS, progress=False)
    sks = read_adapter(learnt).embeddings
    with pytest.raises(BaseMismatch, match="the LoRA was made for another base"), replaced(other.parts, sks):
        pass


def test_without_it_nothing_is_kept_and_without_an_identifier_it_is_refused(base, folder, loras, photos, tmp_path):
    assert not read_adapter(loras[0]).embeddings
    assert not list(loras[0].parent.glob("*.embedding.*"))
    with pytest.raises(InputError, match="expected an identifier"):
        train(photos, "cat", tmp_path / "x.safetensors", base, OPTIONS, progress=False)
    words = ["--prompt", "a sks cat", "--base", folder, "--rank", 1, "--steps", 1, "--batch", 1, "--learn-tokens"]
    done = run("train", "--images", photos, "--out", tmp_path / "y.safetensors", *words)
    assert done.exit_code == 0 and "sks" in read_adapter(tmp_path / "y.safetensors").embeddings, done.output
