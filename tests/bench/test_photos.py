"""A table on photos, tiny: Atelier draws, networks with random weights score; nothing is run twice, or in vain."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

import command
from duolora.atelier.pairs import Pair, rendered
from duolora.bench.cells import cell as cells
from duolora.bench.cells.cell import Cell
from duolora.bench.cells.photos import for_photos, photo_pairs
from duolora.bench.config import marked, problem_of, read_config
from duolora.bench.grids import SIDE
from duolora.bench.report.page import report
from duolora.bench.run import cells_of
from duolora.bench.study.study import make
from duolora.bench.tables.rows import CLASS_PROMPT, TABLES, Row
from duolora.errors import InputError
from duolora.metrics.datasets.manifests import Manifest, Pairing, write_manifest
from duolora.metrics.encoders import load_embedder
from duolora.metrics.similarity import all_pairs_mean
from duolora.model.image_files import image_paths, read_image
from duolora.provenance import sampled_hash

PAIR = Pair("robot", "red", "plain", "woodcut", "house")
NAIVE = Row("naive", "naive")
PROMPTS = ("a {subject} in {style}", "a {subject} on a beach in {style}")
ROWS = (
    "base (no LoRA)",
    "content LoRA alone",
    "style LoRA alone",
    "style LoRA (class prompt)",
    "naive",
    "B-LoRA (own block)",
    "K-LoRA",
)
plain_draw = cells.sample_images


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A data set with two photos of a subject and one of a style, and a manifest of the pair."""
    scenes = {"contents/robot": PAIR.content_scenes(2), "styles/woodcut": [PAIR.style_scene()]}
    for folder, shown in scenes.items():
        (tmp_path / folder).mkdir(parents=True)
        for k, image in enumerate(rendered(shown)):
            Image.fromarray(image).save(tmp_path / folder / f"{k}.PNG")
    write_manifest(tmp_path / "pairs.json", Manifest("mine", (Pairing("robot", "woodcut"),), PROMPTS, (3, 4)))
    return tmp_path


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, patch_size=16, image_size=224
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, places: Path, dino: Path, quick_training: None):
    monkeypatch.setattr(cells, "sample_images", lambda *a, **k: plain_draw(*a, **k | {"steps": 1}))

    def run(*arguments: object, fails: bool = False) -> str:
        done = command.run("bench", *arguments, "--out", places / "out", "--workers", 1)
        assert done.exit_code == int(fails), done.output
        return done.stderr if fails else done.stdout

    run.given = ("--photos", places / "pairs.json", "--contents", places, "--styles", places)
    run.scored = ("--metrics", "dino,leakage", "--checkpoint", f"dino={dino}")
    return run


def stamps(out: Path, *patterns: str) -> dict[Path, int]:
    """When each file of LoRAs, references and cells was last written. A table itself is rendered anew by each run."""
    made = [path for pattern in patterns for path in out.rglob(pattern) if not path.parent.name.startswith("table")]
    assert made
    return {path: path.stat().st_mtime_ns for path in made}


def test_a_table_from_photos_to_report(bench, places, dino):
    rows = [word for row in ROWS for word in ("--row", row)]
    said = bench("table1", *bench.given, *bench.scored, *rows)
    assert "### mine" in said
    assert "| DINO | leakage (DINO to style) |" in said
    assert "oracle" not in said
    assert str(dino) in said
    for row in ROWS:
        assert f"| {row} | 1 |" in said

    out = places / "out"
    results = {r["row"]["label"]: (p.parent, r) for p in out.rglob("result.json") for r in [json.loads(p.read_text())]}
    folder, naive = results["naive"]
    assert naive["texts"] == ["a robot in woodcut style", "a robot on a beach in woodcut style"]
    assert naive["prompts"] == ["a sks robot in zwx style", "a sks robot on a beach in zwx style"]
    assert [results[row][1]["prompts"] for row in ROWS[1:3]] == [["a sks robot"], ["an image in zwx style"]]
    generated, see = [read_image(path) for path in image_paths(folder / "images")], load_embedder("dino", dino, "cpu")
    assert len(generated) == 4
    for name, metric in (("contents/robot", "dino"), ("styles/woodcut", "leakage")):
        photos = [read_image(path) for path in image_paths(places / name)]
        assert naive["similarity"][metric] == pytest.approx(all_pairs_mean(see(generated), see(photos)), abs=1e-5)
    assert len(list((out / "loras").iterdir())) == 4, "two, and two in B-LoRA's own blocks"

    before = stamps(out, "*.safetensors", "*.png", "result.json")
    bench("table1", *bench.given, *bench.scored, *rows)
    assert stamps(out, "*.safetensors", "*.png", "result.json") == before
    generated_before = stamps(out, "*.safetensors", "*.png")
    bench("table3", *bench.given, "--metrics", "dino", *bench.scored[2:], "--row", "base (no LoRA)")
    assert stamps(out, "*.safetensors", "*.png") == generated_before
    floor, _ = results["base (no LoRA)"]
    assert set(json.loads((floor / "result.json").read_text())["similarity"]) == {"dino"}, "scored anew, generated once"

    shown = report([out / "table1"], places / "report.html").read_text()
    assert "leakage" in shown
    assert "Atelier's numbers" not in shown
    assert "gap closed" not in shown
    questionnaire, _ = make([out / "table1"], places / "study", ("naive", "K-LoRA"))
    assert questionnaire.stat().st_size > 10_000


