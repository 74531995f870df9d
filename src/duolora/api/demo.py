"""The whole way on Atelier: images of a subject and of a style, two LoRAs, merges by several methods, a comparison."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import fill

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from duolora.api.generate import applied, new_folder
from duolora.api.merge import merge, options_of
from duolora.api.refine import refine
from duolora.api.train import default_options, train
from duolora.atelier.classifier import classify, load_classifier
from duolora.atelier.family import article
from duolora.atelier.pairs import Pair, rendered, truth
from duolora.atelier.scene import SIZE
from duolora.lora.write.atomic import check_folder, check_writable
from duolora.model.base import Base, BaseChoice, opened
from duolora.model.images import as_image
from duolora.model.sample import sample_images
from duolora.textfiles import markdown, write_json

PAIR = Pair("car", "pink", "striped", "family-020", "boat", "green")
"""Of the twelve test pairs with an oracle the one whose oracle's share of both is nearest to their mean, so that no
merge chose it (`benchmarks/runs-2026-11-28/table1`). `--pair` takes others."""
COUNT = 8
"""Images of each row."""
SHOWN = ("naive", "ziplora", "ziprank", "duolora")
"""The methods that are run: those of the paper's Table 1 that merge two LoRAs; `refine` learns from all of them."""


@dataclass(frozen=True)
class Job:
    """Images to generate and classify: a prompt, and the LoRA file to generate them with."""

    name: str
    prompt: str
    lora: Path | None = None
    masks: int = 0
    change: float | None = None
    kilobytes: float = 0.0
    seconds: float = 0.0


def demo(
    out: Path, seed: int = 0, pair: Pair = PAIR, progress: bool = True, base: str | BaseChoice | Base = "atelier"
) -> str:
    """Run the whole road into the folder `out`; returns the table as text.

    Leaves `references/`, `content.safetensors`, `style.safetensors`, one LoRA file for each method in `merged/`,
    `refined.safetensors` and the images that it learnt from, the images of all in `images/`, `comparison.png`,
    `table.md` and `results.json`. The seed is that of training, merging and generating.

    Raises:
        InputError: nothing can be written into `out`; nothing was made then.
    """
    out = new_folder(out)
    for part in ("references", "merged", "images", "refined-kept"):
        check_folder(out / part)
    for part in ("content", "style", "refined"):
        check_writable(out / f"{part}.safetensors")
    started = time.perf_counter()
    base, classifier = opened(base), load_classifier()
    loading = time.perf_counter() - started
    jobs, times = _trained_and_merged(base, pair, out, seed, progress)
    stages = {"load": loading, **times}
    begun = time.perf_counter()
    rows, generated = {}, {}
    for job in tqdm(jobs, "Generating", disable=not progress):
        with applied(base, [job.lora] if job.lora else []):
            seeds = range(seed + 1000, seed + 1000 + COUNT)
            generated[job] = sample_images(base, [job.prompt] * COUNT, seeds).clamp(-1, 1)
        rows[job] = truth(classify(classifier, generated[job]), pair)
        folder = out / "images" / job.name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(generated[job]):
            as_image(image).save(folder / f"{k:02d}.png")
    stages["generate"] = time.perf_counter() - begun
    comparison(pair, generated).save(out / "comparison.png")
    text = table(rows, pair)
    (out / "table.md").write_text(text)
    stages["total"] = time.perf_counter() - started
    results = {"pair": asdict(pair), "seed": seed, "seconds": stages}
    write_json(
        out / "results.json", results | {"rows": [{"job": asdict(job)} | shares for job, shares in rows.items()]}
    )
    return f"{text}\n{out / 'comparison.png'}; {spent(stages)}"


def spent(stages: dict[str, float]) -> str:
    """Where the time went, in seconds of the clock: all merges together, the other stages one by one."""
    merges = sum(seconds for name, seconds in stages.items() if name.startswith("merge "))
    others = {name: seconds for name, seconds in stages.items() if name != "total" and not name.startswith("merge ")}
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in (others | {"merge": merges}).items())
    return f"{stages['total']:.0f} s ({parts})"


