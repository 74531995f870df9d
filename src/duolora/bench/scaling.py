"""Figure 3, selective weight scaling (Sec. 3.3.1): some of a network's attention turned down, to see what is lost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from duolora.atelier.captions import plain_caption
from duolora.atelier.classifier import classify, load_classifier
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.styles import BASE_STYLES
from duolora.bench.cells.cell import SHEET
from duolora.errors import InputError
from duolora.metrics.encoder import Embedder
from duolora.metrics.similarity import matched
from duolora.model.base import Base
from duolora.model.blocks import architecture_of, block_of, target_modules
from duolora.model.images import as_image, tiled
from duolora.model.sample import sample_images
from duolora.paper.choices import Role
from duolora.textfiles import write_json

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
Curves = dict[str, dict[str, list[float]]]
MARGIN = 0.25
"""By which one of two shares must exceed the other for a role."""
FOUND = ("block_map.json", "blocks.json")
"""What it writes of all groups."""
GROUPS = 12
"""About so many groups a transformer's blocks are put into."""


@dataclass(frozen=True)
class Measure:
    """How much of what was asked for is in images: of the object (or the content) and of the style, from 0 to 1."""

    prompts: Sequence[str]
    seen: Callable[[Float[Tensor, "n 3 h w"]], tuple[float, float]]
    """Of one image for each prompt, with the seeds `seed`, `seed + 1`, …"""


def by_classifier(count: int, seed: int) -> Measure:
    """The shares of objects and of styles that Atelier's classifier recognises in images of Atelier's own captions."""
    rng, classifier = np.random.default_rng(seed), load_classifier()
    kinds = [str(rng.choice(BASE_OBJECTS)) for _ in range(count)]
    styles = [BASE_STYLES[k % len(BASE_STYLES)] for k in range(count)]

    def share(found: Sequence[str], asked: Sequence[str]) -> float:
        return sum(a == b for a, b in zip(found, asked, strict=True)) / count

    def seen(images: Tensor) -> tuple[float, float]:
        """The shares of images with the object, and with the style, that they were asked for."""
        said = classify(classifier, images)
        return share(said.object, kinds), share(said.style, styles)

    return Measure([plain_caption(kind, style=style) for kind, style in zip(kinds, styles, strict=True)], seen)


