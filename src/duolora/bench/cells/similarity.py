"""The paper's four similarities and its leakage check (Sec. 4), by Atelier's own encoders, for a cell's pictures.

The formulas are those of `duolora evaluate --metrics atelier`; none of the numbers is comparable with a published one.
Pictures are taken as they are kept, in 8 bits, so that it makes no difference when they are scored.
"""

from collections.abc import Sequence
from functools import cache

from PIL import Image

from duolora.api.evaluate import ATELIER
from duolora.atelier.captions import plain_caption
from duolora.atelier.looks import KEEP_COLOUR, KEEP_PATTERN
from duolora.atelier.pairs import Pair
from duolora.metrics.encoder import Items, NetworkEmbedder
from duolora.metrics.encoders import load_embedder
from duolora.metrics.similarity import all_pairs_mean

Images = Sequence[Image.Image]


def words_of(pair: Pair) -> str:
    """What a picture of the thing in the look shows, in words that Atelier's encoders know: the text to compare with.

    Colour and pattern go unsaid where the look does not keep them, for then no picture could show them.
    """
    colour = pair.colour if pair.look in KEEP_COLOUR else ""
    pattern = pair.pattern if pair.look in KEEP_PATTERN else ""
    return plain_caption(pair.kind, colour, pattern, pair.look)


def similarities(drawn: Images, content: Images, style: Images, words: str) -> dict[str, float]:
    """Average pairwise cosines of pictures with the thing's pictures, the style picture and the words.

    In the order of `api.evaluate.ATELIER`: in DINO's, CLIP-I's, CLIP-T's, CSD-s's and the leakage check's place.
    """
    references: dict[str, Items] = {"content": content, "style": style, "prompt": [words]}
    found = {}
    for name, metric in ATELIER.items():
        embed = _embedder(metric.embedder)
        found[name] = all_pairs_mean(embed(drawn), embed(references[metric.against]))
    return found


@cache
def _embedder(name: str) -> NetworkEmbedder:
    return load_embedder(name)
