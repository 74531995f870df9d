"""LoRA files: read with care, written whole or not at all, and proved."""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from duolora.adapters.adapter import Adapter
from duolora.adapters.dialects import adapter_from
from duolora.adapters.diffusers_format import diffusers_metadata, diffusers_tensors
from duolora.errors import BaseMismatch, DuoLoRAError, FileRefused, InputError
from duolora.paper.lowrank import LowRank

TOLERANCE = 0.01
"""A file whose ΔW of any module is off by more than this is not written; half precision makes about 0.0005."""
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


@dataclass(frozen=True)
class Proof:
    """What a written file holds, as found by reading it back."""

    error: float
    """The largest ‖ΔW_file − ΔW‖ / ‖ΔW‖ of any module, in the Frobenius norm."""
    modules: int
    ranks: tuple[int, int]
    """The lowest and the highest rank."""
    size: int
    """Bytes."""


def read_adapter(path: Path) -> Adapter:
    """The adapter in a .safetensors file, in diffusers' or kohya's names, its factors in float32.

    Raises:
        FileRefused: it is missing, damaged, unsafe, or not a plain LoRA for an SDXL-shaped UNet.
    """
    path = path.expanduser()
    _refuse_unsafe(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FileRefused(
            f"{path}: expected a whole .safetensors file, but it cannot be read ({error}); get it again"
        ) from error
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise FileRefused(f"{path}: {key} holds NaN or infinite values; expected finite ones; get a sound copy")
    return adapter_from(tensors, metadata, str(path))


def write_adapter(path: Path, adapter: Adapter, dtype: torch.dtype = torch.float16) -> Proof:
    """Write the adapter in diffusers' format and prove it; the same adapter gives the same bytes.

    The file is written under another name in the same folder, read back, compared with what was asked for, and only
    then put in place of what was there before.

    Raises:
        DuoLoRAError: it cannot be written, holds nothing, or its values do not survive `dtype`; nothing is changed.
    """
    path = path.expanduser()
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write, got a folder; name a .safetensors file in it")
    if not adapter.modules:
        raise DuoLoRAError(f"{path}: there is nothing to write: the adapter covers no module; lower the threshold")
    tensors = diffusers_tensors(adapter, dtype)
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise DuoLoRAError(f"{path}: {key} is NaN, infinite or too large for {dtype}; nothing was written")
    data = _bytes(tensors, diffusers_metadata(adapter))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        proof = _prove(adapter, read_adapter(draft), path, draft.stat().st_size)
        draft.replace(path)
    except OSError as error:
        raise DuoLoRAError(f"{path}: it cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return proof


def check_fits(adapter: Adapter, unet_shapes: Mapping[str, tuple[int, int]], path: Path) -> None:
    """Make sure that every module of the adapter is one of the base's, with the same (d_out, d_in).

    Raises:
        BaseMismatch: the first module that is not.
    """
    advice = "the LoRA was made for another base; name that one with --base"
    for name, lora in adapter.modules.items():
        if name not in unet_shapes:
            raise BaseMismatch(f"{path}: {name}: expected a linear module of the base's UNet, found no such; {advice}")
        expected = tuple(unet_shapes[name])
        if (lora.d_out, lora.d_in) != expected:
            found = (lora.d_out, lora.d_in)
            raise BaseMismatch(f"{path}: {name}: expected {expected} (outputs, inputs), found {found}; {advice}")


def _refuse_unsafe(path: Path) -> None:
    """Refuse what is no file, and pickles by name or first bytes, none of which is opened with torch."""
    if path.is_dir():
        raise FileRefused(f"{path}: expected a .safetensors file, got a folder; name the file in it")
    if not path.is_file():
        raise FileRefused(f"{path}: expected a .safetensors file, found nothing there; check the path")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise FileRefused(f"{path}: it cannot be opened ({error.strerror}); check its permissions") from error
    disguised = start.startswith(_PICKLE_STARTS) and start[8:] != b"{"
    if path.suffix.lower() in _PICKLE_SUFFIXES or disguised:
        raise FileRefused(
            f"{path}: expected a .safetensors file, got a pickle, which can run programs when opened and so was not; "
            "ask for it as .safetensors"
        )


def _bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """A .safetensors file in pieces; safetensors itself would write the header's metadata in random order."""
    data = save(dict(tensors))
    end = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, memoryview(data)[end:]]


def _prove(asked: Adapter, found: Adapter, path: Path, size: int) -> Proof:
    """Compare what was read back with what was asked for."""
    if set(asked.modules) != set(found.modules):
        raise DuoLoRAError(f"{path}: read back, it covers other modules than it should; nothing was written")
    errors = {name: _error(lora, found.modules[name]) for name, lora in asked.modules.items()}
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= TOLERANCE:
        raise DuoLoRAError(
            f"{path}: {worst} would be off by {errors[worst]:.2g} of its strength (at most {TOLERANCE} is accepted); "
            "nothing was written; write it in float32"
        )
    ranks = [lora.rank for lora in found.modules.values()]
    return Proof(errors[worst], len(ranks), (min(ranks), max(ranks)), size)


def _error(asked: LowRank, found: LowRank) -> float:
    """‖ΔW_found − ΔW_asked‖ / ‖ΔW_asked‖ without a dense product and without cancellation.

    U' D' − U D = [U' − U | U] [D' ; D' − D], and ‖U D‖² = tr(UᵀU · D Dᵀ), with the scales folded into U.
    """
    up, down = asked.scale * asked.up.detach().cpu().double(), asked.down.detach().cpu().double()
    up_, down_ = found.scale * found.up.double(), found.down.double()
    difference = _norm(torch.cat([up_ - up, up], 1), torch.cat([down_, down_ - down]))
    size = _norm(up, down)
    return difference / size if size else (0.0 if not difference else float("inf"))


def _norm(up: Tensor, down: Tensor) -> float:
    """‖up · down‖ in the Frobenius norm, from two Gram matrices."""
    return float(((up.T @ up) * (down @ down.T).T).sum().clamp(min=0).sqrt())
