"""The report in a real browser: it opens from disk without network, and its sliders move what they should."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import omnidrop
from omnidrop import Trace

pytestmark = pytest.mark.slow

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
    clip = omnidrop.media.read(omnidrop.loading.TINY.parent / "demo.mp4")
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
    clip = omnidrop.media.read(omnidrop.loading.TINY.parent / "demo.mp4")
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
SOUND = "#panel-0 .sound .stage"


def media_of(trace: Trace, kind: str) -> list[int]:
    """Positions of the tokens of a kind, in order."""
    return (trace.layout.modality[0] == omnidrop.Modality[kind.upper()]).nonzero()[:, 0].tolist()


def scores_of(trace: Trace, layer: int) -> dict[int, float]:
    """Position -> score in a layer."""
    assert trace.scores is not None
    kept = [p for p in trace.kept[layer][0].tolist() if trace.layout.modality[0, p] > 0]
    return dict(zip(kept, trace.scores[layer][0].tolist(), strict=True))


def now(page: Any) -> tuple[str, str]:
    return page.locator("#layer-value").inner_text(), page.locator("#second-value").inner_text()


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
    expect(page.locator("#second-value")).to_have_text(re.compile(r"^[3-9]\.\d"))
    page.keyboard.press("Space")
    assert page.locator("#play").inner_text() == "Play"
    page.keyboard.press("Tab")  # the first prompt of the chooser
    page.keyboard.press("Space")
    assert page.locator("#panel-0").is_hidden() and page.locator("#panel-1").is_visible()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_playing_stops_at_the_end_and_starts_again(page: Any) -> None:
    page.locator("#second").focus()
    page.keyboard.press("End")
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_text("Play")
    assert page.locator("#second-value").inner_text() == "16.0"
    page.locator("#play").click()
    expect(page.locator("#second-value")).to_have_text(re.compile(r"^[0-9]\.\d"))
    page.locator("#second").focus()
    page.keyboard.press("End")
    expect(page.locator("#play")).to_have_text("Play")


def test_a_move_before_the_first_tick_is_followed(page: Any) -> None:
    page.evaluate("""() => {
        document.querySelector("#play").click();
        const slider = document.querySelector("#second");
        slider.value = slider.max;
        slider.dispatchEvent(new Event("input"));
    }""")
    page.wait_for_timeout(300)
    assert float(page.locator("#second-value").inner_text()) > 10


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
    expect(page.locator("#tip")).to_be_hidden()


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
    assert "3 of 224" in frame.locator("#panel-0 [data-now]").inner_text()


# where it opens, and how to go elsewhere -----------------------------------------------------------------------------


def test_it_opens_at_the_best_scored_of_the_last_survivors(page: Any, traces: list[Trace]) -> None:
    trace = traces[0]
    last = max(layer for layer in range(16) if scores_of(trace, layer))
    best = max(scores_of(trace, last).items(), key=lambda entry: entry[1])[0]
    assert now(page) == (str(last), f"{float(trace.layout.second[0, best]):.1f}")
    patch = media_of(trace, "video").index(best) % 9
    light = brightness(page, STAGE)
    assert max(range(9), key=lambda cell: light[cell]) == patch
    assert page.locator(STAGE).get_attribute("aria-label") == "Picture at 12.0 s: 1 of 9 patches in layer 15"


def test_the_other_prompt_jumps_to_its_own_survivor(page: Any, traces: list[Trace]) -> None:
    set_layer(page, 2)
    page.locator("#panel-1 [data-survivor]").click()
    last = max(layer for layer in range(16) if scores_of(traces[1], layer))
    best = max(scores_of(traces[1], last).items(), key=lambda entry: entry[1])[0]
    assert now(page) == (str(last), f"{float(traces[1].layout.second[0, best]):.1f}")


def test_three_steps_explain_the_page_and_stay_closed(page: Any) -> None:
    steps = page.locator(".guide li a")
    for link, layer in zip(steps.all(), ("prompt", "0", "15"), strict=True):
        link.click()
        assert now(page) == (layer, "12.0") and link.get_attribute("aria-current") == "true"
    remembered = "summary => { summary.click(); return localStorage.getItem('omnidrop-guide'); }"
    assert page.locator(".guide summary").evaluate(remembered) == "closed"  # at once, also if the page is left now
    expect(steps.first).not_to_be_visible()
    page.reload()
    ready(page)
    assert not steps.first.is_visible()
    page.locator(".guide summary").click()
    expect(steps.first).to_be_visible()


def test_on_a_phone_the_picture_is_on_the_first_screen(open_page: Callable[..., Any], address: str) -> None:
    page = ready(open_page(address, **PHONE))
    assert not page.locator(".guide li").first.is_visible()
    assert page.locator(STAGE).bounding_box()["y"] < PHONE["height"]
    page.locator(".guide summary").click()
    expect(page.locator(".guide li").first).to_be_visible()


def test_a_link_restores_the_view(open_page: Callable[..., Any], address: str) -> None:
    page = ready(open_page(f"{address}#layer=13&t=4&dropped=hide&scores=1&range=2-10&show=0,2&pair=0,2"))
    assert now(page) == ("13", "4.0")
    assert page.locator("[name=dropped][value=hide]").is_checked() and page.locator("#scores").is_checked()
    assert page.locator("#from").input_value() == "2.0" and page.locator("#to").input_value() == "10.0"
    assert page.locator("#panel-2").is_visible() and page.locator("#panel-1").is_hidden()
    assert page.locator("#difference").is_visible() and page.locator("#side-b").input_value() == "2"
    view = pixels(page, STAGE)
    page.locator("#whole").click()
    set_layer(page, 5)
    page.wait_for_url("**#layer=5&t=4&dropped=hide&scores=1&show=0,2&pair=0,2")
    other = ready(open_page(page.url))
    assert now(other) == ("5", "4.0") and pixels(other, STAGE) == pixels(page, STAGE) != view
    page.go_back()  # moving about leaves no steps to go back through
    assert page.url == "about:blank"


def test_a_link_followed_on_the_open_page_and_a_wrong_one(page: Any) -> None:
    page.evaluate("location.hash = '#layer=3&t=7'")
    expect(page.locator("#layer-value")).to_have_text("3")
    assert now(page) == ("3", "7.0")
    page.evaluate("location.hash = '#layer=x&t=-5&dropped=no&pair=0,9&show=77&range=9-2&other=%3Cimg%3E'")
    expect(page.locator("#second-value")).to_have_text("0.0")
    assert now(page) == ("3", "0.0") and page.locator("#difference").is_hidden()
    page.evaluate("location.hash = '#layer=99&t=99'")
    expect(page.locator("#layer-value")).to_have_text("15")


@pytest.mark.parametrize("kind, axes", [("timeline", 1), ("split", 0)])
def test_a_click_on_a_map_goes_there(page: Any, kind: str, axes: int) -> None:
    plots = page.evaluate("JSON.parse(document.getElementById('data').textContent).views[0]")
    left, top, width, height = plots["timeline"]["axes"][axes] if kind == "timeline" else plots["split"][0]
    plot = page.locator(f"#panel-0 [data-plot={kind}]")
    box = plot.bounding_box()
    x, y = (5.5 / 16, 9.5 / 16) if kind == "timeline" else (6.5 / 16, 0.5)  # 5.5 s and layer 9; layer 6
    plot.click(position={"x": (left + width * x) * box["width"], "y": (top + height * y) * box["height"]})
    layer, second = now(page)
    assert (layer, float(second)) == (("9", pytest.approx(5.5, abs=0.1)) if kind == "timeline" else ("6", 12.0))


def test_a_row_of_numbers_and_a_patch_go_to_their_layer(page: Any, traces: list[Trace]) -> None:
    page.locator("#panel-0 details", has=page.locator(".counts")).locator("summary").click()
    page.locator("#panel-0 .counts tbody tr").nth(8).click()
    assert now(page)[0] == "7"
    trace, patch = traces[0], 5
    position = media_of(trace, "video")[10 * 9 + patch]  # the cyan ring at 10 s
    last = max(layer for layer in range(16) if position in trace.kept[layer][0].tolist())
    page.locator("#panel-0 .sheet canvas").nth(10).click()
    box = page.locator(STAGE).bounding_box()
    page.locator(STAGE).click(position={"x": 5 / 6 * box["width"], "y": box["height"] / 2})
    assert now(page) == (str(last), "10.0")


# tokens by keyboard --------------------------------------------------------------------------------------------------


def test_arrow_keys_reach_every_patch_and_say_it(page: Any, traces: list[Trace]) -> None:
    set_layer(page, 8)
    live = page.locator("#live")
    page.locator(STAGE).focus()
    before = pixels(page, STAGE)
    page.keyboard.press("Home")
    assert live.inner_text().startswith("12.0 s, row 1, column 1, ") and pixels(page, STAGE) != before
    page.keyboard.press("ArrowRight")
    token = media_of(traces[0], "video")[12 * 9 + 1]
    assert live.inner_text().startswith("12.0 s, row 1, column 2, reaches the last layer, score in layer 8: ")
    shown = float(live.inner_text().split("score in layer 8: ")[1].split(" ")[0])
    assert shown == pytest.approx(scores_of(traces[0], 8)[token], rel=0.006)
    assert page.locator("#tip").is_visible() and "row 1, column 2" in page.locator("#tip").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")  # the picture ends here
    assert live.inner_text().startswith("12.0 s, row 2, column 3, ")
    page.keyboard.press("PageUp")
    assert now(page) == ("8", "11.0") and live.inner_text().startswith("11.0 s, row 2, column 3, ")
    page.keyboard.press("Enter")
    position = media_of(traces[0], "video")[11 * 9 + 5]
    last = max([-1, *(layer for layer in range(16) if position in trace_layer(traces[0], layer))])
    assert now(page)[0] == ("prompt" if last < 0 else str(last))
    page.keyboard.press("Tab")
    expect(page.locator("#tip")).to_be_hidden()


def trace_layer(trace: Trace, layer: int) -> list[int]:
    return trace.kept[layer][0].tolist()


def test_arrow_keys_reach_every_moment_of_the_sound(page: Any) -> None:
    page.locator(SOUND).focus()
    page.keyboard.press("Home")
    assert now(page) == ("15", "0.0") and page.locator("#live").inner_text().startswith("0.0 s, ")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert now(page) == ("15", "0.6")
    assert page.locator("#live").inner_text().startswith("0.6 s, reaches the last layer, score in layer 15: 0.0662")
    page.keyboard.press("End")
    assert now(page) == ("15", "15.8")


# looks ---------------------------------------------------------------------------------------------------------------


def test_dropped_patches_are_dimmed_outlined_or_hidden(page: Any) -> None:
    set_layer(page, -1)
    whole = brightness(page, STAGE)
    set_layer(page, 15)
    dim = brightness(page, STAGE)
    page.get_by_text("outline").click()
    outline, lines = brightness(page, STAGE), pixels(page, STAGE)
    page.get_by_text("hide").click()
    hidden = brightness(page, STAGE)
    for cell in range(9):
        if cell == 1:
            assert dim[cell] == outline[cell] == hidden[cell] == pytest.approx(whole[cell])
        else:
            assert outline[cell] == pytest.approx(whole[cell]) and dim[cell] < 0.6 * whole[cell]
            assert hidden[cell] == pytest.approx((11 + 13 + 17) / 3)
    set_layer(page, -1)
    page.get_by_text("outline").click()
    assert pixels(page, STAGE) != lines  # the border went with the drop


def redness(page: Any, selector: str, cells: int = 3) -> list[float]:
    """Mean of red minus blue of each of `cells` x `cells` cells."""
    return page.locator(selector).evaluate(
        """(canvas, cells) => {
            const { width, height } = canvas, context = canvas.getContext("2d"), found = [];
            for (let row = 0; row < cells; row++) for (let column = 0; column < cells; column++) {
                const w = Math.floor(width / cells), h = Math.floor(height / cells);
                const data = context.getImageData(column * w + 8, row * h + 8, w - 16, h - 60).data;
                let sum = 0;
                for (let i = 0; i < data.length; i += 4) sum += data[i] - data[i + 2];
                found.push(sum / (data.length / 4));
            }
            return found;
        }""",
        cells,
    )


def test_scores_are_drawn_over_pictures_and_sound(page: Any, traces: list[Trace]) -> None:
    page.locator("#panel-0 .sheet canvas").nth(4).click()
    set_layer(page, 8)
    before, sound = redness(page, STAGE), pixels(page, SOUND)
    page.locator("#scores").check()
    after, scores = redness(page, STAGE), scores_of(traces[0], 8)
    gained = {}
    for patch, position in enumerate(media_of(traces[0], "video")[36:45]):
        gained[patch] = after[patch] - before[patch]
        assert (gained[patch] > 3) == (position in scores)
    worth = {patch: scores.get(p, 0.0) for patch, p in enumerate(media_of(traces[0], "video")[36:45])}
    assert max(gained, key=lambda patch: gained[patch]) == max(worth, key=lambda patch: worth[patch])
    assert pixels(page, SOUND) != sound and page.locator("#panel-0 .pictures .legend").is_visible()
    page.locator("#scores").uncheck()
    assert redness(page, STAGE) == before and pixels(page, SOUND) == sound


def test_a_page_without_scores_says_so(open_page: Callable[..., Any], traces: list[Trace], tmp_path: Path) -> None:
    model, processor = omnidrop.load()
    clip = omnidrop.media.read(omnidrop.loading.TINY.parent / "demo.mp4")
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        model(**omnidrop.build(processor, clip, QUESTIONS[0]))
    omnidrop.report(trace, tmp_path / "page.html", media=clip)
    page = ready(open_page((tmp_path / "page.html").as_uri()))
    assert page.locator("#scores").is_disabled() and "none recorded" in page.locator(".options").inner_text()
    assert page.locator(".ranking").count() == 0 and now(page)[0] == "15"


def test_without_the_files_tokens_keep_their_seconds_and_kept_sound_is_bright(
    open_page: Callable[..., Any], traces: list[Trace], tmp_path: Path
) -> None:
    trace = traces[0]
    omnidrop.report(trace, tmp_path / "page.html")
    page = ready(open_page((tmp_path / "page.html").as_uri()))
    last = scores_of(trace, 15)
    best = sorted(last, key=lambda position: -last[position])
    rows = page.locator("#panel-0 .ranking li button").all()
    assert [row.inner_text().split(",")[0] for row in rows] == [f"{trace.layout.second[0, p]:.1f} s" for p in best]
    light = page.locator(SOUND).evaluate(
        """canvas => Array.from({ length: 80 }, (_, token) => {
            const x = Math.floor((token + 0.5) * canvas.width / 80);
            const [red, green, blue] = canvas.getContext("2d").getImageData(x, 20, 1, 1).data;
            return red + green + blue;
        })"""
    )
    kept = {number for number, position in enumerate(media_of(trace, "audio")) if position in last}
    dark = max(light[number] for number in range(80) if number not in kept and number != 60)  # 60: the cursor at 12 s
    assert len(kept) == 2 and min(light[number] for number in kept) > 1.5 * dark


def test_the_best_scores_are_listed_and_lead_to_their_tokens(page: Any, traces: list[Trace]) -> None:
    set_layer(page, 8)
    scores = scores_of(traces[0], 8)
    rows = page.locator("#panel-0 .ranking li button")
    best = sorted(scores, key=lambda position: -scores[position])[:8]
    assert rows.count() == 8
    for row, position in zip(rows.all(), best, strict=True):
        second = f"{float(traces[0].layout.second[0, position]):.1f} s"
        text = row.inner_text()
        assert text.startswith(second) and float(text.split()[-1]) == pytest.approx(scores[position], rel=0.006)
    before = pixels(page, STAGE)
    rows.nth(1).click()
    assert now(page) == ("8", f"{float(traces[0].layout.second[0, best[1]]):.1f}") and pixels(page, STAGE) != before
    assert f"{len(scores)} tokens with a score in layer 8" in page.locator("#panel-0 .ranking").inner_text()


# a part of the clip --------------------------------------------------------------------------------------------------


def test_a_range_of_seconds_fills_the_view(page: Any) -> None:
    whole = pixels(page, SOUND)
    page.locator("#from").fill("4")
    page.locator("#to").fill("8")
    page.locator("#to").press("Enter")
    assert page.locator("#panel-0 .sheet canvas:visible").count() == 4
    assert page.locator("#second").get_attribute("min") == "4" and page.locator("#second").get_attribute("max") == "8"
    assert now(page)[1] == "8.0" and pixels(page, SOUND) != whole
    box = page.locator(SOUND).bounding_box()
    page.locator(SOUND).click(position={"x": box["width"] / 2, "y": 20})
    assert float(now(page)[1]) == pytest.approx(6.0, abs=0.05)
    expect(page.locator("#panel-0 .plot .range").first).to_be_visible()
    page.locator("#whole").click()
    assert page.locator("#panel-0 .sheet canvas:visible").count() == 16 and page.locator("#whole").is_disabled()


@pytest.mark.parametrize("where", ["sound", "map"])
def test_a_drag_zooms_in(page: Any, where: str) -> None:
    if where == "sound":
        page.locator(SOUND).scroll_into_view_if_needed()
        box, (left, width) = page.locator(SOUND).bounding_box(), (0, 1)
        y = box["y"] + 30
    else:
        left, top, width, height = page.evaluate(
            "JSON.parse(document.getElementById('data').textContent).views[0].timeline.axes[0]"
        )
        plot = page.locator("#panel-0 [data-plot=timeline]")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        y = box["y"] + (top + height / 2) * box["height"]
    at = [box["x"] + (left + width * second / 16) * box["width"] for second in (4, 12)]
    page.mouse.move(at[1], y)
    page.mouse.down()
    page.mouse.move(at[0] + 30, y, steps=3)
    page.mouse.move(at[0], y)
    page.mouse.up()
    low, high = (float(page.locator(name).input_value()) for name in ("#from", "#to"))
    assert low == pytest.approx(4, abs=0.15) and high == pytest.approx(12, abs=0.15)


# two prompts, token by token -----------------------------------------------------------------------------------------


def test_the_difference_is_that_of_the_two_traces(page: Any, traces: list[Trace]) -> None:
    expect(page.locator("#difference")).to_be_hidden()
    page.locator("#compare").check()
    media = set(media_of(traces[0], "audio") + media_of(traces[0], "video"))
    for pair in ((0, 1), (0, 2)):
        page.locator("#side-b").select_option(str(pair[1]))
        for layer in (0, 8, 10):
            set_layer(page, layer)
            a, b = (media & set(trace_layer(traces[number], layer)) for number in pair)
            expected = {"both": len(a & b), "a": len(a - b), "b": len(b - a), "neither": len(media - a - b)}
            shown = {
                part.get_attribute("data-kind"): int(part.get_attribute("data-value"))
                for part in page.locator("#difference .now [data-kind]").all()
            }
            assert shown == expected
    stage = page.locator("#difference .pictures .stage")
    set_layer(page, 8)
    page.locator("#panel-0 .sheet canvas").nth(0).click()
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] / 6, "y": box["height"] / 2})
    tip = page.locator("#tip").inner_text()
    assert tip.startswith("row 2, column 1\nA: last layer: ") and "\nB: " in tip
    assert re.search(r"both \d+, A only \d+, B only \d+, neither \d+ of 9 patches", stage.get_attribute("aria-label"))
    bars = page.locator("#difference .by-layer")
    width = bars.bounding_box()["width"]
    bars.click(position={"x": width * 4.5 / 16, "y": 20})
    assert now(page)[0] == "4"
    page.locator("#side-b").select_option("0")  # itself: the other side makes room
    assert page.locator("#side-a").input_value() != "0"
    page.locator("#compare").uncheck()
    expect(page.locator("#difference")).to_be_hidden()


def test_other_clips_stand_apart_and_are_not_compared(
    open_page: Callable[..., Any], traces: list[Trace], tmp_path: Path
) -> None:
    model, processor = omnidrop.load()
    clip = omnidrop.media.read(omnidrop.loading.TINY.parent / "demo.mp4")
    short = replace(clip, path="short.mp4", frames=clip.frames[:16], times=clip.times[:16], seconds=8.0,
                    waveform=clip.waveform[: 8 * clip.sample_rate])  # fmt: skip
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3), scores=True) as other:
        model(**omnidrop.build(processor, short, QUESTIONS[0]))
    shown = [traces[0], other, traces[1]]
    omnidrop.report(shown, tmp_path / "page.html", titles=QUESTIONS, media=[[clip], [short], [clip]])
    page = ready(open_page((tmp_path / "page.html").as_uri() + "#show=0,1,2"))
    assert page.locator("h2.clip").all_inner_texts()[1].startswith("short.mp4 another clip")
    assert page.locator("[data-group='0'] .panel").count() == 2 and page.locator("[data-group='1'] .panel").count() == 1
    page.locator("#compare").check()
    assert [page.locator(side).input_value() for side in ("#side-a", "#side-b")] == ["0", "2"]
    assert page.locator("#side-b option[value='1']").count() == 0  # nothing to compare it with
    page.get_by_role("checkbox", name=QUESTIONS[1]).uncheck()
    expect(page.locator("h2.clip").nth(1)).to_be_hidden()


# sound ---------------------------------------------------------------------------------------------------------------

RECORD = """() => {
window.heard = { gains: [], starts: [] };
for (const name of ["setValueAtTime", "linearRampToValueAtTime"]) {
    const original = AudioParam.prototype[name];
    AudioParam.prototype[name] = function (value, at) {
        heard.gains.push([name, value, at]);
        return original.call(this, value, at);
    };
}
const cancel = AudioParam.prototype.cancelScheduledValues;
AudioParam.prototype.cancelScheduledValues = function (at) { heard.gains = []; return cancel.call(this, at); };
const begin = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (at, offset) {
    heard.starts.push({ offset, seconds: this.buffer.duration, now: this.context.currentTime });
    return begin.call(this, at, offset);
};
}"""


def until(page: Any, condition: str) -> None:
    """Waits; Playwright's own `wait_for_function` evaluates a text in the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")


