"""Which modules of a UNet carry masks, and how many numbers the masks have."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import nn

from duolora.errors import InputError

_TARGET = re.compile(r".+\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)")


@dataclass(frozen=True)
class MaskCounts:
    """Numbers to learn, over all modules and adapters, for each axis that a mask can act on."""

    modules: int
    rank: int
    output: int
    input: int


def target_modules(unet: UNet2DConditionModel) -> list[str]:
    """The names of the query, key, value and output projections of every attention, in the network's order."""
    return [name for name, m in unet.named_modules() if isinstance(m, nn.Linear) and _TARGET.fullmatch(name)]


def modules_within(unet: UNet2DConditionModel, blocks: Sequence[str] = ()) -> list[str]:
    """The target modules whose paths begin with one of `blocks`, such as `up_blocks.0.attentions.1`; all for no blocks.

    Raises:
        InputError: a block has no attention.
    """
    names = target_modules(unet)
    for block in blocks:
        if not any(f"{name}.".startswith(f"{block}.") for name in names):
            known = dict.fromkeys(name.partition(".transformer_blocks")[0] for name in names)
            raise InputError(
                f"blocks: expected a part of the UNet with attention, such as {', '.join(known)}; got {block!r}"
            )
    return [name for name in names if not blocks or any(f"{name}.".startswith(f"{block}.") for block in blocks)]


def count_masks(unet: UNet2DConditionModel, rank: int, adapters: int = 2) -> MaskCounts:
    """The sizes of the masks of `adapters` LoRAs of one rank; works on the meta device.

    Per module and adapter: r with rank masks (Def. 2), d_out with output masks (Def. 1), d_in with input masks.
    """
    shapes = [unet.get_submodule(name).weight.shape for name in target_modules(unet)]
    return MaskCounts(
        modules=len(shapes),
        rank=adapters * rank * len(shapes),
        output=adapters * sum(d_out for d_out, _ in shapes),
        input=adapters * sum(d_in for _, d_in in shapes),
    )


def layer_shapes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """The shape (d_out, d_in) of the weight of every linear layer and convolution, as a matrix, by its path."""
    return {
        name: (len(module.weight), module.weight[0].numel())
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
