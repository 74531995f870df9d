"""The process in which a pickle is read (see `pickled.py`): `python unpickle.py PICKLE OUT`."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def limit(size: int) -> None:
    """Bound this process's memory beyond what it has, its time, and the size of what it writes."""
    import resource

    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for what, most in (
        (resource.RLIMIT_AS, mapped + 4 * size + 2**30),
        (resource.RLIMIT_CPU, 600),
        (resource.RLIMIT_FSIZE, 2 * size + 2**20),
    ):
        resource.setrlimit(what, (most, most))


def write(pickle: Path, out: Path) -> None:
    """The tensors of a pickle as safetensors, without `module.`."""
    if sys.platform == "linux":
        limit(pickle.stat().st_size)
    torch.serialization.add_safe_globals([argparse.Namespace])
    found = torch.load(pickle, map_location="cpu", weights_only=True)
    state = found.get("model_state_dict", found) if isinstance(found, Mapping) else {}
    tensors = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError("it holds no weights by name")
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, out, {"format": "pt"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(*map(Path, sys.argv[1:]))
