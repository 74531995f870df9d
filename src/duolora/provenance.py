"""Where a file came from: hashes of its sources and the versions that made it."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers, in hexadecimal."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """The versions of DuoLoRA and of the libraries that its results depend on."""
    found = {}
    for name in ("duolora", "torch", "diffusers", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
