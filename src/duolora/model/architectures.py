"""The UNets of SDXL 1.0, SSD-1B and Segmind-Vega as arguments of diffusers' UNet2DConditionModel, without weights.

SSD-1B and Vega are SDXL with transformer blocks taken out, and with no attention in the middle. The order inside Vega's
up blocks is inferred from SSD-1B's; counts do not depend on it.
"""

import math
from typing import Any

from duolora.errors import InputError

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
    if name not in ARCHITECTURES:
        raise InputError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {name!r}")
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
