"""Images or texts in, L2-normalised float32 embeddings out: one call shape for every network.

    embedder = load_embedder("dino", "facebook/dino-vits16")
    all_pairs_mean(embedder(generated), embedder(photos))

What an embedder is made of is on its card, which every report shows.
"""

from pathlib import Path

import torch

from duolora.errors import InputError
from duolora.metrics.atelier import load_atelier
from duolora.metrics.csd import load_csd
from duolora.metrics.encoder import NetworkEmbedder
from duolora.metrics.named import DEFAULTS
from duolora.metrics.transforms import CLIP, DINO
from duolora.metrics.vision import load_clip, load_vision

ATELIER = ("atelier-content", "atelier-style", "atelier-image", "atelier-text", "atelier-csd")


def load_embedder(
    name: str, checkpoint: str | Path | None = None, device: str | torch.device = "auto", progress: bool = False
) -> NetworkEmbedder:
    """Load an embedder, its weights checked key by key.

    Args:
        name: `dino`, `dinov2`, `clip`, `csd`, or one of Atelier's own (`ATELIER`).
        checkpoint: hub id, local folder or (`csd`) .safetensors file; by default the published one (`DEFAULTS`).
        device: where it runs; "auto" is CUDA where there is one.
        progress: show bars on stderr.

    Raises:
        InputError: there is no such embedder or checkpoint.
        FileRefused: the checkpoint is unsafe, damaged, or not the network that it should be.
    """
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    if name in ATELIER:
        if checkpoint is not None:
            raise InputError(f"{name}: its weights ship with the package; leave the checkpoint out, got {checkpoint}")
        return load_atelier(name, where, progress)
    if name not in DEFAULTS:
        raise InputError(f"embedder: expected one of {', '.join((*DEFAULTS, *ATELIER))}; got {name!r}")
    source = str(checkpoint or DEFAULTS[name] or "")
    if name == "csd":
        return load_csd(source, CLIP, where, progress)
    if name == "clip":
        return load_clip(source, CLIP, where, progress)
    return load_vision(name, source, DINO, where, progress)
