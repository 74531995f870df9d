"""How to train LoRAs on a small base: what they draw on their own prompt, and what they leave of the base's own words.

    content   its thing, asked for as it was shown, and asked for in looks that the base knows
    style     its look, asked for as it was shown, and on things that the base knows

A LoRA that draws only what it was shown has swallowed the base, and no merge can help it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from duolora.atelier.captions import article
from duolora.atelier.looks import BASE_LOOKS
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.pairs import STYLE_IDENTIFIER
from duolora.atelier.recognisers import judge
from duolora.bench.cells import LoraJob, shared_base, shared_judges, train_lora
from duolora.bench.pairs import Case
from duolora.bench.workers import run_all
from duolora.sampling import draw
from duolora.verbs.generate import applied
from duolora.verbs.train import ATELIER_OPTIONS

GRID: tuple[Mapping[str, float], ...] = (
    {},
    {"unconditional": 0.0},
    {"steps": 250, "lr": 2e-3},
    {"lr": 5e-4},
    {"rank": 4},
    {"steps": 1000},
)
GUIDANCES = (1.5, 3.0, 5.0)


@dataclass(frozen=True)
class Trial:
    """One setting of the trainer on the LoRAs of one case."""

    out: Path
    case: Case
    changes: tuple[tuple[str, float], ...]

    @property
    def folder(self) -> Path:
        """A folder for this setting."""
        return self.out / ("-".join(f"{k}={v:g}" for k, v in self.changes) or "default")

    @property
    def result(self) -> Path:
        """Its figures."""
        return self.folder / f"{self.case.name}.json"


def run_trial(trial: Trial, count: int = 8) -> None:
    """Train both LoRAs of the case and write what they draw at each guidance."""
    if trial.result.exists():
        return
    options = replace(ATELIER_OPTIONS, **{k: type(getattr(ATELIER_OPTIONS, k))(v) for k, v in trial.changes})
    case, pair, figures = trial.case, trial.case.pair, {}
    rng = np.random.default_rng(7)
    kinds, looks = ([str(x) for x in rng.choice(known, count)] for known in (BASE_OBJECTS, BASE_LOOKS))
    asked = {
        "content": ([pair.content_prompt] * count, [f"a {pair.identifier} thing in {look} style" for look in looks]),
        "style": ([pair.style_prompt] * count, [f"{article(kind)} in {STYLE_IDENTIFIER} style" for kind in kinds]),
    }
    for kind, (own, transfer) in asked.items():
        seed, number = (case.content_seed, case.pictures) if kind == "content" else (case.style_seed, 1)
        job = LoraJob(trial.folder, kind, pair, number, seed)
        train_lora(job, options)
        for guidance in GUIDANCES:
            with applied(shared_base(), [job.path]):
                drawn = draw(shared_base(), [*own, *transfer], list(range(count)) * 2, guidance=guidance).clamp(-1, 1)
            mine, other = judge(shared_judges(), drawn[:count]), judge(shared_judges(), drawn[count:])
            wanted = {"object": [pair.kind] * count, "look": looks}
            if kind == "style":
                wanted = {"object": kinds, "look": [pair.look] * count}
            right = {k: [a == b for a, b in zip(getattr(other, k), w, strict=True)] for k, w in wanted.items()}
            figures[f"{kind} g={guidance:g}"] = {
                "own": mine.share(**{"object": pair.kind} if kind == "content" else {"look": pair.look}),
                "transfer_object": sum(right["object"]) / count,
                "transfer_look": sum(right["look"]) / count,
                "transfer_both": sum(a and b for a, b in zip(right["object"], right["look"], strict=True)) / count,
            }
    trial.result.write_text(json.dumps(figures, indent=1), "utf-8")


def sweep(
    out: Path, cases: Sequence[Case], grid: Sequence[Mapping[str, float]] = GRID, workers: int | None = None
) -> str:
    """Run the grid on the cases, resumably; returns a Markdown table of means over cases."""
    trials = [Trial(out, case, tuple(changes.items())) for changes in grid for case in cases]
    failed = list(run_all(run_trial, trials, "LoRAs", workers))
    lines = ["| setting | LoRA, guidance | own | transfer: object | look | both |", "|---|---|---|---|---|---|"]
    for folder in dict.fromkeys(trial.folder for trial in trials):
        found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
        for name in found[0] if found else ():
            means = {k: np.mean([f[name][k] for f in found]) for k in found[0][name]}
            lines.append(f"| {folder.name} | {name} | {' | '.join(f'{v:.2f}' for v in means.values())} |")
    text = "\n".join([*lines, *(f"failed: {trial.result}: {why}" for trial, why in failed)]) + "\n"
    (out / "sweep.md").write_text(text, "utf-8")
    return text
