"""The study kit: a blind page, a key beside it, and scores that follow from the answers."""

import json
import re
from dataclasses import asdict
from itertools import cycle

import numpy as np
import pytest
from PIL import Image

from duolora.bench.cells.pairs import suite
from duolora.bench.study.agreement import fleiss_kappa, shares
from duolora.bench.study.study import NONE, make, read_key, score
from duolora.bench.tables.rows import blora_rows
from duolora.errors import FileRefused, InputError
from duolora.model.files import SDXL
from duolora.model.images import tiled, untiled

METHODS = {"naive": "naive", "B-LoRA": "blora", "ZipLoRA": "ziplora", "DuoLoRA": "duolora"}
FLEISS_1971 = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
"""A worked example with 14 raters, 10 subjects and 5 categories, whose κ is 0.210."""


def test_kappa():
    assert fleiss_kappa(FLEISS_1971) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1)
    assert fleiss_kappa([[3, 0], [0, 3], [1, 0]]) == 1, "one answer alone agrees with nobody"
    assert fleiss_kappa([[1, 0], [0, 1]]) is None
    assert fleiss_kappa([[2, 0], [3, 0]]) is None
    with pytest.raises(InputError, match="every category"):
        fleiss_kappa([[1, 2], [1]])


def test_shares_and_their_intervals():
    questions = [f"q{k}" for k in range(20)]
    alike = {f"p{i}": dict.fromkeys(questions, "a") for i in range(5)}
    assert shares(alike, questions, ["a", "b"]) == {"a": (1.0, 1.0, 1.0), "b": (0.0, 0.0, 0.0)}
    mixed = {f"p{i}": dict(zip(questions, cycle("ab"), strict=False)) for i in range(5)}
    mean, low, high = shares(mixed, questions, ["a", "b"])["a"]
    assert mean == 0.5
    assert 0.2 < low < 0.4 < 0.6 < high < 0.8, "questions vary although people do not"
    with pytest.raises(InputError, match="at least one answer"):
        shares({"p": {}}, questions, ["a"])


def test_untiling_is_the_inverse_of_tiling():
    rng = np.random.default_rng(0)
    rows = [[Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(3)] for _ in range(2)]
    back = untiled(tiled(rows), 2)
    assert [[p.tobytes() for p in row] for row in back] == [[p.tobytes() for p in row] for row in rows]
    with pytest.raises(InputError, match="square"):
        untiled(Image.new("RGB", (17, 8)), 1)


@pytest.fixture
def run(tmp_path):
    """A finished table 1 of two pairs; each method's images have its own colour."""
    root, cases = tmp_path / "out", suite()[:2]
    folder = root / "table1"
    folder.mkdir(parents=True)
    lines = [{"dataset": "several", "row": row, "pairs": 2, "object": [1, 1, 1]} for row in METHODS]
    (folder / "table.json").write_text(json.dumps(lines))
    (folder / "run.json").write_text(json.dumps({"table": "table1", "seed": 0, "cases": [c.name for c in cases]}))
    for case in cases:
        for k, (label, method) in enumerate(METHODS.items()):
            cell = root / "cells" / case.name / f"{method}-00000000-0"
            cell.mkdir(parents=True)
            images = [[Image.new("RGB", (8, 8), (k, row, column)) for column in range(3)] for row in range(2)]
            tiled(images).save(cell / "images.png")
            row = {"label": label, "method": method, "changes": {}, "how": "merge"}
            row |= {"blocks": blora_rows()[1].blocks} if label == "B-LoRA" else {}
            prompts = ["a sks thing in zwx style", "a sks thing on a hill in zwx style"]
            (cell / "result.json").write_text(json.dumps({"problem": asdict(case), "row": row, "prompts": prompts}))
    return folder


def answer(path, key, person, choose):
    chosen = [{"question": q.name, "chosen": choose(q)} for q in key.questions]
    path.write_text(json.dumps({"study": key.study, "person": person, "answers": chosen}))
    return path


def of(question, row):
    return next(name for name, label in question.options.items() if label == row)


def test_from_runs_to_table_6(run, tmp_path):
    page, where = make([run], tmp_path / "study", each=2, seed=3)
    key, text = read_key(where), page.read_text("utf-8")
    assert len(key.questions) == 4
    assert key.seed == 3
    words = re.sub(r"data:[^\"]*", "", text)
    telling = (*METHODS, *METHODS.values(), "sks", *(q.case for q in key.questions))
    assert [name for name in telling if name in words] == [], "the page is blind"
    assert "http:" not in words
    assert "https:" not in words
    assert all(name in text for q in key.questions for name in (q.name, *q.options))
    assert f'data-name="{NONE}"' in text
    assert "None is satisfactory" in text
    assert any(q.prompt == "this thing on a hill in that style" for q in key.questions) or "this thing in that" in text
    again, _ = make([run], tmp_path / "again", each=2, seed=3)
    assert again.read_bytes() == page.read_bytes()
    answers = tmp_path / "answers"
    answers.mkdir()
    answer(answers / "1.json", key, "ann", lambda q: of(q, "DuoLoRA"))
    answer(answers / "2.json", key, "bob", lambda q: NONE if q is key.questions[0] else of(q, "DuoLoRA"))
    done = score([answers], where)
    assert done.shares["DuoLoRA"][0] == 7 / 8
    assert done.shares[NONE][0] == 1 / 8
    assert (done.people, done.answers) == (2, 8)
    assert "| DuoLoRA | 87.5% |" in done.table()
    assert "paper" not in done.table(), "Atelier is not the paper's base"


