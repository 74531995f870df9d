"""Training state on disk: safetensors only, written whole or not at all, so that a stopped run goes on exactly.

Random numbers are never stored: every step samples from `step_generator(seed, step)`, so a step is the same whether or
not the run was stopped before it.
"""

import hashlib
import json
import os
import reprlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from duolora.errors import DuoLoRAError, FileRefused, reason
from duolora.provenance import tensors_hash
from duolora.training.finite import check_values


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one training step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 62))


@contextmanager
def interruptible() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that a step ends and is kept; a second Ctrl-C interrupts at once."""
    asked, before = Event(), signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or before is None:
        yield asked
        return

    def note(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def stop_if(asked: Event, done: int, of: int, checkpoint: Path | None) -> None:
    """End the work if Ctrl-C was pressed, saying what is kept.

    Raises:
        KeyboardInterrupt: it was.
    """
    if asked.is_set():
        kept = "nothing is kept" if checkpoint is None else "the same command goes on from there"
        raise KeyboardInterrupt(f"stopped after {done} of {of} steps; {kept}")


def checkpoint_path(out: Path, metadata: Mapping[str, object]) -> Path:
    """A hidden name beside `out` that only these metadata have, so that no other goes on from its checkpoint."""
    mark = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:12]
    return out.with_name(f".{out.stem}.{mark}.ckpt.safetensors")


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    step: int,
    losses: Sequence[object] = (),
) -> None:
    """Write tensors, the optimiser's state, the step and, as JSON, the losses so far.

    The old checkpoint stays until the new one is whole.

    Raises:
        DuoLoRAError: the tensors hold NaN or infinite values, or the disk is full; the old checkpoint stays.
    """
    check_values(tensors.values(), optimiser, step)
    state = {f"value.{k}": v.detach() for k, v in tensors.items()}
    for number, entries in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{number}.{k}": torch.as_tensor(v) for k, v in entries.items()}
    state = {key: value.contiguous().cpu().clone() for key, value in state.items()}
    progress = json.dumps({"step": step, "losses": list(losses), "mark": _mark(state, step, list(losses))})
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, part, {"progress": progress})
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise DuoLoRAError(
            f"{path}: the checkpoint cannot be written ({reason(error)}); make room, and give the same command again, "
            "which goes on from the last one"
        ) from error


def load_checkpoint(path: Path, tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, steps: int) -> int:
    """Copy a checkpoint into `tensors` and the optimiser, in place; returns how many of `steps` were done.

    Raises:
        FileRefused: it is damaged, or of another run; nothing is changed then.
    """
    with _refusing(path):
        with safe_open(path, "pt") as file:
            progress = _progress(file)
            step = progress["step"]
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        values = {key.removeprefix("value."): value for key, value in stored.items() if key.startswith("value.")}
        if type(step) is not int or not 0 <= step <= steps:
            raise ValueError(f"it says step {reprlib.repr(step)} of {steps}")
        if progress["mark"] != _mark(stored, step, progress["losses"]) or _shapes(values) != _shapes(tensors):
            raise ValueError("its tensors are not those of this run")
        if not all(torch.isfinite(value).all() for value in values.values()):
            raise ValueError("it holds NaN or infinite values")
        state = _optimiser_state(stored, optimiser)
    with torch.no_grad():
        for key, value in tensors.items():
            value.copy_(values[key])
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def losses_before(path: Path) -> list[Any]:
    """The losses in a checkpoint, as `save_checkpoint` was given them.

    Raises:
        FileRefused: it is damaged.
    """
    with _refusing(path), safe_open(path, "pt") as file:
        return list(_progress(file)["losses"])


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileRefused(
            f"{path}: no whole checkpoint of this run ({reason(error)}); delete it to begin anew"
        ) from error


def _progress(file: Any) -> dict[str, Any]:
    found = json.loads((file.metadata() or {})["progress"])
    if not isinstance(found, dict):
        raise ValueError(f"its progress is a {type(found).__name__}")
    return found


def _mark(tensors: Mapping[str, Tensor], step: int, losses: object) -> str:
    """A hash of all that a checkpoint holds: less of it, or other values, would go on to other bytes."""
    return hashlib.sha256(f"{tensors_hash(tensors)} {json.dumps([step, losses])}".encode()).hexdigest()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _optimiser_state(stored: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The optimiser's entries for each parameter, by its number; ValueError if one has another size."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        kind, _, rest = key.partition(".")
        if kind == "optimiser":
            number, _, entry = rest.partition(".")
            if int(number) >= len(parameters) or tensor.shape not in ((), parameters[int(number)].shape):
                raise ValueError("its optimiser is not that of this run")
            state.setdefault(int(number), {})[entry] = tensor
    return state
