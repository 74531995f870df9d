"""Data sets of subjects and styles in their published layouts, and what is missing in a copy of one.

dataset = read_dataset("dreambooth")          # which layout it is shows itself
dataset.contents["dog6"].images, dataset.contents["dog6"].prompts
problems(dataset)                             # [] if nothing is missing
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from duolora.errors import DuoLoRAError, FileRefused, InputError
from duolora.model.image_files import images_in, read_image
from duolora.textfiles import read_json, read_text

SUBJECT = "{subject}"
"""Where the subject's words go in a prompt of a data set."""
STYLE = "{style}"
"""Where the style's words go in a prompt of a table."""


_COLOURS = "red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|grey|gray|beige|gold|golden|rainbow"
_ELSE = re.compile(
    r"\b(paint(ing|ed)|watercolou?r|sketch(ed)?|drawing|drawn|illustration|render(ed|ing)?|sculpture|statue|mosaic|"
    r"graffiti|style[ds]?|art|artist|poster|engraving|cartoon|anime|aesthetic|pointillis\w+|ghibli|[\w-]*inspired|"
    r"monet-style|origami|crochet|knitted|made|carved|crafted|constructed|molten|transparent|turned into|replaced by|"
    r"formed from|depiction|rendition|cubist|surreal|holograph\w*|print of|shaped|photo|velvet \{subject\})"
    r"(?!\w)"
    rf"|\b({_COLOURS})( colou?r(ed)?)? \{{subject\}}|\b({_COLOURS}) colou?r|in ({_COLOURS}) colou?rs",
    re.IGNORECASE,
)
"""Words of a prompt that ask for another style, matter or colour than the subject's and the style image's."""


@dataclass(frozen=True)
class Concept:
    """A subject or a style: its images, and what is known of it in words."""

    name: str
    images: tuple[Path, ...]
    words: str = ""
    """What the images show: the subject's class ("stuffed animal"), or the object in a style image."""
    style: str = ""
    """The style in words, for styles."""
    prompts: tuple[str, ...] = ()
    """What to ask for, with `{subject}` for the subject."""

    def asked(self, subject: str) -> list[str]:
        """The prompts with `subject` ("sks dog") in them."""
        return [prompt.replace(SUBJECT, subject) for prompt in self.prompts]

    def fitting(self) -> tuple[str, ...]:
        """The prompts that can be asked for in any style: those that name neither another one nor another colour."""
        return tuple(prompt for prompt in self.prompts if SUBJECT in prompt and not _ELSE.search(prompt))

    def in_words(self, said: str, words: Mapping[str, str], kind: str) -> str:
        """What is said of it in words: what `words` has for its name, what its data set says, or the name itself.

        Raises:
            InputError: the name is a number or a code, and nothing else is known.
        """
        if found := words.get(self.name) or said:
            return found
        if re.search(r"\d", self.name):
            raise InputError(
                f"{kind} {self.name}: expected words, since prompts and CLIP-T read them; give `duolora datasets "
                f'pairs` --words {self.name}="…"'
            )
        return re.sub(r"[\W_]+", " ", self.name).strip()


@dataclass(frozen=True)
class Dataset:
    """The concepts of a folder, by name."""

    layout: str
    root: Path
    contents: Mapping[str, Concept] = field(default_factory=dict)
    styles: Mapping[str, Concept] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    """What an index names and the folder does not hold, one line each."""


def problems(dataset: Dataset) -> list[str]:
    """What is missing or damaged, one line each; every image is read."""
    found, named = list(dataset.missing), {Path(line.partition(": ")[0]).stem for line in dataset.missing}
    for concept in (*dataset.contents.values(), *dataset.styles.values()):
        if not concept.images and concept.name not in named:
            found.append(f"{concept.name}: no images")
        for path in concept.images:
            try:
                read_image(path)
            except DuoLoRAError as error:
                found.append(str(error))
    return found


