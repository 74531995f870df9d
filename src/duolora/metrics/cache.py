"""Embeddings on disk, by a file's content and an embedder's identity, so that nothing is embedded twice."""

from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from platformdirs import user_cache_path
from torch import Tensor

from duolora.metrics.encoder import BATCH, Embedder
from duolora.model.image_files import read_image
from duolora.provenance import file_hash
from duolora.textfiles import write_whole

VERSION = "2"
"""Of what is stored and of how files are read; another one lets go of all that was kept."""


class Cache:
    """A folder of embeddings, one small file for each image and embedder. Entries are written whole or not at all."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or user_cache_path("duolora")) / f"embeddings-{VERSION}"

    def _path(self, embedder: Embedder, content: str) -> Path:
        return self.folder / embedder.card.identity[:16] / f"{content}.npy"

    def get(self, embedder: Embedder, content: str) -> Float[Tensor, " d"] | None:
        """The embedding of the file with this hash, or None; a damaged entry counts as none."""
        try:
            stored = np.load(self._path(embedder, content), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        sound = stored.dtype == np.float32 and stored.ndim == 1 and abs(float(np.linalg.norm(stored)) - 1) < 1e-3
        return torch.from_numpy(stored) if sound else None

    def put(self, embedder: Embedder, content: str, row: Float[Tensor, " d"]) -> None:
        """Keep an embedding; where the folder cannot be written, nothing is kept and nothing is said."""
        file = BytesIO()
        np.save(file, row.numpy(), allow_pickle=False)
        with suppress(OSError):
            write_whole(self._path(embedder, content), file.getvalue())


def embed_files(embedder: Embedder, files: Sequence[Path], cache: Cache | None = None) -> Float[Tensor, "n d"]:
    """Embeddings of image files, in their order; files of the same bytes are embedded once.

    Raises:
        FileRefused: a file is not an image, or is damaged.
        InputError: there are no files.
    """
    if not files:
        return embedder([])  # which says that there are none
    hashes = [file_hash(path) for path in files]
    rows: dict[str, Tensor] = {}
    for content in set(hashes):
        found = cache.get(embedder, content) if cache else None
        if found is not None:
            rows[content] = found
    wanted = list({h: path for h, path in zip(hashes, files, strict=True) if h not in rows}.items())
    for start in range(0, len(wanted), BATCH):
        part = wanted[start : start + BATCH]
        made = embedder([read_image(path) for _, path in part])
        for (content, _), row in zip(part, made, strict=True):
            rows[content] = row
            if cache:
                cache.put(embedder, content, row)
    return torch.stack([rows[h] for h in hashes])
