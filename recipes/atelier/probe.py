"""Which words a base listens to: `python -m recipes.atelier.probe RUN…`.

A network that listens to a word predicts worse when the caption has another one in its place. The loss of fresh images
is taken with the right caption, then with one part of it exchanged: where it doesn't rise, more images of the same will
not help soon, and the reason is to be looked for in the text encoders or the captions (docs/log.md, 2026-11-27, -28).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from duolora.atelier.captions import plain_caption
from duolora.atelier.data import Pixels, as_input
from duolora.atelier.family import PAINTS, improvise
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.paint import COLOURS
from duolora.atelier.scene import PATTERNS, render, sample_scene
from duolora.atelier.styles import BASE_STYLES, KEEP_PATTERN
from recipes.atelier import latents
from recipes.atelier.architecture import new_scheduler
from recipes.atelier.base import TextToImage
from recipes.atelier.text import FEATURES, feature_of

TIMESTEPS = (500, 700, 900)
ONE_OBJECT = (1.0, 0.0, 0.0, 0.0)
PALETTE, GROUND = map(list(FEATURES).index, ("palette", "ground"))


class Question(NamedTuple):
    """An image, its caption, and by name the same caption with one part exchanged."""

    image: Pixels
    caption: str
    exchanged: dict[str, str]


def made_up(count: int, seed: int) -> list[Question]:
    """Objects in made-up styles that have a ground and a palette of inks, told in full."""
    rng, found = np.random.default_rng(seed), list[Question]()
    while len(found) < count:
        scene, style = sample_scene(rng, BASE_OBJECTS, BASE_STYLES, ONE_OBJECT), improvise(rng)
        parts = {feature_of(phrase)[0]: phrase for phrase in style.words}
        kind = scene.objects[0].kind
        if not {PALETTE, GROUND} <= parts.keys() or style.keeps_colour:
            continue
        others = {n: tuple(_repainted(w, rng) if w == parts[n] else w for w in style.words) for n in (PALETTE, GROUND)}
        exchanged = {
            "palette": _told(kind, others[PALETTE]),
            "ground": _told(kind, others[GROUND]),
            "object": _told(_other(kind, BASE_OBJECTS, rng), style.words),
        }
        found.append(Question(render(scene, style), _told(kind, style.words), exchanged))
    return found


def named(count: int, seed: int) -> list[Question]:
    """Objects with a pattern in the named styles that keep it."""
    rng, found = np.random.default_rng(seed), list[Question]()
    styles = tuple(style for style in BASE_STYLES if style in KEEP_PATTERN)
    patterns = tuple(pattern for pattern in PATTERNS if pattern != "plain")
    while len(found) < count:
        scene = sample_scene(rng, BASE_OBJECTS, styles, ONE_OBJECT)
        item = replace(scene.objects[0], pattern=str(rng.choice(patterns)))
        scene = replace(scene, objects=(item,))
        right = {"kind": item.kind, "colour": item.colour, "pattern": item.pattern, "style": scene.style}
        known = {"kind": BASE_OBJECTS, "colour": tuple(COLOURS), "pattern": PATTERNS, "style": BASE_STYLES}
        exchanged = {
            part: plain_caption(**right | {part: _other(right[part], words, rng)}, setting=scene.setting)
            for part, words in known.items()
        }
        found.append(Question(render(scene), plain_caption(**right, setting=scene.setting), exchanged))
    return found


def _told(kind: str, features: Iterable[str]) -> str:
    return f"a {kind} with {' and '.join(features)}"


def _other(word: str, known: Iterable[str], rng: np.random.Generator) -> str:
    return str(rng.choice([each for each in known if each != word]))


def _repainted(phrase: str, rng: np.random.Generator) -> str:
    return " ".join(_other(word, PAINTS, rng) if word in PAINTS else word for word in phrase.split())


def rises(loss: Callable[[list[str]], float], questions: list[Question]) -> dict[str, float]:
    """The loss with the right captions, and by how much it rises with each part exchanged."""
    right = loss([each.caption for each in questions])
    parts = questions[0].exchanged
    return {"loss": right} | {part: loss([each.exchanged[part] for each in questions]) - right for part in parts}


@dataclass(frozen=True, eq=False)
class Probe:
    """A network at one timestep of noisy images; called with captions it is the loss."""

    model: TextToImage
    tokenizer: CLIPTokenizer
    clean: Float[Tensor, "n c h w"]
    noise: Float[Tensor, "n c h w"]
    t: int

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> float:
        """The velocity's squared error."""
        alpha = new_scheduler().alphas_cumprod[self.t]
        signal, spoil = alpha.sqrt(), (1 - alpha).sqrt()
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        known = torch.zeros(len(captions), dtype=torch.bool)
        noisy, t = signal * self.clean + spoil * self.noise, torch.full((len(captions),), self.t)
        return float(F.mse_loss(self.model(noisy, t, tokens, known), signal * self.noise - spoil * self.clean))


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `recipes.atelier.base` wrote.")],
    count: Annotated[int, typer.Option(help="Images of each group.")] = 48,
    seed: int = 5,
) -> None:
    """Print the losses of each run, and what other words do to them."""
    torch.set_num_threads(1)
    groups = {"made-up styles": made_up(count, seed), "named styles": named(count, seed)}
    for run in runs:
        tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
        model = TextToImage(tokenizer).eval()
        model.load_state_dict(load_file(run / "average.safetensors"))
        for group, questions in groups.items():
            clean = latents.encode(as_input(np.stack([each.image for each in questions])))
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
            for t in TIMESTEPS:
                found = rises(Probe(model, tokenizer, clean, noise, t), questions)
                said = ", ".join(f"{name} {value:+.3f}" for name, value in found.items())
                typer.echo(f"{run.name}, {group}, t = {t}: {said}")


if __name__ == "__main__":
    typer.run(main)
