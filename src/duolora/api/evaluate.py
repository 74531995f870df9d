"""Score a folder of generated images: content, style, text, and what leaked from the style image."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import PIL
import torch
from jaxtyping import Float
from torch import Tensor

from duolora.api.generated import generated_images
from duolora.errors import InputError
from duolora.metrics.cache import Cache, embed_files
from duolora.metrics.encoder import Card, Embedder
from duolora.metrics.encoders import load_embedder
from duolora.metrics.named import METRICS, chosen
from duolora.metrics.similarity import Interval, bootstrap_interval, matched, mean_by_row
from duolora.model.image_files import image_paths
from duolora.progress import underway
from duolora.provenance import versions
from duolora.textfiles import read_lines


@dataclass(frozen=True)
class Score:
    """One number, and all that is needed to know what it means."""

    metric: str
    label: str
    against: str
    value: Interval
    """Over the generated images, of each one's average cosine with the references."""
    images: int
    references: int
    card: Card


@dataclass(frozen=True)
class Evaluation:
    """The scores of one folder."""

    generated: Path
    scores: tuple[Score, ...]
    versions: Mapping[str, str]

    def __getitem__(self, metric: str) -> float:
        """The value of one metric, such as `done["dino"]`."""
        return {score.metric: score.value.mean for score in self.scores}[metric]

    def facts(self) -> dict[str, object]:
        """All of it as plain data, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The scores for people, with the checkpoints and transforms behind them."""
        lines = [f"{'':26} {'value':>7}   {'95 % over images':20} against"]
        for score in self.scores:
            v, count = score.value, "" if score.references == 1 else f" × {score.references}"
            span = f"{v.low:.3f} to {v.high:.3f}"
            lines.append(f"{score.label:26} {v.mean:7.3f}   {span:20} {score.against}, {score.images}{count}")
        lines.append("")
        for card in dict.fromkeys(score.card for score in self.scores):
            lines.append(
                f"{card.name}: {card.checkpoint} ({card.architecture}; {card.fingerprint[:12]}); {card.transform}"
            )
        if any(score.card.atelier for score in self.scores):
            lines.append("Atelier's numbers come from its own encoders: they cannot be compared with published ones.")
        return "\n".join(lines)


def prompts_of(prompt: str | None, file: Path | None) -> str | list[str] | None:
    """The prompt of all images, or the lines of a text file, one for each image in the order of their names.

    Raises:
        InputError: both are given, or the file has none.
    """
    if file is None:
        return prompt
    if prompt is not None:
        raise InputError("--prompts: expected these or --prompt, got both")
    if not (found := list(read_lines(file))):
        raise InputError(f"{file}: expected a prompt on each line, found none")
    return found


class EvaluateKeywords(TypedDict, total=False):
    """What `evaluate` takes by keyword only; it says what each is."""

    device: str | torch.device
    cache: bool | Path
    progress: bool
    embedders: MutableMapping[str, Embedder] | None


def evaluate(
    generated: str | Path,
    content: str | Path | None = None,
    style: str | Path | None = None,
    prompt: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] = "atelier",
    checkpoints: Mapping[str, str | Path] | None = None,
    **given: Unpack[EvaluateKeywords],
) -> Evaluation:
    """Score generated images against the subject's photos, the style image and the prompt.

    Args:
        generated: a folder of images, or one image; of a folder that `generate` generated into more than once, those of
            its last run.
        content: the subject's photos, a folder or one.
        style: the style image, or a folder of them.
        prompt: what was asked for; one for all images, or one for each in the order of their names.
        metrics: `atelier` (offline), `paper`, or names (`METRICS`).
        checkpoints: hub id or path by embedder, where it is not the published one; CSD always needs one.
        device: where the networks run; "auto", the default, is CUDA where there is one.
        cache: whether embeddings are kept on disk, as by default, or the folder to keep them in.
        progress: show bars on stderr; by default none.
        embedders: loaded ones by name; those that are missing are loaded and added.

    Raises:
        DuoLoRAError: an input or a checkpoint cannot be used.
    """
    compared = {"content": content, "style": style, "prompt": prompt or None}
    names = chosen(metrics, [name for name, value in compared.items() if value is not None])
    files = {name: image_paths(where) for name, where in (("content", content), ("style", style)) if where is not None}
    images = list(generated_images(generated).tell().files)
    cache, embedders = given.get("cache", True), given.get("embedders")
    kept = None if cache is False else Cache(cache if isinstance(cache, Path) else None)
    loaded = {} if embedders is None else embedders
    progress = given.get("progress", False)
    for needed in dict.fromkeys(METRICS[name].embedder for name in names):  # a missing one is known before any work
        if needed not in loaded:
            with underway(f"Loading {needed}", progress):
                place = (checkpoints or {}).get(needed)
                loaded[needed] = load_embedder(needed, place, given.get("device", "auto"), progress)
    scores = [_score(name, loaded[METRICS[name].embedder], images, files, prompt or "", kept) for name in names]
    return Evaluation(Path(generated), tuple(scores), versions() | {"pillow": PIL.__version__})


def _score(
    name: str,
    embedder: Embedder,
    images: Sequence[Path],
    files: Mapping[str, Sequence[Path]],
    prompt: str | Sequence[str],
    kept: Cache | None,
) -> Score:
    """One metric of the images against its reference."""
    metric = METRICS[name]
    embedded = embed_files(embedder, images, kept)
    if metric.against == "prompt":
        values, references = _against_prompt(embedder, embedded, prompt), 1
    else:
        references = len(files[metric.against])
        values = mean_by_row(embedded, embed_files(embedder, files[metric.against], kept))
    interval = bootstrap_interval(values.tolist())
    return Score(name, metric.label, metric.against, interval, len(images), references, embedder.card)


def _against_prompt(
    embedder: Embedder, embedded: Float[Tensor, "n d"], prompt: str | Sequence[str]
) -> Float[Tensor, " n"]:
    """The cosine of each image with its prompt, or with the one prompt of all."""
    if isinstance(prompt, str):
        return mean_by_row(embedded, embedder([prompt]))
    if len(prompt) != len(embedded):
        raise InputError(f"prompt: expected one, or one for each of the {len(embedded)} images, got {len(prompt)}")
    return matched(embedded, embedder(list(prompt)))
