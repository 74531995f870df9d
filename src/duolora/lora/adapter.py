"""A LoRA for a whole network."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from duolora.errors import BaseMismatch, Notice
from duolora.lora.families import FAMILIES, Family, fitting
from duolora.lora.on_demand import outlines
from duolora.paper.lowrank import LowRank

_FILL = 384
"""Inputs of the first layer of FLUX.1 Fill, which is given an image and its mask, too; FLUX.1's has 64."""


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

    @property
    def is_fill(self) -> bool | None:
        """Whether it is for FLUX.1 Fill; None where it does not change the layer in which that differs from FLUX.1."""
        first = outlines(self.modules).get("x_embedder")
        return None if first is None else self.families[0] == "FLUX.1" and first.d_in == _FILL


def check_fill(files: Iterable[tuple[object, Adapter]]) -> None:
    """Refuse LoRAs of FLUX.1 Fill beside those of FLUX.1; warn where a file does not say which of the two it is for.

    Raises:
        BaseMismatch: there are both.
    """
    kinds: dict[bool | None, object] = {}
    for file, adapter in files:
        kinds.setdefault(adapter.is_fill, file)
    if True in kinds and False in kinds:
        raise BaseMismatch(
            f"{kinds[True]} is a LoRA for FLUX.1 Fill (its x_embedder has {_FILL} inputs), and {kinds[False]} for "
            "FLUX.1; LoRAs of different bases cannot be put together; give files that were trained on one"
        )
    if True in kinds and None in kinds:
        warnings.warn(
            f"{kinds[True]} is a LoRA for FLUX.1 Fill; {kinds[None]} does not say whether it is, and is taken for one",
            Notice, stacklevel=3,
        )  # fmt: skip


def embeddings_of(*adapters: Adapter) -> dict[str, dict[str, Tensor]]:
    """The learned tokens of several together; of a word that several have, the first one's."""
    return {word: known for adapter in reversed(adapters) for word, known in adapter.embeddings.items()}