def _trained_and_merged(
    base: Base, pair: Pair, out: Path, seed: int, progress: bool
) -> tuple[list[Job], dict[str, float]]:
    """Train both LoRAs, merge them by every method, refine; what to generate then, and the seconds of each stage."""
    stages = {}
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
        Job("style LoRA (class prompt)", pair.class_prompt, files["style"]),
    ]
    for method in tqdm(SHOWN, "Methods", disable=not progress):
        done = merge(
            files["content"], files["style"], out / "merged" / f"{method}.safetensors", method, base, content, style,
            merged_prompt=pair.merged_prompt, options=options_of(method, seed=seed), progress=progress,
        )  # fmt: skip
        stages[f"merge {method}"] = done.seconds
        size = done.verification.size / 1000
        jobs.append(Job(method, pair.merged_prompt, done.path, done.trainable, done.mean_change, size, done.seconds))
    begun, merges = time.perf_counter(), [job.lora for job in jobs if job.lora and job.name in SHOWN]
    refined = refine(
        merges, pair.merged_prompt, content, style, out / "refined.safetensors", base, seed=seed, progress=progress
    )
    stages["refine"] = time.perf_counter() - begun
    size, whole = refined.trained.verification.size / 1000, sum(job.seconds for job in jobs) + stages["refine"]
    jobs.append(Job("refined (ours)", pair.merged_prompt, refined.path, kilobytes=size, seconds=whole))
    return jobs, stages


def _references(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """Write the images that a person would bring; returns the content folder and the style image."""
    content, style = folder / "content", folder / "style.png"
    content.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(rendered(pair.content_scenes())):
        Image.fromarray(image).save(content / f"{k:02d}.png")
    Image.fromarray(rendered([pair.style_scene()])[0]).save(style)
    return content, style


def table(rows: dict[Job, dict[str, float | None]], pair: Pair) -> str:
    """The shares of each job (see `truth`) as a Markdown table."""
    head = ("", "object", "style", "both", "colour", "pattern", "leak", "masks", "mean change", "file, kB", "time, s")
    lines = []
    for job, shares in rows.items():
        merge = [f"{job.masks:,}", f"{job.change:.3f}"] if job.change is not None else ["", ""]
        file = [f"{job.kilobytes:.0f}", f"{job.seconds:.1f}"] if job.kilobytes else ["", ""]
        cells = ["–" if share is None else f"{share:.2f}" for share in shares.values()]
        lines.append([job.name, *cells, *merge, *file])
    said = (
        f"Atelier, by its classifier: a {pair.colour} {pair.kind} ({pair.pattern}) in the style of one {pair.style}",
        f"image that shows {article(pair.shown)}. Shares of {COUNT} images; the LoRAs alone with prompts of their own,",
        "all others with the merged one. These are not the paper's numbers and cannot be compared with them.",
        f"Look for the {pair.kind} of the first references, drawn as the last one draws its {pair.shown}: a merge is",
        "right where both are in one image.",
    )
    return "\n".join([*said, "", markdown(head, lines)]) + "\n"


def comparison(pair: Pair, generated: dict[Job, torch.Tensor]) -> Image.Image:
    """References on the left, one row for each job, named, and with its prompt where that is not the merged one."""
    cell, gap, columns = SIZE * 4, 4, 8
    left, label = cell + 3 * gap, 190
    sheet = Image.new("RGB", (left + label + columns * (cell + gap), len(generated) * (cell + gap) + 28), "white")
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    brush.text((gap, 5), "references", "black", font)
    brush.text((left + label, 5), heading(pair), "black", font)
    references = rendered([*pair.content_scenes(), pair.style_scene()])
    for k, pixels in enumerate(references):
        image = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(image, (gap, 28 + k * (cell + gap)))
    for row, (job, batch) in enumerate(generated.items()):
        top = 28 + row * (cell + gap)
        brush.text((left, top + cell // 2 - 10), job.name, "black", font)
        if job.prompt != pair.merged_prompt:
            words = fill(f"prompt: “{job.prompt}”", 28)
            brush.multiline_text((left, top + cell // 2 + 12), words, "black", ImageFont.load_default(12))
        for k, pixels in enumerate(batch[:columns]):
            image = as_image(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (left + label + k * (cell + gap), top))
    return sheet


def heading(pair: Pair) -> str:
    """What is true of every row of the comparison that names no prompt of its own."""
    return f"“{pair.merged_prompt}”, where a row has no other prompt; the same seeds in every row"
