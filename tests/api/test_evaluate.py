"""The verb: each number is its formula on the right embedder and reference, and says so; the cache changes nothing."""

import json
import shutil

import numpy as np
import pytest
import torch

import duolora
from command import run
from duolora.api.evaluate import evaluate, prompts_of
from duolora.errors import FileRefused, InputError
from duolora.metrics.cache import Cache, embed_files
from duolora.metrics.encoders import load_embedder
from duolora.metrics.named import ATELIER, METRICS, PAPER, chosen
from duolora.metrics.similarity import all_pairs_mean, matched
from duolora.model.image_files import image_paths, read_image
from patterns import pattern


@pytest.fixture
def style(tmp_path):
    pattern(50, 40, 5).save(tmp_path / "style.png")
    return tmp_path / "style.png"


@pytest.fixture
def content(tmp_path):
    for k in range(2):
        (tmp_path / "content").mkdir(exist_ok=True)
        pattern(40, 40 + k, 7 + k).save(tmp_path / "content" / f"{k}.png")
    return tmp_path / "content"


def images(where):
    return [read_image(path) for path in image_paths(where)]


def test_every_number_is_its_formula(generated, content, style, dino, clip):
    names = "dino,clip-i,clip-t,leakage"
    checkpoints = {"dino": dino, "clip": clip}
    done = evaluate(generated, content, style, "a red cat", names, checkpoints, device="cpu", cache=False)
    see, read = load_embedder("dino", dino, "cpu"), load_embedder("clip", clip, "cpu")
    drawn = images(generated)
    assert done["dino"] == pytest.approx(all_pairs_mean(see(drawn), see(images(content))), abs=1e-5)
    assert done["leakage"] == pytest.approx(all_pairs_mean(see(drawn), see(images(style))), abs=1e-5)
    assert done["clip-i"] == pytest.approx(all_pairs_mean(read(drawn), read(images(style))), abs=1e-5)
    assert done["clip-t"] == pytest.approx(all_pairs_mean(read(drawn), read(["a red cat"])), abs=1e-5)
    assert len({round(done[m], 4) for m in names.split(",")}) == 4
    score = done.scores[0]
    assert (score.images, score.references, score.value.count) == (3, 2, 3)
    assert score.value.low <= score.value.mean <= score.value.high


def test_one_prompt_for_each_image(generated, clip):
    prompts, checkpoints = ["a red cat", "house", "a cat"], {"clip": clip}
    done = evaluate(generated, prompt=prompts, metrics=["clip-t"], checkpoints=checkpoints, device="cpu", cache=False)
    read = load_embedder("clip", clip, "cpu")
    assert done["clip-t"] == pytest.approx(float(matched(read(images(generated)), read(prompts)).mean()), abs=1e-5)
    with pytest.raises(InputError, match="one for each of the 3 images, got 2"):
        evaluate(generated, prompt=prompts[:2], metrics="clip-t", checkpoints=checkpoints, device="cpu", cache=False)


def test_prompts_from_a_file(generated, clip, tmp_path):
    (tmp_path / "asked.txt").write_text("\ufeffa red cat\nhouse\n\na cat\n", "utf-8")
    assert prompts_of(None, tmp_path / "asked.txt") == ["a red cat", "house", "a cat"]
    given = [
        "--generated",
        str(generated),
        "--metrics",
        "clip-t",
        "--checkpoint",
        f"clip={clip}",
        "--no-cache",
        "--json",
    ]
    done = run("evaluate", *given, "--prompts", tmp_path / "asked.txt")
    assert done.exit_code == 0, done.output
    with pytest.raises(InputError, match="got both"):
        prompts_of("a cat", tmp_path / "asked.txt")


def test_a_missing_checkpoint_is_known_before_anything_is_embedded(generated, content, style, dino, monkeypatch):
    monkeypatch.setattr("duolora.api.evaluate.embed_files", lambda *_: pytest.fail("something was embedded"))
    with pytest.raises(InputError, match="csd: expected"):
        evaluate(generated, content, style, metrics="dino,csd-s", checkpoints={"dino": dino}, device="cpu", cache=False)


