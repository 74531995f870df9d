"""How a cell's images are scored: on Atelier by its classifier and its encoders, on photos by the published encoders.

The similarities are the formulas of `duolora evaluate --metrics atelier`; none of Atelier's numbers is comparable with
a published one. Images are taken as they are kept, in 8 bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from duolora.atelier.captions import plain_caption
from duolora.atelier.classifier import ANSWERS, Predictions, classify, load_classifier
from duolora.atelier.pairs import Pair, keeps, style_named
from duolora.atelier.style_encoder import in_style, load_style_encoder
from duolora.metrics.encoder import Items
from duolora.metrics.encoders import load_embedder
from duolora.metrics.named import ATELIER, METRICS, chosen
from duolora.metrics.similarity import all_pairs_mean

Images = Sequence[Image.Image]
shared_classifier, _embedder, _style_encoder = cache(load_classifier), cache(load_embedder), cache(load_style_encoder)
"""Atelier's classifier, and encoders, loaded once in each process."""


@dataclass(frozen=True)
class Scoring:
    """What images of photos' pairs are scored by."""

    metrics: tuple[str, ...]
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """By embedder, where it is not the published one."""

    def plain(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {"metrics": list(self.metrics), "checkpoints": dict(self.checkpoints)}

    def check(self) -> None:
        """Load every encoder once, so that a missing checkpoint is known before anything is trained.

        Raises:
            DuoLoRAError: one is not there, or is not the network that it should be.
        """
        for name in dict.fromkeys(METRICS[metric].embedder for metric in self.metrics):
            load_embedder(name, self.checkpoints.get(name), "cpu")


def scoring_of(metrics: str, checkpoints: Mapping[str, str]) -> Scoring:
    """The scoring by metrics as they are typed, such as "paper" or "dino,clip-t".

    Raises:
        InputError: a name is unknown.
    """
    places = {
        name: str(Path(where).absolute()) if Path(where).exists() else where for name, where in checkpoints.items()
    }
    return Scoring(tuple(chosen(metrics, ["content", "style", "prompt"])), places)


def seen(images: Float[Tensor, "n 3 32 32"], style: str) -> Predictions:
    """What images in [-1, 1] show; a style that the classifier has no answer for is recognised by the style encoder."""
    found = classify(shared_classifier(), images)
    if style in ANSWERS["style"]:
        return found
    recognised = in_style(_style_encoder(), images, style_named(style))
    return replace(found, style=[style if here else "other" for here in recognised])


def words_of(pair: Pair) -> str:
    """What an image of the subject in the style shows, in words that Atelier's encoders know: the text to compare with.

    Colour and pattern go unsaid where the style does not keep them, for then no image could show them.
    """
    kept = keeps(pair.style)
    colour = pair.colour if "colour" in kept else ""
    pattern = pair.pattern if "pattern" in kept else ""
    return plain_caption(pair.kind, colour, pattern, pair.style)


def similarities(images: Images, content: Images, style: Images, words: str) -> dict[str, float]:
    """Average pairwise cosines of images with the subject's images, the style image and the words.

    In the order of `api.evaluate.ATELIER`: in DINO's, CLIP-I's, CLIP-T's, CSD-s's and the leakage check's place.
    """
    references: dict[str, Items] = {"content": content, "style": style, "prompt": [words]}
    found = {}
    for name, metric in ATELIER.items():
        embed = _embedder(metric.embedder)
        found[name] = all_pairs_mean(embed(images), embed(references[metric.against]))
    return found
