"""`docs/api.md` says what `import duolora` offers; `PYTHONPATH=src python tests/test_api_page.py` writes it anew."""

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import get_args, get_type_hints

import duolora

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """# What `import duolora` offers

Made from the docstrings (`PYTHONPATH=src python tests/test_api_page.py`). All of it is typed, and imported when it is
first asked for. Options are frozen dataclasses: `dataclasses.replace(options, steps=50)` changes one.
"""


def paragraph(text: str, indent: str = "") -> str:
    return textwrap.fill(" ".join(text.split()), 140, subsequent_indent=indent, break_long_words=False)


def plain(annotation: object) -> str:
    """A type as people write it."""
    said = re.sub(r"\b(?:\w+\.)+(\w)", r"\1", inspect.formatannotation(annotation))
    return "" if annotation is inspect.Parameter.empty else said.replace("NoneType", "None")


def sections(found: object) -> dict[str, str]:
    """The parts of a docstring: what comes first, then by their headings."""
    parts = re.split(r"^(Args|Raises):\n", inspect.getdoc(found) or "", flags=re.MULTILINE)
    return {"": parts[0].strip()} | dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(text: str) -> list[str]:
    """`name: what it is`, for each line that is not the continuation of another."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", text, flags=re.MULTILINE)
    return [paragraph(f"- `{name}`: {said}", "  ") for name, said in found]


def called(name: str, found: object) -> str:
    """A call with the names of what it takes, and their defaults."""
    taken = []
    for each in inspect.signature(found).parameters.values():
        if each.kind is each.VAR_KEYWORD:
            named = [f"{one}=…" for typed in get_args(each.annotation) for one in get_type_hints(typed)]
            taken += named or [f"**{each.name}"]
            continue
        default = each.default
        shown = "…" if callable(default) or len(repr(default)) > 30 else repr(default)
        taken.append(each.name if default is inspect.Parameter.empty else f"{each.name}={shown}")
    return "\n".join(textwrap.wrap(f"{name}({', '.join(taken)})", 130, subsequent_indent="    "))


def public(found: type) -> "list[dataclasses.Field[object]]":
    """The fields of a dataclass that are for everybody."""
    return [each for each in dataclasses.fields(found) if not each.name.startswith("_")]


def field(each: "dataclasses.Field[object]") -> str:
    said = each.metadata.get("help", "")
    section = f" ({each.metadata['section']})" if each.metadata.get("section") else ""
    default = "" if each.default is dataclasses.MISSING else f", by default {each.default!r}"
    return paragraph(f"- `{each.name}`: {plain(each.type)}{default}{f'. {said}' if said else ''}{section}", "  ")


def entry(name: str) -> str:
    found = getattr(duolora, name)
    said = sections(found) if callable(found) else {"": ""}
    lines = [f"### `{name}`", "", *(paragraph(part) + "\n" for part in said[""].split("\n\n") if callable(found))]
    if inspect.isfunction(found):
        lines += [f"```text\n{called(name, found)}\n```", "", *entries(said.get("Args", "")), ""]
    elif dataclasses.is_dataclass(found):
        lines += [*map(field, public(found)), ""]
    elif isinstance(found, dict):
        lines += [paragraph(f"By name: {', '.join(f'`{key}`' for key in found)}."), ""]
    return "\n".join(lines)


def page() -> str:
    kinds: dict[str, list[str]] = {"Functions": [], "Options and results": [], "Errors": []}
    for name in duolora.__all__:
        found = getattr(duolora, name)
        error = inspect.isclass(found) and issubclass(found, Exception)
        kinds["Errors" if error else "Functions" if inspect.isfunction(found) else "Options and results"].append(name)
    kinds["Options and results"].remove("__version__")
    parts = ["\n".join([f"## {kind}\n", *map(entry, names)]) for kind, names in kinds.items()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join([HEAD, *parts])).rstrip() + "\n"


def test_the_page_has_every_name_and_all_that_it_takes():
    """Words may lag behind a docstring; names and signatures may not."""
    text = PAGE.read_text("utf-8")
    assert re.findall(r"(?m)^### `(\w+)`", text) == re.findall(r"(?m)^### `(\w+)`", page())
    for name in duolora.__all__:
        found = getattr(duolora, name)
        if inspect.isfunction(found):
            assert called(name, found) in text, "run `PYTHONPATH=src python tests/test_api_page.py`"
        elif dataclasses.is_dataclass(found):
            said = text.partition(f"### `{name}`\n")[2].partition("\n#")[0]
            assert re.findall(r"(?m)^- `(\w+)`:", said) == [each.name for each in public(found)]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
