"""The page in a real Chromium, end to end on Atelier: upload, train, merge, slide, compare, download; and errors.

`pytest -m browser`; needs gradio, playwright and a Chromium.
"""

import io
import re

import pytest
from PIL import Image

from browser import chromium, opened
from duolora.adapters.files import read_adapter
from duolora.adapters.header import read_header

gradio = pytest.importorskip("gradio")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    from duolora.ui.page import serve

    page, url = serve(tmp_path_factory.mktemp("ui"), block=False)
    yield url
    page.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """What a person brings: photos of a thing, one picture of a look."""
    from duolora.atelier.pairs import pictures
    from duolora.verbs.demo import PAIR

    folder, found = tmp_path_factory.mktemp("brought"), {}
    for kind, scenes in (("content", PAIR.content_scenes()[:2]), ("style", [PAIR.style_scene()])):
        found[kind] = []
        for k, picture in enumerate(pictures(scenes)):
            found[kind].append(folder / f"{kind}{k}.png")
            Image.fromarray(picture).save(found[kind][-1])
    return found


def shown(page, gallery, count):
    """The bytes of a gallery's pictures, once there are so many."""
    page.wait_for_selector(f"#{gallery} .grid-container button:nth-child({count}) img")
    return [
        page.request.get(img.get_attribute("src")).body()
        for img in page.locator(f"#{gallery} .grid-container img").all()
    ]


def test_from_pictures_to_a_file(url, pictures, tmp_path):
    with chromium() as browser, opened(browser, url, accept_downloads=True) as page:
        for kind, files in pictures.items():
            page.set_input_files(f"#{kind}-pictures input[type=file]", files)
            page.wait_for_selector(f"#{kind}-pictures .file-preview")
        page.click("#more button")
        page.get_by_label("Updates for each LoRA").fill("11")
        page.get_by_label("Updates of the masks").fill("2")
        page.fill("#count input", "2")
        page.click("#make button, button#make")
        page.wait_for_selector("#previews img", timeout=300_000)
        page.wait_for_selector("#status :text('Done')", timeout=300_000)
        assert re.search(r"off by at most \de-\d+", page.inner_text("#status"))
        assert " in " in page.input_value("#prompt textarea")
        first = shown(page, "pictures", 4)
        bar = page.locator("#weight-style input[type=range]")
        box = bar.bounding_box()
        bar.click(position={"x": 2, "y": box["height"] / 2})
        page.wait_for_selector("#pictures .grid-container button:nth-child(2) img")
        page.wait_for_function("document.querySelectorAll('#pictures .grid-container img').length === 2")
        second = shown(page, "pictures", 2)
        assert Image.open(io.BytesIO(first[0])).size == (256, 256)
        assert second[0] != first[0], "the look at no strength draws another picture from the same seed"
        page.click("#compare-part button")
        page.click("#compare")
        assert len(shown(page, "side-by-side", 6)) == 6
        for format, mark in (("kohya", ".alpha"), ("diffusers", ".lora_A.weight")):
            page.click("#format input")
            page.get_by_role("option", name=format).click()
            page.click("#export")
            page.wait_for_selector(f"#files a:has-text('duolora-{format}')")
            with page.expect_download() as download:
                page.locator("#files a").first.click()
            download.value.save_as(tmp_path / f"{format}.safetensors")
            entries, _ = read_header(tmp_path / f"{format}.safetensors")
            assert any(key.endswith(mark) for key in entries)
        assert read_adapter(tmp_path / "diffusers.safetensors").recipe["weights"]["style"] == 0


def test_errors_are_shown(url, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 4)
    with chromium() as browser, opened(browser, url) as page:
        page.click("#make")
        page.wait_for_selector("#status .bad:has-text('the thing: expected pictures or a LoRA file')")
        page.click("#draw")
        page.wait_for_selector("text=make a LoRA first")
        for kind in ("content", "style"):
            page.set_input_files(f"#{kind}-lora input[type=file]", broken)
            page.wait_for_selector(f"#{kind}-lora .file-preview")
        page.click("#make")
        page.wait_for_selector("#status .bad:has-text('content.safetensors')")
