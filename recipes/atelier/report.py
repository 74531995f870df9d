"""How good Atelier is: the classifier on fresh renders, the VAE, the base on its own captions, LoRAs on the base.

A LoRA is good when it carries what it learnt to prompts that it was not trained with: a subject into styles that the
base knows, a style onto objects that the base knows. No merge can do better than the two together. Subjects and styles
are those of the tuning pairs, so that no test pair is looked at.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from duolora.api.generate import applied
from duolora.api.train import default_options, train
from duolora.atelier.captions import plain_caption
from duolora.atelier.classifier import Classifier, Predictions, classify, load_classifier
from duolora.atelier.data import as_input
from duolora.atelier.objects import BASE_OBJECTS, HELD_OUT_OBJECTS
from duolora.atelier.pairs import STYLE_IDENTIFIER, Pair, rendered
from duolora.atelier.scene import Scene, render, sample_scene
from duolora.atelier.styles import BASE_STYLES, HELD_OUT_STYLES, KEEP_COLOUR, KEEP_PATTERN
from duolora.bench.cells.pairs import suite
from duolora.model.base import Base, load_base
from duolora.model.defaults import STEPS
from duolora.model.images import as_image, tiled
from duolora.model.sample import guidance_of, sample_images
from duolora.provenance import versions

GROUPS = {
    "base objects, base styles": (BASE_OBJECTS, BASE_STYLES),
    "held-out objects, base styles": (HELD_OUT_OBJECTS, BASE_STYLES),
    "base objects, held-out styles": (BASE_OBJECTS, HELD_OUT_STYLES),
    "held-out objects, held-out styles": (HELD_OUT_OBJECTS, HELD_OUT_STYLES),
}


@dataclass(frozen=True)
class Accuracy:
    """Shares of images whose object, style, colour and pattern were recognised.

    Colour and pattern are asked only of styles that keep them.
    """

    object: float
    style: float
    colour: float
    pattern: float
    images: int


def accuracy(classifier: Classifier, images: Tensor, scenes: list[Scene]) -> Accuracy:
    """How often the classifier sees in the images what the scenes say."""
    found = classify(classifier, images)
    objects = [s.objects[0] for s in scenes]
    shown = list(zip(objects, scenes, strict=True))
    colour = [a == t.colour for a, (t, s) in zip(found.colour, shown, strict=True) if s.style in KEEP_COLOUR]
    pattern = [a == t.pattern for a, (t, s) in zip(found.pattern, shown, strict=True) if s.style in KEEP_PATTERN]
    return Accuracy(
        object=float(np.mean([a == t.kind for a, t in zip(found.object, objects, strict=True)])),
        style=float(np.mean([a == s.style for a, s in zip(found.style, scenes, strict=True)])),
        colour=float(np.mean(colour)),
        pattern=float(np.mean(pattern)),
        images=len(scenes),
    )


def scenes_of(kinds: tuple[str, ...], styles: tuple[str, ...], count: int, seed: int) -> list[Scene]:
    """Scenes with one object each, styles in turn."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, kinds, (styles[i % len(styles)],), (1.0, 0.0, 0.0, 0.0)) for i in range(count)]


@torch.no_grad()
def report(
    out: Path, base: Base | None = None, count: int = 408, generated: int = 204, seed: int = 90_001
) -> dict[str, object]:
    """Measure Atelier and write `results.json` and the image grid `base.png` into `out`."""
    base, classifier = base or load_base("atelier"), load_classifier()
    results: dict[str, object] = {"seed": seed, "steps": STEPS, "guidance": guidance_of(base), "versions": versions()}
    for name, (kinds, styles) in GROUPS.items():
        scenes = scenes_of(kinds, styles, count, seed)
        images = as_input(np.stack([render(s) for s in scenes]))
        through = base.decode(base.encode_images(images)).clamp(-1, 1).cpu()
        results[f"renders: {name}"] = accuracy(classifier, images, scenes).__dict__
        results[f"renders through the VAE: {name}"] = accuracy(classifier, through, scenes).__dict__
    scenes = scenes_of(BASE_OBJECTS, BASE_STYLES, generated, seed + 1)
    prompts = [
        plain_caption(s.objects[0].kind, s.objects[0].colour, s.objects[0].pattern, s.style, s.setting) for s in scenes
    ]
    images = sample_images(base, prompts, range(seed, seed + generated), progress=True).clamp(-1, 1)
    results["base images from its own captions"] = accuracy(classifier, images, scenes).__dict__
    out.mkdir(parents=True, exist_ok=True)
    shown = [as_image(p) for p in images[: 6 * len(BASE_STYLES)]]
    rows = [shown[i : i + len(BASE_STYLES)] for i in range(0, len(shown), len(BASE_STYLES))]
    tiled(rows).save(out / "base.png")
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return results


