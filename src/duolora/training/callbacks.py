"""Watching a training or a merge from outside, without any influence on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

Masks = Mapping[str, Mapping[str, Tensor]]


@runtime_checkable
class Callback(Protocol):
    """Whoever wants to know how a training or a merge is going. An exception that it raises stops the work."""

    previews: int
    """Images are generated after so many steps, and at the end; 0 is never."""

    def losses(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """The terms of the loss, at every tenth update: so many updates are done, of so many."""

    def masks(self, done: int, masks: Masks) -> None:
        """The masks by part and module, whenever the terms of a merge are told."""

    def preview(self, done: int, images: Tensor) -> None:
        """Images (n, 3, h, w) in [-1, 1], generated as it is now."""


class SavedPreviews:
    """A callback that writes previews into a folder, as `<steps>-<number>.png`, and passes everything on to another."""

    def __init__(self, folder: Path, previews: int, other: Callback | None = None) -> None:
        """A preview after so many steps."""
        self.folder, self.previews, self.other = folder, previews, other

    def losses(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """The other's."""
        if self.other is not None:
            self.other.losses(done, of, terms)

    def masks(self, done: int, masks: Masks) -> None:
        """The other's."""
        if self.other is not None:
            self.other.masks(done, masks)

    def preview(self, done: int, images: Tensor) -> None:
        """Each image as a file."""
        from duolora.model.images import as_image

        self.folder.mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(images):
            as_image(image).save(self.folder / f"{done:06d}-{k}.png")
        if self.other is not None:
            self.other.preview(done, images)


def wants_preview(callback: Callback | None, done: int, of: int) -> bool:
    """Whether it is time for an image."""
    return callback is not None and callback.previews > 0 and (done % callback.previews == 0 or done == of)
