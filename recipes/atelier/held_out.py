"""Choose the held-out styles: `python -m recipes.atelier.held_out` prints the seeds that `styles.py` keeps.

Members of the family are taken in the order of their seeds, but for those in which an object is hard to see, and those
that are near a style that is taken already or that has a name. So they are sampled at random, and can be told apart.
"""

import numpy as np
from numpy.typing import NDArray

from duolora.atelier.family import improvised
from duolora.atelier.paint import Style
from duolora.atelier.pairs import PROBES, VISIBLE, visibility
from duolora.atelier.scene import paint
from duolora.atelier.styles import NAMED_STYLES

COUNT, APART = 36, 0.2


def images(style: Style) -> NDArray[np.float32]:
    """The probes in a style, (6, 32, 32, 3)."""
    return np.stack([np.clip(style(paint(scene)), 0, 1) for scene in PROBES])


def main() -> None:
    """Print the seeds."""
    taken = [images(style) for style in NAMED_STYLES.values()]
    seeds: list[int] = []
    for seed in range(10_000):
        style, found = improvised(seed), images(improvised(seed))
        if visibility(style) > VISIBLE and all(np.abs(found - other).mean() > APART for other in taken):
            taken.append(found)
            seeds.append(seed)
        if len(seeds) == COUNT:
            break
    print(tuple(seeds), "keep colour:", sum(improvised(s).keeps_colour for s in seeds))


if __name__ == "__main__":
    main()
