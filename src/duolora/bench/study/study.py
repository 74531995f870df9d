"""The study kit (Table 6): a blind questionnaire from finished runs, and what its answers say.

The page knows images by random names only. Which method generated which is in the key, a file of its own, which stays
with whoever runs the study.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from duolora.atelier.pairs import IDENTIFIERS, STYLE_IDENTIFIER
from duolora.bench.report.page import data_uri, embedded, environment, written
from duolora.bench.report.paper_numbers import TABLE6, paper_base
from duolora.bench.report.runs import Measured, Run, read_runs
from duolora.bench.study.agreement import counted, fleiss_kappa, shares
from duolora.bench.tables.rows import matched
from duolora.errors import FileRefused, InputError, reason
from duolora.model.image_files import image_paths, images_in, read_image
from duolora.model.images import untiled
from duolora.textfiles import markdown, read_json

ROWS = ("naive", "B-LoRA", "ZipLoRA", "DuoLoRA")
"""The methods that the paper's study compares."""
SIDE = 512
"""Pixels on the longer side of what is chosen from, and of a reference."""
OPTIONS, REFERENCES = 160_000, 50_000
"""Bytes of all images that a question lets choose from, and of all its photos; in the page a third more."""
NONE = "none"
"""The choice "None is satisfactory"."""


@dataclass(frozen=True)
class Question:
    """One question in the key: what is shown, and which of its options is which method's."""

    name: str
    case: str
    prompt: str
    image: int
    options: Mapping[str, str]


@dataclass(frozen=True)
class Key:
    """What unblinds a study."""

    study: str
    seed: int
    base: str
    rows: tuple[str, ...]
    questions: tuple[Question, ...]
    published: str = ""
    """The base's hub id, where it was recognised as that."""


@dataclass(frozen=True)
class Scored:
    """Table 6: for every method and `none` its share of the answers with an interval, and how far people agree."""

    shares: Mapping[str, tuple[float, float, float]]
    kappa: float | None
    people: int
    answers: int
    base: str
    published: str = ""

    def table(self) -> str:
        """The table as Markdown, with the paper's where the base is the paper's."""
        paper = TABLE6 if paper_base(self.published) == "sdxl" else {}
        head = ["", "chosen", "95 % interval"] + (["paper"] if paper else [])
        rows = [
            [row, f"{mean:.1%}", f"{low:.1%} to {high:.1%}"]
            + ([f"{paper[row]:.0%}" if row in paper else ""] if paper else [])
            for row, (mean, low, high) in self.shares.items()
        ]
        title = f"User study on {self.base}: {self.answers} answers of {self.people} people."
        kappa = "cannot be said (too few answers, or all the same)" if self.kappa is None else f"{self.kappa:.2f}"
        return f"{title}\n\n{markdown(head, rows)}\n\nAgreement between people, Fleiss' κ: {kappa}"


def make(
    folders: Sequence[str | Path], out: str | Path, rows: Sequence[str] = (), each: int = 1, seed: int = 0
) -> tuple[Path, Path]:
    """Write `questionnaire.html` and `key.json` into the folder `out`; returns both.

    A question is a pair with one of its prompts and seeds, the same for all methods. The order of questions and of
    images is shuffled anew for every person, from a seed that comes back with the answers.

    Args:
        folders: finished runs.
        out: the folder, made if need be.
        rows: the methods to compare, by their labels in the tables or their names; by default those of `ROWS` that are
            finished or, where fewer than two are, all finished merges.
        each: questions for every pair.
        seed: which images are asked about, and the random names.

    Raises:
        DuoLoRAError: fewer than two methods, no pair on which all of them are finished, or `out` cannot be written or
            holds another study's key.
    """
    if each < 1:
        raise InputError(f"each: expected at least one question for every pair, got {each}")
    where, rng = Path(out).expanduser(), Random(seed)
    runs = read_runs([Path(folder) for folder in folders])
    rows = _compared(runs, rows)
    cases = _complete(runs, rows)
    bases = {run.base for run in runs}
    if len(bases) > 1:
        raise InputError(f"expected runs on one base, got {', '.join(sorted(bases))}; make a study for each")
    asked = [one for case, cells in cases.items() for one in _questions(case, cells, each, rng)]
    questions, shown = tuple(question for question, _ in asked), [entry for _, entry in asked]
    rng.shuffle(shown)
    facts = json.dumps([seed, rows, [asdict(q) for q in questions]], sort_keys=True)
    study = hashlib.sha256(facts.encode()).hexdigest()[:12]
    key = Key(study, seed, bases.pop(), tuple(rows), questions, runs[0].published)
    template = environment("duolora.bench.study").get_template("study.html.j2")
    page = template.render(study=study, questions=shown, no_choice=NONE)
    kept, text = where / "key.json", json.dumps(asdict(key), indent=1) + "\n"
    if kept.exists() and kept.read_text("utf-8") != text:
        raise InputError(f"{kept}: the key of another study, which its answers need; name another folder")
    return written(where / "questionnaire.html", page), written(kept, text)


