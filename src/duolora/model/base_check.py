"""What is refused of a base's folder before a library reads it: the libraries trust what a config says."""

import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused
from duolora.textfiles import read_json, read_text

LARGEST = 2**20
"""Of any number in a config; a vocabulary has 49,408 words."""
LONGEST = 256
"""Of any list in a config, and of layers in a network."""
MOST_BLOCKS = 512
"""Of a network; SDXL's UNet has 3 levels of at most 3 layers with at most 10 transformer blocks."""
WIDEST = 1024
"""Latents a side; SDXL's are 128."""
TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "tokenizer_3": "text_encoder_3"}
TOKENS = 77
"""What CLIP's text encoders take, where a config does not say."""
T5 = 512
"""What T5 takes, whose config does not say either."""
ATTENTION = (None, "eager", "sdpa")
AGAIN = "download the model again"


def check_files(folder: Path, parts: Sequence[str]) -> None:
    """Refuse what is no regular file, texts too large or deep, and indexes that name other than safetensors.

    Args:
        folder: the base's.
        parts: the sub-folders that are read.

    Raises:
        FileRefused: with the first file that is wrong.
    """
    for path in sorted(path for part in parts for path in (folder / part).glob("*")):
        if os.path.isdir(path):
            continue
        if not os.path.isfile(path):
            raise FileRefused(f"{path}: expected a regular file, found a pipe, device or broken link; {AGAIN}")
        if path.name == "adapter_config.json":
            raise FileRefused(f"{path}: a base that loads an adapter of its own is not read; delete the file")
        if path.suffix == ".json":
            found = read_json(path)
            if "safetensors.index" in path.name:
                _check_index(path, found)
        elif path.suffix == ".txt":
            read_text(path)


def _check_index(path: Path, index: Any) -> None:
    """Refuse an index whose weights are not all in safetensors files beside it."""
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named:
        raise FileRefused(f"{path}: expected a weight_map that names files, found none; {AGAIN}")
    for name in sorted(set(map(str, named.values()))):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            what = "only safetensors files beside it are read, and pickles are never opened"
            raise FileRefused(f"{path}: it names {reprlib.repr(name)}; {what}; get the model as safetensors")
        if not os.path.isfile(path.with_name(name)):
            raise FileRefused(f"{path}: it names {reprlib.repr(name)}, which is not there; {AGAIN}")


def check_configs(configs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse numbers out of all proportion, and what would fetch code, in configs by their files.

    Those of tokenizers are `check_tokenizers`'s.

    Raises:
        FileRefused: with the file and the key.
    """
    for path, config in configs.items():
        for key, value in _leaves(config, path):
            if "attn_implementation" in key and value not in ATTENTION:
                raise _wrong(path, key, "eager or sdpa, since kernels from the hub are code", value)
            if key == "use_kernels" and value:
                raise _wrong(path, key, "nothing that needs other code", value)
            if key == "quantization_config" and value:
                raise _wrong(path, key, "whole weights, since a quantised base is not read", value)
            if key == "transformers_weights" and value is not None:
                raise _wrong(path, key, "weights under their usual name, which are checked", value)
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise _wrong(path, key, f"a number of at most {LARGEST}", value)
            if "layers" in key and isinstance(value, int) and value > LONGEST:
                raise _wrong(path, key, f"at most {LONGEST} layers", value)
        blocks = _blocks(config)
        if blocks > MOST_BLOCKS:
            raise _wrong(path, "layers_per_block", f"at most {MOST_BLOCKS} blocks in all", blocks)
        if path.parent.name == "unet":
            size = config.get("sample_size")
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= WIDEST:
                raise _wrong(path, "sample_size", f"a whole number from 1 to {WIDEST}", size)


def _blocks(config: Mapping[str, Any]) -> int:
    """At most so many blocks a UNet or VAE has: levels × layers × transformer blocks in each."""
    depths = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
    layers, deep = (
        [n for key in keys for n in _whole_numbers(config.get(key))] for keys in (("layers_per_block",), depths)
    )
    levels = config.get("block_out_channels")
    return (len(levels) if isinstance(levels, list) else 4) * (1 + max(layers, default=0)) * max(deep, default=1)


def _whole_numbers(value: Any) -> list[int]:
    """The whole numbers in a value or in lists of lists of them."""
    if isinstance(value, list):
        return [number for part in value for number in _whole_numbers(part)]
    return [value] if isinstance(value, int) else []


def _leaves(value: Any, path: Path, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config with the key it stands under; lists of bounded length."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield name, part
            yield from _leaves(part, path, name)
    elif isinstance(value, list):
        if len(value) > LONGEST:
            raise _wrong(path, key, f"at most {LONGEST} entries", value)
        for part in value:
            yield key, part
            yield from _leaves(part, path, key)


def check_tokenizers(folder: Path, encoders: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse tokenizers that are not there, or that give more tokens than their text encoders take.

    Raises:
        FileRefused: with the folder or the file and the key.
    """
    for name, encoder in TOKENIZERS.items():
        if encoder not in encoders:
            continue
        known = encoders[encoder]
        place = folder / name
        if not any((place / file).is_file() for file in ("tokenizer.json", "vocab.json", "spiece.model")):
            raise FileRefused(f"{place}: expected a tokenizer's files, found none; {AGAIN}")
        path, type_ = place / "tokenizer_config.json", str(known.get("model_type"))
        most = known.get("max_position_embeddings", T5 if type_ == "t5" else TOKENS)
        try:
            config = read_json(path)
        except FileNotFoundError as error:
            raise FileRefused(f"{path}: not there; {AGAIN}") from error
        if type_ != "t5" and "clip" not in type_:  # a language model, whose prompts the pipeline cuts
            continue
        length = config.get("model_max_length") if isinstance(config, dict) else None
        if not isinstance(length, int) or not isinstance(most, int) or not 1 <= length <= most:
            raise _wrong(path, "model_max_length", f"a whole number from 1 to {most}, what the encoder takes", length)


def _wrong(path: Path, key: str, expected: str, found: Any) -> FileRefused:
    shown = "a very large number" if isinstance(found, int) and abs(found) > 10**30 else reprlib.repr(found)
    return FileRefused(f"{path}: {key}: expected {expected}, found {shown}; {AGAIN}")
