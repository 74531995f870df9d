"""LoRA files and folders: read with care, and compared with the base that they are meant for."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duolora.errors import BaseMismatch, FileRefused
from duolora.lora.adapter import Adapter
from duolora.lora.on_demand import outlines
from duolora.lora.read.header import PEFT_CONFIG, PEFT_WEIGHTS, making, read_header, refuse_foreign, weights_of
from duolora.lora.read.keys import adapter_from
from duolora.lora.read.peft_config import ADAPTER_METADATA
from duolora.lora.read.stored import StoredTensors
from duolora.progress import through
from duolora.provenance import file_hash
from duolora.textfiles import read_json

PEFT_PREFIX = "base_model.model."


def read_adapter(path: Path, as_stored: bool = False) -> Adapter:
    """The adapter in a .safetensors file (diffusers', kohya's or ComfyUI's names) or a PEFT folder.

    Factors are float32 and in memory or, `as_stored`, read on demand, module by module.

    Nothing of the tensors is read before the header has shown that they can be a LoRA.

    Raises:
        FileRefused: it is missing, damaged, unsafe, or not a plain LoRA for a network that diffusers has.
    """
    path, weights = path.expanduser(), weights_of(path)
    entries, metadata = read_header(weights)
    config = weights.with_name(PEFT_CONFIG)
    of_peft = bool(entries) and all(key.startswith(PEFT_PREFIX) for key in entries) and config.is_file()
    if of_peft:
        metadata = {ADAPTER_METADATA: peft_metadata(config), **metadata}
    prefix = PEFT_PREFIX if of_peft else ""
    refuse_foreign([key.removeprefix(prefix) for key in entries], metadata, str(path))
    tensors = StoredTensors(weights, prefix)
    found = tensors if as_stored else {key: tensors[key] for key in through(tensors, "Reading")}
    return adapter_from(found, metadata, str(path), as_stored)


def read_metadata(path: Path) -> dict[str, object]:
    """How a LoRA file was made, or the trigger words of another program, from its header alone.

    Raises:
        FileRefused: it is missing, damaged, unsafe, or seen to be no LoRA by its keys.
    """
    entries, metadata = read_header(weights_of(path))
    refuse_foreign([key.removeprefix(PEFT_PREFIX) for key in entries], metadata, str(path))
    return making(metadata, str(path))


def peft_metadata(config: Path) -> str:
    """PEFT's adapter_config.json as diffusers would put it into a header."""
    try:
        found: Any = read_json(config)
    except (FileNotFoundError, FileRefused) as error:
        raise FileRefused(
            f"{config}: expected PEFT's config as JSON, but it cannot be read; download it again"
        ) from error
    if not isinstance(found, dict):
        raise FileRefused(f"{config}: expected a JSON object, got {type(found).__name__}; download it again")
    return json.dumps({f"unet.{key}": value for key, value in found.items()})


def check_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, int]], path: Path) -> None:
    """Make sure that every module of the adapter is one of the base's, with the same (d_out, d_in).

    Raises:
        BaseMismatch: the first module that is not.
    """
    advice = "the LoRA was made for another base; name that one with --base"
    for name, lora in outlines(adapter.modules).items():
        if name not in shapes:
            raise BaseMismatch(f"{path}: {name}: expected a layer of the base, found no such; {advice}")
        expected, found = tuple(shapes[name]), (lora.d_out, lora.d_in)
        if found != expected:
            raise BaseMismatch(f"{path}: {name}: expected {expected} (outputs, inputs), found {found}; {advice}")


def source_hash(path: Path) -> str:
    """SHA-256 of a LoRA: of the file, or of a PEFT folder's weights and config, since the strength is in the config."""
    path = path.expanduser()
    if not path.is_dir():
        return file_hash(path)
    parts = [file_hash(path / name) for name in (PEFT_WEIGHTS, PEFT_CONFIG)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
