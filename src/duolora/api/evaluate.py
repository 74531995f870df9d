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
from duolora.metrics.encoders import DEFAULTS, load_embedder
from duolora.metrics.similarity import Interval, bootstrap_interval, matched, mean_by_row
from duolora.model.image_files import image_paths
from duolora.provenance import versions
from duolora.textfiles import read_lines


@dataclass(frozen=True)
class Metric:
    """What is compared with what, and by which embedder."""

    label: str
    embedder: str
    against: str
    """`content`, `style` or `prompt`."""


PAPER = {
    "dino": Metric("DINO", "dino", "content"),
    "clip-i": Metric("CLIP-I", "clip", "style"),
    "clip-t": Metric("CLIP-T", "clip", "prompt"),
    "csd-s": Metric("CSD-s", "csd", "style"),
    "leakage": Metric("leakage (DINO to style)", "dino", "style"),
}
"""The paper's (Sec. 4): content by DINO, style by CLIP-I and CSD-s, the prompt by CLIP-T, and its leakage check."""
ATELIER = {
    "atelier-content": Metric("Atelier content", "atelier-content", "content"),
    "atelier-image": Metric("Atelier image", "atelier-image", "style"),
    "atelier-text": Metric("Atelier text", "atelier-text", "prompt"),
    "atelier-style": Metric("Atelier style", "atelier-style", "style"),
    "atelier-leakage": Metric("Atelier leakage", "atelier-content", "style"),
}
"""The same formulas on Atelier's own encoders, in the same order."""
OTHERS = {
    "dinov2": Metric("DINOv2", "dinov2", "content"),
    "dinov2-leakage": Metric("leakage (DINOv2 to style)", "dinov2", "style"),
}
"""Not in the paper; asked for by name."""
METRICS = PAPER | ATELIER | OTHERS
GROUPS = {"paper": tuple(PAPER), "atelier": tuple(ATELIER)}


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


def chosen(metrics: str | Sequence[str], given: Sequence[str]) -> list[str]:
    """The metrics that `metrics` names and that the references allow; a group leaves out what it lacks references for.

    Args:
        metrics: names of `METRICS` or `GROUPS`, as a list or with commas between them.
        given: what there is to compare with, of `content`, `style` and `prompt`.

    Raises:
        InputError: a name is unknown, a metric asked for by its own name lacks its reference, or none is left.
    """
    names = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    found: dict[str, None] = {}
    for name in (n.strip().lower() for n in names):
        if name in METRICS:
            if (against := METRICS[name].against) not in given:
                raise InputError(f"{name}: it compares with the {against}; give --{against}")
            found[name] = None
        elif name in GROUPS:
            found |= dict.fromkeys(m for m in GROUPS[name] if METRICS[m].against in given)
        else:
            raise InputError(f"metrics: expected some of {', '.join((*GROUPS, *METRICS))}; got {name!r}")
    if not found:
        raise InputError("expected something to compare with, got nothing; give --content, --style or --prompt")
    return list(found)


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


def named_checkpoints(assignments: Sequence[str]) -> dict[str, str]:
    """`NAME=WHERE` as it is typed, {"dino": "path/or/id"}.

    Raises:
        InputError: there is no such embedder, or nothing behind the equals sign.
    """
    found = {}
    for assignment in assignments:
        name, _, where = assignment.partition("=")
        if name not in DEFAULTS or not where:
            raise InputError(
                f"checkpoint: expected NAME=WHERE with a name of {', '.join(DEFAULTS)}; got {assignment!r}"
            )
        found[name] = where
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
    for needed in dict.fromkeys(METRICS[name].embedder for name in names):  # a missing one is known before any work
        if needed not in loaded:
            place = (checkpoints or {}).get(needed)
            loaded[needed] = load_embedder(needed, place, given.get("device", "auto"), given.get("progress", False))
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
