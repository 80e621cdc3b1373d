"""The report in a real browser: it opens from disk without network, and its sliders move what they should."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import omnidrop
from omnidrop import Trace

for package in ("jinja2", "matplotlib", "av"):
    pytest.importorskip(package)
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser").expect

QUESTIONS = ("what color is the circle ?", "what pattern is the tenor one ?", "how many sounds ?")
EVIL = """</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1">"""
PHONE = {"width": 360, "height": 740, "has_touch": True}


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """The shipped clip, three questions, with scores."""
    model, processor = omnidrop.load()
    clip = omnidrop.media.read(omnidrop.prompt.TINY.parent / "demo.mp4")
    made = []
    for question in QUESTIONS:
        with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3), scores=True) as trace:
            model(**omnidrop.build(processor, clip, question))
        made.append(trace)
    return made


@pytest.fixture(scope="module")
def address(traces: list[Trace], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the three, on disk."""
    file = tmp_path_factory.mktemp("report") / "page.html"
    clip = omnidrop.media.read(omnidrop.prompt.TINY.parent / "demo.mp4")
    omnidrop.report(traces, file, media=clip, titles=QUESTIONS, answers=["blue", "steady", EVIL])
    return file.as_uri()


@pytest.fixture
def page(open_page: Callable[..., Any], address: str) -> Any:
    return ready(open_page(address, offline=True))


def ready(page: Any) -> Any:
    page.wait_for_selector("html[data-ready]")
    return page


def set_layer(page: Any, layer: int) -> None:
    page.locator("#layer").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", str(layer))


def pixels(page: Any, selector: str) -> str:
    return page.locator(selector).evaluate("canvas => canvas.toDataURL()")


def brightness(page: Any, selector: str) -> list[float]:
    """Mean brightness of each of 3 x 3 cells of a canvas."""
    return page.locator(selector).evaluate(
        """canvas => {
            const { width, height } = canvas, context = canvas.getContext("2d"), cells = [];
            for (let row = 0; row < 3; row++) for (let column = 0; column < 3; column++) {
                const w = Math.floor(width / 3), h = Math.floor(height / 3);
                const data = context.getImageData(column * w + 8, row * h + 8, w - 16, h - 16).data;
                let sum = 0;
                for (let i = 0; i < data.length; i += 4) sum += data[i] + data[i + 1] + data[i + 2];
                cells.push(sum / (data.length / 4) / 3);
            }
            return cells;
        }"""
    )


STAGE = "#panel-0 .pictures .stage"


def test_the_slider_moves_the_picture_and_the_numbers(page: Any, traces: list[Trace]) -> None:
    seen = set()
    for layer, counts in enumerate(traces[0].counts):
        set_layer(page, layer)
        for panel in (0, 1):
            for kind in ("audio", "video"):
                shown = page.locator(f"#panel-{panel} [data-kind={kind}]")
                assert int(shown.get_attribute("data-value")) == traces[panel].counts[layer][kind]
                assert f"{kind} {traces[panel].counts[layer][kind]} of" in shown.inner_text()
        seen.add((pixels(page, "#panel-0 .sound .stage"), counts["audio"]))
    assert len({picture for picture, _ in seen}) == len({count for _, count in seen})  # one picture for each count
    set_layer(page, -1)
    assert int(page.locator("#panel-0 [data-kind=video]").get_attribute("data-value")) == 144


def test_exactly_the_dropped_patches_are_dimmed(page: Any, traces: list[Trace]) -> None:
    trace = traces[0]
    videos = (trace.layout.modality[0] == omnidrop.Modality.VIDEO).nonzero()[:, 0]
    set_layer(page, -1)
    for grid in (1, 4, 11):
        page.locator("#second").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", str(grid))
        set_layer(page, -1)
        whole = brightness(page, STAGE)
        assert "9 of 9 patches of the prompt" in page.locator(STAGE).get_attribute("aria-label")
        for layer in (0, 8):
            set_layer(page, layer)
            mine = videos[trace.layout.frame[0][videos] == grid]
            alive = torch.isin(mine, trace.kept[layer][0]).tolist()
            now = brightness(page, STAGE)
            for kept, before, after in zip(alive, whole, now, strict=True):
                assert (after == pytest.approx(before)) if kept else (after < 0.6 * before), (grid, layer)
            label = page.locator(STAGE).get_attribute("aria-label")
            assert label == f"Picture at {grid}.0 s: {sum(alive)} of 9 patches in layer {layer}"


def test_keyboard_alone_suffices(page: Any) -> None:
    page.locator("#layer").focus()
    page.keyboard.press("Home")
    assert page.locator("#layer").get_attribute("aria-valuetext") == "the prompt, before anything is dropped"
    before = pixels(page, "#panel-0 .sound .stage")
    page.keyboard.press("End")
    assert page.locator("#layer-value").inner_text() == "15" and pixels(page, "#panel-0 .sound .stage") != before
    page.keyboard.press("ArrowLeft")
    assert page.locator("#layer").get_attribute("aria-valuetext") == "layer 14"
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#second-value").inner_text() == "1.0"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#play").get_attribute("aria-pressed") == "true"
    expect(page.locator("#second-value")).to_have_text(re.compile(r"[3-9]\.0|1\d\.0"))
    page.keyboard.press("Space")
    assert page.locator("#play").inner_text() == "Play"
    page.keyboard.press("Tab")  # the chooser: the first prompt
    page.keyboard.press("Space")
    assert page.locator("#panel-0").is_hidden() and page.locator("#panel-1").is_visible()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_playing_stops_at_the_end_and_starts_again(page: Any) -> None:
    page.locator("#second").focus()
    page.keyboard.press("End")
    page.locator("#play").click()
    expect(page.locator("#second-value")).to_have_text(re.compile(r"[0-9]\.0"))
    page.locator("#second").focus()
    page.keyboard.press("End")
    expect(page.locator("#play")).to_have_text("Play")


def test_the_pointer_tells_fate_and_score(page: Any, traces: list[Trace]) -> None:
    trace = traces[0]
    set_layer(page, 8)
    page.locator("#second").evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input')); }")
    media = (trace.layout.modality[0] > 0).nonzero()[:, 0]
    videos = (trace.layout.modality[0] == omnidrop.Modality.VIDEO).nonzero()[:, 0]
    mine = videos[trace.layout.frame[0][videos] == 1].tolist()
    assert trace.scores is not None
    scored = [p for p in trace.kept[8][0].tolist() if p in set(media.tolist())]
    box = page.locator(STAGE).bounding_box()
    kept = dropped = 0
    for patch, position in enumerate(mine):
        x, y = (patch % 3 + 0.5) / 3 * box["width"], (patch // 3 + 0.5) / 3 * box["height"]
        page.locator(STAGE).hover(position={"x": x, "y": y})
        tip = page.locator("#tip").inner_text()
        assert tip.startswith(f"row {patch // 3 + 1}, column {patch % 3 + 1}\n")
        if position in scored:
            values = trace.scores[8][0]
            score = float(values[scored.index(position)])
            shown = float(tip.split("score in layer 8: ")[1].split(" (")[0])
            assert shown == pytest.approx(score, rel=0.006)
            rank = 1 + int((values > score).sum())
            assert abs(int(tip.split("rank ")[1].split(" of ")[0]) - rank) <= 1 and f"of {len(scored)})" in tip
            kept += 1
        else:
            assert "score" not in tip and ("dropped before layer 0" in tip or "last layer" in tip)
            dropped += 1
    assert kept and dropped
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()


def test_a_token_that_just_left_has_no_score(page: Any, traces: list[Trace]) -> None:
    trace = traces[0]
    videos = (trace.layout.modality[0] == omnidrop.Modality.VIDEO).nonzero()[:, 0]
    depth = sum(torch.isin(videos, layer[0]).long() for layer in trace.kept)
    token = int(((depth > 0) & (depth < 12)).nonzero()[0, 0])
    layer, grid, patch = int(depth[token]), token // 9, token % 9
    page.locator("#second").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", str(grid))
    box = page.locator(STAGE).bounding_box()
    for shown, has in ((layer - 1, True), (layer, False)):
        set_layer(page, shown)
        x, y = (patch % 3 + 0.5) / 3 * box["width"], (patch // 3 + 0.4 + 0.1 * has) / 3 * box["height"]
        page.locator(STAGE).hover(position={"x": x, "y": y})
        tip = page.locator("#tip").inner_text()
        assert f"last layer: {layer - 1}" in tip and (f"score in layer {shown}" in tip) == has


def test_a_map_tells_its_share(page: Any, traces: list[Trace]) -> None:
    left, top, width, height = page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).views[0].timeline.axes[1]"
    )
    plot = page.locator("#panel-0 [data-plot=timeline]")
    box = plot.bounding_box()
    layer, column = 5, 2  # layer 5, 4 to 6 s
    plot.hover(
        position={
            "x": (left + width * (column + 0.5) / 8) * box["width"],
            "y": (top + height * (layer + 0.5) / 16) * box["height"],
        }
    )
    layout = traces[0].layout
    inside = (layout.modality[0] == omnidrop.Modality.VIDEO) & (layout.second[0] >= 4) & (layout.second[0] < 6)
    kept = int(inside[traces[0].kept[layer][0]].sum())
    assert (
        page.locator("#tip").inner_text().startswith(f"layer 5, 4 to 6 s\n{kept} of {int(inside.sum())} video tokens")
    )


def test_cursors_stand_at_layer_and_second(page: Any) -> None:
    set_layer(page, 15)
    page.locator("#second").evaluate("e => { e.value = 8; e.dispatchEvent(new Event('input')); }")
    page.wait_for_timeout(200)  # they glide
    box = page.locator("#panel-0 [data-plot=timeline]").bounding_box()
    left, top, width, height = page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).views[0].timeline.axes[0]"
    )
    across = page.locator("#panel-0 [data-plot=timeline] .cursor.across").first.bounding_box()
    down = page.locator("#panel-0 [data-plot=timeline] .cursor.down").first.bounding_box()
    assert across["y"] - box["y"] == pytest.approx((top + height * 15.5 / 16) * box["height"], abs=2)
    assert down["x"] - box["x"] == pytest.approx((left + width / 2) * box["width"], abs=2)


def test_a_small_picture_and_the_sound_seek(page: Any) -> None:
    page.locator("#panel-0 .sheet canvas").nth(12).click()
    assert page.locator("#second-value").inner_text() == "12.0"
    box = page.locator("#panel-0 .sound .stage").bounding_box()
    page.locator("#panel-0 .sound .stage").click(position={"x": box["width"] * 0.25, "y": 20})
    assert page.locator("#second-value").inner_text() == "4.0"


def test_untrusted_text_is_shown_and_does_nothing(page: Any) -> None:
    page.get_by_role("checkbox", name=QUESTIONS[2]).check()
    assert EVIL in page.locator("#panel-2 .answers").inner_text()
    assert page.evaluate("window.pwned") is None


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [{}, PHONE], ids=["wide", "phone"])
def test_readable_everywhere(open_page: Callable[..., Any], address: str, dark: bool, size: dict[str, Any]) -> None:
    page = ready(open_page(address, dark=dark, **size))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for panel in page.locator(".panel:visible").all():
        box = panel.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (_luminance(background) < 0.1) == dark
    page.locator("#panel-0 details").evaluate_all("all => all.forEach(one => (one.open = true))")
    texts = page.evaluate(
        """() => {
            const ground = node => {
                for (; node; node = node.parentElement) {
                    const color = getComputedStyle(node).backgroundColor;
                    if (color !== "rgba(0, 0, 0, 0)") return color;
                }
            };
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
            while (walker.nextNode()) {
                const parent = walker.currentNode.parentElement;
                if (!walker.currentNode.data.trim() || !parent.checkVisibility() || parent.closest("script")) continue;
                const style = getComputedStyle(parent);
                const ink = parent.closest("svg") ? style.fill : style.color;
                found.push([walker.currentNode.data.trim(), ink, ground(parent), parseFloat(style.fontSize)]);
            }
            return found;
        }"""
    )
    assert len(texts) > 100
    for text, ink, ground, points in texts:
        light, dim = sorted((_luminance(ink), _luminance(ground)), reverse=True)
        assert (light + 0.05) / (dim + 0.05) >= 4.5, (text, ink, ground)
        assert points >= 9, (text, points)


def _luminance(color: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    values = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_without_script_the_numbers_are_there(open_page: Callable[..., Any], address: str, traces: list[Trace]) -> None:
    page = open_page(address, java_script_enabled=False)
    assert "need JavaScript" in page.locator("noscript").inner_text()
    shown = {
        cell.get_attribute("data-budget"): float(cell.get_attribute("data-value"))
        for cell in page.locator("#panel-0 [data-budget]").all()
    }
    assert shown == traces[0].budgets and page.locator("#panel-0 svg").first.is_visible()


def test_the_page_could_not_reach_the_network_if_it_would(page: Any) -> None:
    failed = page.evaluate("fetch('http://127.0.0.1:9/x').then(() => false, () => true)")
    assert failed
    assert any("Content Security Policy" in text for text in page.said)
    page.said.clear()


def test_it_works_inside_a_sandboxed_frame(open_page: Callable[..., Any], address: str, tmp_path: Path) -> None:
    """As other pages embed it: by srcdoc, with scripts and nothing else allowed."""
    page = open_page("about:blank")
    text = Path(address.removeprefix("file://")).read_text(encoding="utf-8")
    page.evaluate(
        "text => { const f = document.createElement('iframe'); f.sandbox = 'allow-scripts'; f.srcdoc = text;"
        " f.width = 700; f.height = 700; document.body.append(f); }",
        text,
    )
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    assert "75 of 224" in frame.locator("#panel-0 [data-now]").inner_text()
