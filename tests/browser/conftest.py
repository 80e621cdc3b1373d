"""A real browser for the pages: Chromium, driven by Playwright, with no way to the network but this machine.

The fixtures `chromium` (one browser a session) and `open_page` (a page that notes every console error and every request
that would have left the machine, and fails the test for either). Where no browser is installed, these tests are
skipped and say so. CHROMIUM names another executable.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip
HERE = ("file", "data", "blob", "about")  # schemes that never leave the machine
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def executable() -> str | None:
    """The browser's path, or None."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = executable()
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or name one in CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def _of_gradio(message: Any) -> bool:
    """No error, or the two that Gradio logs where it asks how far an upload is and the upload is done already."""
    asked = "/upload_progress?" in message.location["url"] and "404" in message.text
    return message.type != "error" or asked or message.text == "Response"


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """open_page(address, width=1280, height=900, dark=False, **options of a Playwright context) -> its page, loaded.

    `page.said` collects console errors and uncaught exceptions, `page.outside` the addresses of requests that would
    have left the machine (they are cut off). Both must be empty when the test ends; a test that expects one clears it.
    """
    contexts, pages = [], []

    def opened(address: str, *, width: int = 1280, height: int = 900, dark: bool = False, **options: Any) -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.said, page.outside = [], []
        pages.append(page)

        def pass_or_cut(route: Any) -> None:
            parts = urlsplit(route.request.url)
            if parts.scheme in HERE or parts.netloc.rsplit(":", 1)[0] in LOCAL:
                route.continue_()
            else:
                page.outside.append(route.request.url)
                route.abort()

        context.route("**/*", pass_or_cut)
        page.on("console", lambda message: _of_gradio(message) or page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(address, wait_until="load")
        return page

    yield opened
    said = [(page.said, page.outside) for page in pages]
    for context in contexts:
        context.close()
    assert all(entry == ([], []) for entry in said), said