def test_words_that_atelier_lacks_lead_to_the_papers_metrics(generated):
    with pytest.raises(InputError, match="of photos, use --metrics paper"):
        evaluate(generated, prompt="a sks qwerty", metrics="atelier-text", device="cpu", cache=False)


def test_ateliers_five_work_offline_and_are_labelled(generated, content, style):
    done = duolora.evaluate(generated, content, style, "a red cat", device="cpu", cache=False)
    assert [s.metric for s in done.scores] == list(ATELIER)
    text = done.table()
    assert "cannot be compared with published ones" in text
    assert "resize 32 bicubic" in text
    assert not any(METRICS[m].label in text for m in PAPER)
    assert all(s.card.atelier for s in done.scores)


def test_a_perfect_copy_scores_one(generated):
    done = evaluate(image_paths(generated)[0], image_paths(generated)[0], device="cpu", cache=False)
    assert done["atelier-content"] == pytest.approx(1, abs=1e-5)


def test_reports_name_checkpoint_and_transform(generated, content, dino):
    done = evaluate(generated, content, metrics="dino", checkpoints={"dino": dino}, device="cpu", cache=False)
    assert str(dino) in done.table()
    assert "resize 256 bicubic, centre crop 224, ImageNet" in done.table()
    facts = json.loads(json.dumps(done.facts(), default=str))
    assert facts["scores"][0]["card"]["fingerprint"] == done.scores[0].card.fingerprint
    assert facts["versions"]["pillow"]


def test_loaded_embedders_are_used_again(generated, content):
    loaded = {}
    evaluate(generated, content, device="cpu", cache=False, embedders=loaded)
    first = loaded["atelier-content"]
    evaluate(generated, content, device="cpu", cache=False, embedders=loaded)
    assert loaded["atelier-content"] is first


@pytest.mark.parametrize(
    ("metrics", "given", "expected"),
    [
        ("paper", ["style"], ["clip-i", "csd-s", "leakage"]),
        ("atelier", ["prompt"], ["atelier-text"]),
        ("dinov2,dinov2-leakage", ["content", "style"], ["dinov2", "dinov2-leakage"]),
        ("dino, CLIP-T", ["content", "prompt"], ["dino", "clip-t"]),
        (["atelier", "dino", "atelier-content"], ["content"], ["atelier-content", "dino"]),
    ],
)
def test_metrics_are_chosen_by_what_is_there(metrics, given, expected):
    assert chosen(metrics, given) == expected


@pytest.mark.parametrize(
    ("metrics", "given", "message"),
    [
        ("dino", ["style"], "compares with the content; give --content"),
        ("lpips", ["style"], "expected some of paper, atelier, dino.*got 'lpips'"),
        ("paper", [], "give --content, --style or --prompt"),
    ],
)
def test_metrics_that_cannot_be_are_refused(metrics, given, message):
    with pytest.raises(InputError, match=message):
        chosen(metrics, given)


class Counting:
    """An embedder that counts what it is shown."""

    def __init__(self, inner):
        self.inner, self.seen = inner, 0

    @property
    def card(self):
        return self.inner.card

    def __call__(self, items):
        self.seen += len(items)
        return self.inner(items)


def test_nothing_is_embedded_twice(generated, dino, tmp_path):
    embedder, cache = Counting(load_embedder("dino", dino, "cpu")), Cache(tmp_path / "kept")
    files = image_paths(generated)
    shutil.copy(files[0], tmp_path / "same.png")
    rows = embed_files(embedder, [*files, tmp_path / "same.png"], cache)
    assert embedder.seen == 3
    torch.testing.assert_close(rows[0], rows[3], rtol=0, atol=0)
    torch.testing.assert_close(embed_files(embedder, files, cache), rows[:3], rtol=0, atol=0)
    assert embedder.seen == 3
    torch.testing.assert_close(embed_files(embedder, files, None), rows[:3])
    assert embedder.seen == 6


def test_another_content_or_embedder_is_another_entry(generated, dino, tmp_path):
    cache, path = Cache(tmp_path / "kept"), tmp_path / "x.png"
    embedder = load_embedder("dino", dino, "cpu")
    pattern(30, 30, 1).save(path)
    before = embed_files(embedder, [path], cache)
    pattern(30, 30, 2).save(path)
    assert not torch.equal(embed_files(embedder, [path], cache), before)
    other = load_embedder("atelier-content", None, "cpu")
    assert not torch.equal(embed_files(other, [path], cache), embed_files(embedder, [path], cache))


