"""A Chromium for tests marked `browser`: the system's own, headless, or a skip where there is none."""

import shutil
from contextlib import contextmanager

import pytest

QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync")  # fmt: skip


@contextmanager
def chromium():
    """A running browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[f"--{flag}" for flag in QUIET])
        yield browser
        browser.close()


@contextmanager
def opened(browser, url, **context):
    """A page that fails the test if it asks for anything outside, or complains in its console."""
    asked, said = [], []
    with browser.new_context(**context) as made:
        page = made.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto(url)
        yield page
    local = ("file:", "data:", "blob:", "http://127.0.0.1")
    assert [u for u in asked if not u.startswith(local)] == []
    assert said == []
