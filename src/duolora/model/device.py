"""Where and how a base runs: device, dtype and offloading, as asked for or as the machine suggests."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from duolora.errors import InputError

Offload = Literal["none", "model", "sequential"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT8, NF4 = "float8", "nf4"
"""As "auto", with the weights of a transformer's blocks kept in float8, or in 4 bits by bitsandbytes."""
SMALL_CARD = 20e9
"""Bytes of a GPU's memory, below which activations are computed twice rather than kept."""
WHOLE, TURNS = 1.6, 1.3
"""Free memory, in sizes of the weights, that is enough for all networks at once, or for the UNet alone."""


def chosen_device(device: str | torch.device) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        InputError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {device!r}") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (found.index or 0) >= count.get(found.type, 0):
        here = ", ".join(name for name, n in count.items() if n)
        raise InputError(f"device: expected one that is here ({here}), got {found}; leave --device away")
    return found


def chosen_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of this name; "auto" is float32 on the CPU, else bfloat16, or float16 where the GPU is too old for it.

    Raises:
        InputError: there is none.
    """
    if dtype in ("auto", FLOAT8, NF4):
        if device.type == "cpu":
            return torch.float32
        old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
        return torch.float16 if old else torch.bfloat16
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected auto, {', '.join((*DTYPES, FLOAT8, NF4))}; got {dtype}")
    return DTYPES[str(dtype)]


def chosen_offload(offload: str, device: torch.device, network: nn.Module, encoders: Sequence[nn.Module]) -> Offload:
    """How networks leave the device: as asked for, or "auto" by the free memory of a GPU; none on the CPU itself."""
    if device.type == "cpu":
        return "none"
    for known in get_args(Offload):
        if offload == known:
            return known
    if device.type != "cuda":
        return "none"
    free, _ = torch.cuda.mem_get_info(device)
    if free >= WHOLE * (_bytes(network) + sum(map(_bytes, encoders))):
        return "none"
    return "model" if free >= TURNS * _bytes(network) else "sequential"


def chosen_checkpointing(gradient_checkpointing: str, device: torch.device) -> bool:
    """Whether activations are computed twice, as asked for; "auto" is on GPUs of less than `SMALL_CARD`.

    Raises:
        InputError: it is none of auto, on and off.
    """
    if gradient_checkpointing not in ("auto", "on", "off"):
        raise InputError(f"gradient checkpointing: expected auto, on or off, got {gradient_checkpointing!r}")
    if gradient_checkpointing != "auto":
        return gradient_checkpointing == "on"
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < SMALL_CARD


def _bytes(network: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in network.parameters())
