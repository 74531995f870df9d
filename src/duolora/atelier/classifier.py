"""The classifier: what an image shows, by a small network trained on the renderer's truth.

One network with four answers (object, style, colour, pattern) that knows every object and style, the held-out ones too,
and "other" for objects without a name and for styles of the family that are none of these.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from duolora.atelier.objects import OBJECTS
from duolora.atelier.paint import COLOURS
from duolora.atelier.scene import PATTERNS
from duolora.atelier.styles import STYLES

Network = TypeVar("Network", bound=nn.Module)

ANSWERS: dict[str, tuple[str, ...]] = {
    "object": (*OBJECTS, "other"),
    "style": (*STYLES, "other"),
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
}
HEADS = {"object": "object", "style": "look", "colour": "colour", "pattern": "pattern"}
"""What the weights call the head of each question."""


class Block(nn.Module):
    """Widen, halving the size if `stride` is 2, then refine with a residual."""

    def __init__(self, width_in: int, width_out: int, stride: int = 2) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width_in, width_out, 3, stride, 1)
        self.norm = nn.BatchNorm2d(width_out)
        self.refine = nn.Conv2d(width_out, width_out, 3, 1, 1)
        self.norm_2 = nn.BatchNorm2d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) → (n, width_out, h / stride, w / stride)."""
        x = F.relu(self.norm(self.reduce(x)))
        return F.relu(x + self.norm_2(self.refine(x)))


class Classifier(nn.Module):
    """Images (n, 3, 32, 32) in [-1, 1] → logits for each of the four questions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(Block(3, 24, 1), Block(24, 48), Block(48, 96), Block(96, 160))
        self.heads = nn.ModuleDict({HEADS[name]: nn.Linear(2 * 160, len(words)) for name, words in ANSWERS.items()})

    def features(self, images: Tensor) -> Tensor:
        """Mean and largest value of each feature over the image, (n, 320)."""
        x = self.trunk(images)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits for each question, {"object": (n, 33), "style": …}."""
        x = self.features(images)
        return {name: self.heads[HEADS[name]](x) for name in ANSWERS}


@dataclass(frozen=True)
class Predictions:
    """For each image the seen object, style, colour and pattern, in words."""

    object: list[str]
    style: list[str]
    colour: list[str]
    pattern: list[str]

    def share(self, **expected: str) -> float:
        """The share of images that show all that is expected, such as `share(object="teapot", style="sepia")`."""
        answers = [getattr(self, name) for name in expected]
        hits = [got == tuple(expected.values()) for got in zip(*answers, strict=True)]
        return sum(hits) / len(hits)


def trained(network: Network, name: str) -> Network:
    """The network with the weights of that file of the package, to be used and not trained on."""
    path = str(files("duolora.atelier").joinpath("weights", f"{name}.safetensors"))
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return network.eval()


def load_classifier() -> Classifier:
    """The trained network that ships with the package."""
    return trained(Classifier(), "classifier")


@torch.no_grad()
def classify(network: Classifier, images: Tensor) -> Predictions:
    """What each image (n, 3, 32, 32) in [-1, 1] shows."""
    logits = network(images)
    return Predictions(**{name: [ANSWERS[name][i] for i in logits[name].argmax(1).tolist()] for name in ANSWERS})
