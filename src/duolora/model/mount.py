"""Adapters mounted on a UNet, all at once, with a gate for each sample.

    y = W x + U (g ⊙ (D x))        U = [s₁up₁ | s₂up₂ | …] (d_out, R),  D = [down₁ ; down₂ ; …] (R, d_in)

The gates of a sample are one row of `columns` numbers: module after module in the network's order, and adapter after
adapter in each module. So teachers, student and base share a call, and all gates are prepared by a handful of
operations, however many modules there are. Low-rank maths runs in the network's dtype, gates may be wider.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from duolora.errors import BaseMismatch
from duolora.paper import ziplora, ziprank
from duolora.paper.lowrank import LowRank, concatenate

Axis = Literal["rank", "output", "input"]


@dataclass(frozen=True, eq=False)
class Stacked:
    """The adapters of one module side by side, scales folded into `up`, in the network's dtype and on its device.

    `owners` are the adapters that cover the module, `ranks` are theirs and sum to R.
    """

    up: Float[Tensor, "d_out R"]
    down: Float[Tensor, "R d_in"]
    owners: tuple[int, ...]
    ranks: tuple[int, ...]

    def widths(self, axis: Axis) -> tuple[int, ...]:
        """The length of each owner's mask."""
        if axis == "rank":
            return self.ranks
        return (len(self.up) if axis == "output" else self.down.shape[1],) * len(self.owners)

    def added(self, x: Tensor, gate: Tensor, axis: Axis) -> Tensor:
        """What the adapters add to the module's output, for a gate (batch, sum of widths) or one row for all."""
        if len(gate) != len(x):
            gate = gate.expand(len(x), -1)
        if axis == "rank":
            return ziprank.forward(x, self.up, self.down, gate)
        gate = gate.view(len(gate), len(self.owners), -1)
        forward = ziplora.forward_output if axis == "output" else ziplora.forward_input
        return forward(x, self.up, self.down, self.ranks, gate)