def test_finished_loras_are_taken_as_they_are(bench, places):
    rows = ("--row", "naive", "--row", "B-LoRA")
    out, finished = places / "out", places / "finished"
    finished.mkdir()
    refused = bench("table1", *bench.given, *bench.scored, *rows, "--loras", finished, fails=True)
    assert "expected contents/NAME.safetensors and styles/NAME.safetensors, found none" in refused
    bench("table1", *bench.given, *bench.scored, "--row", "naive")
    for kind, name in (("content", "robot"), ("style", "woodcut")):
        (finished / f"{kind}s").mkdir(parents=True)
        (made,) = (out / "loras").glob(f"{kind}-*")
        made.rename(finished / f"{kind}s" / f"{name}.safetensors")
    asked = ("bench", "table1", *bench.given, *bench.scored, *rows, "--workers", 1, "--loras", finished, "--out", out)
    said = command.run(*asked)
    assert said.exit_code == 0, said.output
    assert "B-LoRA: left out, as LoRAs of their own are trained for them" in said.stderr
    assert not list((out / "loras").iterdir()), "nothing is trained"
    results = [json.loads(path.read_text()) for path in out.rglob("result.json")]
    assert len(results) == 2 and results[0]["similarity"] == results[1]["similarity"]
    (finished / "contents" / "robot.safetensors").rename(finished / "contents" / "other.safetensors")
    missing = bench("table1", *bench.given, *bench.scored, "--row", "naive", "--loras", finished, fails=True)
    assert "contents/robot.safetensors: expected a finished LoRA there, found none (1 are missing)" in missing


def test_several_subjects_on_photos(bench, places):
    (places / "contents" / "cat").mkdir()
    Image.fromarray(rendered([PAIR.style_scene(1)])[0]).save(places / "contents" / "cat" / "0.png")
    pairs = tuple(Pairing(name, "woodcut") for name in ("robot", "cat"))
    write_manifest(places / "pairs.json", Manifest("mine", pairs, PROMPTS, (3,)))
    said = bench("table4", *bench.given, *bench.scored, "--row", "naive", "--row", "base (no LoRA)")
    assert "### multi2" in said and "multi3" not in said
    results = [json.loads(path.read_text()) for path in (places / "out").rglob("result.json")]
    assert {result["prompts"][0] for result in results} == {
        "a sks robot on the left and a ohw cat on the right in zwx style"
    }
    assert results[0]["texts"] == ["a robot on the left and a cat on the right in woodcut style"]
    (group,) = {cell.problem for cell in cells_of(read_config(places / "out" / "table4"), places)}
    assert [part.sources["content"].prompt for part in group.parts] == ["a sks robot", "a ohw cat"]
    assert problem_of(json.loads(json.dumps(asdict(group)))) == group
    shown = report([places / "out" / "table4"], places / "report.html").read_text()
    assert "multi2-mine-robot-cat-woodcut" in shown
    bench("figure9", *bench.given, *bench.scored, "--row", "naive")
    assert Image.open(places / "out" / "figure9" / "images.png").width == 4 * (SIDE + 4)