def opened(page: Any) -> list[list[float]]:
    """The stretches in which the gain is up, on the clock of the context, as scheduled."""
    gains = page.evaluate("heard.gains")
    ups = [at for name, value, at in gains if name == "linearRampToValueAtTime" and value == 1]
    downs = [at for name, value, at in gains if name == "linearRampToValueAtTime" and value == 0]
    return [[up, down] for up, down in zip(ups, downs, strict=True)]


def kept_sound(trace: Trace, layer: int) -> list[list[float]]:
    """[start, end] of every stretch of kept sound, from the trace."""
    found: list[list[float]] = []
    kept = set(trace_layer(trace, layer))
    for number, position in enumerate(media_of(trace, "audio")):
        if position in kept:
            if found and abs(found[-1][1] - 0.2 * number) < 1e-6:
                found[-1][1] += 0.2
            else:
                found.append([0.2 * number, 0.2 * number + 0.2])
    return found


def test_what_a_layer_keeps_can_be_heard(page: Any, traces: list[Trace]) -> None:
    page.evaluate(RECORD)
    set_layer(page, 8)
    page.locator("#second").evaluate("e => { e.value = 0; e.dispatchEvent(new Event('input')); }")
    button = page.locator("#panel-0 .sound [data-play=kept]")
    button.click()
    until(page, "heard.starts.length > 0")
    (start,) = page.evaluate("heard.starts")
    assert start["offset"] == 0 and start["seconds"] == pytest.approx(16, abs=0.05)
    wanted = kept_sound(traces[0], 8)
    assert len(wanted) > 3
    began = opened(page)[0][0] - wanted[0][0]
    for got, expected in zip(opened(page), wanted, strict=True):
        assert [value - began for value in got] == pytest.approx(expected, abs=0.01)
    expect(page.locator("#second-value")).to_have_text(re.compile(r"^[1-9]\.\d"))  # the view goes along
    assert button.inner_text() == "Pause"
    set_layer(page, 12)
    remaining = [stretch for stretch in kept_sound(traces[0], 12) if stretch[1] > float(now(page)[1])]
    assert len(opened(page)) == pytest.approx(len(remaining), abs=1)
    button.click()
    assert button.inner_text() == "Play what this layer keeps"
    stopped = now(page)[1]
    page.locator("#panel-0 .sound [data-play=all]").click()
    until(page, "heard.starts.length > 1")
    assert page.evaluate("heard.starts[1].offset") == pytest.approx(float(stopped), abs=0.06)
    assert [value for _, value, _ in page.evaluate("heard.gains")] == [1]
    page.locator("#panel-0 .sound [data-play=all]").click()


