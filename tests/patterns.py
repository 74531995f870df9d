"""Images with fine detail from a formula, the same everywhere."""

import numpy as np
from PIL import Image


def pattern(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of smooth waves and hard edges."""
    y, x = np.mgrid[:height, :width]
    waves = [(x * (3 + c + seed) + y * (5 - c)) ^ (x * y // (7 + seed)) for c in range(3)]
    return Image.fromarray((np.stack(waves, -1) % 256).astype(np.uint8))
