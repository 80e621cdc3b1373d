"""The pictures of the app in docs: `make images` (`python -m benchmarks.app_images`).

`omnidrop app` with the included model, opened in Chromium (CHROMIUM names another executable) by Playwright, after the
first example's question was answered:
app_light.png, app_dark.png  1280 pixels wide
app_phone.png                390 pixels wide, scrolled to the answers as the page does
app_live.png                 the tab Live, with Chromium's test picture and beep as camera and microphone
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent.parent / "docs" / "img"
VIEWS = {"light": (1280, 1560, False), "dark": (1280, 1560, True), "phone": (390, 844, False)}


def main() -> None:
    """Start the app, ask, take the pictures, stop the app."""
    from playwright.sync_api import sync_playwright

    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    command = [sys.executable, "-m", "omnidrop", "app", "--json", "--quiet", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app, sync_playwright() as driver:
        try:
            assert app.stdout is not None
            address = json.loads(app.stdout.readline())["url"]
            flags = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream"]
            browser = driver.chromium.launch(executable_path=named, args=flags)
            for name, (width, height, dark) in VIEWS.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
                )
                page = context.new_page()
                page.set_default_timeout(120_000)
                page.goto(address)
                page.locator("#od-ask").click()
                page.locator("iframe.od-frame").wait_for()
                page.wait_for_timeout(2000)  # the frame draws itself, and the page scrolls to the answers
                if name != "phone":
                    page.evaluate("scrollTo(0, 0)")
                    page.wait_for_timeout(500)
                page.screenshot(path=IMAGES / f"app_{name}.png")
                context.close()
            _live(browser, address)
            browser.close()
        finally:
            app.terminate()


def _live(browser: Any, address: str) -> None:
    """A question, and a standing one, to a stream of twelve seconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, permissions=["camera", "microphone"])
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.get_by_role("tab", name="Live").click()
    page.locator("#od-live-start").click()
    page.wait_for_function("parseFloat(document.querySelector('#od-live-state dd')?.innerText) > 12")
    for field, button in (("question", "ask"), ("standing", "watch")):
        page.locator(f"#od-live-{field} textarea").fill("what color is the circle ?")
        page.locator(f"#od-live-{button}").click()
    page.locator("#od-live-answers .od-card").nth(1).wait_for()
    page.screenshot(path=IMAGES / "app_live.png")
    context.close()


if __name__ == "__main__":
    main()
