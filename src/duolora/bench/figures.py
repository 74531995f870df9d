"""Figures 3 and 4 of the paper, on any base that the judges can judge: weight scaling, and ranks of the masks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from duolora.atelier.captions import plain_caption
from duolora.atelier.looks import BASE_LOOKS
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.recognisers import judge, load_recogniser
from duolora.images import as_image, tiled
from duolora.networks.bases import Base
from duolora.networks.scaling import block_groups, scaled
from duolora.sampling import draw

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
Curves = dict[str, dict[str, list[float]]]


def figure3(
    out: Path, base: Base, alphas: Sequence[float] = ALPHAS, count: int = 34, seed: int = 0, progress: bool = True
) -> Curves:
    """How well object and look are recognised as each group of blocks is scaled by α; writes curves and pictures.

    A group is content-dominant if turning it down loses the object and keeps the look, and style-dominant in the
    opposite case: so this says which block map is true of a base.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng, judges = np.random.default_rng(seed), load_recogniser()
    kinds = [str(rng.choice(BASE_OBJECTS)) for _ in range(count)]
    looks = [BASE_LOOKS[k % len(BASE_LOOKS)] for k in range(count)]
    prompts = [plain_caption(kind, look=look) for kind, look in zip(kinds, looks, strict=True)]
    groups, curves, sheet = block_groups(base.unet), {}, []
    for name, blocks in tqdm(groups.items(), "Figure 3", disable=not progress):
        curves[name] = {"alpha": list(alphas), "object": [], "look": []}
        row = []
        for alpha in alphas:
            with scaled(base.unet, blocks, alpha):
                drawn = draw(base, prompts, list(range(seed, seed + count)), batch=count).clamp(-1, 1)
            seen = judge(judges, drawn)
            for curve, got, asked in (("object", seen.object, kinds), ("look", seen.look, looks)):
                curves[name][curve].append(sum(a == b for a, b in zip(got, asked, strict=True)) / count)
            row.append(as_image(drawn[0]))
        sheet.append(row)
    tiled(sheet).save(out / "pictures.png")
    (out / "curves.json").write_text(json.dumps(curves, indent=1), "utf-8")
    _plot_curves(curves, out / "curves.png")
    return curves


def _plot_curves(curves: Curves, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, what in zip(axes, ("object", "look"), strict=True):
        for name, curve in curves.items():
            axis.plot(curve["alpha"], curve[what], marker="o", label=name, lw=2.5 if name.startswith("level") else 1)
        axis.set(title=f"{what} recognised", xlabel="α", ylim=(-0.03, 1.03))
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def ranks(masks: Mapping[str, Mapping[str, object]], threshold: float) -> dict[str, dict[str, int]]:
    """For each adapter and module, how many entries of its mask exceed the threshold (Figure 4's rank)."""
    return {
        side: {name: int((mask.abs() > threshold).sum()) for name, mask in found.items()}  # type: ignore[attr-defined]
        for side, found in masks.items()
    }
