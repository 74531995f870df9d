"""The page in a real Chromium, end to end on Atelier: upload, train, merge, slide, compare, download; and errors.

`pytest -m browser`; needs gradio, playwright and a Chromium.
"""

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from browser import chromium, opened
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.read.header import read_header
from duolora.lora.write.file import write_adapter
from duolora.paper.lowrank import LowRank
from duolora.ui.page import EXAMPLES

pytest.importorskip("gradio")
expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=120_000)
pytestmark = pytest.mark.browser


WORDS = {"content": "a sks thing in flat style", "style": "a house in zwx style"}
SERVER = """
import sys
from pathlib import Path
from duolora.ui import page

served, url = page.serve(Path(sys.argv[1]), block=False)
print(url, flush=True)
sys.stdin.read()
"""
"""The page in a process of its own, as people have it."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page's process, and its address."""
    folder = str(tmp_path_factory.mktemp("ui"))
    command = [sys.executable, "-c", SERVER, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server, server.stdout.readline().strip()
        server.stdin.close()


@pytest.fixture(scope="module")
def url(served):
    """The address of the page."""
    return served[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """What a person brings: photos of a thing, one image of a look."""
    from duolora.api.demo import PAIR
    from duolora.atelier.pairs import rendered

    folder, found = tmp_path_factory.mktemp("brought"), {}
    for kind, scenes in (("content", PAIR.content_scenes()[:2]), ("style", [PAIR.style_scene()])):
        found[kind] = []
        for k, image in enumerate(rendered(scenes)):
            found[kind].append(folder / f"{kind}{k}.png")
            Image.fromarray(image).save(found[kind][-1])
    return found


def shown(page, gallery, count, before=()):
    """The bytes of a gallery's images, once there are so many, and others than before."""
    images = page.locator(f"#{gallery} .grid-container img")
    expect(images).to_have_count(count, timeout=600_000)
    for k in range(20):
        found = [page.request.get(image.get_attribute("src")).body() for image in images.all()]
        if found != before:
            return found
        page.wait_for_timeout(500 * (k + 1))
    raise AssertionError(f"{gallery}: the images have not changed")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_a_page_on_which_nothing_is_done_rests(served):
    def awoken():
        stati = Path(f"/proc/{served[0].pid}/task").glob("*/status")
        return sum(int(count) for one in stati for count in re.findall(r"\nvoluntary\w+:\s+(\d+)", one.read_text()))

    before = awoken()
    time.sleep(3)
    assert awoken() - before < 3 * 90, "of Gradio's own accord about a thousand times a second"


def test_from_images_to_a_file(url, images, tmp_path):
    with chromium() as browser, opened(browser, url, accept_downloads=True) as page:
        for kind, files in images.items():
            page.set_input_files(f"#{kind}-images input[type=file]", files)
            expect(page.locator(f"#{kind}-images .grid-container img")).to_have_count(len(files))
            assert page.input_value(f"#{kind}-prompt textarea") == ""
            page.fill(f"#{kind}-prompt textarea", WORDS[kind])
        page.click("#more button")
        page.get_by_label("Steps for each LoRA").fill("1")
        page.get_by_label("Steps of the masks").fill("1")
        page.fill("#count input", "2")
        page.click("#make")
        expect(page.locator("#make")).to_be_disabled()
        page.wait_for_selector("#previews img", timeout=600_000)
        page.wait_for_selector("#done :text('Done')", timeout=600_000)
        expect(page.locator("#make")).to_be_enabled()
        assert re.search(r"off by at most \de-\d+", page.inner_text("#done"))
        assert " in " in page.input_value("#prompt textarea")
        first = shown(page, "images", 4)
        bar = page.locator("#weight-style input[type=range]")
        box = bar.bounding_box()
        bar.click(position={"x": 2, "y": box["height"] / 2})
        second = shown(page, "images", 2, first)
        assert Image.open(io.BytesIO(first[0])).size == (256, 256)
        assert second[0] != first[0], "the style at no strength generates another image from the same seed"
        page.click("#compare-part button")
        for method in ("ziplora", "duolora"):
            page.get_by_label(method, exact=True).uncheck()
        page.get_by_label("blora", exact=True).check()
        page.click("#compare")
        assert len(set(shown(page, "side-by-side", 8))) == 6, "two methods of two images, each row after its references"
        for gallery in ("images", "side-by-side"):
            cut = page.locator(f"#{gallery} .grid-wrap").evaluate("e => e.scrollHeight - e.clientHeight")
            assert cut < 20, f"{gallery}: images are cut off"
        for format, mark in (("kohya", ".alpha"), ("diffusers", ".lora_A.weight")):
            page.click("#format input")
            page.get_by_role("option", name=format).click()
            page.click("#export")
            page.wait_for_selector(f"#files a[download='a-sks-thing-in-zwx-style-duolora-1-0-{format}.safetensors']")
            with page.expect_download() as download:
                page.locator("#files a").first.click()
            download.value.save_as(tmp_path / f"{format}.safetensors")
            entries, _ = read_header(tmp_path / f"{format}.safetensors")
            assert any(key.endswith(mark) for key in entries)
        page.set_viewport_size({"width": 390, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out on a phone"
        assert read_adapter(tmp_path / "diffusers.safetensors").metadata["weights"]["style"] == 0


def test_errors_are_shown(url, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 4)
    with chromium() as browser, opened(browser, url) as page:
        page.click("#make")
        page.wait_for_selector("#status .bad:has-text('the subject: expected images or a LoRA file')")
        page.click("#generate")
        page.wait_for_selector("#generate-status .bad:has-text('make a LoRA first')")
        for kind in ("content", "style"):
            page.set_input_files(f"#{kind}-lora input[type=file]", broken)
            page.wait_for_selector(f"#{kind}-wrong .bad:has-text('broken.safetensors')")
        page.click("#make")
        page.wait_for_selector('#status .bad:has-text("the subject\'s file broken.safetensors")')
        page.locator(".example").first.click()
        expect(page.locator("#style-images .grid-container img")).to_have_count(1)
        expect(page.locator(".line .bad")).to_have_count(0)


def test_words_that_were_typed_stay_when_a_file_is_dropped(url, tmp_path):
    module = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": LowRank(torch.ones(8, 1), torch.ones(1, 8))}
    for name in ("mug", "cat"):
        write_adapter(tmp_path / f"{name}.safetensors", Adapter(module, {"prompt": f"a sks {name}"}))
    with chromium() as browser, opened(browser, url) as page:
        words = {kind: page.locator(f"#{kind}-prompt textarea") for kind in ("content", "style")}
        words["style"].fill("a house in zwx style")
        for name in ("mug", "cat"):
            for kind in words:
                page.set_input_files(f"#{kind}-lora input[type=file]", tmp_path / f"{name}.safetensors")
            expect(words["content"]).to_have_value(f"a sks {name}")
            expect(page.locator("#style-wrong")).to_contain_text(f"Your words are used; the file says: a sks {name}")
            for kind in words:
                page.locator(f"#{kind}-lora").get_by_label("Clear").click()
            expect(words["content"]).to_have_value("")
        assert words["style"].input_value() == "a house in zwx style"


def test_a_job_is_its_pages_own_and_a_reload_finds_it(url):
    """Without `opened`: a browser complains of streams that a reload ends."""
    with chromium() as browser, browser.new_context() as context:
        first, second = context.new_page(), context.new_page()
        for page, example in ((first, 0), (second, 1)):
            page.goto(url)
            page.locator(".example").nth(example).click()
            expect(page.locator("#style-images .grid-container img")).to_have_count(1)
            page.click("#make")
            expect(page.locator("#make")).to_be_disabled(timeout=60_000)
        second.click("#stop")
        expect(second.locator("#status .bad")).to_contain_text("stopped; nothing was written")
        first.reload()
        expect(first.locator("#stop")).to_be_enabled(timeout=60_000)
        assert first.input_value("#content-prompt textarea") == EXAMPLES[0].content_prompt
        first.click("#stop")
        expect(first.locator("#status .bad")).to_contain_text("stopped")
