"""CSD-s: the Contrastive Style Descriptor's style head (Somepalli et al., 2024) on CLIP's ViT-L/14.

    e = W_styleᵀ LN(x_cls) / ‖·‖,  W_style (1024, 768), x_cls the last layer's class token, no projection after it.

The authors publish a pickle, which is never opened here. `CONVERSION` turns it, once, into a .safetensors file with the
same keys: OpenAI's CLIP names behind `backbone.`, `last_layer_style`, `last_layer_content`.
Every key and shape is checked: the authors' own loader passes silently over a wrong file.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from duolora.errors import FileRefused, InputError, reason
from duolora.metrics.encoder import Card, NetworkEmbedder, fingerprint
from duolora.metrics.transforms import Transform
from duolora.model.hub import hub_answers

CONVERSION = "duolora checkpoints convert csd CSD.pth --out csd.safetensors"
HEAD_WIDTH = 64
"""OpenAI's CLIP has one attention head for every 64 channels."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the published one's."""

    width: int = 1024
    layers: int = 24
    patch: int = 14
    image: int = 224
    out: int = 768

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image // self.patch) ** 2 + 1

    @property
    def keys(self) -> dict[str, tuple[int, ...]]:
        """Every key of a checkpoint and its shape."""
        w = self.width
        found: dict[str, tuple[int, ...]] = {
            "backbone.class_embedding": (w,),
            "backbone.positional_embedding": (self.tokens, w),
            "backbone.conv1.weight": (w, 3, self.patch, self.patch),
            "last_layer_style": (w, self.out),
            "last_layer_content": (w, self.out),
        }
        layer = {"attn.in_proj": (3 * w, w), "attn.out_proj": (w, w), "mlp.c_fc": (4 * w, w), "mlp.c_proj": (w, 4 * w)}
        for k in range(self.layers):
            stem = f"backbone.transformer.resblocks.{k}"
            for name, shape in layer.items():
                joint = "_" if name == "attn.in_proj" else "."
                found |= {f"{stem}.{name}{joint}weight": shape, f"{stem}.{name}{joint}bias": shape[:1]}
            found |= {f"{stem}.{norm}.{leaf}": (w,) for norm in ("ln_1", "ln_2") for leaf in ("weight", "bias")}
        return found | {
            f"backbone.{norm}.{leaf}": (w,) for norm in ("ln_pre", "ln_post") for leaf in ("weight", "bias")
        }


_RENAMED = (
    (r"^backbone\.(class_embedding)$", r"embeddings.\1"),
    (r"^backbone\.positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^backbone\.conv1\.", "embeddings.patch_embedding."),
    (r"^backbone\.ln_pre\.", "pre_layrnorm."),
    (r"^backbone\.ln_post\.", "post_layernorm."),
    (r"^backbone\.transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def load_csd(
    source: str, transform: Transform, device: torch.device, progress: bool = False, shape: Shape = Shape()
) -> NetworkEmbedder:
    """CSD's style embedding from a .safetensors file, or from a hub repository that holds `model.safetensors`.

    Raises:
        InputError: no file is named, or it is not there.
        FileRefused: it is a pickle, damaged, or a key is missing, unexpected or of another shape.
    """
    state = _read(source, shape)
    backbone = _backbone(state, shape).to(device)
    style = state["last_layer_style"].to(device)

    def embed(pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
        return backbone(pixel_values=pixels).pooler_output @ style

    architecture = f"CSD style head, clip width {shape.width}, patch {shape.patch}"
    card = Card("csd", source, architecture, str(transform), fingerprint(state))
    return NetworkEmbedder(card, transform, embed, None, device, progress=progress)


def _read(source: str, shape: Shape) -> dict[str, Tensor]:
    """The checkpoint's weights in float32, without `module.`, every key and shape as expected."""
    path = _found(source)
    try:
        stored = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise FileRefused(
            f"{source}: expected a whole .safetensors file ({reason(error)}); convert it again"
        ) from error
    state = {key.removeprefix("module."): value.float() for key, value in stored.items()}
    expected = shape.keys
    faults = [f"{k} is missing" for k in expected if k not in state]
    faults += [f"{k} is unexpected" for k in state if k not in expected]
    faults += [
        f"{k} has the shape {tuple(v.shape)}, expected {expected[k]}"
        for k, v in state.items()
        if k in expected and tuple(v.shape) != expected[k]
    ]
    if faults:
        raise FileRefused(
            f"{source}: not CSD ViT-L/14: {faults[0]} ({len(faults)} such keys); expected the {len(expected)} keys of "
            "the published checkpoint (docs/evaluation.md lists them)"
        )
    return state


def _found(source: str) -> Path:
    """The .safetensors file that `source` names."""
    how = f"the authors publish a pickle, which is never opened here; convert it once with: {CONVERSION}"
    if not source:
        raise InputError(f"csd: expected a .safetensors file, got none; {how}; or ask for the other metrics only")
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise FileRefused(f"{source}: expected a .safetensors file; {how}")
        return path
    if path.exists() or source.count("/") != 1 or path.suffix or source.startswith((".", "/", "~")):
        raise InputError(f"{source}: expected a .safetensors file, found no such file; {how}")
    try:
        return Path(hf_hub_download(source, "model.safetensors", local_files_only=not hub_answers()))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"{source}: no such file here, and the hub gave no model.safetensors of that id; {how}"
        ) from error


def _backbone(state: dict[str, Tensor], shape: Shape) -> CLIPVisionModel:
    """CLIP's image encoder with the checkpoint's weights under transformers' names, in evaluation mode."""
    config = CLIPVisionConfig(
        hidden_size=shape.width, intermediate_size=4 * shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // HEAD_WIDTH, patch_size=shape.patch, image_size=shape.image,
        hidden_act="quick_gelu", projection_dim=shape.out,
    )  # fmt: skip
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("last_layer_"):
            continue
        new = key
        for old, replacement in _RENAMED:
            new = re.sub(old, replacement, new)
        if ".attn.in_proj_" in new:
            stem, leaf = new.split(".attn.in_proj_")
            thirds = zip("qkv", value.chunk(3), strict=True)
            weights |= {f"{stem}.self_attn.{letter}_proj.{leaf}": part for letter, part in thirds}
        else:
            weights[new] = value
    with torch.device("meta"):  # no time is spent on random weights
        network = CLIPVisionModel(config)
    prefix = "vision_model." if any(k.startswith("vision_model.") for k in network.state_dict()) else ""
    network.load_state_dict({prefix + k: v for k, v in weights.items()}, strict=True, assign=True)
    for module in network.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):  # in no checkpoint
            module.register_buffer("position_ids", torch.arange(shape.tokens)[None], persistent=False)
    return network.eval().requires_grad_(False)
