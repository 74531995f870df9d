"""A LoRA for a whole network."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from duolora.lora.families import FAMILIES, Family, fitting
from duolora.paper.lowrank import LowRank


@dataclass(frozen=True, eq=False)
class Adapter:
    """The low-rank updates of a pipeline's modules, and where they came from."""

    modules: Mapping[str, LowRank]
    """By their paths in the UNet or transformer; a text encoder's begin with `text_encoder.` or `text_encoder_2.`"""
    metadata: dict[str, object] = field(default_factory=dict)
    """What the file says of its making; only what JSON can hold."""
    left_out: tuple[str, ...] = ()
    """Parts of the file that were not read, such as bundled embeddings."""
    verification: dict[str, object] = field(default_factory=dict)
    """What the header says of its verification; nothing where the tensors are not those that were verified."""
    notes: dict[str, str] = field(default_factory=dict)
    """What people wrote about it, by keys of headers (see `read.notes`); files that are made of it carry it along."""
    families: tuple[str, ...] = ()
    """The families that it can be for, the likeliest first (see `families`); by default those that its modules fit."""
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Learned tokens: vectors by word and by text encoder (`clip_l`, `clip_g`), in float32."""

    def __post_init__(self) -> None:
        """Find the families by the modules where none are given."""
        if not self.families:
            shapes = {name: (lora.d_out, lora.d_in) for name, lora in self.modules.items()}
            object.__setattr__(self, "families", fitting(shapes) or ("SDXL",))

    @property
    def family(self) -> Family:
        """The likeliest family."""
        return FAMILIES[self.families[0]]


def embeddings_of(*adapters: Adapter) -> dict[str, dict[str, Tensor]]:
    """The learned tokens of several together; of a word that several have, the first one's."""
    return {word: known for adapter in reversed(adapters) for word, known in adapter.embeddings.items()}