LIVE = ("cat", "dog")
"""DreamBooth's classes that get the prompts for live subjects."""
DREAMBOOTH_PROMPTS = 25
"""Of each kind, object and live."""
_TEMPLATE = re.compile(r"""^\s*(['"])(?P<text>.*)\1\.format\(\s*unique_token\s*,\s*class_token\s*\)\s*,?\s*$""")


def dreambooth(root: Path) -> Dataset | None:
    """prompts_and_classes.txt beside <subject>/<NN>.jpg, here or in dataset/."""
    if (folder := _with(root, "dataset", "prompts_and_classes.txt")) is None:
        return None
    index = folder / "prompts_and_classes.txt"
    classes, object_prompts, live_prompts = parse_prompts_and_classes(read_text(index), index)
    contents, missing = {}, []
    for name, kind in classes.items():
        place = _inside(folder, name, index)
        if not place.is_dir():
            missing.append(f"{place}: no such folder of subject {name}")
        contents[name] = Concept(name, images_in(place), kind, prompts=live_prompts if kind in LIVE else object_prompts)
    return Dataset("dreambooth", root, contents, {}, tuple(missing))


def parse_prompts_and_classes(text: str, path: Path) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """DreamBooth's index: {subject: class}, the prompts for objects, and those for live subjects.

    The prompts are lines of Python, 'a {0} {1} in the snow'.format(unique_token, class_token); they are matched, never
    run, and `{0} {1}` becomes `{subject}`.

    Raises:
        FileRefused: a part is missing, or a list has another length than was published.
    """
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        heading = line.strip().lower()
        if heading in ("classes", "prompts", "object prompts", "live subject prompts"):
            lines = sections.setdefault(heading, [])
        else:
            lines.append(line)
    rows = [line.split(",") for line in sections.get("classes", []) if line.count(",") == 1]
    classes = {name.strip(): kind.strip() for name, kind in rows if name.strip() != "subject_name"}
    if not classes:
        raise FileRefused(f"{path}: expected lines `subject,class` under `Classes`, found none; download it again")
    prompts = []
    for heading in ("object prompts", "live subject prompts"):
        matches = [_TEMPLATE.match(line) for line in sections.get(heading, [])]
        found = tuple(m["text"].replace("{0} {1}", SUBJECT) for m in matches if m)
        if len(found) != DREAMBOOTH_PROMPTS or any(SUBJECT not in prompt for prompt in found):
            raise FileRefused(
                f"{path}: expected {DREAMBOOTH_PROMPTS} {heading} with '{{0}} {{1}}' in them, "
                f"found {sum(SUBJECT in prompt for prompt in found)}; download the file again"
            )
        prompts.append(found)
    return classes, prompts[0], prompts[1]


def styledrop(root: Path) -> Dataset | None:
    """data.json {file: [content words, style words]} with data/*.jpg."""
    for index in (root / "data.json", root / "data" / "data.json"):
        if index.is_file():
            break
    else:
        return None
    entries = read_json(index)
    sound = isinstance(entries, dict) and all(
        isinstance(v, list) and len(v) == 2 and all(isinstance(w, str) for w in v) for v in entries.values()
    )
    if not sound:
        raise FileRefused(f"{index}: expected {{file: [content words, style words]}}; download the file again")
    styles, missing = {}, []
    for file, (words, style) in sorted(entries.items()):
        tried = [_inside(root, f"{folder}{file}", index) for folder in ("data/", "")]
        places = [place for place in tried if place.is_file()]
        if not places:
            missing.append(f"{root / 'data' / file}: {index.name} names this image, and it is not there")
        name = Path(file).stem
        styles[name] = Concept(name, tuple(places[:1]), words, style.removeprefix("in "))
    return Dataset("styledrop", root, {}, styles, tuple(missing))


