"""LoRA files, written whole or not at all, and proved before they take their name."""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from duolora.adapters.adapter import Adapter
from duolora.adapters.dialects import RECIPE, adapter_from
from duolora.adapters.diffusers_format import diffusers_metadata, diffusers_tensors
from duolora.adapters.kohya_format import kohya_metadata, kohya_tensors
from duolora.adapters.proof import Proof, identical, proof
from duolora.adapters.reading import read_adapter
from duolora.adapters.uniform_format import uniform
from duolora.errors import DuoLoRAError, InputError

Format = Literal["diffusers", "kohya", "uniform"]
PROOF = "duolora_proof"
Writer = Callable[[Adapter, torch.dtype, str], tuple[dict[str, Tensor], dict[str, str]]]
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def _diffusers(adapter: Adapter, dtype: torch.dtype, title: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    return diffusers_tensors(adapter, dtype), diffusers_metadata(adapter)


def _kohya(adapter: Adapter, dtype: torch.dtype, title: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = kohya_tensors(adapter, dtype)
    return tensors, kohya_metadata(adapter, tensors, dtype, title)


def _uniform(adapter: Adapter, dtype: torch.dtype, title: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    return _diffusers(uniform(adapter), dtype, title)


FORMATS: dict[Format, Writer] = {"diffusers": _diffusers, "kohya": _kohya, "uniform": _uniform}


def write_adapter(
    path: Path, adapter: Adapter, dtype: torch.dtype = torch.float16, format: Format = "diffusers"
) -> Proof:
    """Write the adapter and prove it; the same adapter gives the same bytes.

    The file is written under another name in the same folder, read back, compared with what was asked for, and only
    then put in place of what was there before. Its header says by how much it is off (`duolora_proof`).

    Raises:
        DuoLoRAError: it cannot be written, holds nothing, or its values do not survive `dtype`; nothing is changed.
    """
    path = path.expanduser()
    check_writable(path)
    if not adapter.modules:
        raise DuoLoRAError(f"{path}: there is nothing to write: the adapter covers no module; lower the threshold")
    tensors, metadata = FORMATS[format](adapter, dtype, path.stem)
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise DuoLoRAError(f"{path}: {key} is NaN, infinite or too large for {dtype}; nothing was written")
    meant = adapter_from(tensors, metadata, str(path))
    expected = proof(adapter, meant, dtype, path)
    metadata |= {RECIPE: _json(adapter.recipe), PROOF: _json({"dtype": _NAMES[dtype], "error": _rounded(expected)})}
    with whole_file(path, laid_out(tensors, metadata)) as draft:
        back, size = read_adapter(draft), draft.stat().st_size
        return replace(expected, size=size) if identical(meant, back) else proof(adapter, back, dtype, path, size)


def _rounded(found: Proof) -> str:
    """One digit, so that the header does not depend on the order in which a machine adds up."""
    return f"{max(found.error, 1e-9):.0e}"


def check_writable(path: Path) -> None:
    """Make sure, before any work, that a file can be put at `path`.

    Raises:
        InputError: it is a folder, read-only, or in a place where nothing can be written.
    """
    path = path.expanduser()
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write, got a folder; name a .safetensors file in it")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected an output file that ends in .safetensors; name one")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path}: expected a file that may be replaced, found a read-only one; name another")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {parent} is no folder to write into; nothing was changed; name another place")


@contextmanager
def whole_file(path: Path, pieces: list[bytes | memoryview]) -> Iterator[Path]:
    """A draft beside `path`, which takes its name when the block ends well, and is removed when it does not.

    Raises:
        DuoLoRAError: the draft cannot be written or renamed; what was at `path` is as it was.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        yield draft
        draft.replace(path)
    except OSError as error:
        raise DuoLoRAError(f"{path}: it cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def laid_out(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """A .safetensors file in pieces; safetensors itself would write the header's metadata in random order."""
    data = save(dict(tensors))
    end = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, memoryview(data)[end:]]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
