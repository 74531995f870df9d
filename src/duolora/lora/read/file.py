"""LoRA files and folders: read with care, and compared with the base that they are meant for."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from duolora.errors import BaseMismatch, FileRefused, reason
from duolora.lora.adapter import Adapter
from duolora.lora.read.header import PEFT_CONFIG, PEFT_WEIGHTS, read_header, weights_of
from duolora.lora.read.keys import adapter_from
from duolora.lora.read.peft_config import ADAPTER_METADATA
from duolora.lora.read.unsupported import refuse_foreign
from duolora.provenance import file_hash
from duolora.textfiles import read_json

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""As safetensors names them; all that `read_header` lets through."""
PEFT_PREFIX = "base_model.model."


def read_adapter(path: Path, as_stored: bool = False) -> Adapter:
    """The adapter in a .safetensors file (diffusers', kohya's or ComfyUI's names) or a PEFT folder.

    Factors are float32 or, to be combined module by module, as they are stored.

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
    tensors = {key.removeprefix(prefix): value for key, value in read_tensors(weights).items()}
    return adapter_from(tensors, metadata, str(path), as_stored)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file; read, and never mapped, since a file that somebody shortens meanwhile kills who maps it.

    Raises:
        FileRefused: it is not whole, or a value is not finite.
    """
    entries, _ = read_header(path)
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            tensors = {key: _tensor(file, start, entry) for key, entry in entries.items()}
    except (OSError, ValueError) as error:
        raise FileRefused(
            f"{path}: expected a whole .safetensors file, but it cannot be read ({reason(error)}); get it again"
        ) from error
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise FileRefused(f"{path}: {key} holds NaN or infinite values; expected finite ones; get a sound copy")
    return tensors


def _tensor(file: BinaryIO, start: int, entry: Mapping[str, Any]) -> Tensor:
    """One tensor, by its entry in the header, of a file whose data begin at `start`."""
    begin, end = entry["data_offsets"]
    data = bytearray(end - begin)
    file.seek(start + begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError("it has become shorter")
    kind = DTYPES[entry["dtype"]]
    return (torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)).reshape(entry["shape"])


def peft_metadata(config: Path) -> str:
    """PEFT's adapter_config.json as diffusers would put it into a header."""
    try:
        found: Any = read_json(config)
    except (FileNotFoundError, FileRefused) as error:
        raise FileRefused(f"{config}: expected PEFT's config as JSON, but it cannot be read; get it again") from error
    if not isinstance(found, dict):
        raise FileRefused(f"{config}: expected a JSON object, got {type(found).__name__}; get it again")
    return json.dumps({f"unet.{key}": value for key, value in found.items()})


def check_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, int]], path: Path) -> None:
    """Make sure that every module of the adapter is one of the base's, with the same (d_out, d_in).

    Raises:
        BaseMismatch: the first module that is not.
    """
    advice = "the LoRA was made for another base; name that one with --base"
    for name, lora in adapter.modules.items():
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
