"""Selective weight scaling (Sec. 3.3.1, Figure 3): some of a UNet's attention turned down, to see what it draws."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import UNet2DConditionModel

from duolora.errors import InputError
from duolora.model.blocks import target_modules


def block_groups(unet: UNet2DConditionModel) -> dict[str, tuple[str, ...]]:
    """Groups worth turning down: each resolution and each block that has attention, and each attention of several."""
    names = target_modules(unet)
    blocks = list(dict.fromkeys(name.partition(".attentions")[0] for name in names))
    levels = len(unet.config["down_block_types"])
    groups: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        kind, _, number = block.partition("_blocks.")
        level = levels - 1 if not number else int(number) if kind == "down" else levels - 1 - int(number)
        groups[f"level {level}"] = (*groups.get(f"level {level}", ()), block)
    for block in blocks:
        parts = dict.fromkeys(n.partition(".transformer_blocks")[0] for n in names if n.startswith(f"{block}."))
        groups |= {part: (part,) for part in ((block, *parts) if len(parts) > 1 else (block,))}
    return groups


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
