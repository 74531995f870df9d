"""Refine merges: train one LoRA on the images of several that are nearest to the subject and to the style.

    candidates   images of the prompt by every file, at low guidance
    kept         those with the highest  rank by style + rank by content / 2
    refined      a LoRA that is trained on them, with the prompt as their caption

StyleDrop's iterative training with feedback, for the prompt of a merge. Guidance is low because the new LoRA is
guided again when it generates: what guidance exaggerates would be exaggerated twice. A file that is made so looks good
by the two similarities: judge it by others, or by eye.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from duolora.api.choose import both_metrics, judged, name_of, references
from duolora.api.train import Trained, default_options, train
from duolora.errors import InputError
from duolora.lora.write.atomic import check_folder, check_out
from duolora.model.base import Base, BaseChoice, opened, path_of
from duolora.model.defaults import STEPS, Sampling, check_sampling
from duolora.options import several
from duolora.provenance import file_hash
from duolora.training.options import TrainOptions, check_training

GUIDANCE, NUM, KEEP = 1.5, 24, 12
"""Of the candidates: their guidance, how many of each file, and how many of all are kept; by Atelier's tuning pairs
(`docs/log.md`, "Refining")."""
FIRST, APART = 900_000, 1_000
"""Where the candidates' seeds begin, far from those that people generate with, and how far two runs' are apart."""
_NUMBERED = re.compile(r"\d{3,}\.png")


class RefineKeywords(TypedDict, total=False):
    """What `refine` takes by keyword only; it says what each is."""

    metrics: str | Sequence[str] | None
    checkpoints: Mapping[str, str | Path] | None
    options: TrainOptions | None
    num: int
    keep: int
    seed: int
    steps: int
    guidance: float | None
    progress: bool
    overwrite: bool


@dataclass(frozen=True)
class Refined:
    """The new file, the folder of images that it was trained on, and how many of them came from which file."""

    trained: Trained
    images: Path
    kept: Mapping[Path, int]
    metrics: tuple[str, str]
    """By which they were kept: the nearness to the subject, and to the style."""

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
        out: the .safetensors file to write; the kept images go beside it, into the folder NAME-kept, the best first.
        base: a name, path or hub id (see `load_base`), a choice of how to run it, or a loaded base.
        metrics: one that compares with the content and one with the style, as for `choose`.
        checkpoints: hub id or path by embedder, where it is not the published one; CSD always needs one.
        options: how the LoRA is trained, its seed among them; by default as suits the base, with `seed`.
        num: images of each file, by default 24.
        keep: how many of all are kept, by default 12.
        seed: another one for other images; none of them has a seed below `FIRST`.
        steps: denoising steps, by default 25.
        guidance: their classifier-free guidance scale, by default 1.5, or the base's own where that is less.
        progress: show bars on stderr, as by default.
        overwrite: whether a file that is there already, and its kept images, are replaced, as by default.

    Raises:
        DuoLoRAError: there are fewer images than are to be kept, or an input, a checkpoint or `out` cannot be used.
    """
    num, keep, seed = given.get("num", NUM), given.get("keep", KEEP), given.get("seed", 0)
    steps, progress, overwrite = given.get("steps", STEPS), given.get("progress", True), given.get("overwrite", True)
    loras, out = several(loras), Path(out).expanduser()
    paths = [Path(each).expanduser() for each in loras]
    if not paths:
        raise InputError("loras: expected a file or more, got none")
    check_sampling([prompt], Sampling(num, steps, GUIDANCE if (asked := given.get("guidance")) is None else asked))
    if not 1 <= keep <= num * len(paths):
        raise InputError(f"keep: expected 1 to {num * len(paths)}, {num} images of each file, got {keep}")
    check_out(out, [*paths, path_of(base)], overwrite)
    folder = _folder(out, (content, style), overwrite)
    names = both_metrics(given.get("metrics"), name_of(base))
    near = references(names, given.get("checkpoints"), content, style)
    loaded = opened(base)
    options = given.get("options") or replace(default_options(loaded.name), seed=seed)
    check_training(options, loaded.architecture.shapes)
    guidance = min(GUIDANCE, loaded.defaults.guidance) if asked is None else asked
    first = FIRST + APART * seed
    seen = list(judged(loaded, paths, prompt, near, range(first, first + num), steps, guidance, progress))
    del near  # whose encoders may be on the GPU
    images = [image for each in seen for image in each.images]
    best = ranked(torch.cat([each.content for each in seen]), torch.cat([each.style for each in seen]))[:keep].tolist()
    _save([images[i] for i in best], folder)
    kept = {path: sum(paths[i // num] == path for i in best) for path in paths}
    about = {"made_by": "duolora refine", "metrics": names, "num": num, "first_seed": first, "guidance": guidance}
    about |= {"sources": [file_hash(path) for path in paths if path.is_file()], "kept": list(kept.values())}
    trained = train(folder, prompt, out, loaded, options, progress, overwrite=overwrite, about=about)
    return Refined(trained, folder, kept, names)


def _folder(out: Path, references: Sequence[str | Path], overwrite: bool) -> Path:
    """Where the kept images go.

    Raises:
        InputError: it is where an input is, there are files of others, or what is there may not be replaced.
    """
    folder = out.with_name(f"{out.stem}-kept")
    check_folder(folder)
    if not folder.exists():
        return folder
    for given in (Path(each).expanduser().resolve() for each in references):
        if folder.resolve() in (given, *given.parents):
            raise InputError(f"{folder}: an input is there, and inputs are never replaced; name another output")
    if others := [path.name for path in sorted(folder.iterdir()) if not _NUMBERED.fullmatch(path.name)]:
        raise InputError(f"{folder}: expected images of a run before, got {others[0]} as well; name another output")
    if not overwrite:
        raise InputError(f"{folder}: there are images already; name another output, or replace them with --overwrite")
    return folder


def _save(images: Sequence[Image.Image], folder: Path) -> None:
    """Write the images, by number, into a folder that takes the place of the one that is there once it is whole."""
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for k, image in enumerate(images):
        image.save(draft / f"{k:03d}.png")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)


def ranked(content: Float[Tensor, " n"], style: Float[Tensor, " n"]) -> Tensor:
    """Images by their similarities, the best first: by rank in style, and half as much by rank in content.

    The content photos have a style of their own, so that an image in the right style is less like them.
    """
    content_rank, style_rank = (x.argsort(stable=True).argsort(stable=True).double() for x in (content, style))
    return (style_rank + content_rank / 2).argsort(descending=True, stable=True)