def by_encoders(
    base: Base,
    prompts: Sequence[str],
    seed: int,
    content: Embedder,
    style: Embedder,
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> Measure:
    """How near images are to those of the whole network from the same prompts and noise, by a cosine each."""
    whole = _images(sample_images(base, prompts, range(seed, seed + len(prompts)), **sampling))
    wanted = [(encoder, encoder(whole)) for encoder in (content, style)]

    def seen(images: Tensor) -> tuple[float, float]:
        """The mean cosines of images to those of the whole network, by content and by style."""
        shown = _images(images)
        near = [float(matched(encoder(shown), known).mean().clamp(0, 1)) for encoder, known in wanted]
        return near[0], near[1]

    return Measure(prompts, seen)


def _images(found: Tensor) -> list[Image.Image]:
    return [as_image(each) for each in found]


def figure3(
    out: Path,
    base: Base,
    measure: Measure,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
    progress: bool = True,
    blocks: Sequence[str] = (),
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> Curves:
    """How much is left of object and style as blocks, or each group of them, are scaled by α; writes curves and images.

    A group is content-dominant if turning it down loses the object and keeps the style, and style-dominant in the
    opposite case: so this says which block map is true of a base. `block_map.json` is that map, for `merge`, and
    `blocks.json` names the two groups that are most so, for B-LoRA (`dominant`); not where blocks are given.
    """
    out.mkdir(parents=True, exist_ok=True)
    groups, curves, sheet = groups_of(base.unet, blocks), Curves(), []
    found: dict[tuple[str, float], tuple[tuple[float, float], Image.Image]] = {}
    for name, group in tqdm(groups.items(), "Figure 3", disable=not progress):
        for alpha in alphas:
            key = ("" if alpha == 1 else name, alpha)  # with 1 all groups are the base itself
            if key not in found:
                with scaled(base.unet, group, alpha):
                    seeds = range(seed, seed + len(measure.prompts))
                    generated = sample_images(base, measure.prompts, seeds, **sampling).clamp(-1, 1)
                found[key] = measure.seen(generated), as_image(generated[0])
        row = [found["" if alpha == 1 else name, alpha] for alpha in alphas]
        curves[name] = {"alpha": list(alphas), "object": [o for (o, _), _ in row], "style": [s for (_, s), _ in row]}
        sheet.append([image for _, image in row])
    tiled(sheet).save(out / SHEET)
    write_json(out / "curves.json", curves)
    _plot_curves(curves, out / "curves.png")
    if not blocks:
        best = {kind: [*groups[name]] for kind, name in dominant(curves).items()}
        for name, value in zip(FOUND, (block_map(curves, groups), best), strict=True):
            write_json(out / name, value)
    return curves


def block_map(curves: Curves, groups: Mapping[str, tuple[str, ...]]) -> dict[str, Role]:
    """Which LoRA leads in the blocks of each of the smallest groups, as `merge` takes it (`--set block_map=FILE`).

    By what is lost of object and of style on average over the α below 1, each divided by the most that any group
    loses: content where the object's exceeds the style's by more than the margin, style in the opposite case.
    """
    found: dict[str, Role] = {}
    names = _finest(curves)
    of_object, of_style = (_shares({name: _lost(curves[name], what) for name in names}) for what in ("object", "style"))
    for name in names:
        more = of_object[name] - of_style[name]
        role: Role = "content" if more > MARGIN else "style" if more < -MARGIN else "neutral"
        found |= dict.fromkeys(groups[name], role)
    return found


def _shares(lost: Mapping[str, float]) -> dict[str, float]:
    most = max(lost.values(), default=0.0)
    return {name: max(value, 0.0) / most if most > 0 else 0.0 for name, value in lost.items()}


def _lost(curve: Mapping[str, list[float]], what: str) -> float:
    """What is lost on average over the α below 1."""
    whole = [v for a, v in zip(curve["alpha"], curve[what], strict=True) if a == 1]
    less = [v for a, v in zip(curve["alpha"], curve[what], strict=True) if a < 1]
    return float(np.mean(whole) - np.mean(less))


def _finest(curves: Curves) -> list[str]:
    """The groups that no other one is a part of."""
    blocks = [name for name in curves if not name.startswith("level")]
    return [n for n in blocks if not any(other.startswith(f"{n}.") for other in blocks)]


def dominant(curves: Curves) -> dict[str, str]:
    """The group that is most style-dominant and, of the others, the most content-dominant; of the smallest measured.

    By what is lost of the style (`block_map`), times its share in what is lost of style and object together, so that a
    group without any effect is neither; and the reverse.
    """
    finest = _finest(curves)

    def lean(name: str, to: str, other: str) -> float:
        """How much a group loses of `to`, times its share in what it loses of both."""
        mine, rest = max(_lost(curves[name], to), 0.0), max(_lost(curves[name], other), 0.0)
        return mine * mine / (mine + rest) if mine else 0.0

    style = max(finest, key=lambda name: lean(name, "style", "object"))
    content = max((n for n in finest if n != style or len(finest) == 1), key=lambda name: lean(name, "object", "style"))
    return {"content": content, "style": style}


def _plot_curves(curves: Curves, path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, what in zip(axes, ("object", "style"), strict=True):
        axis.set_prop_cycle(color=[colormaps["tab20"](k) for k in range(20)])
        for name, curve in curves.items():
            axis.plot(curve["alpha"], curve[what], marker="o", label=name, lw=2.5 if name.startswith("level") else 1)
        axis.set(title=f"{what} left", xlabel="α", ylim=(-0.03, 1.03))
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def groups_of(network: nn.Module, blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is scaled together, by its name: the blocks, or else each group that is worth it."""
    return {", ".join(blocks): tuple(blocks)} if blocks else block_groups(network)


def block_groups(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Groups worth turning down.

    Of a UNet each resolution and each block that has attention, and each attention of several; of a transformer a few
    blocks of one kind that follow each other.
    """
    names, levels = target_modules(network), architecture_of(network).levels
    if levels is None:
        return _consecutive(list(dict.fromkeys(map(block_of, names))))
    blocks = list(dict.fromkeys(name.partition(".attentions")[0] for name in names))
    groups: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        kind, _, number = block.partition("_blocks.")
        level = levels - 1 if not number else int(number) if kind == "down" else levels - 1 - int(number)
        groups[f"level {level}"] = (*groups.get(f"level {level}", ()), block)
    for block in blocks:
        parts = dict.fromkeys(n.partition(".transformer_blocks")[0] for n in names if n.startswith(f"{block}."))
        groups |= {part: (part,) for part in ((block, *parts) if len(parts) > 1 else (block,))}
    return groups


def _consecutive(blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """A transformer's blocks, such as `layers.0` to `layers.29`, a few at a time."""
    together, groups = max(1, round(len(blocks) / GROUPS)), dict[str, tuple[str, ...]]()
    for _, alike in groupby(blocks, lambda block: block.rpartition(".")[0]):
        kind = list(alike)
        for i in range(0, len(kind), together):
            part = kind[i : i + together]
            groups[part[0] + (f" to {part[-1].rpartition('.')[2]}" if len(part) > 1 else "")] = tuple(part)
    return groups


@contextmanager
def scaled(network: nn.Module, blocks: Sequence[str], alpha: float) -> Iterator[None]:
    """Multiply by `alpha` what the attention of these blocks adds; on leaving the network is what it was.

    As the projection behind an attention is linear, this scales its weight (and bias), and what a norm makes of it
    where there is one (Z-Image).

    Raises:
        InputError: a block has no attention.
    """
    found = dict.fromkeys(name.rpartition(".to_q")[0] for name in target_modules(network) if name.endswith(".to_q"))
    layers: dict[str, nn.Module] = dict(network.named_modules())
    handles = []
    try:
        for block in blocks:
            names = [name for name in found if f"{name}.".startswith(f"{block}.")]
            if not names:
                raise InputError(f"{block}: expected a block of the network with attention, found none")
            for name in names:
                last = layers[f"{name}_norm2" if f"{name}_norm2" in layers else name]
                handles.append(last.register_forward_hook(lambda _m, _x, out: _times(alpha, out)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _times(alpha: float, out: Any) -> Any:
    """What an attention gives, be it one tensor or those of image and text."""
    return alpha * out if isinstance(out, Tensor) else tuple(alpha * each for each in out)
