"""The whole way on Atelier: images of a subject and of a style, two LoRAs, merges by several methods, a comparison."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import fill

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from duolora.api.generate import applied, new_folder
from duolora.api.merge import merge, options_of
from duolora.api.train import default_options, train
from duolora.atelier.classifier import Verdict, judge, load_classifier
from duolora.atelier.family import article
from duolora.atelier.looks import KEEP_COLOUR, KEEP_PATTERN
from duolora.atelier.pairs import Pair, pictures
from duolora.atelier.scene import SIZE
from duolora.lora.write.atomic import check_folder, check_writable
from duolora.model.base import Base, BaseChoice, opened
from duolora.model.images import as_image
from duolora.model.sample import draw

PAIR = Pair("tree", "blue", "plain", "family-004", "apple", "pink")
"""The first pair of the benchmark's first data set, so that nobody chose it. `--pair` takes others."""
COUNT = 8
"""Images of each row."""
SHOWN = ("naive", "split", "ziplora", "ziprank", "duolora")
"""The methods that are run: those of the paper's Table 1 that merge two given LoRAs, and the split of ours."""


@dataclass(frozen=True)
class Job:
    """Pictures to draw and judge: a prompt, and the LoRA file to draw it with."""

    name: str
    prompt: str
    lora: Path | None = None
    masks: int = 0
    moved: float = 0.0
    kilobytes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of the demo's table; shares are of `COUNT` pictures, and None where there is nothing to judge."""

    job: Job
    object: float
    look: float
    both: float
    colour: float | None
    pattern: float | None
    leak: float


def demo(
    out: Path, seed: int = 0, pair: Pair = PAIR, progress: bool = True, base: str | BaseChoice | Base = "atelier"
) -> str:
    """Run the whole road into the folder `out`; returns the table as text.

    Leaves `references/`, `content.safetensors`, `style.safetensors`, one LoRA file for each method in `merged/`, the
    pictures in `pictures/`, `comparison.png`, `table.md` and `results.json`. The seed is that of training, merging and
    drawing.

    Raises:
        InputError: nothing can be written into `out`; nothing was made then.
    """
    out = new_folder(out)
    for part in ("references", "merged", "pictures"):
        check_folder(out / part)
    for part in ("content", "style"):
        check_writable(out / f"{part}.safetensors")
    started = time.perf_counter()
    stages: dict[str, float] = {}
    base, judges = opened(base), load_classifier()
    stages["load"] = time.perf_counter() - started
    jobs = _trained_and_merged(base, pair, out, seed, stages, progress)
    begun = time.perf_counter()
    rows, drawn = [], {}
    for job in tqdm(jobs, "Generating", disable=not progress):
        drawn[job] = _drawn(base, job, seed)
        rows.append(_row(job, judge(judges, drawn[job]), pair))
        _save(drawn[job], out / "pictures" / job.name.replace(" ", "-"))
    stages["draw"] = time.perf_counter() - begun
    comparison(pair, drawn).save(out / "comparison.png")
    text = table(rows, pair)
    (out / "table.md").write_text(text)
    stages["total"] = time.perf_counter() - started
    results = {"pair": asdict(pair), "seed": seed, "rows": [asdict(r) for r in rows], "seconds": stages}
    (out / "results.json").write_text(json.dumps(results, indent=1, default=str))
    return f"{text}\n{out / 'comparison.png'}; {spent(stages)}"


def spent(stages: dict[str, float]) -> str:
    """Where the time went, in seconds of the clock: all merges together, the other stages one by one."""
    merges = sum(seconds for name, seconds in stages.items() if name.startswith("merge "))
    others = {name: seconds for name, seconds in stages.items() if name != "total" and not name.startswith("merge ")}
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in (others | {"merge": merges}).items())
    return f"{stages['total']:.0f} s ({parts})"


def _trained_and_merged(
    base: Base, pair: Pair, out: Path, seed: int, stages: dict[str, float], progress: bool
) -> list[Job]:
    """Train both LoRAs, merge them by every method; what there is to draw then. Times go into `stages`."""
    content, style = _references(out / "references", pair)
    files = {"content": out / "content.safetensors", "style": out / "style.safetensors"}
    for kind, images, prompt in (("content", content, pair.content_prompt), ("style", style, pair.style_prompt)):
        begun = time.perf_counter()
        options = replace(default_options(base.name, kind), seed=seed)
        train(images, prompt, files[kind], base, options, progress)
        stages[f"train {kind}"] = time.perf_counter() - begun
    jobs = [
        Job("base", pair.merged_prompt),
        Job("content LoRA", pair.content_prompt, files["content"]),
        Job("style LoRA", pair.style_prompt, files["style"]),
        Job("style LoRA, class prompt", pair.told_prompt, files["style"]),
    ]
    for method in tqdm(SHOWN, "Methods", disable=not progress):
        done = merge(
            files["content"], files["style"], out / "merged" / f"{method}.safetensors", method, base, content, style,
            merged_prompt=pair.merged_prompt, options=options_of(method, seed=seed), progress=progress,
        )  # fmt: skip
        stages[f"merge {method}"] = done.seconds
        size = done.proof.size / 1000
        jobs.append(Job(method, pair.merged_prompt, done.path, done.trainable, done.moved, size, done.seconds))
    return jobs


