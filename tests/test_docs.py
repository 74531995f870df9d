"""The docs can be read in an editor, and the files that they name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_and_no_cell_is_too_long(page):
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        parts = line.split("|") if line.startswith("|") else [re.sub(r"\]\([^)]*\)", "]", line)]
        most = 200 if line.startswith(("|", "    ")) else 160
        assert max(map(len, parts)) <= most, f"{page.name}:{number}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    lost = [link for link in LINKED.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert lost == []


def test_the_index_of_the_log_names_every_entry_once():
    text = (ROOT / "docs" / "log.md").read_text("utf-8")
    entries = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"(?m)^## (\d.*)$", text)]
    assert sorted(re.findall(r"\]\(#(.+)\)", text)) == sorted(entries)


def test_the_files_behind_the_paper_are_there():
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "paper.md").read_text("utf-8")))
    homes = (ROOT / "src" / "duolora", ROOT / "tests", ROOT)
    assert len(named) > 40
    assert [name for name in sorted(named) if not any((home / name).exists() for home in homes)] == []
