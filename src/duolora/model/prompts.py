"""What of a prompt the text encoders read: so many tokens, and not a word more."""

import string
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from duolora.errors import InputError, Notice

RARE = 40_000
"""CLIP numbers its tokens by how common they are; identifiers such as "sks" are chosen from the last."""
_SHOWN = 12


def unread(parts: Any, prompt: str) -> list[str]:
    """The words of a prompt that lie, whole or in part, beyond what either text encoder of a pipeline reads."""
    words, tokenizers = prompt.split(), _tokenizers(parts)
    if all(len(prompt.encode()) + 2 <= each.model_max_length for each in tokenizers):
        return []  # no token is shorter than a byte
    return max((words[_fitting(each, words) :] for each in tokenizers), key=len)


def _tokenizers(parts: Any) -> list[Any]:
    """Those that there are: a base for timing has none."""
    return [each for each in (parts.tokenizer, parts.tokenizer_2) if each is not None]


def _fitting(tokenizer: Any, words: Sequence[str]) -> int:
    """How many of the words a tokenizer's encoder takes; tokens never reach over a space."""
    left = tokenizer.model_max_length - 2  # the first token and the last are not the prompt's
    for k, word in enumerate(words):
        left -= len(_tokens(tokenizer, word))
        if left < 0:
            return k
    return len(words)


def _tokens(tokenizer: Any, word: str) -> list[int]:
    return list(tokenizer(word, add_special_tokens=False).input_ids)


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
        tokens = _tokens(parts.tokenizer, word)
        if len(tokens) != 1 or tokens[0] >= RARE:
            found.add(word)
    return found


def _bare(word: str) -> str:
    return word.strip(string.punctuation)


def _cut(words: Sequence[str]) -> str:
    shown = " ".join(words[:_SHOWN]) + (" …" if len(words) > _SHOWN else "")
    count = "1 word is" if len(words) == 1 else f"{len(words)} words are"
    return f"prompt: longer than the text encoders read; {count} not read: {shown!r}"