_APART = {
    "folder": "; its photos are a download apart from the repository, linked in its README: unpack it as "
    "benchmark_dataset/ beside dataset.json",
    "file": "",
}


def customconcept101(root: Path) -> Dataset | None:
    """dataset.json with benchmark_dataset/<concept>/* and prompts/*.txt, here or in customconcept101/."""
    if (home := _with(root, "customconcept101", "dataset.json")) is None:
        return None
    index = home / "dataset.json"
    entries = read_json(index)
    wanted = ("instance_data_dir", "class_prompt", "prompt_filename")
    sound = isinstance(entries, list) and all(
        isinstance(e, dict) and all(isinstance(e.get(key), str) for key in wanted) for e in entries
    )
    if not sound:
        raise FileRefused(f"{index}: expected a list of objects with {', '.join(wanted)}; download the file again")
    contents, missing = {}, []
    for entry in entries:
        folder, prompts = (_inside(home, entry[key], index) for key in ("instance_data_dir", "prompt_filename"))
        for path, kind in ((folder, "folder"), (prompts, "file")):
            if not path.exists():
                missing.append(f"{path}: {index.name} names this {kind}, and it is not there{_APART[kind]}")
        lines = read_text(prompts).splitlines() if prompts.is_file() else []
        asked = tuple(line.strip().rstrip(".").replace("{}", SUBJECT) for line in lines if line.strip())
        contents[folder.name] = Concept(folder.name, images_in(folder), entry["class_prompt"], prompts=asked)
    return Dataset("customconcept101", root, contents, {}, tuple(missing))


def folders(root: Path) -> Dataset | None:
    """contents/<name>/* (or objects/ or subjects/<name>/*) and styles/<name>/*; a single image needs no folder."""
    subjects = next((root / name for name in ("contents", "objects", "subjects") if (root / name).is_dir()), None)
    styles = root / "styles"
    if subjects is None and not styles.is_dir():
        return None
    contents = _concepts(subjects) if subjects else {}
    return Dataset("folders", root, contents, _concepts(styles) if styles.is_dir() else {})


LAYOUTS: dict[str, Callable[[Path], Dataset | None]] = {
    "dreambooth": dreambooth,
    "styledrop": styledrop,
    "customconcept101": customconcept101,
    "folders": folders,
}


def read_dataset(root: str | Path, layout: str = "auto") -> Dataset:
    """The data set in a folder; its index is read, its images are only listed.

    Args:
        root: the folder.
        layout: a name of `LAYOUTS`, or "auto" for whichever the folder shows.

    Raises:
        InputError: there is no such folder, or it has no layout that we know.
        FileRefused: its index is damaged.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a data set")
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"layout: expected auto, {', '.join(LAYOUTS)}; got {layout!r}")
    for name in LAYOUTS if layout == "auto" else [layout]:
        found = LAYOUTS[name](folder)
        if found is not None:
            return found
    wanted = "; ".join(f"{name}: {(LAYOUTS[name].__doc__ or '').splitlines()[0]}" for name in LAYOUTS)
    raise InputError(f"{folder}: expected a data set in one of the known layouts, found none ({wanted})")


def _concepts(folder: Path) -> Mapping[str, Concept]:
    """Each folder, and each image that stands alone, as a concept."""
    found = {p.stem: Concept(p.stem, (p,)) for p in images_in(folder)}
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found[path.name] = Concept(path.name, images_in(path))
    return dict(sorted(found.items()))


def _inside(root: Path, named: str, index: Path) -> Path:
    """A path that an index names, which must not lead out of the data set."""
    path = (root / named).resolve()
    if not path.is_relative_to(root.resolve()):
        raise FileRefused(f"{index}: {named} leads out of the data set; expected a path inside {root}")
    return path


def _with(root: Path, below: str, index: str) -> Path | None:
    """The folder that has an index: the root, or the one below it."""
    return next((folder for folder in (root, root / below) if (folder / index).is_file()), None)
