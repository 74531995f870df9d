"""Data sets of things and looks in their published layouts, and what is missing in a copy of one.

dataset = read_dataset("dreambooth")          # which layout it is shows itself
dataset.contents["dog6"].images, dataset.contents["dog6"].prompts
problems(dataset)                             # [] if nothing is missing
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from duolora.errors import DuoLoRAError
from duolora.model.image_files import read_image

THING = "{thing}"
"""Where the thing's words go in a prompt of a data set."""


@dataclass(frozen=True)
class Concept:
    """A thing or a look: its pictures, and what is known of it in words."""

    name: str
    images: tuple[Path, ...]
    words: str = ""
    """What the pictures show: the thing's class ("stuffed animal"), or the object in a style picture."""
    style: str = ""
    """The look in words, for styles."""
    prompts: tuple[str, ...] = ()
    """What to ask for, with `{thing}` for the thing."""

    def asked(self, thing: str) -> list[str]:
        """The prompts with `thing` ("sks dog") in them."""
        return [prompt.replace(THING, thing) for prompt in self.prompts]


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
    """What is missing or damaged, one line each; every picture is read."""
    found = list(dataset.missing)
    for concept in (*dataset.contents.values(), *dataset.styles.values()):
        if not concept.images:
            found.append(f"{concept.name}: no pictures")
        for path in concept.images:
            try:
                read_image(path)
            except DuoLoRAError as error:
                found.append(str(error))
    return found
