"""Prompts that are longer than the encoders take: the words that are cut off are named, and never an identifier."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import typer

from duolora.api.generate import generate
from duolora.api.merge import merge
from duolora.api.train import train
from duolora.cli.common import one_line
from duolora.errors import InputError, Notice
from duolora.model.base import load_base
from duolora.model.prompts import chunks, identifiers, refuse_unread, tell_unread, unread
from duolora.model.sample import sample_images
from recipes.atelier import architecture
from recipes.atelier.architecture import save_tokenizer
from tiny import tiny_pipeline


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The tokenizers of a pipeline: every word of `red cat …` is a token, any other falls apart."""
    words = ["red", "cat", "house", "in"]
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    return SimpleNamespace(
        **dict(zip(("tokenizer", "tokenizer_2"), (save_tokenizer(f, words) for f in folders), strict=True))
    )


def most(parts) -> int:
    return parts.tokenizer.model_max_length - 2


def test_the_words_beyond_the_limit_are_the_ones_that_change_nothing(parts):
    words = ["red", "cat", "in", "house"] * 40
    for count in (most(parts) - 1, most(parts), most(parts) + 1, most(parts) + 7):
        prompt = " ".join(words[:count])
        lost = unread(parts, prompt)
        assert lost == words[most(parts) : count]
        read = parts.tokenizer(prompt, truncation=True, max_length=most(parts) + 2).input_ids
        kept = " ".join(words[: count - len(lost)])
        assert read == parts.tokenizer(kept, truncation=True, max_length=most(parts) + 2).input_ids


def test_a_word_that_is_cut_in_two_is_not_read(parts):
    assert unread(parts, "red " * (most(parts) - 1) + "zwx cat") == ["zwx", "cat"]
    assert unread(parts, "red " * (most(parts) - 3) + "zwx") == []
    assert unread(parts, "") == []


def test_the_shorter_of_two_encoders_decides(parts):
    short = SimpleNamespace(tokenizer=parts.tokenizer, tokenizer_2=_shorter(parts.tokenizer_2))
    assert unread(short, "red cat in house red cat") == ["house", "red", "cat"]


def _shorter(tokenizer):
    class Shorter:
        model_max_length = 5

        def __call__(self, *args, **given):
            return tokenizer(*args, **given)

    return Shorter()


def test_what_is_not_read_is_told(parts):
    long = "red " * most(parts) + "cat in house"
    with pytest.warns(Notice, match="3 words are not read: 'cat in house': put what matters first"):
        tell_unread(parts, [long, long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_unread(parts, ["red cat", ""])


def test_an_identifier_that_is_not_read_is_refused(parts):
    long = "red " * most(parts)
    with pytest.raises(InputError, match="the identifier 'zwx' is among them"):
        refuse_unread(parts, ["red cat", long + "in zwx, house"])
    refuse_unread(parts, [long + "in house", "a zwx cat"])
    assert identifiers(parts, ["red", "zwx,", "--", "cat."]) == {"zwx"}
    with pytest.raises(InputError, match="the identifier 'house'"):
        refuse_unread(parts, [long + "in house"], {"house"})
    refuse_unread(parts, [long + "in zwx house"], {"sks"})


def test_nothing_is_learnt_merged_or_generated_without_the_identifier(base, loras, photos, tmp_path):
    lost, out = f"{'cat ' * 60}in zwx house", tmp_path / "x.safetensors"
    for do in (
        lambda: train(photos, lost, out, base, progress=False),
        lambda: merge(*loras, out, "ziprank", base, photos, photos, style_prompt=lost, progress=False),
        lambda: generate(lost, tmp_path, loras[1], base, num=1, progress=False),
    ):
        with pytest.raises(InputError, match="the identifier 'zwx' is among them"):
            do()
    assert not list(tmp_path.iterdir())


def test_commands_say_it_in_one_line_once(parts, capsys):
    long = "red " * most(parts) + "cat"
    with one_line():
        tell_unread(parts, [long])
        tell_unread(parts, [long])
        warnings.warn("another", RuntimeWarning, stacklevel=1)
    said = capsys.readouterr().err
    assert said.count("1 word is not read: 'cat'") == 1
    assert said.startswith("duolora: prompt: longer than the text encoders read")
    with pytest.raises(typer.Exit), one_line():
        refuse_unread(parts, [long], {"cat"})


@pytest.fixture(scope="module")
def of_clip(tmp_path_factory):
    """A base whose text encoders have CLIP's length, as SDXL's."""
    folder = tmp_path_factory.mktemp("clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture, "MAX_TOKENS", 77)
        tiny_pipeline(folder / "tokenizers").save_pretrained(folder / "base")
    return load_base(folder / "base")


LONG = " ".join(["cat", "in", "house"] * 40)  # 120 tokens


def test_long_prompts_are_read_in_chunks_as_sdxls_users_expect(of_clip):
    found = chunks(of_clip.parts, LONG)
    assert [len(chunk.split()) for chunk in found] == [75, 45] and " ".join(found) == LONG
    assert unread(of_clip.parts, LONG) == []
    together, (first, second) = (
        of_clip.encode_prompts([LONG, "cat"]),
        map(of_clip.encode_prompts, ([found[0]], [found[1]])),
    )
    short, nothing = of_clip.encode_prompts(["cat"]), of_clip.encode_prompts([""])
    torch.testing.assert_close(together.embeds[0], torch.cat([first.embeds[0], second.embeds[0]]))
    torch.testing.assert_close(together.embeds[1], torch.cat([short.embeds[0], nothing.embeds[0]]))
    torch.testing.assert_close(together.pooled, torch.cat([first.pooled, short.pooled]))
    behind = together.after(of_clip.empty_prompt())
    assert behind.embeds.shape == (3, 154, together.embeds.shape[2])


def test_words_after_the_first_chunk_change_the_image(of_clip):
    one, other, again = sample_images(of_clip, [f"{LONG} cat", f"{LONG} house", f"{LONG} cat"], [0, 0, 0], 2)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_word_across_two_chunks_goes_to_the_second_and_a_book_is_cut(of_clip):
    word = "zwx"  # three tokens
    assert chunks(of_clip.parts, f"{'cat ' * 74}{word} in")[1] == f"{word} in"
    assert unread(of_clip.parts, "z" * 100 + " cat") == ["z" * 100, "cat"]
    assert len(unread(of_clip.parts, "cat " * 2000)) == 2000 - 16 * 75


def test_other_encoders_read_no_chunks(parts):
    assert chunks(parts, LONG) == [LONG] and unread(parts, LONG)
