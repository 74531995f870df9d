"""How good Atelier is: the judges on fresh renders, the VAE as a ceiling, and the base on its own captions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from duolora.atelier.captions import plain_caption
from duolora.atelier.data import as_input
from duolora.atelier.looks import BASE_LOOKS, HELD_OUT_LOOKS, KEEP_COLOUR, KEEP_PATTERN
from duolora.atelier.objects import BASE_OBJECTS, HELD_OUT_OBJECTS
from duolora.atelier.recognisers import Recogniser, judge, load_recogniser
from duolora.atelier.scene import Scene, render, sample_scene
from duolora.model.base import Base, load_base
from duolora.model.defaults import STEPS
from duolora.model.images import as_image, tiled
from duolora.model.sample import draw, guidance_of
from duolora.provenance import versions

GROUPS = {
    "base objects, base looks": (BASE_OBJECTS, BASE_LOOKS),
    "held-out objects, base looks": (HELD_OUT_OBJECTS, BASE_LOOKS),
    "base objects, held-out looks": (BASE_OBJECTS, HELD_OUT_LOOKS),
    "held-out objects, held-out looks": (HELD_OUT_OBJECTS, HELD_OUT_LOOKS),
}


@dataclass(frozen=True)
class Accuracy:
    """Shares of pictures whose object, look, colour and pattern were recognised.

    Colour and pattern are asked only of looks that keep them.
    """

    object: float
    look: float
    colour: float
    pattern: float
    pictures: int


def accuracy(judges: Recogniser, pictures: Tensor, scenes: list[Scene]) -> Accuracy:
    """How often the judges see in the pictures what the scenes say."""
    found = judge(judges, pictures)
    things = [s.things[0] for s in scenes]
    colour = [a == t.colour for a, t, s in zip(found.colour, things, scenes, strict=True) if s.look in KEEP_COLOUR]
    pattern = [a == t.pattern for a, t, s in zip(found.pattern, things, scenes, strict=True) if s.look in KEEP_PATTERN]
    return Accuracy(
        object=float(np.mean([a == t.kind for a, t in zip(found.object, things, strict=True)])),
        look=float(np.mean([a == s.look for a, s in zip(found.look, scenes, strict=True)])),
        colour=float(np.mean(colour)),
        pattern=float(np.mean(pattern)),
        pictures=len(scenes),
    )


def scenes_of(kinds: tuple[str, ...], looks: tuple[str, ...], count: int, seed: int) -> list[Scene]:
    """Scenes with one thing each, looks in turn."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, kinds, (looks[i % len(looks)],), (1.0, 0.0, 0.0, 0.0)) for i in range(count)]


@torch.no_grad()
def report(
    out: Path, base: Base | None = None, count: int = 408, drawn: int = 204, seed: int = 90_001
) -> dict[str, object]:
    """Measure Atelier and write `results.json` and the picture grid `base.png` into `out`."""
    base, judges = base or load_base("atelier"), load_recogniser()
    results: dict[str, object] = {"seed": seed, "steps": STEPS, "guidance": guidance_of(base), "versions": versions()}
    for name, (kinds, looks) in GROUPS.items():
        scenes = scenes_of(kinds, looks, count, seed)
        pictures = as_input(np.stack([render(s) for s in scenes]))
        through = base.decode(base.encode_images(pictures)).clamp(-1, 1).cpu()
        results[f"renders: {name}"] = accuracy(judges, pictures, scenes).__dict__
        results[f"renders through the VAE: {name}"] = accuracy(judges, through, scenes).__dict__
    scenes = scenes_of(BASE_OBJECTS, BASE_LOOKS, drawn, seed + 1)
    prompts = [
        plain_caption(s.things[0].kind, s.things[0].colour, s.things[0].pattern, s.look, s.setting) for s in scenes
    ]
    pictures = draw(base, prompts, range(seed, seed + drawn), progress=True).clamp(-1, 1)
    results["base pictures from its own captions"] = accuracy(judges, pictures, scenes).__dict__
    out.mkdir(parents=True, exist_ok=True)
    images = [as_image(p) for p in pictures[: 6 * len(BASE_LOOKS)]]
    rows = [images[i : i + len(BASE_LOOKS)] for i in range(0, len(images), len(BASE_LOOKS))]
    tiled(rows).save(out / "base.png")
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return results


def main(out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("benchmarks/atelier")) -> None:
    """Measure the base that ships and its classifier."""
    typer.echo(json.dumps(report(out), indent=1))


if __name__ == "__main__":
    typer.run(main)
