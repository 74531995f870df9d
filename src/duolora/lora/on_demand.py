"""Modules of a LoRA that are made anew whenever they are asked for, so that never all of them are in memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from duolora.paper.lowrank import LowRank


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