def _compared(runs: Sequence[Run], asked: Sequence[str]) -> list[str]:
    """The labels of the methods to compare: those that were asked for, or some that are finished."""
    about = {cell.row: cell.result.get("row", {}) for run in runs for cell in _drawn(run)}
    known = {label: str(row.get("method") or row.get("how", "")) for label, row in about.items()}
    papers = [row for row in ROWS if row in known]
    merged = [row for row, method in known.items() if method]
    rows = [matched(row, known) for row in asked] or (papers if len(papers) > 1 else merged)
    if len(set(rows)) < 2:
        found = f"{', '.join(rows) or 'none'}; finished are {', '.join(known) or 'none'}"
        raise InputError(f"rows: expected at least two different methods to compare, got {found}")
    return rows


def _questions(
    case: str, cells: Mapping[str, Measured], each: int, rng: Random
) -> Iterator[tuple[Question, dict[str, Any]]]:
    """So many questions of a pair for the key, each with what the page shows of it."""
    sheets = {row: _images(cell) for row, cell in cells.items()}
    fewest = min(map(len, sheets.values()))
    for image in rng.sample(range(fewest), min(each, fewest)):
        names = {f"{rng.getrandbits(48):012x}": row for row in cells}
        prompt = _prompts(next(iter(cells.values())), image, fewest)
        question = Question(f"{rng.getrandbits(48):012x}", case, prompt, image, names)
        options = [
            {"name": name, "image": data_uri(_opened(sheets[row][image]), SIDE, OPTIONS // len(cells))}
            for name, row in names.items()
        ]
        rng.shuffle(options)
        yield question, _shown(question, cells, options)


def _complete(runs: Sequence[Run], rows: Sequence[str]) -> dict[str, dict[str, Measured]]:
    """The cells of the pairs on which all the methods are finished."""
    found: dict[str, dict[str, Measured]] = {}
    for cell in (cell for run in runs for cell in _drawn(run)):
        if cell.row in rows:
            found.setdefault(cell.case, {})[cell.row] = cell
    complete = {case: {row: cells[row] for row in rows} for case, cells in found.items() if len(cells) == len(rows)}
    if not complete:
        known = ", ".join(dict.fromkeys(cell.row for run in runs for cell in run.cells)) or "none with images"
        raise InputError(
            f"rows: expected pairs on which all of these are finished: {', '.join(rows)}; found some of {known}"
        )
    return complete


def _drawn(run: Run) -> list[Measured]:
    """The cells of a run that have images."""
    return [cell for cell in run.cells if (cell.folder / "images.png").exists()]


def _asked(cell: Measured) -> list[str]:
    return list(cell.result.get("prompts", [""]))


def _images(cell: Measured) -> list[Path] | list[Image.Image]:
    """What a cell generated: cells on photos keep each image in a file, which is not opened here, others a sheet."""
    if (whole := cell.folder / "images").is_dir():
        return image_paths(whole)
    sheet = read_image(cell.folder / "images.png")
    return [image for row in untiled(sheet, len(_asked(cell))) for image in row]


def _opened(image: Path | Image.Image) -> Image.Image:
    return read_image(image) if isinstance(image, Path) else image


def _prompts(cell: Measured, image: int, count: int) -> str:
    """The prompt of an image in words that say nothing of identifiers."""
    asked = _asked(cell)
    prompt = asked[image * len(asked) // count]
    known = "|".join((*IDENTIFIERS, STYLE_IDENTIFIER))
    that = re.sub(rf"\bin (?:{known}) style\b", "in that style", prompt)
    this = re.sub(rf"\b(?:an?|the) (?:{known}) ", "this ", that, flags=re.IGNORECASE)
    return re.sub(rf"\b(?:{known})\b ?", "", this)


def _shown(question: Question, cells: Mapping[str, Measured], options: list[dict[str, str]]) -> dict[str, Any]:
    """What the page shows of a question: nothing that says which method is which."""
    references: dict[str, list[str]] = {}
    for job in next(iter(cells.values())).loras:
        files = images_in(job.images)
        known = references.setdefault("subject" if job.kind == "content" else "style", [])
        shown = [embedded(file, SIDE, REFERENCES // 2 // max(1, len(files))) for file in files]
        known += [image for image in shown if image not in known]
    return {"name": question.name, "prompt": question.prompt, "references": references, "options": options}


def score(answers: Sequence[str | Path], key: str | Path) -> Scored:
    """What the returned answers say: files, or folders of them.

    Raises:
        DuoLoRAError: the key or a file is damaged, belongs to another study, or a person is there twice.
    """
    known = read_key(Path(key).expanduser())
    options = {q.name: {**q.options, NONE: NONE} for q in known.questions}
    choices: dict[str, dict[str, str]] = {}
    for path in _files(answers):
        person, chosen = _read_answers(path, known.study, options)
        if person in choices:
            raise InputError(f"{path}: {person!r} has answered already, in another file; leave one of them away")
        choices[person] = chosen
    names, categories = list(options), [NONE, *known.rows]
    found = shares(choices, names, categories, known.seed)
    kappa = fleiss_kappa(counted(choices, names, categories))
    return Scored(found, kappa, len(choices), sum(map(len, choices.values())), known.base, known.published)


def read_key(path: Path) -> Key:
    """The key of a study.

    Raises:
        FileRefused: it is none.
    """
    try:
        entry = read_json(path)
        questions = tuple(Question(**question) for question in entry["questions"])
        return Key(**entry | {"rows": tuple(entry["rows"]), "questions": questions})
    except (OSError, ValueError, KeyError, TypeError, FileRefused) as error:
        raise FileRefused(f"{path}: expected the key.json that `study make` wrote ({reason(error)})") from error


def _files(answers: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in (Path(a).expanduser() for a in answers):
        inside = (p for p in path.glob("*") if p.suffix in (".json", ".txt") and p.name != "key.json")
        found += sorted(inside) if path.is_dir() else [path]
    if not found:
        raise InputError("answers: expected files that people sent back, got none")
    return found


def _read_answers(path: Path, study: str, options: Mapping[str, Mapping[str, str]]) -> tuple[str, dict[str, str]]:
    """Who answered, and the method behind each choice."""
    try:
        entry = read_json(path)
        person, of, given = str(entry["person"]), entry["study"], entry["answers"]
        pairs = [(str(answer["question"]), str(answer["chosen"])) for answer in given]
    except (OSError, ValueError, KeyError, TypeError, FileRefused) as error:
        raise FileRefused(f"{path}: expected answers as the questionnaire saves them ({reason(error)})") from error
    if of != study:
        raise FileRefused(f"{path}: expected answers to the study {study}, found some to {of!r}; use that one's key")
    chosen = {}
    for question, option in pairs:
        if option not in options.get(question, {}) or question in chosen:
            raise FileRefused(
                f"{path}: question {question}: expected one of its own options, once; got {option!r}; the file was "
                "changed"
            )
        chosen[question] = options[question][option]
    return person, chosen
