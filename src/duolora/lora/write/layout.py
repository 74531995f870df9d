"""A .safetensors file in pieces: the same bytes for the same tensors and header, and no copy of a tensor.

safetensors itself would copy all of them, and write the header's metadata in random order.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from duolora.lora.read.stored import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def data_of(tensors: Mapping[str, Tensor]) -> dict[str, memoryview]:
    """The bytes of CPU tensors in the file's order: the widest numbers first, so that all are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    return {key: value.contiguous().reshape(-1).view(torch.uint8).numpy().data for key, value in ordered}


def laid_out(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The length of the header, the header, and the tensors."""
    data, header, end = data_of(tensors), {"__metadata__": dict[str, object](sorted(metadata.items()))}, 0
    for key, piece in data.items():
        shape, begin, end = list(tensors[key].shape), end, end + piece.nbytes
        header[key] = {"dtype": _NAMES[tensors[key].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *data.values()]


def header_json(value: object) -> str:
    """A value as headers hold it: the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
