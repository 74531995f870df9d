"""Selective weight scaling (Sec. 3.3.1, Figure 3): some of a UNet's attention turned down, to see what it draws."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import UNet2DConditionModel

from duolora.errors import InputError
from duolora.networks.targets import target_modules


def block_groups(unet: UNet2DConditionModel) -> dict[str, tuple[str, ...]]:
    """Groups of blocks worth turning down: each resolution, and each block, that has attention."""
    blocks = list(dict.fromkeys(name.partition(".attentions")[0] for name in target_modules(unet)))
    levels = len(unet.config["down_block_types"])
    groups: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        kind, _, number = block.partition("_blocks.")
        level = levels - 1 if not number else int(number) if kind == "down" else levels - 1 - int(number)
        groups[f"level {level}"] = (*groups.get(f"level {level}", ()), block)
    return groups | {block: (block,) for block in blocks}


@contextmanager
def scaled(
    unet: UNet2DConditionModel, blocks: Sequence[str], alpha: float, attention: Sequence[str] = ("attn1", "attn2")
) -> Iterator[None]:
    """Multiply by `alpha` what the attention of these blocks adds; on leaving the UNet is what it was.

    As the projection behind an attention is linear, this scales its weight (and bias). `attention` picks
    self-attention ("attn1"), cross-attention ("attn2") or both.

    Raises:
        InputError: a block has no attention.
    """
    handles = []
    try:
        for block in blocks:
            names = [
                name
                for name, _ in unet.named_modules()
                if f"{name}.".startswith(f"{block}.") and name.rpartition(".")[2] in attention
            ]
            if not names:
                raise InputError(f"{block}: expected a block of the UNet with attention, found none")
            for name in names:
                handles.append(unet.get_submodule(name).register_forward_hook(lambda _m, _x, out: alpha * out))
        yield
    finally:
        for handle in handles:
            handle.remove()