@pytest.mark.parametrize("damage", [b"", b"no array", "truncated", "other"])
def test_a_damaged_entry_is_made_anew(damage, generated, dino, tmp_path):
    embedder, cache = load_embedder("dino", dino, "cpu"), Cache(tmp_path / "kept")
    rows = embed_files(embedder, image_paths(generated), cache)
    for entry in (tmp_path / "kept").rglob("*.npy"):
        if damage == "other":
            np.save(entry, np.zeros(32, np.float32))
        else:
            entry.write_bytes(entry.read_bytes()[:-7] if damage == "truncated" else damage)
    torch.testing.assert_close(embed_files(embedder, image_paths(generated), cache), rows)
    assert not [p for p in (tmp_path / "kept").rglob("*") if p.is_file() and p.suffix != ".npy"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(generated, dino, tmp_path):
    (tmp_path / "kept").write_text("a file, not a folder")
    embedder = load_embedder("dino", dino, "cpu")
    assert embed_files(embedder, image_paths(generated), Cache(tmp_path / "kept")).shape == (3, 32)


def test_the_command_prints_a_table_or_one_json_object(generated, content, style):
    common = ("evaluate", "--generated", generated, "--content", content, "--style", style, "--no-cache", "--quiet")
    done = run(*common)
    assert done.exit_code == 0, done.output
    assert "Atelier content" in done.stdout
    done = run(*common, "--json")
    facts = json.loads(done.stdout)
    assert [s["metric"] for s in facts["scores"]] == [m for m in ATELIER if m != "atelier-text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --content, --style or --prompt"),
        (["--prompt", "a sks thing"], "say it in words"),
        (["--metrics", "dino", "--prompt", "x"], "give --content"),
        (["--metrics", "csd-s", "--style", "STYLE"], "convert it once with"),
        (["--metrics", "dino", "--content", "STYLE", "--checkpoint", "dino=./nowhere"], "layout or a hub id"),
        (["--checkpoint", "lpips=x", "--prompt", "a red cup"], "expected NAME=WHERE with a name of dino"),
    ],
)
def test_the_command_fails_in_one_line(arguments, message, generated, style):
    given = [style if a == "STYLE" else a for a in arguments]
    done = run("evaluate", "--generated", generated, "--no-cache", "--quiet", *given)
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_broken_image_is_named(tmp_path, style):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "bad.png").write_bytes(b"broken")
    with pytest.raises(FileRefused, match="bad.png"):
        evaluate(tmp_path / "drawn", style=style, device="cpu", cache=False)


def test_datasets_are_checked_and_paired_by_command(tmp_path):
    for name in ("contents/dog", "contents/cat", "styles/ink"):
        (tmp_path / name).mkdir(parents=True)
        pattern(20, 20).save(tmp_path / name / "1.png")
    done = run("datasets", "check", tmp_path)
    assert done.exit_code == 0
    assert "2 contents, 1 styles, 3 images; 0 problems" in done.stdout
    out = tmp_path / "pairs.json"
    done = run("datasets", "pairs", "--contents", tmp_path, "--styles", tmp_path, "--out", out, "--num", 2)
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["pairs"] == [["cat", "ink"], ["dog", "ink"]]
    (tmp_path / "styles" / "ink" / "1.png").write_bytes(b"")
    done = run("datasets", "check", tmp_path, "--json")
    assert done.exit_code == 1
    assert "not a readable image" in json.loads(done.stdout)["problems"][0]


def test_what_has_no_images_is_in_no_pair(tmp_path):
    for name in ("contents/dog", "contents/cat", "styles/ink"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("contents/dog", "styles/ink"):
        pattern(20, 20).save(tmp_path / name / "1.png")
    out = tmp_path / "pairs.json"
    done = run("datasets", "pairs", "--contents", tmp_path, "--styles", tmp_path, "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["pairs"] == [["dog", "ink"]]
    assert "left out, for lack of images: cat" in done.stderr