def test_a_question_weighs_little_and_names_no_identifier(run, tmp_path):
    """Images of photos' cells at 640 pixels, which are noise, the worst to compress."""
    for k, cell in enumerate(sorted((run.parent / "cells").glob("*/*"))):
        (cell / "images").mkdir()
        for number in range(2):
            noise = np.random.default_rng(10 * k + number).integers(0, 255, (640, 640, 3), np.uint8)
            Image.fromarray(noise).save(cell / "images" / f"{number:04d}.png", compress_level=0)
        result = json.loads((cell / "result.json").read_text())
        asked = ["a cube shaped sks dog in zwx style", "The sks dog in vkt style"]
        (cell / "result.json").write_text(json.dumps(result | {"prompts": asked}))
    page, where = make([run], tmp_path / "study", ("naive", "DuoLoRA"), each=2)
    key = read_key(where)
    assert {q.prompt for q in key.questions} == {"a cube shaped dog in that style", "this dog in that style"}
    assert page.stat().st_size < 300_000 * len(key.questions)


def test_a_key_is_not_lost_and_answers_come_as_they_come(run, tmp_path):
    _, where = make([run], tmp_path / "study")
    key, before = read_key(where), where.read_text()
    with pytest.raises(InputError, match="the key of another study"):
        make([run], tmp_path / "study", seed=1)
    make([run], tmp_path / "study")
    assert where.read_text() == before
    (tmp_path / "answers").mkdir()
    sent = answer(tmp_path / "answers" / "mail.txt", key, "ann", lambda q: NONE)
    sent.write_text("\ufeff" + sent.read_text(), "utf-8")
    assert score([tmp_path / "answers"], where).people == 1


def test_the_papers_shares_on_the_papers_base(run, tmp_path):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"bases": ["sdxl/"], "published": SDXL}))
    _, where = make([run], tmp_path)
    sent = answer(tmp_path / "a.json", read_key(where), "ann", lambda q: of(q, "ZipLoRA"))
    assert "| ZipLoRA | 100.0% | 100.0% to 100.0% | 22% |" in score([sent], where).table()


def test_answers_that_do_not_fit(run, tmp_path):
    _, where = make([run], tmp_path)
    key = read_key(where)
    good = answer(tmp_path / "a.json", key, "ann", lambda q: NONE)
    twice = answer(tmp_path / "b.json", key, "ann", lambda q: NONE)
    with pytest.raises(InputError, match="'ann' has answered already"):
        score([good, twice], where)
    foreign = answer(tmp_path / "c.json", key, "eve", lambda q: "0123456789ab")
    with pytest.raises(FileRefused, match="one of its own options"):
        score([foreign], where)
    (tmp_path / "d.json").write_text(json.dumps({"study": "other", "person": "x", "answers": []}))
    with pytest.raises(FileRefused, match="found some to 'other'"):
        score([tmp_path / "d.json"], where)
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(FileRefused, match="as the questionnaire saves them"):
        score([tmp_path / "e.json"], where)
    with pytest.raises(FileRefused, match=r"key\.json"):
        score([good], good)


def test_what_cannot_be_asked(run, tmp_path):
    with pytest.raises(InputError, match="at least two"):
        make([run], tmp_path, ["naive"])
    with pytest.raises(InputError, match="expected some of .*B-LoRA.*; got 'magic'"):
        make([run], tmp_path, ["naive", "magic"])


def test_rows_are_those_that_are_finished_or_named_in_any_case(run, tmp_path):
    for cell in (run.parent / "cells").glob("*/blora-*"):
        (cell / "images.png").unlink()
    _, where = make([run], tmp_path / "finished")
    assert read_key(where).rows == ("naive", "ZipLoRA", "DuoLoRA")
    _, where = make([run], tmp_path / "named", ["DUOLORA", "zip-lora", "Naive"])
    assert read_key(where).rows == ("DuoLoRA", "ZipLoRA", "naive")


def test_without_two_of_the_papers_rows_all_finished_merges_are_asked_about(run, tmp_path):
    for method, label in (("blora", "B-LoRA (own block)"), ("ziplora", "ZipLoRA (inputs)"), ("naive", "PEFT svd")):
        for path in (run.parent / "cells").glob(f"*/{method}-*/result.json"):
            found = json.loads(path.read_text())
            path.write_text(json.dumps(found | {"row": found["row"] | {"label": label, "changes": {"seed": 9}}}))
    lines = json.loads((run / "table.json").read_text())
    names = ["PEFT svd", "B-LoRA (own block)", "ZipLoRA (inputs)", "DuoLoRA"]
    renamed = [line | {"row": name} for line, name in zip(lines, names, strict=True)]
    (run / "table.json").write_text(json.dumps(renamed))
    _, where = make([run], tmp_path / "study")
    assert sorted(read_key(where).rows) == sorted(names)
    with pytest.raises(InputError, match=r"got PEFT svd; finished are .*B-LoRA \(own block\), "):
        make([run], tmp_path / "one", ["peft-SVD"])


def test_references_are_as_large_as_answers_and_nothing_looks_chosen(run, tmp_path):
    page, _ = make([run], tmp_path)
    style = page.read_text("utf-8")
    assert ".references img, .option img { width: var(--side); }" in style
    assert ".option:hover" not in style, "the pointer rests where the last answer was clicked"
    assert "document.activeElement?.blur()" in style