def test_sound_that_cannot_be_decoded_is_said(page: Any) -> None:
    page.evaluate("() => { AudioContext.prototype.decodeAudioData = () => Promise.reject(new Error('no')); }")
    button = page.locator("#panel-0 .sound [data-play=all]")
    button.click()
    expect(page.locator("#live")).to_have_text("This browser cannot play the sound of this page.")
    assert button.inner_text() == "Play all" and page.locator("#tip").is_visible()


def test_the_sound_in_the_page_is_the_clips_to_the_millisecond(page: Any) -> None:
    clip = omnidrop.media.read(omnidrop.loading.TINY.parent / "demo.mp4")
    samples = page.evaluate(
        """async () => {
            const text = JSON.parse(document.getElementById("data").textContent).audio[0];
            const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            const sound = await new OfflineAudioContext(1, 16, 16000).decodeAudioData(bytes.buffer);
            return Array.from(sound.getChannelData(0));
        }"""
    )
    heard = torch.tensor(samples)
    given = torch.from_numpy(clip.waveform[: len(heard)])
    shifts = range(-1600, 1601, 8)
    middle = slice(1600, len(given) - 1600)
    match = [float((heard.roll(-shift)[middle] * given[middle]).sum()) for shift in shifts]
    assert abs(shifts[max(range(len(match)), key=match.__getitem__)]) <= 16
    again = heard[middle] - given[middle]
    assert float(again.square().mean() / given.square().mean()) < 0.1


# paper ---------------------------------------------------------------------------------------------------------------


def test_on_paper_there_are_no_controls_and_a_prompt_takes_a_page(page: Any) -> None:
    page.emulate_media(media="print")
    for name in (".controls", ".options", ".chooser", ".guide", "button:not(.ranking button)", "input"):
        assert not any(part.is_visible() for part in page.locator(name).all()), name
    assert page.locator("#paper").inner_text() == "Layer 15, second 12.0."
    pdf = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 2  # two prompts are on view
