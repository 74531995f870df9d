"""An image of masks or of strengths: one row for each module, sorted by block, one column for each direction."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from duolora.errors import InputError
from duolora.model.blocks import blocks_of


def plotted(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> Path:
    """Write the image; each panel is {module: values}, and strengths are shown by their logarithm.

    Raises:
        InputError: the image cannot be put there.
    """
    longest = max((len(rows) for rows in panels.values()), default=0)
    figure = Figure(figsize=(7 * len(panels), min(3 + 0.02 * longest, 14)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    every = [value for rows in panels.values() for row in rows.values() for value in row]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        strength = title == "strength"
        values = _padded(list(rows.values()), logarithmic=strength)
        span = {} if strength else {"vmin": min([0.0, *every]), "vmax": max([1.0, *every])}  # one scale, to compare
        image = axis.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", **span)
        figure.colorbar(image, ax=axis)
        axis.set_title("log10 of singular values" if strength else f"{title} masks")
        axis.set_xlabel("direction" if strength else "entry")
        edges = np.cumsum([0, *(len(names) for names in blocks_of(rows).values())])
        axis.set_yticks((edges[:-1] + edges[1:] - 1) / 2, list(blocks_of(rows)))
        for edge in edges[1:-1]:
            axis.axhline(edge - 0.5, color="white", linewidth=0.8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "duolora"}):
            figure.savefig(path, dpi=120)
    except OSError as error:
        raise InputError(f"{path}: the image cannot be written ({error.strerror}); name another place") from error
    return path


def _padded(rows: list[Sequence[float]], logarithmic: bool) -> np.ndarray:
    """Rows of one length, with nothing (NaN) where a module has fewer directions."""
    table = np.full((len(rows), max(map(len, rows), default=1)), np.nan)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    return np.log10(np.maximum(table, np.nanmax(table, initial=1e-12) * 1e-6)) if logarithmic else table
