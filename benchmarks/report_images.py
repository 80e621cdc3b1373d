"""The pictures of the report in README and docs: `make images` (`python -m benchmarks.report_images`).

The page of `omnidrop demo --report`, opened in Chromium (CHROMIUM names another executable) by Playwright:
report_before_after.png  one question: the whole prompt, and what is left in the last layer
report_light.png, report_dark.png  1280 pixels wide: as it opens; the difference of two questions
report_phone.png         390 pixels wide
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from omnidrop.cli import main as omnidrop

IMAGES = Path(__file__).parent.parent / "docs" / "img"
COMPACT = (
    ".jump, .listen, figcaption { display: none } .panels { padding: 0; gap: 0 } .panel { border: 0; border-radius: 0 }"
)


def main() -> None:
    """Answer the demo's questions, open the page, take the pictures."""
    from playwright.sync_api import sync_playwright

    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "demo.html"
        if omnidrop(["demo", "--report", str(page)]):
            raise SystemExit("omnidrop demo failed: see above")
        browser = driver.chromium.launch(executable_path=named, args=["--no-sandbox", "--disable-gpu"])

        def opened(fragment: str, width: int, height: int, dark: bool = False) -> Any:
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            tab = context.new_page()
            tab.goto(page.as_uri() + fragment)
            tab.wait_for_selector("html[data-ready]")
            return tab

        opened("", 1280, 1330).screenshot(path=IMAGES / "report_light.png")
        opened("#layer=8&t=12&scores=1&pair=0,1", 1280, 1330, True).screenshot(path=IMAGES / "report_dark.png")
        opened("#layer=10&t=10&show=0", 390, 1200).screenshot(path=IMAGES / "report_phone.png")
        sides = [
            _panel(opened(f"#layer={layer}&t=12&show=0", 640, 1200), answer) for layer, answer in ((-1, 0), (15, 1))
        ]
        _beside(sides).save(IMAGES / "report_before_after.png")
        browser.close()


def _panel(tab: Any, answer: int) -> Image.Image:
    """The first prompt down to its sound, with one of its two answers: 0 with all tokens, 1 pruned."""
    tab.add_style_tag(content=f"{COMPACT} .answers div:nth-child({2 - answer}) {{ display: none }}")
    top = tab.locator("#panel-0").bounding_box()
    last = tab.locator("#panel-0 .sound .stage").bounding_box()
    clip = {**top, "height": last["y"] + last["height"] + 12 - top["y"]}
    return Image.open(io.BytesIO(tab.screenshot(clip=clip, full_page=True)))


def _beside(images: list[Image.Image]) -> Image.Image:
    joined = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), "white")
    x = 0
    for image in images:
        joined.paste(image, (x, 0))
        x += image.width
    return joined


if __name__ == "__main__":
    main()
