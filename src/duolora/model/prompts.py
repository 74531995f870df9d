"""What of a prompt the text encoders read: so many tokens, and long prompts in chunks where the encoders are CLIP's.

SDXL's users write prompts of any length: ComfyUI, A1111 and Forge encode 75 tokens at a time and put these chunks
in a row.
"""

import string
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

from torch import Tensor, nn

from duolora.errors import BaseMismatch, InputError, Notice
from duolora.model.kinds import kind_of

RARE = 40_000
"""CLIP numbers its tokens by how common they are; identifiers such as "sks" are chosen from the last."""
_CLIP = 77
"""Tokens of CLIP's text encoders, whose UNets are known to attend to several chunks."""
_MOST = 16
"""Chunks of a prompt."""
_SHOWN = 12


def unread(parts: Any, prompt: str) -> list[str]:
    """The words of a prompt that lie, whole or in part, beyond what either text encoder of a pipeline reads."""
    return _packed(parts, prompt)[1]


def chunks(parts: Any, prompt: str) -> list[str]:
    """A prompt as it is encoded, one part after another: whole words, 75 tokens at most."""
    found, _ = _packed(parts, prompt)
    return [prompt] if len(found) == 1 else [" ".join(words) for words in found]


def _packed(parts: Any, prompt: str) -> tuple[list[list[str]], list[str]]:
    """The words of each chunk, and those that are not read; tokens never reach over a space."""
    words, names, limit = prompt.split(), ("tokenizer", "tokenizer_2", "tokenizer_3"), inf
    tokenizers = [each for name in names if (each := getattr(parts, name, None)) is not None]
    if hasattr(parts, "transformer"):  # whose last one reads all; CLIP is not read on in chunks
        tokenizers, limit = tokenizers[-1:], kind_of(parts).tokens or inf
    lengths = [min(each.model_max_length, limit) for each in tokenizers]
    if all(len(prompt.encode()) + 2 <= length for length in lengths):
        return [words], []  # no token is shorter than a byte
    most = _MOST if set(lengths) == {_CLIP} else 1
    whole = min(lengths) - 2  # the first token and the last are not the prompt's
    found, room = list[list[str]]([[]]), whole
    for k, word in enumerate(words):
        size = max(len(token_ids(each, word)) for each in tokenizers)
        if room < size <= whole and len(found) < most:
            found.append([])
            room = whole
        if size > room:
            return found, words[k:]
        found[-1].append(word)
        room -= size
    return found, []


def tell_unread(parts: Any, prompts: Sequence[str]) -> None:
    """Warn of every prompt that is not read to its end, with the words that are not."""
    for prompt in dict.fromkeys(prompts):
        if words := unread(parts, prompt):
            warnings.warn(f"{_cut(words)}: put what matters first, or shorten the prompt", Notice, stacklevel=2)


def refuse_unread(parts: Any, prompts: Sequence[str], names: Collection[str] | None = None) -> None:
    """Refuse prompts whose identifiers are not read, without which a LoRA learns or shows nothing.

    Args:
        parts: the pipeline.
        prompts: what is to be read.
        names: the identifiers; where they are not known, the words that look like one.

    Raises:
        InputError: with the words that are not read, and the identifier among them.
    """
    for prompt in prompts:
        words = unread(parts, prompt)
        wanted = identifiers(parts, words) if names is None else names
        if lost := [word for word in map(_bare, words) if word in wanted]:
            raise InputError(f"{_cut(words)}, and the identifier {lost[0]!r} is among them: put it first")


def identifiers(parts: Any, words: Sequence[str]) -> set[str]:
    """The words that no text encoder knows as a common one, as identifiers are, without punctuation."""
    found = set()
    for word in filter(None, map(_bare, words)):
        tokens = token_ids(parts.tokenizer, word)
        if len(tokens) != 1 or tokens[0] >= RARE:
            found.add(word)
    return found


def _bare(word: str) -> str:
    return word.strip(string.punctuation)


def _cut(words: Sequence[str]) -> str:
    shown = " ".join(words[:_SHOWN]) + (" …" if len(words) > _SHOWN else "")
    count = "1 word is" if len(words) == 1 else f"{len(words)} words are"
    return f"prompt: longer than the text encoders read; {count} not read: {shown!r}"


Vectors = Mapping[str, Mapping[str, Tensor]]
"""By word, then by text encoder as ComfyUI and kohya name it (`clip_l`, `clip_g`): (tokens of the word, width)."""
ENCODERS = {"clip_l": ("tokenizer", "text_encoder"), "clip_g": ("tokenizer_2", "text_encoder_2")}


def own_vectors(parts: Any, words: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """What the text encoders of a pipeline have for words, in float32: where learned tokens begin."""
    found: dict[str, dict[str, Tensor]] = {word: {} for word in sorted(words)}
    for word, known in found.items():
        for key, (tokenizer, encoder) in ENCODERS.items():
            weight = getattr(parts, encoder).get_input_embeddings().weight
            known[key] = weight[token_ids(getattr(parts, tokenizer), word)].detach().float().clone()
    return found


@contextmanager
def replaced(parts: Any, vectors: Vectors) -> Iterator[None]:
    """A pipeline that reads these vectors for their words, and is as before on leaving; no weights are changed.

    Textual inversion (Gal et al., ICLR 2023), as the paper's "learn a content LoRA L_c, and tokens <V1>, <S1>".
    Words that have more or fewer vectors than tokens, as embeddings of other programs may, are read as ever, with a
    warning.

    Raises:
        BaseMismatch: vectors are of another width than the base's.
    """
    hooks = []
    try:
        for key, (tokenizer, encoder) in ENCODERS.items() if vectors else ():
            if not hasattr(parts, encoder):
                raise BaseMismatch(
                    f"{next(iter(vectors))}: expected a base with two text encoders for its vectors, found one; the "
                    "LoRA was made for another base"
                )
            embedding = getattr(parts, encoder).get_input_embeddings()
            table, width = [], embedding.weight.shape[1]
            for word, known in vectors.items():
                ids, rows = token_ids(getattr(parts, tokenizer), word), known[key]
                if rows.shape[1] != width:
                    raise BaseMismatch(
                        f"{word}: expected vectors of {width} numbers for {key}, found {rows.shape[1]}; the LoRA was "
                        "made for another base"
                    )
                if len(rows) == len(ids):
                    table.append((ids, rows))
                else:
                    warnings.warn(
                        f"{word}: {len(rows)} vectors in the file for a word of {len(ids)} tokens, so not read",
                        Notice,
                        stacklevel=4,
                    )
            hooks.append(embedding.register_forward_hook(partial(_put, table)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def token_ids(tokenizer: Any, word: str) -> list[int]:
    """A word's tokens."""
    return list(tokenizer(word, add_special_tokens=False).input_ids)


def _put(table: Sequence[tuple[list[int], Tensor]], _: nn.Module, given: tuple[Tensor, ...], read: Tensor) -> Tensor:
    """The vectors (batch, length, width) that were read, with those of the table wherever its tokens stand."""
    for tokens, rows in table:
        if not 0 < len(tokens) <= given[0].shape[1]:
            continue
        windows = given[0].unfold(1, len(tokens), 1)
        for prompt, first in (windows == windows.new_tensor(tokens)).all(-1).nonzero().tolist():
            read = read.clone()
            read[prompt, first : first + len(tokens)] = rows.to(read)
    return read