class Mount:
    """Context manager in which a UNet carries `adapters`; on leaving it is, bit for bit, what it was.

    Outside `gating` the network is the bare base. No parameter is touched: the modules' `forward` is replaced and put
    back. Factors are copied without gradient; gradients go to the gates. Gradient checkpointing, when the UNet has it
    on as the mount is entered, works, because what is computed again meets the gates of its own call.

    Raises:
        BaseMismatch: an adapter names a module that the UNet has not, or has in another shape.
    """

    def __init__(
        self,
        unet: Any,
        adapters: Sequence[Mapping[str, LowRank]],
        axis: Axis = "rank",
        device: torch.device | None = None,
    ) -> None:
        """Stack the adapters' factors, where the UNet is or will run; it is left alone until the mount is entered."""
        self.unet = unet
        self.axis: Axis = axis
        self.adapters = len(adapters)
        self.device, self.dtype = device or unet.device, unet.dtype
        self.modules = _stacked(unet, adapters, self.device, self.dtype)
        self._sizes = [sum(stacked.widths(axis)) for stacked in self.modules.values()]
        self.columns = sum(self._sizes)
        self._gates: dict[str, Tensor] | None = None
        self._restore: ExitStack | None = None

    def flat(self, masks: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, " columns"]:
        """One gate row from a mask for every adapter and module that it covers; gradients reach the masks."""
        parts = [masks[k][name].flatten() for name, stacked in self.modules.items() for k in stacked.owners]
        return torch.cat(parts) if parts else torch.zeros(0, device=self.device)

    def unflat(self, row: Shaped[Tensor, " columns"]) -> list[dict[str, Tensor]]:
        """The masks of a gate row, one mapping for each adapter; the inverse of `flat`."""
        masks: list[dict[str, Tensor]] = [{} for _ in range(self.adapters)]
        for (name, stacked), part in zip(self.modules.items(), torch.split(row, self._sizes), strict=True):
            for k, mask in zip(stacked.owners, torch.split(part, list(stacked.widths(self.axis))), strict=True):
                masks[k][name] = mask
        return masks

    def owned(self) -> Float[Tensor, "adapters columns"]:
        """Row k is the gate of adapter k alone at full strength: ones in its columns, zeros elsewhere."""
        index = [
            torch.full((width,), k, device=self.device)
            for stacked in self.modules.values()
            for k, width in zip(stacked.owners, stacked.widths(self.axis), strict=True)
        ]
        owner = torch.cat(index) if index else torch.zeros(0, dtype=torch.long, device=self.device)
        return (owner == torch.arange(self.adapters, device=self.device)[:, None]).float()

    @contextmanager
    def gating(self, gates: Float[Tensor, "batch columns"]) -> Iterator[None]:
        """Calls of the UNet in this context give sample i the gate `gates[i]`; a single row holds for any batch."""
        if gates.ndim != 2 or gates.shape[1] != self.columns:
            raise ValueError(f"expected gates (batch, {self.columns}), got {tuple(gates.shape)}")
        parts = torch.split(gates.to(self.device, self.dtype), self._sizes, dim=1)
        with self._using(dict(zip(self.modules, parts, strict=True))):
            yield

    @contextmanager
    def _using(self, gates: dict[str, Tensor] | None) -> Iterator[None]:
        before, self._gates = self._gates, gates
        try:
            yield
        finally:
            self._gates = before

    def __enter__(self) -> "Mount":
        """Put the adapters in."""
        if self._restore is not None:
            raise RuntimeError("this mount is already entered; make another one to nest it")
        with ExitStack() as undo:
            for name, stacked in self.modules.items():
                linear = self.unet.get_submodule(name)
                _swap(undo, linear, "forward", self._forward(name, stacked, linear.forward))
            for module in self.unet.modules():
                if getattr(module, "gradient_checkpointing", False):
                    _swap(undo, module, "_gradient_checkpointing_func", self._checkpoint)
            self._restore = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take them out."""
        restore, self._restore = self._restore, None
        if restore is not None:
            restore.close()

    def _forward(self, name: str, stacked: Stacked, bare: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        axis = self.axis

        def forward(x: Tensor) -> Tensor:
            y = bare(x)
            return y if self._gates is None else y + stacked.added(x, self._gates[name], axis)

        return forward

    def _checkpoint(self, module: Callable[..., Any], *inputs: Any) -> Any:
        gates = self._gates

        def again(*inputs: Any) -> Any:
            with self._using(gates):
                return module(*inputs)

        return checkpoint(again, *inputs, use_reentrant=False)


def _swap(undo: ExitStack, owner: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of this one object, and let `undo` put back what the object itself had, if anything."""
    if name in owner.__dict__:
        undo.callback(owner.__dict__.__setitem__, name, owner.__dict__[name])
    else:
        undo.callback(owner.__dict__.pop, name)
    owner.__dict__[name] = value


def _stacked(
    unet: Any, adapters: Sequence[Mapping[str, LowRank]], device: torch.device, dtype: torch.dtype
) -> dict[str, Stacked]:
    """The stacked adapters of every module that any of them covers, in the network's order."""
    covered = {name for adapter in adapters for name in adapter}
    modules = {name: module for name, module in unet.named_modules() if name in covered}
    if missing := sorted(covered - modules.keys()):
        raise BaseMismatch(
            f"{missing[0]}: the base model has no such module ({len(missing)} of the {len(covered)} modules of the "
            "LoRA are unknown to it); use the base that the LoRA was trained on"
        )
    stacked = {}
    for name, module in modules.items():
        owners = tuple(k for k, adapter in enumerate(adapters) if name in adapter)
        loras = [adapters[k][name] for k in owners]
        for lora in loras:
            _check_fits(name, module, lora)
        both = concatenate(
            [LowRank(lora.up.detach().float(), lora.down.detach().float(), lora.scale) for lora in loras]
        )
        up, down = both.up.to(device, dtype), both.down.to(device, dtype)
        stacked[name] = Stacked(up, down, owners, tuple(lora.rank for lora in loras))
    return stacked


def _check_fits(name: str, module: nn.Module, lora: LowRank) -> None:
    if not isinstance(module, nn.Linear):
        raise BaseMismatch(
            f"{name}: expected a linear layer to put a LoRA on, found {type(module).__name__}; leave it out"
        )
    expected, found = (module.out_features, module.in_features), (lora.d_out, lora.d_in)
    if expected != found:
        raise BaseMismatch(
            f"{name}: the base model's weight is {expected[0]}×{expected[1]}, the LoRA is for {found[0]}×{found[1]}; "
            "use the base that the LoRA was trained on"
        )