def _references(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """Write the pictures that a person would bring; returns the content folder and the style picture."""
    content, style = folder / "content", folder / "style.png"
    content.mkdir(parents=True, exist_ok=True)
    for k, picture in enumerate(pictures(pair.content_scenes())):
        Image.fromarray(picture).save(content / f"{k:02d}.png")
    Image.fromarray(pictures([pair.style_scene()])[0]).save(style)
    return content, style


def _drawn(base: Base, job: Job, seed: int) -> torch.Tensor:
    with applied(base, [job.lora] if job.lora else []):
        return draw(base, [job.prompt] * COUNT, range(seed + 1000, seed + 1000 + COUNT)).clamp(-1, 1)


def _save(drawn: torch.Tensor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, picture in enumerate(drawn):
        as_image(picture).save(folder / f"{k:02d}.png")


def _row(job: Job, verdict: Verdict, pair: Pair) -> Row:
    return Row(
        job=job,
        object=verdict.share(object=pair.kind),
        look=verdict.share(look=pair.look),
        both=verdict.share(**pair.identity, look=pair.look),
        colour=verdict.share(colour=pair.colour) if pair.look in KEEP_COLOUR else None,
        pattern=verdict.share(pattern=pair.pattern) if pair.look in KEEP_PATTERN else None,
        leak=verdict.share(object=pair.shown),
    )


def table(rows: list[Row], pair: Pair) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"Atelier, by its classifier: a {pair.colour} {pair.kind} ({pair.pattern}) in the style of one {pair.look}",
        f"image that shows {article(pair.shown)}. Shares of {COUNT} images; the LoRAs alone with prompts of their own,",
        "all others with the merged one. These are not the paper's numbers and cannot be compared with them.",
        "",
        "| | object | style | both | colour | pattern | leak | masks | mean change | file, kB | time, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = (row.object, row.look, row.both, row.colour, row.pattern, row.leak)
        cells = ["–" if s is None else f"{s:.2f}" for s in shares]
        job = row.job
        merged = [f"{job.masks:,}", f"{job.moved:.3f}", f"{job.kilobytes:.0f}", f"{job.seconds:.1f}"]
        lines.append(f"| {job.name} | {' | '.join(cells + (merged if job.kilobytes else [''] * 4))} |")
    return "\n".join(lines) + "\n"


def comparison(pair: Pair, drawn: dict[Job, torch.Tensor], columns: int = 8, scale: int = 4) -> Image.Image:
    """References on the left, one row for each job, named, and with its prompt where that is not the merged one."""
    cell, gap = SIZE * scale, 4
    left, label = cell + 3 * gap, 190
    sheet = Image.new("RGB", (left + label + columns * (cell + gap), len(drawn) * (cell + gap) + 28), "white")
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    brush.text((gap, 5), "references", "black", font)
    brush.text((left + label, 5), heading(pair), "black", font)
    references = [*pictures(pair.content_scenes()), pictures([pair.style_scene()])[0]]
    for k, picture in enumerate(references):
        image = Image.fromarray(picture).resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(image, (gap, 28 + k * (cell + gap)))
    for row, (job, batch) in enumerate(drawn.items()):
        top = 28 + row * (cell + gap)
        brush.text((left, top + cell // 2 - 10), job.name, "black", font)
        if told := own_prompt(job, pair):
            brush.multiline_text((left, top + cell // 2 + 12), fill(told, 28), "black", ImageFont.load_default(12))
        for k, picture in enumerate(batch[:columns]):
            image = as_image(picture).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (left + label + k * (cell + gap), top))
    return sheet


def heading(pair: Pair) -> str:
    """What is true of every row of the comparison that names no prompt of its own."""
    return f"“{pair.merged_prompt}”, where a row has no other prompt; the same seeds in every row"


def own_prompt(job: Job, pair: Pair) -> str:
    """The prompt in words for the label of a row, if it is not the merged one."""
    return "" if job.prompt == pair.merged_prompt else f"prompt: “{job.prompt}”"
