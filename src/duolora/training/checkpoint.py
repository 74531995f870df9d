"""The steps of a training, what ends them early, and their state on disk, from which a stopped run goes on exactly.

The state is safetensors only, written whole or not at all. Random numbers are never stored: every step samples from
`step_generator(seed, step)`, so a step is the same whether or not the run was stopped before it.
"""

import hashlib
import json
import os
import reprlib
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from duolora.errors import DuoLoRAError, FileRefused, reason
from duolora.model.base import Base
from duolora.progress import counted
from duolora.provenance import tensors_hash


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


def load_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, steps: int
) -> tuple[int, list[Any]]:
    """Copy a checkpoint into `tensors` and the optimiser, in place; how many of `steps` were done, and the losses.

    Raises:
        FileRefused: it is damaged, or of another run; nothing is changed then.
    """
    with _refusing(path):
        with safe_open(path, "pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
            if not isinstance(progress, dict):
                raise ValueError(f"its progress is a {type(progress).__name__}")
            step = progress["step"]
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        values = {key.removeprefix("value."): value for key, value in stored.items() if key.startswith("value.")}
        if type(step) is not int or not 0 <= step <= steps:
            raise ValueError(f"it says step {reprlib.repr(step)} of {steps}")
        if progress["mark"] != _mark(stored, step, progress["losses"]) or _shapes(values) != _shapes(tensors):
            raise ValueError("its tensors are not those of this run")
        if not all(torch.isfinite(value).all() for value in values.values()):
            raise ValueError("it holds NaN or infinite values")
        state, losses = _optimiser_state(stored, optimiser), list(progress["losses"])
    with torch.no_grad():
        for key, value in tensors.items():
            value.copy_(values[key])
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step, losses


@dataclass(frozen=True, eq=False)
class Training:
    """What is trained, and all that a checkpoint keeps of it; `losses` are added to as it goes on."""

    tensors: Mapping[str, Tensor]
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: list[Any]
    checkpoint: Path | None

    @contextmanager
    def steps(self, title: str, of: int, every: int, progress: bool, **bar: object) -> Iterator[Iterator[int]]:
        """The numbers of the steps that are left of so many, each counted; `bar` is for tqdm.

        A checkpoint is written after `every` steps, and when Ctrl-C is pressed, with which the work ends.

        Raises:
            FileRefused: the checkpoint that is there is damaged, or of another run.
            KeyboardInterrupt: Ctrl-C was pressed; it says what is kept.
        """
        start, path = 0, self.checkpoint
        if path is not None and path.exists():
            scaling = _scaling_of(self.scaler)
            start, known = load_checkpoint(path, {**self.tensors, **scaling}, self.optimiser, of)
            self.losses.extend(known)
            for scale, tracker in (values.tolist() for values in scaling.values()):
                state = self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)}
                self.scaler.load_state_dict(state)

        def left(asked: Event) -> Iterator[int]:
            """The steps; what follows each is done as the next one is asked for."""
            for step in counted(range(start, of), title, progress, of, **bar):
                yield step
                done = step + 1
                if path is not None and (done % every == 0 or asked.is_set()) and done < of:
                    kept = {**self.tensors, **_scaling_of(self.scaler)}
                    save_checkpoint(path, kept, self.optimiser, done, self.losses)
                if asked.is_set():
                    what = "nothing is kept" if path is None else "the same command goes on from there"
                    raise KeyboardInterrupt(f"stopped after {done} of {of} steps; {what}")

        with interruptible() as asked:
            yield left(asked)


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


def check_loss(loss: Tensor, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Stop where the loss of a step, counted from 0, is NaN or infinite.

    Raises:
        DuoLoRAError: it is; the message names the learning rate.
    """
    if not torch.isfinite(loss.detach()).all():
        raise _diverged(f"the loss is {float(loss.detach().sum())}", optimiser, step)


def check_values(values: Iterable[Tensor], optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Stop where what was trained in so many steps holds NaN or infinite values.

    Raises:
        DuoLoRAError: it does; the message names the learning rate.
    """
    if not all(torch.isfinite(value.detach()).all() for value in values):
        raise _diverged("what is trained is no longer finite", optimiser, steps - 1)


def _diverged(what: str, optimiser: torch.optim.Optimizer, step: int) -> DuoLoRAError:
    lr = optimiser.param_groups[0]["lr"]
    return DuoLoRAError(
        f"step {step + 1}: {what}: training has diverged and was stopped; give a lower learning rate than "
        f"{float(lr):g}, by --lr in `train`, by --set lr=… in `merge`"
    )


def scaler_for(base: Base) -> torch.amp.GradScaler:
    """Gradient scaling, without which most gradients are 0 in float16; without effect on another base."""
    return torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)


def _scaling_of(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """The state of gradient scaling for a checkpoint; nothing where there is none."""
    state = scaler.state_dict()
    return {"gradient scaling": torch.tensor([state["scale"], state["_growth_tracker"]])} if state else {}
