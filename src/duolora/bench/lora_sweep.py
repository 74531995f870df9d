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
from duolora.bench.jobs import LoraJob, shared_base, shared_judges, train_lora
from duolora.bench.pairs import Case
from duolora.bench.workers import run_all
from duolora.images import as_image, tiled
from duolora.sampling import draw
from duolora.verbs.generate import applied
from duolora.verbs.train import default_options

GRIDS: dict[str, tuple[Mapping[str, float], ...]] = {
    "content": ({}, {"unconditional": 0.0}, {"steps": 250}, {"steps": 250, "lr": 2e-3}, {"rank": 4}),
    "style": (
        {},
        {"unconditional": 0.0},
        {"steps": 250, "lr": 2e-3},
        {"steps": 60},
        {"steps": 100},
        {"steps": 150},
        {"steps": 250},
        {"steps": 150, "rank": 4},
        {"steps": 250, "lr": 3e-4},
    ),
}
GUIDANCES = (1.5, 3.0, 5.0)


@dataclass(frozen=True)
class Trial:
    """One setting of the trainer on the content or the style LoRA of one case."""

    out: Path
    case: Case
    kind: str
    changes: tuple[tuple[str, float], ...]

    @property
    def folder(self) -> Path:
        """A folder for this setting."""
        return self.out / ("-".join(f"{k}={v:g}" for k, v in self.changes) or "default")

    @property
    def result(self) -> Path:
        """Its figures."""
        return self.folder / f"{self.kind}-{self.case.name}.json"


def run_trial(trial: Trial, count: int = 8) -> None:
    """Train the LoRA and write what it draws at each guidance."""
    if trial.result.exists():
        return
    plain = default_options("atelier", trial.kind)
    options = replace(plain, **{k: type(getattr(plain, k))(v) for k, v in trial.changes})
    case, pair, base = trial.case, trial.case.pair, shared_base("atelier")
    rng = np.random.default_rng(7)
    kinds, looks = ([str(x) for x in rng.choice(known, count)] for known in (BASE_OBJECTS, BASE_LOOKS))
    if trial.kind == "content":
        job = LoraJob(trial.folder, "content", pair, case.pictures, case.content_seed)
        own, other = pair.content_prompt, [f"a {pair.identifier} {pair.noun} in {look} style" for look in looks]
        mine, wanted = {"object": pair.kind}, {"object": [pair.kind] * count, "look": looks}
    else:
        job = LoraJob(trial.folder, "style", pair, 1, case.style_seed)
        own, other = pair.style_prompt, [f"{article(kind)} in {STYLE_IDENTIFIER} style" for kind in kinds]
        mine, wanted = {"look": pair.look}, {"object": kinds, "look": [pair.look] * count}
    train_lora(job, options)
    figures = {}
    for guidance in GUIDANCES:
        with applied(base, [job.path]):
            drawn = draw(base, [own] * count + other, list(range(count)) * 2, guidance=guidance).clamp(-1, 1)
        seen = judge(shared_judges(), drawn[count:])
        right = {k: [a == b for a, b in zip(getattr(seen, k), w, strict=True)] for k, w in wanted.items()}
        figures[f"{guidance:g}"] = {
            "own": judge(shared_judges(), drawn[:count]).share(**mine),
            "object": sum(right["object"]) / count,
            "look": sum(right["look"]) / count,
            "both": sum(a and b for a, b in zip(right["object"], right["look"], strict=True)) / count,
        }
        tiled([[as_image(p) for p in drawn[:count]], [as_image(p) for p in drawn[count:]]]).save(
            trial.result.with_name(f"{trial.result.stem}-{guidance:g}.png")
        )
    trial.result.write_text(json.dumps(figures, indent=1), "utf-8")


def sweep(out: Path, cases: Sequence[Case], kinds: Sequence[str] = tuple(GRIDS), workers: int | None = None) -> str:
    """Run the grids on the cases, resumably; returns a Markdown table of means over cases."""
    trials = [
        Trial(out, case, kind, tuple(changes.items())) for kind in kinds for changes in GRIDS[kind] for case in cases
    ]
    failed = list(run_all(run_trial, trials, "LoRAs", workers))
    lines = ["| LoRA | setting | guidance | own | elsewhere: object | look | both |", "|---|---|---|---|---|---|---|"]
    for kind, folder in dict.fromkeys((trial.kind, trial.folder) for trial in trials):
        found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{kind}-*.json"))]
        for guidance in found[0] if found else ():
            means = [np.mean([f[guidance][k] for f in found]) for k in found[0][guidance]]
            lines.append(f"| {kind} | {folder.name} | {guidance} | {' | '.join(f'{v:.2f}' for v in means)} |")
    text = "\n".join([*lines, *(f"failed: {trial.result}: {why}" for trial, why in failed)]) + "\n"
    (out / "sweep.md").write_text(text, "utf-8")
    return text
