"""Data sets of subjects and styles in their published layouts, and what is missing in a copy of one.

dataset = read_dataset("dreambooth")          # which layout it is shows itself
dataset.contents["dog6"].images, dataset.contents["dog6"].prompts
problems(dataset)                             # [] if nothing is missing
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from duolora.errors import DuoLoRAError, InputError
from duolora.model.image_files import read_image

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
