"""Learned tokens: vectors of a prompt's identifiers in the place of those that the text encoders have for them.

Textual inversion (Gal et al., ICLR 2023), as the paper's "learn a content LoRA L_c, and tokens <V1>, <S1>". The words
stay as they are; wherever a prompt has their tokens, the encoders read the vectors. No weights are changed.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from duolora.errors import BaseMismatch, Notice

Vectors = Mapping[str, Mapping[str, Tensor]]
"""By word, then by text encoder as ComfyUI and kohya name it (`clip_l`, `clip_g`): (tokens of the word, width)."""
ENCODERS = {"clip_l": ("tokenizer", "text_encoder"), "clip_g": ("tokenizer_2", "text_encoder_2")}


def own_vectors(parts: Any, words: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """What the text encoders of a pipeline have for words, in float32: where learning begins."""
    found: dict[str, dict[str, Tensor]] = {word: {} for word in sorted(words)}
    for word, known in found.items():
        for key, (tokenizer, encoder) in ENCODERS.items():
            weight = getattr(parts, encoder).get_input_embeddings().weight
            known[key] = weight[token_ids(getattr(parts, tokenizer), word)].detach().float().clone()
    return found


@contextmanager
def replaced(parts: Any, vectors: Vectors) -> Iterator[None]:
    """A pipeline that reads these vectors for their words, and is as before on leaving.

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