def test_figures_settings_and_table_2_on_photos(bench, places):
    bench("figure7", *bench.given, *bench.scored, "--row", "naive")
    sheet = Image.open(places / "out" / "figure7" / "images.png")
    assert sheet.width == 3 * (SIDE + 4), "subject, style and one method"
    asked = ("bench", "table2", *bench.given, *bench.scored, "--row", "naive", "--workers", 1, "--out", places / "out")
    said = command.run(*asked)
    assert (
        "PairCustomization: left out, as it learns from the photos' twins in the style; give them with --twins"
        in said.stderr
    )
    twins = places / "twins" / "robot" / "woodcut"
    twins.mkdir(parents=True)
    for k, image in enumerate(rendered(PAIR.content_scenes(2))):
        assert f"{twins}: expected 2 images, a twin of each photo of the subject; got {k}" in bench(
            "table2", *bench.given, *bench.scored, "--twins", places / "twins", fails=True
        )
        Image.fromarray(image).save(twins / f"{k}.png")
    rows = ("--row", "PairCustomization", "--row", "oracle")
    said = bench("table2", *bench.given, *bench.scored, *rows, "--twins", places / "twins")
    assert "| PairCustomization | 1 |" in said and "| oracle | 1 |" in said
    twin = [pair.twin for place in (places / "out").glob("table2*") for pair in read_config(place).cases if pair.twin]
    assert [each.prompt for each in twin] == ["a sks robot in zwx style"]
    unjudged = bench("tuning", *bench.given, *bench.scored, fails=True)
    assert "--metrics: expected dino and one of csd-s, clip-i, by which settings are chosen on photos" in unjudged


