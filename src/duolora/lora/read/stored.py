"""The tensors of a .safetensors file, read one by one whenever they are asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from duolora.errors import FileRefused, reason
from duolora.lora.read.header import read_header

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
"""As safetensors names them; all that `read_header` lets through."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        FileRefused: it is not whole, or a value is not finite.
    """
    return dict(StoredTensors(path))


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file by their keys without a prefix, each read whenever it is asked for.

    They are never mapped: a file that somebody shortens meanwhile ends the process of who maps it. Asking raises
    FileRefused if the file is no longer whole or a value is not finite.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Read the header.

        Raises:
            FileRefused: it is not a header of a safe file.
        """
        self.path = path
        self._entries = {key.removeprefix(prefix): entry for key, entry in read_header(path)[0].items()}

    def __getitem__(self, key: str) -> Tensor:
        """Read one tensor."""
        entry = self._entries[key]
        try:
            with self.path.open("rb") as file:
                value = _tensor(file, 8 + int.from_bytes(file.read(8), "little"), entry)
        except (OSError, ValueError) as error:
            raise FileRefused(
                f"{self.path}: expected a whole .safetensors file, but it cannot be read ({reason(error)}); "
                "download it again"
            ) from error
        if value.is_floating_point() and not torch.isfinite(value if value.itemsize > 1 else value.float()).all():
            raise FileRefused(
                f"{self.path}: {key} holds NaN or infinite values; expected finite ones; get a sound copy"
            )
        return value

    def outline(self, key: str) -> Tensor:
        """The tensor without values, on the meta device, from the header alone."""
        entry = self._entries[key]
        return torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")

    def __iter__(self) -> Iterator[str]:
        """Go through the keys."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._entries)


def _tensor(file: BinaryIO, start: int, entry: Mapping[str, Any]) -> Tensor:
    """One tensor, by its entry in the header, of a file whose data begin at `start`."""
    begin, end = entry["data_offsets"]
    data = bytearray(end - begin)
    file.seek(start + begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError("it has become shorter")
    kind = DTYPES[entry["dtype"]]
    return (torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)).reshape(entry["shape"])


def outline(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """One of the tensors without values, and without reading it."""
    return tensors.outline(key) if isinstance(tensors, StoredTensors) else tensors[key].to("meta")
