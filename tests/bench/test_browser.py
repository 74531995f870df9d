"""The report and the questionnaire in a real Chromium: `pytest -m browser`."""

import json

import pytest
from test_report import run as finished_table  # noqa: F401
from test_study import run as finished_methods  # noqa: F401

from browser import chromium, opened
from duolora.bench.report.page import report
from duolora.bench.study.study import make, score

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report(finished_table, tmp_path, scheme, width):  # noqa: F811
    out = report([finished_table], tmp_path / "report.html")
    size = {"width": width, "height": 900}
    with chromium() as browser, opened(browser, out.as_uri(), color_scheme=scheme, viewport=size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
        red, *_ = page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").split(",")
        assert (int(red) < 60) is (scheme == "dark")
        page.locator("a.zoom").first.click()
        assert page.locator("dialog img").bounding_box()["width"] > 0.9 * (width - 60)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()


def test_the_questionnaire(finished_methods, tmp_path):  # noqa: F811
    """Two people answer in their own windows and save their files; what comes back is scored.

    One presses keys, the other double-clicks images, which answers one question and passes over none.
    """
    page_file, key = make([finished_methods], tmp_path / "study", each=2)
    saved = []
    with chromium() as browser:
        for person in ("ann", "bob"):
            with opened(browser, page_file.as_uri(), accept_downloads=True) as page:
                page.fill("#person", person)
                page.click("#begin")
                for k in range(4):
                    page.wait_for_selector(f"#count:text-is('{k} / 4')")
                    option = page.locator(".question:not([hidden]) .option").nth(4 if k == 0 else 0)
                    page.keyboard.press("5" if k == 0 else "1") if person == "ann" else option.dblclick()
                page.wait_for_selector("#end", state="visible")
                assert page.inner_text("#left") == "All questions are answered."
                with page.expect_download() as download:
                    page.click("#save")
                saved.append(tmp_path / f"{person}.json")
                download.value.save_as(saved[-1])
    done = score(saved, key)
    assert (done.people, done.answers) == (2, 8)
    assert done.shares["none"][0] == 0.25
    ann, bob = (json.loads(path.read_text()) for path in saved)
    assert ann["seed"] != bob["seed"], "everybody has an order of their own"
    assert {a["question"] for a in ann["answers"]} == {a["question"] for a in bob["answers"]}
