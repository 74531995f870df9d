"""Where a file or a number came from: hashes of its sources, and the versions, commit and machine that made it."""

import hashlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn

from duolora.progress import through
from duolora.textfiles import write_whole

SETTLED = 2 * 10**9
"""Nanoseconds; a file that was changed later could be changed again without another time."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_hash(path: Path) -> str:
    """SHA-256 of a file's length and of blocks spread evenly over it, in hexadecimal: quick for weights of any size.

    Two trainings of a network differ in nearly every number, so the blocks tell them apart.
    """
    length, blocks, size = path.stat().st_size, 256, 4096
    found = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        for start in range(0, length, max(size, length // blocks)):
            file.seek(start)
            found.update(file.read(size))
    return found.hexdigest()


def sampled_hashes(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the `sampled_hash` of files with their paths in a folder, in hexadecimal."""
    lines = [f"{file.relative_to(folder)} {sampled_hash(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def remembered(files: Sequence[Path], about: object, made: Callable[[], str]) -> str:
    """A hash that is the same as long as these files are, by their paths, sizes and times; kept in the user's cache.

    Args:
        files: what it is of.
        about: what else it depends on.
        made: makes it, where it is not known.
    """
    known = [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    place = user_cache_path("duolora") / "hashes-1" / hashlib.sha256(repr((known, about)).encode()).hexdigest()
    with suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", found := place.read_text("ascii").strip()):
            return found
    found = made()
    if known and time.time_ns() - max(changed for *_, changed in known) > SETTLED:
        with suppress(OSError):
            write_whole(place, found)
    return found


def known_hash(path: Path) -> str:
    """SHA-256 of a large file, as far as it is known from an earlier run (see `remembered`)."""
    return remembered([path], "file", lambda: file_hash(path))


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers, in hexadecimal."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def weights_hash(networks: Iterable[nn.Module]) -> str:
    """SHA-256 of all weights of networks, with their names, types and shapes, in hexadecimal.

    A LoRA that PEFT has put on them makes no difference.
    """
    named = (item for network in networks for item in network.state_dict().items())
    return named_hash((name.replace(".base_layer.", "."), tensor) for name, tensor in named if ".lora_" not in name)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors of a file, with their names, types and shapes, in hexadecimal."""
    return named_hash((name, tensors[name]) for name in through(sorted(tensors), "Hashing"))


def named_hash(named: Iterable[tuple[str, Tensor]], before: str = "") -> str:
    """SHA-256 of tensors with their names, types and shapes, behind some text, in hexadecimal."""
    found = hashlib.sha256(before.encode())
    for name, tensor in named:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode("utf-8", "backslashreplace"))
        found.update(_bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


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


def facts(device: str, seed: int) -> dict[str, Any]:
    """Where and with what a measurement was made."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    hardware = {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"commit": _commit(), "versions": versions(), "hardware": hardware, "seed": seed}


@cache
def _commit() -> str | None:
    """The commit of the working tree that has this file, -dirty if it was changed; None outside one.

    Asked once, since a process that runs for long goes on with the code that it began with.
    """
    here = Path(__file__)
    try:
        for asked in (["ls-files", here.name], ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]):
            done = subprocess.run(
                ["git", *asked], cwd=here.parent, capture_output=True, text=True, timeout=10, check=False
            )
            if not done.stdout.strip():  # no working tree, or one that this file is no part of, as of an environment
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()
