"""Modules of a LoRA that are made anew whenever they are asked for, so that never all of them are in memory."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from ctypes import CDLL
from dataclasses import dataclass, replace
from tempfile import TemporaryFile, gettempdir
from typing import TypeVar

import torch
from torch import Tensor

from duolora.errors import DuoLoRAError
from duolora.paper.lowrank import LowRank
from duolora.progress import through

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class OnDemand(Mapping[str, LowRank]):
    """Modules by name. What a whole adapter takes in float32 is several times its file; one module is a few MB."""

    outlines: Mapping[str, LowRank]
    """The modules without values, on the meta device: their shapes and strengths."""
    make: Callable[[str], LowRank]

    def __getitem__(self, name: str) -> LowRank:
        """Make one module; KeyError where there is none of that name."""
        if name not in self.outlines:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.outlines)

    def __len__(self) -> int:
        """Count the modules."""
        return len(self.outlines)


def outlines(modules: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
    """The modules as far as shapes, ranks and scales are concerned; their values may be missing."""
    return modules.outlines if isinstance(modules, OnDemand) else modules


def sketched(lora: LowRank) -> LowRank:
    """The same module without values."""
    return replace(lora, up=lora.up.to("meta"), down=lora.down.to("meta"))


def spooled(made: Iterable[tuple[str, LowRank]]) -> OnDemand:
    """Modules that take long to make: each is made once, and kept in float32 in a file without a name.

    Raises:
        DuoLoRAError: the disk is full.
    """
    file, found, places = TemporaryFile(), dict[str, LowRank](), dict[str, int]()  # noqa: SIM115 - closed with its reader
    for name, lora in made:
        found[name], places[name] = sketched(in_float32(lora)), file.tell()
        try:
            for factor in (lora.up, lora.down):
                file.write(factor.detach().float().cpu().contiguous().numpy().data)
        except OSError as error:
            raise DuoLoRAError(
                f"{gettempdir()}: {error.strerror}; free some space there, or name another place by TMPDIR"
            ) from error

    def read(like: Tensor) -> Tensor:
        """The next factor, of the shape of this one."""
        data = bytearray(4 * like.numel())
        file.readinto(data)
        return torch.frombuffer(data, dtype=torch.float32).reshape(like.shape)

    def module(name: str) -> LowRank:
        """One module, read back."""
        file.seek(places[name])
        like = found[name]
        return replace(like, up=read(like.up), down=read(like.down))

    return OnDemand(found, module)


def one_by_one(items: Collection[T], what: str) -> Iterator[T]:
    """Modules or their names with a count, for whoever keeps little of each: memory that is free is given back."""
    for k, item in enumerate(through(items, what)):
        if k % 50 == 0:
            give_back()
        yield item


def give_back() -> None:
    """Return freed memory to the system; glibc keeps it where small pieces in use lie between the large free ones."""
    with suppress(AttributeError, OSError, TypeError):  # other systems have no such function
        CDLL(None).malloc_trim(0)


def in_float32(lora: LowRank) -> LowRank:
    """The same module with factors to calculate with."""
    return replace(lora, up=lora.up.float(), down=lora.down.float())


def mapped(modules: Mapping[str, LowRank], change: Callable[[LowRank], LowRank]) -> Mapping[str, LowRank]:
    """Every module changed: at once or, of those that are made on demand, then."""
    if not isinstance(modules, OnDemand):
        return {name: change(lora) for name, lora in modules.items()}
    changed = {name: change(lora) for name, lora in modules.outlines.items()}
    return OnDemand(changed, lambda name: change(modules.make(name)))


def renamed(modules: Mapping[str, LowRank], names: Mapping[str, str]) -> Mapping[str, LowRank]:
    """The modules under new names; `names` has the old one for each."""
    if not isinstance(modules, OnDemand):
        return {new: modules[old] for new, old in names.items()}
    return OnDemand({new: modules.outlines[old] for new, old in names.items()}, lambda new: modules.make(names[new]))