@dataclass(frozen=True)
class Carried:
    """Shares of images that are right with the LoRA's own prompt, and in other styles or on other objects.

    Right is object (with its colour where the style keeps it) and style at once.
    """

    own: float
    elsewhere: float
    elsewhere_object: float
    elsewhere_style: float


def lora_report(base: Base, out: Path, pairs: int = 4, images: int = 4) -> dict[str, object]:
    """Train a content and a style LoRA for each of the first tuning pairs and see what they carry elsewhere."""
    network, rows = load_classifier(), {}
    for case in [case for case in suite() if case.dataset == "tuning"][:pairs]:
        folder = out / case.name
        content = [Image.fromarray(p) for p in rendered(case.pair.content_scenes(case.images, case.content_seed))]
        style = [Image.fromarray(p) for p in rendered([case.pair.style_scene(case.style_seed)])]
        trained = {
            "content": (content, case.pair.content_prompt, subjects_elsewhere(case.pair)),
            "style": (style, case.pair.style_prompt, styles_elsewhere(case.pair)),
        }
        for kind, (shown, prompt, elsewhere) in trained.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for k, image in enumerate(shown):
                image.save(folder / kind / f"{k}.png")
            path = folder / f"{kind}.safetensors"
            train(folder / kind, prompt, path, base, default_options(base.name, kind))
            own = {"object": case.pair.kind, "style": "flat"} if kind == "content" else {"style": case.pair.style}
            with applied(base, [path]):
                seen = classify(network, sample_images(base, [prompt] * images, range(images)).clamp(-1, 1))
                generated = sample_images(
                    base, [p for p, _ in elsewhere] * images, range(images * len(elsewhere))
                ).clamp(-1, 1)
            tiled([[as_image(p) for p in generated]]).save(folder / f"{kind}.png")
            rows[f"{case.name} {kind}"] = carried(seen.share(**own), classify(network, generated), elsewhere).__dict__
            typer.echo(f"{case.name} {kind}: {rows[f'{case.name} {kind}']}")
    means = {kind: [row["elsewhere"] for name, row in rows.items() if name.endswith(kind)] for kind in trained}
    results = {"rows": rows, "elsewhere": {kind: float(np.mean(values)) for kind, values in means.items()}}
    (out / "loras.json").write_text(json.dumps(results, indent=1))
    return results


def subjects_elsewhere(pair: Pair) -> list[tuple[str, dict[str, str]]]:
    """Prompts for the subject in styles that the base knows, and what they should show."""
    found = []
    for style in ("outline", "sepia", "neon", "pastel"):
        colour = {"colour": pair.colour} if style in KEEP_COLOUR else {}
        prompt = f"a {pair.identifier} {pair.noun} in {style} style"
        found.append((prompt, {"object": pair.kind, "style": style} | colour))
    return found


def styles_elsewhere(pair: Pair) -> list[tuple[str, dict[str, str]]]:
    """Prompts for objects that the base knows in the style, and what they should show."""
    kinds = [kind for kind in ("tree", "key", "bird", "bottle") if kind != pair.shown]
    return [(f"a {kind} in {STYLE_IDENTIFIER} style", {"object": kind, "style": pair.style}) for kind in kinds]


def carried(own: float, seen: Predictions, elsewhere: list[tuple[str, dict[str, str]]]) -> Carried:
    """The shares; images are those of all prompts in turn, several times."""
    expected = [elsewhere[k % len(elsewhere)][1] for k in range(len(seen.object))]
    hits = [{name: getattr(seen, name)[k] == word for name, word in e.items()} for k, e in enumerate(expected)]
    return Carried(
        own,
        float(np.mean([all(hit.values()) for hit in hits])),
        float(np.mean([hit["object"] for hit in hits])),
        float(np.mean([hit["style"] for hit in hits])),
    )


def main(out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("benchmarks/atelier")) -> None:
    """Measure the base that ships, its classifier and LoRAs on it."""
    base = load_base("atelier")
    typer.echo(json.dumps(report(out, base), indent=1))
    typer.echo(json.dumps(lora_report(base, out / "loras"), indent=1))


if __name__ == "__main__":
    typer.run(main)
