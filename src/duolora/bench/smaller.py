"""Table 5's bases: Atelier distilled into the shapes of SSD-1B and Segmind-Vega, once for all runs."""

from pathlib import Path

import torch

from duolora.training.distil import SHAPES, DistilRecipe, distil

HEADINGS = {"ssd1b": "like SSD-1B", "vega": "like Segmind-Vega"}


def smaller_bases(out: Path, steps: int) -> dict[str, str]:
    """The folders of both, by their headings in the table; those that are missing are made, going on if need be."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = out / "bases"
    made = {shape: distil(shape, folder, DistilRecipe(updates=steps), device) for shape in SHAPES}
    return {HEADINGS[shape]: str(path) for shape, path in made.items()}