def test_it_is_run_again_on_the_same(bench, places):
    bench("table1", *bench.given, *bench.scored, "--row", "naive")
    out = places / "out"
    config = read_config(out / "table1")
    assert set(config.weights) == {"atelier"}
    assert marked(config) == config
    with pytest.raises(InputError, match="expected the weights that the table was run with, 0000"):
        marked(replace(config, weights={"atelier": "0000"}))
    again = command.run("bench", "rerun", out / "table1", "--out", places / "again", "--workers", 1)
    assert again.exit_code == 0, again.output
    assert "table1: 1 cell, 4 images to generate" in again.stderr
    first, second = (next((root / "cells").rglob("result.json")) for root in (out, places / "again"))
    assert first.relative_to(out) == second.relative_to(places / "again")
    assert json.loads(first.read_text())["similarity"] == json.loads(second.read_text())["similarity"]
    Image.new("RGB", (9, 9)).save(places / "contents" / "robot" / "0.PNG")
    changed = command.run("bench", "rerun", out / "table1", "--out", places / "third")
    assert changed.exit_code == 1
    assert "content robot: its photos were changed" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["table1", "--photos", "pairs.json", "--contents", "nowhere", "--styles", "."],
            "nowhere: no such file or folder",
        ),
        (["table1", "--photos", "none.json", "--contents", ".", "--styles", "."], "none.json: no such file or folder"),
        (["table1", "--photos", "pairs.json", "--contents", "."], "--styles: expected one for all"),
        (["table1", "--photos", "pairs.json", "--contents", ".", "--styles", ".", "--dataset", "x"], "manifest, mine"),
        (["table1", "--contents", "."], "--contents: expected one for all --photos"),
        (
            ["table4", "--photos", "pairs.json", "--contents", ".", "--styles", ".", "--captions", "paper"],
            "--captions paper: expected a table of single pairs",
        ),
        (["table1", "--photos", "pairs.json", "--contents", ".", "--styles", "."], "csd: expected a .safetensors"),
        (["table1", "--photos", "pairs.json", "--contents", ".", "--styles", ".", "--sample", "1"], "leave --manifest"),
        (
            ["table1", "--photos", "pairs.json", "--contents", ".", "--styles", ".", "--captions", "sks"],
            "captions: expected one of class, paper, got 'sks'",
        ),
        (
            ["table1", "--photos", "pairs.json", "--contents", ".", "--styles", ".", "--metrics", "x"],
            "expected some of",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(arguments, message, bench, places, dino, monkeypatch):
    monkeypatch.chdir(places)
    if "csd" in message:
        arguments += ["--metrics", "dino,csd-s", "--checkpoint", f"dino={dino}"]
    said = bench(*arguments, fails=True)
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (places / "out" / "loras").exists()


@pytest.mark.parametrize("folder", ["contents/robot", "styles/woodcut"])
def test_a_folder_that_is_gone_or_empty_is_named(folder, places):
    for path in (places / folder).iterdir():
        path.unlink()
    kind, name = folder.split("s/")
    with pytest.raises(InputError, match=f"{kind} {name}: expected photos"):
        photo_pairs(places / "pairs.json", places, places)
    (places / folder).rmdir()
    with pytest.raises(InputError, match=f"{kind} {name}: not in"):
        photo_pairs(places / "pairs.json", places, places)


def test_published_layouts_say_what_is_asked_for(places):
    """CustomConcept101's own prompts in the style, StyleDrop's words for it; a job is the same in another process."""
    image = places / "contents" / "robot" / "0.PNG"
    for folder in ("concepts/benchmark_dataset/cat_1", "concepts/prompts", "ink/data"):
        (places / folder).mkdir(parents=True)
    concept = {
        "instance_data_dir": "benchmark_dataset/cat_1",
        "class_prompt": "cat",
        "prompt_filename": "prompts/c.txt",
    }
    (places / "concepts" / "dataset.json").write_text(json.dumps([concept]))
    (places / "concepts" / "prompts" / "c.txt").write_text("A {} by a lake. \n{} oil painting.\n")
    (places / "ink" / "data.json").write_text(json.dumps({"i_1.png": ["A house", "in watercolor painting style"]}))
    for place in ("concepts/benchmark_dataset/cat_1/1.png", "ink/data/i_1.png"):
        (places / place).write_bytes(image.read_bytes())
    write_manifest(places / "own.json", Manifest("a table", (Pairing("cat_1", "i_1"),), (), (0,)))
    (pair,) = photo_pairs(places / "own.json", places / "concepts", places / "ink")
    assert pair.dataset == "a-table"
    assert (pair.content.prompt, pair.style.prompt) == ("a sks cat", "A house in zwx style")
    assert pair.parts[0].prompt == "a sks cat in zwx style"
    assert pair.asked(NAIVE) == ["A sks cat by a lake in zwx style"]
    assert pair.asked(CLASS_PROMPT) == ["A cat by a lake in zwx style"]
    assert [pair.in_words(p) for p in pair.prompts] == ["A cat by a lake in watercolor painting style"]
    cell = Cell(places, pair, CLASS_PROMPT)
    again = pickle.loads(pickle.dumps(cell))
    assert again.folder == cell.folder
    assert [job.path for job in again.needs()] == [job.path for job in cell.needs()]


def test_captions_as_the_paper_has_them(places):
    (ours,), (theirs,) = (photo_pairs(places / "pairs.json", places, places, how) for how in ("class", "paper"))
    assert (ours.content.prompt, ours.style.prompt) == ("a sks robot", "an image in zwx style")
    assert (theirs.content.prompt, theirs.style.prompt) == ("a sks object in vkt style", "a ohw object in zwx style")
    assert theirs.parts[0].prompt == "a sks object in zwx style"
    assert theirs.content.identified(PROMPTS[1]) == "a sks object on a beach in zwx style"
    assert theirs.in_words(PROMPTS[0]) == ours.in_words(PROMPTS[0]) == "a robot in woodcut style"
    assert {ours.content.about, ours.style.about}.isdisjoint({theirs.content.about, theirs.style.about})


def test_prompts_must_name_both(places):
    wrong = (places / "pairs.json").read_text().replace("a {subject} in {style}", "a {subject}")
    (places / "bad.json").write_text(wrong)
    with pytest.raises(InputError, match=r"expected \{subject\} and \{style\} in each, found 'a \{subject\}'"):
        photo_pairs(places / "bad.json", places, places)


def test_rows_without_truth_stay():
    rows = [row.label for row in for_photos(TABLES["table1"], ("mine",)).rows]
    assert rows == [row.label for row in TABLES["table1"].rows if row.how != "oracle"]


def test_other_weights_have_another_mark(tmp_path):
    path, data = tmp_path / "x", torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)).numpy()
    marks = set()
    for change in (0.0, 1e-3):
        path.write_bytes((data + change).astype("float32").tobytes())
        marks.add(sampled_hash(path))
    assert len(marks) == 2
