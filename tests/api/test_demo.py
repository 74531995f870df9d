"""The demo's table and image say what was measured."""

from contextlib import nullcontext
from csv import DictReader
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import ImageDraw

from duolora.api import demo as module
from duolora.api.demo import Job, comparison, demo, spent, table
from duolora.atelier.classifier import Predictions
from duolora.atelier.pairs import Pair, truth
from duolora.bench.cells.pairs import suite
from duolora.errors import InputError
from duolora.merging.options import METHODS

PAIR = Pair("teapot", "red", "plain", "outline", "house")
SEEN = Predictions(
    object=["teapot", "teapot", "house", "cat"],
    style=["outline", "flat", "outline", "flat"],
    colour=["red", "red", "red", "blue"],
    pattern=["plain", "dotted", "plain", "plain"],
)


def test_no_merge_chose_its_pair():
    """It is the one that an oracle finds of middling difficulty."""
    with (Path(__file__).parents[2] / "benchmarks/runs-2026-11-28/table1/pairs.csv").open(encoding="utf-8") as lines:
        oracle = {line["pair"]: float(line["both"]) for line in DictReader(lines) if line["row"] == "oracle"}
    middle = sum(oracle.values()) / len(oracle)
    chosen = min(oracle, key=lambda name: abs(oracle[name] - middle))
    assert next(case.pair for case in suite() if case.name == chosen) == module.PAIR


def test_shares_are_counted():
    shares = {"object": 0.5, "style": 0.5, "both": 0.25, "colour": 0.75, "pattern": 0.75, "leak": 0.25}
    assert truth(SEEN, PAIR) == shares


def test_colour_is_not_classified_where_the_style_hides_it():
    hidden = Pair("teapot", "red", "plain", "sepia", "house")
    shares = truth(SEEN, hidden)
    assert shares["colour"] is shares["pattern"] is None
    assert "–" in table({Job("naive", ""): shares}, hidden)


def test_table_has_a_line_for_each_row():
    rows = {Job(n, "", masks=1234, change=0.5, kilobytes=5.0): truth(SEEN, PAIR) for n in ("naive", "duolora")}
    text = table(rows, PAIR)
    assert "| naive | 0.50 | 0.50 | 0.25 |" in text
    assert "1,234" in text
    assert "Atelier" in text


def test_time_is_listed_by_stage():
    stages = {
        "load": 1.2,
        "train content": 30.0,
        "merge naive": 1.0,
        "merge duolora": 9.0,
        "generate": 5.0,
        "total": 47.0,
    }
    assert spent(stages) == "47 s (load 1, train content 30, generate 5, merge 10)"


def test_comparison_grows_with_methods():
    generated = {Job(name, PAIR.merged_prompt): torch.zeros(3, 3, 32, 32) for name in ("a", "b", "c")}
    assert comparison(PAIR, generated).height > comparison(PAIR, dict(list(generated.items())[:1])).height


def test_a_row_with_another_prompt_says_so(monkeypatch):
    written = []
    for kind in ("text", "multiline_text"):
        monkeypatch.setattr(
            ImageDraw.ImageDraw, kind, lambda self, at, text, *rest: written.append(" ".join(text.split()))
        )
    jobs = [Job("base", PAIR.merged_prompt), Job("content LoRA", PAIR.content_prompt), Job("naive", PAIR.merged_prompt)]
    comparison(PAIR, {job: torch.zeros(2, 3, 32, 32) for job in jobs})
    heading = f"“{PAIR.merged_prompt}”, where a row has no other prompt; the same seeds in every row"
    assert written == ["references", heading, "base", "content LoRA", f"prompt: “{PAIR.content_prompt}”", "naive"]


def asked_of(monkeypatch, base, tmp_path, seed):
    """What the demo asks of training, merging and generating; nothing is run."""
    asked = {"train": [], "merge": [], "refine": [], "sample": []}

    def train(images, prompt, out, base, options, progress):
        asked["train"].append(options.seed)

    def merge(content, style, out, method, *rest, options, **others):
        asked["merge"].append((method, replace(options, seed=0), options.seed))
        return SimpleNamespace(
            path=out, verification=SimpleNamespace(size=1), trainable=0, mean_change=0.0, seconds=0.0
        )

    def refine(files, prompt, content, style, out, base, seed, progress):
        asked["refine"].append(([path.stem for path in files], seed))
        return SimpleNamespace(path=out, trained=SimpleNamespace(verification=SimpleNamespace(size=1)))

    def sample_images(base, prompts, seeds):
        asked["sample"].append(list(seeds))
        return torch.zeros(len(prompts), 3, 32, 32)

    for name, stub in (("train", train), ("merge", merge), ("refine", refine), ("sample_images", sample_images)):
        monkeypatch.setattr(module, name, stub)
    monkeypatch.setattr(module, "applied", lambda *_: nullcontext())
    monkeypatch.setattr(module, "opened", lambda _: base)
    text = demo(tmp_path / str(seed), seed, PAIR, progress=False)
    assert "refined (ours)" in text
    assert "Look for the teapot" in text
    return asked


def test_the_seed_reaches_training_merging_and_generating(monkeypatch, base, tmp_path):
    first, second = (asked_of(monkeypatch, base, tmp_path, seed) for seed in (0, 5))
    assert (first["train"], second["train"]) == ([0, 0], [5, 5])
    assert [seed for _, _, seed in second["merge"]] == [5] * len(module.SHOWN)
    assert second["refine"] == [([*module.SHOWN], 5)]
    assert [(method, options) for method, options, _ in second["merge"]] == [
        (method, METHODS[method]) for method in module.SHOWN
    ]
    assert all(a != b for a, b in zip(first["sample"], second["sample"], strict=True))


@pytest.mark.parametrize("taken", [".", "merged", "images", "references", "style.safetensors"])
def test_places_are_checked_before_anything_is_made(monkeypatch, tmp_path, taken):
    monkeypatch.setattr(module, "opened", lambda _: pytest.fail("the base was loaded"))
    out = tmp_path / "out"
    if taken == ".":
        out.write_text("a file")
    elif taken == "style.safetensors":
        (out / taken).mkdir(parents=True)
    else:
        out.mkdir()
        (out / taken).write_text("a file")
    with pytest.raises(InputError, match="out"):
        demo(out, progress=False)
