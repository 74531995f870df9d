"""The kinds of bases, by the names of their pipelines."""

from typing import Any

from torch import nn

from duolora.model.flux import FLUX
from duolora.model.kind import Kind
from duolora.model.qwen import QWEN
from duolora.model.sd3 import SD3
from duolora.model.unets import SD15, SDXL
from duolora.model.z_image import Z_IMAGE

KINDS: dict[str, Kind] = {kind.pipeline.__name__: kind for kind in (SDXL, SD15, FLUX, SD3, Z_IMAGE, QWEN)}


def kind_of(parts: Any) -> Kind:
    """The kind of a pipeline."""
    return KINDS[type(parts).__name__]


def kind_of_network(network: nn.Module) -> Kind:
    """The kind of a denoising network; the first where several have it."""
    return next(kind for kind in KINDS.values() if kind.networks[kind.network] == type(network).__name__)
