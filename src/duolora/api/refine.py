"""Refine merges: train one LoRA on the images of several that are nearest to the subject and to the style.

    candidates   images of the prompt by every file, at low guidance
    kept         those with the highest  rank by style + rank by content / 2
    refined      a LoRA that is trained on them, with the prompt as their caption

StyleDrop's iterative training with feedback, for the prompt of a merge. Guidance is low because the new LoRA is
guided again when it generates: what guidance exaggerates would be exaggerated twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from duolora.api.choose import both_metrics, judged, name_of, references
from duolora.api.generate import new_folder
from duolora.api.train import Trained, default_options, train
from duolora.errors import InputError
from duolora.lora.write.atomic import check_out
from duolora.model.base import Base, BaseChoice, opened, path_of
from duolora.model.defaults import STEPS, Sampling, check_sampling
from duolora.options import several
from duolora.training.options import TrainOptions

GUIDANCE, NUM, KEEP = 1.5, 24, 12
"""Of the candidates: their guidance, how many of each file, and how many of all are kept; by Atelier's tuning pairs."""


class RefineKeywords(TypedDict, total=False):
    """What `refine` takes by keyword only; it says what each is."""

    metrics: str | Sequence[str] | None
    checkpoints: Mapping[str, str | Path] | None
    options: TrainOptions | None
    num: int
    keep: int
    seed: int
    steps: int
    guidance: float
    progress: bool
    overwrite: bool


@dataclass(frozen=True)
class Refined:
    """The new file, the images that it was trained on, and how many of them came from which file."""

    trained: Trained
    images: Path
    kept: Mapping[Path, int]

    @property
    def path(self) -> Path:
        """The new file."""
        return self.trained.path


def refine(
    loras: str | Path | Sequence[str | Path],
    prompt: str,
    content: str | Path,
    style: str | Path,
    out: str | Path,
    base: str | BaseChoice | Base = "atelier",
    **given: Unpack[RefineKeywords],
) -> Refined:
    """Generate with each file, keep the best images of all, and train one LoRA on them.

    Args:
        loras: a LoRA file or more, such as merges of the same two by several methods.
        prompt: what to generate, "a sks teapot in zwx style"; the new LoRA's caption.
        content: the subject's photos, a folder or one.
        style: the style image, or a folder of them.
        out: the .safetensors file to write; the kept images go beside it, into NAME-kept, the best first.
        base: a name, path or hub id (see `load_base`), a choice of how to run it, or a loaded base.
        metrics: one that compares with the content and one with the style, as for `choose`.
        checkpoints: hub id or path by embedder, where it is not the published one; CSD always needs one.
        options: how the LoRA is trained; by default as suits the base.
        num: images of each file, by default 24.
        keep: how many of all are kept, by default 12.
        seed: the first seed of the images, and that of training.
        steps: denoising steps, by default 25.
        guidance: classifier-free guidance scale of the candidates, by default 1.5; 1 is none.
        progress: show bars on stderr, as by default.
        overwrite: whether files that are there already are replaced, as by default.

    Raises:
        DuoLoRAError: there are fewer images than are to be kept, or an input, a checkpoint or `out` cannot be used.
    """
    num, keep, seed = given.get("num", NUM), given.get("keep", KEEP), given.get("seed", 0)
    steps, guidance, progress = given.get("steps", STEPS), given.get("guidance", GUIDANCE), given.get("progress", True)
    loras, out = several(loras), Path(out).expanduser()
    paths = [Path(each).expanduser() for each in loras]
    if not 1 <= keep <= num * len(paths):
        raise InputError(f"keep: expected 1 to {num * len(paths)}, {num} images of each file, got {keep}")
    check_sampling([prompt], Sampling(num, steps, guidance))
    check_out(out, [*paths, path_of(base)], given.get("overwrite", True))
    names = both_metrics(given.get("metrics"), name_of(base))
    near = references(names, given.get("checkpoints"), content, style)
    loaded = opened(base)
    options = given.get("options") or replace(default_options(loaded.name), seed=seed)
    seen = list(judged(loaded, paths, prompt, near, range(seed, seed + num), steps, guidance, progress))
    images = [image for each in seen for image in each.images]
    best = ranked(torch.cat([each.content for each in seen]), torch.cat([each.style for each in seen]))[:keep].tolist()
    folder = new_folder(out.with_name(f"{out.stem}-kept"))
    for old in folder.glob("[0-9][0-9][0-9].png"):
        old.unlink()
    for k, i in enumerate(best):
        images[i].save(folder / f"{k:03d}.png")
    trained = train(folder, prompt, out, loaded, options, progress, overwrite=given.get("overwrite", True))
    sources = [paths[i // num] for i in best]
    return Refined(trained, folder, {path: sources.count(path) for path in paths})


def ranked(content: Float[Tensor, " n"], style: Float[Tensor, " n"]) -> Tensor:
    """Images by their similarities, the best first: by rank in style, and half as much by rank in content.

    The content photos have a style of their own, so that an image in the right style is less like them.
    """
    content_rank, style_rank = (x.argsort(stable=True).argsort(stable=True).double() for x in (content, style))
    return (style_rank + content_rank / 2).argsort(descending=True, stable=True)
