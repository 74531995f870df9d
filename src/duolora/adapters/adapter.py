"""A LoRA for a whole network."""

from dataclasses import dataclass, field

from duolora.paper.lowrank import LowRank


@dataclass(frozen=True, eq=False)
class Adapter:
    """The low-rank updates of a network's modules, and where they came from.

    `modules` are named as in the network (text encoders with a `text_encoder.` or `text_encoder_2.` before it).
    `recipe` is what the file says of its making; it holds only what JSON can.
    """

    modules: dict[str, LowRank]
    recipe: dict[str, object] = field(default_factory=dict)
