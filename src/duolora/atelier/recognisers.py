"""The judges: what a picture shows, according to a small network trained on the renderer's truth.

One network with four answers (object, look, colour, pattern) that knows every object and look, held-out ones
included. It has seen pictures as drawn and as the VAE gives them back, so blur alone does not mislead it.
"""

from dataclasses import dataclass
from importlib.resources import files

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from duolora.atelier.looks import LOOKS
from duolora.atelier.objects import OBJECTS
from duolora.atelier.scene import COLOURS, PATTERNS

ANSWERS: dict[str, tuple[str, ...]] = {
    "object": tuple(OBJECTS),
    "look": tuple(LOOKS),
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
}


class _Block(nn.Module):
    """Halve the size, widen, then refine with a residual."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width_in, width_out, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width_out)
        self.refine = nn.Conv2d(width_out, width_out, 3, 1, 1)
        self.norm_2 = nn.BatchNorm2d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.reduce(x)))
        return F.relu(x + self.norm_2(self.refine(x)))


class Recogniser(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] → logits for each of the four questions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_Block(3, 32), _Block(32, 64), _Block(64, 128), _Block(128, 192))
        self.heads = nn.ModuleDict({name: nn.Linear(2 * 192, len(words)) for name, words in ANSWERS.items()})

    def features(self, pictures: Tensor) -> Tensor:
        """Mean and largest value of each feature over the picture, (n, 384)."""
        x = self.trunk(pictures)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits for each question, {"object": (n, 32), "look": …}."""
        x = self.features(pictures)
        return {name: head(x) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Verdict:
    """For each picture the recognised object, look, colour and pattern, in words."""

    object: list[str]
    look: list[str]
    colour: list[str]
    pattern: list[str]

    def share(self, **expected: str) -> float:
        """The share of pictures that show all that is expected, such as `share(object="teapot", look="sepia")`."""
        answers = [getattr(self, name) for name in expected]
        hits = [got == tuple(expected.values()) for got in zip(*answers, strict=True)]
        return sum(hits) / len(hits)


def load_recogniser() -> Recogniser:
    """The trained network that ships with the package."""
    network = Recogniser()
    path = files("duolora.atelier").joinpath("weights", "recogniser.safetensors")
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(str(path)).items()})
    return network.eval()


@torch.no_grad()
def judge(network: Recogniser, pictures: Tensor) -> Verdict:
    """What each picture (n, 3, 64, 64) in [-1, 1] shows."""
    logits = network(pictures)
    return Verdict(**{name: [ANSWERS[name][i] for i in logits[name].argmax(1).tolist()] for name in ANSWERS})
