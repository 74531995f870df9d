"""The metrics by their names, and the checkpoints of their encoders; nothing heavy is imported."""

from collections.abc import Sequence
from dataclasses import dataclass

from duolora.errors import InputError

DEFAULTS: dict[str, str | None] = {
    "dino": "facebook/dino-vits16",
    "dinov2": "facebook/dinov2-base",
    "clip": "openai/clip-vit-base-patch32",
    "csd": None,
}
"""Published checkpoints by embedder; CSD's is a pickle, so a converted file must be named."""


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
    "atelier-csd": Metric("Atelier style encoder", "atelier-csd", "style"),
}
"""Not in the paper; asked for by name."""
METRICS = PAPER | ATELIER | OTHERS
GROUPS = {"paper": tuple(PAPER), "atelier": tuple(ATELIER)}


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
