"""What the metrics need of a network: images or texts in, L2-normalised float32 embeddings out."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from duolora.errors import InputError
from duolora.metrics.similarity import normalised
from duolora.metrics.transforms import Transform
from duolora.progress import counted
from duolora.provenance import named_hash

BATCH = 32
Items = Sequence[Image.Image] | Sequence[str]


@dataclass(frozen=True)
class Card:
    """Which network made the numbers."""

    name: str
    """The embedder's name here, such as `dino`."""
    checkpoint: str
    """Hub id or path."""
    architecture: str
    transform: str
    fingerprint: str
    """SHA-256 of the weights that were loaded and of a tokenizer's tokens, so that two copies are seen as one."""
    atelier: bool = False
    """Atelier's own: its numbers never stand for the published metric."""

    @property
    def identity(self) -> str:
        """A hash of all that an embedding depends on, wherever the checkpoint lies."""
        parts = (self.name, self.architecture, self.transform, self.fingerprint)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@runtime_checkable
class Embedder(Protocol):
    """What the metrics need of a network."""

    @property
    def card(self) -> Card:
        """Which network this is."""

    def __call__(self, items: Items) -> Float[Tensor, "n d"]:
        """Embeddings of RGB images, or of texts where the network knows any, on the CPU."""


@dataclass(frozen=True, eq=False)
class NetworkEmbedder:
    """An embedder made of a transform and one or two networks."""

    card: Card
    transform: Transform
    encode_images: Callable[[Float[Tensor, "n 3 size size"]], Float[Tensor, "n d"]]
    encode_texts: Callable[[list[str]], Float[Tensor, "n d"]] | None
    device: torch.device
    batch: int = BATCH
    progress: bool = False

    @torch.no_grad()
    def __call__(self, items: Items) -> Float[Tensor, "n d"]:
        """Embeddings of RGB images or of texts, batch by batch.

        Raises:
            InputError: there are none, they are of both kinds, or texts for a network that reads none.
        """
        if not len(items):
            raise InputError(f"{self.card.name}: expected at least one image or text, got none")
        texts = [item for item in items if isinstance(item, str)]
        images = [item for item in items if isinstance(item, Image.Image)]
        if len(items) not in (len(texts), len(images)):
            raise InputError(f"{self.card.name}: expected only RGB images or only texts, got a mixture")
        if texts and self.encode_texts is None:
            raise InputError(f"{self.card.name}: this network reads no texts; use clip or atelier-text")
        starts = range(0, len(items), self.batch)
        steps = counted(starts, self.card.name, self.progress)
        return torch.cat([self._embed(texts[i : i + self.batch], images[i : i + self.batch]) for i in steps])

    def _embed(self, texts: list[str], images: list[Image.Image]) -> Float[Tensor, "n d"]:
        if texts and self.encode_texts is not None:
            rows = self.encode_texts(texts)
        else:
            rows = self.encode_images(torch.stack([self.transform(image) for image in images]).to(self.device))
        return normalised(rows.float().cpu())


def fingerprint(weights: Mapping[str, Tensor], tokens: str = "") -> str:
    """SHA-256 over the names, shapes and values of the weights, whatever file they came from, and over the tokens."""
    return named_hash(sorted(weights.items()), tokens)
