"""The UNets of SDXL 1.0, SSD-1B and Segmind-Vega as arguments of diffusers' UNet2DConditionModel, without weights.

From them alone follow the attention projections, which may carry masks, and so the architecture of a LoRA file.
SSD-1B and Vega are SDXL with transformer blocks taken out, and with no attention in the middle. The order inside Vega's
up blocks is inferred from SSD-1B's; counts do not depend on it.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from duolora.errors import InputError
from duolora.model.base_check import check_configs
from duolora.model.defaults import base_path
from duolora.options import word
from duolora.textfiles import read_json

Shapes = Mapping[str, tuple[int, int]]
PROJECTION = re.compile(r".+\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)")
"""The path of a query, key, value or output projection."""


@dataclass(frozen=True)
class Architecture:
    """The attention projections of a UNet: (d_out, d_in) of each by its path, in the network's order."""

    name: str
    shapes: Shapes
    levels: int | None
    """How many resolutions the UNet has, on which block roles depend; None where nobody knows."""


SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sdxl": SDXL,
    "ssd-1b": SDXL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [0, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 0],
    },
    "segmind-vega": SDXL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [0, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 0],
    },
}


def unet_config(name: str, width: int | None = None) -> dict[str, Any]:
    """The arguments that build the UNet `name`; with `width`, the same blocks from `width` channels on instead of 320.

    The narrow one takes text and pooled text 4 · width wide, and has one attention head for every `width` channels.

    Raises:
        InputError: there is no such architecture, or the width is not even.
    """
    word("architecture", name, list(ARCHITECTURES))
    if width is None:
        return dict(ARCHITECTURES[name])
    if width < 2 or width % 2:
        raise InputError(f"width: expected an even number of channels, got {width}")
    return ARCHITECTURES[name] | {
        "sample_size": 8,
        "block_out_channels": (width, 2 * width, 4 * width),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 4 * width,
        "addition_time_embed_dim": width,
        "projection_class_embeddings_input_dim": 6 * width + 4 * width,
        "norm_num_groups": math.gcd(32, width),
    }


def attention_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The attention projections of the UNet of this config, in the network's order; nothing is built for it."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    depths = config["transformer_layers_per_block"]
    depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
    upwards = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    blocks = [
        (f"down_blocks.{i}", kind, widths[i], depths[i], layers) for i, kind in enumerate(config["down_block_types"])
    ]
    blocks += [
        (f"up_blocks.{i}", kind, widths[-1 - i], upwards[i], layers + 1)
        for i, kind in enumerate(config["up_block_types"])
    ]
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    blocks.append(("mid_block", middle, widths[-1], depths[-1], 1))
    found: dict[str, tuple[int, int]] = {}
    for block, kind, width, depth, count in blocks:
        for k, n in enumerate([depth] * count if isinstance(depth, int) else depth) if "CrossAttn" in kind else ():
            for transformer in range(n):
                path = f"{block}.attentions.{k}.transformer_blocks.{transformer}"
                found |= dict(_projections(path, width, config["cross_attention_dim"]))
    return found


def _projections(path: str, width: int, text: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for attention, seen in (("attn1", width), ("attn2", text)):
        for name, d_in in (("to_q", width), ("to_k", seen), ("to_v", seen), ("to_out.0", width)):
            yield f"{path}.{attention}.{name}", (width, d_in)


def shapes_in(base: str) -> Shapes | None:
    """The attention projections of the base in a diffusers folder, by its config; None where that says too little.

    Raises:
        FileRefused: the config is no text of bounded size and depth, or its numbers are out of all proportion.
    """
    path = base_path(base) / "unet" / "config.json"
    if not os.path.exists(path):
        return None
    config = read_json(path)
    try:
        check_configs({path: config})
        return attention_shapes(config)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def modules_within(shapes: Shapes, blocks: Sequence[str] = ()) -> list[str]:
    """The projections whose paths begin with one of `blocks`, such as `up_blocks.0.attentions.1`; all for no blocks.

    Raises:
        InputError: a block has no attention.
    """
    names = list(shapes)
    for block in blocks:
        if not any(f"{name}.".startswith(f"{block}.") for name in names):
            known = dict.fromkeys(name.partition(".transformer_blocks")[0] for name in names)
            raise InputError(
                f"blocks: expected a part of the UNet with attention, such as {', '.join(known)}; got {block!r}"
            )
    return [name for name in names if not blocks or any(f"{name}.".startswith(f"{block}.") for block in blocks)]


@cache
def known_architectures() -> tuple[Architecture, ...]:
    """Those above, and the base that ships with the package."""
    configs = dict(ARCHITECTURES)
    atelier = base_path("atelier") / "unet" / "config.json"
    if atelier.is_file():
        configs["atelier"] = json.loads(atelier.read_text("utf-8"))
    return tuple(
        Architecture(name, attention_shapes(config), len(config["block_out_channels"]))
        for name, config in configs.items()
    )


def recognised(shapes: Shapes) -> Architecture:
    """The smallest architecture that has all these attention projections; one of no levels if none does.

    So SDXL, SSD-1B and Segmind-Vega are told apart by their depths. A LoRA of a few blocks may fit more than one; where
    those have the same blocks, they have the same roles.
    """
    fitting = [known for known in known_architectures() if shapes.items() <= known.shapes.items()]
    unknown = Architecture("unknown", dict(sorted(shapes.items(), key=_in_network_order)), None)
    return min(fitting, key=lambda known: len(known.shapes), default=unknown) if shapes else unknown


def _in_network_order(entry: tuple[str, tuple[int, int]]) -> tuple[int, ...]:
    """What sorts the projections of any UNet as the network has them."""
    words = ("down_blocks", "up_blocks", "mid_block", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out")
    return tuple(
        int(part) if part.isdigit() else words.index(part)
        for part in entry[0].split(".")
        if part.isdigit() or part in words
    )
