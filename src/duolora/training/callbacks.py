"""Following a training or a merge from outside, without any influence on it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from duolora.errors import InputError

Masks = Mapping[str, Mapping[str, Tensor]]


@runtime_checkable
class Callback(Protocol):
    """Whoever wants to know how a training or a merge is going. An exception that it raises stops the work."""

    previews: int
    """Images are generated after so many steps, and at the end; 0 is never."""

    def losses(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """The terms of the loss, at every tenth step: so many steps are done, of so many."""

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


class EventLog:
    """A callback that writes what it is told into event files."""

    def __init__(self, writer: Any, previews: int = 0) -> None:
        """`writer` is a `torch.utils.tensorboard.SummaryWriter`."""
        self.writer, self.previews = writer, previews

    def losses(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """A curve for each term."""
        for name, value in terms.items():
            self.writer.add_scalar(f"loss/{name}", value, done)

    def masks(self, done: int, masks: Masks) -> None:
        """A histogram, and the mean, of all entries of each part."""
        import torch

        for part, found in masks.items():
            values = torch.cat([m.detach().flatten().cpu() for m in found.values()]) if found else torch.zeros(1)
            self.writer.add_histogram(f"masks/{part}", values, done)
            self.writer.add_scalar(f"masks/{part} mean", float(values.mean()), done)

    def preview(self, done: int, images: Tensor) -> None:
        """The images in a row."""
        self.writer.add_images("preview", (images.clamp(-1, 1) + 1) / 2, done)


@contextmanager
def event_log(folder: Path | None, previews: int = 0) -> Iterator[EventLog | None]:
    """A log that writes into the folder, closed at the end; None for no folder.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"--tensorboard: expected the package tensorboard, found none ({error}); pip install 'duolora[logs]'"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise InputError(f"{folder}: event files cannot be written there ({error.strerror}); name another") from error
    try:
        yield EventLog(writer, previews)
    finally:
        writer.close()
