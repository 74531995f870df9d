"""TensorBoard event files of losses, masks and previews (`pip install 'duolora[logs]'`)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from duolora.errors import InputError
from duolora.training.callbacks import Masks


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
