"""`omnidrop app` in a real browser: the right answer, files and recordings, refusals, quick clicks, sizes, no network.

After each test `open_page` itself fails it for any console error and any request that would have left the machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from app_server import Server

pytest.importorskip("av")
pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'omnidrop[app]'")

DEMO = Path(__file__).parents[2] / "src" / "omnidrop" / "assets" / "demo.mp4"
PATIENCE = 60_000  # milliseconds: an upper bound for a busy machine, nothing is timed
MIB = 1 << 20
RIGHT = "what color is the circle ?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("app"), "--max-upload-mb", "1", "--max-seconds", "30")
    yield running
    running.end()


@pytest.fixture
def visit(server: Server, open_page: Callable[..., Any]) -> Callable[..., Any]:
    """visit(**options of open_page) -> the page, ready for clicks."""

    def opened(**options: Any) -> Any:
        page = open_page(server.url, **options)
        page.set_default_timeout(PATIENCE)
        page.streams = 0  # open streams of events: none when all that was asked for has come
        page.on("request", lambda request: _count(page, request, 1))
        page.on("requestfinished", lambda request: _count(page, request, -1))
        page.on("requestfailed", lambda request: _count(page, request, -1))
        page.locator("#od-ask").wait_for()
        return page

    return opened


def _count(page: Any, request: Any, change: int) -> None:
    if "queue/data" in request.url:
        page.streams += change


def idle(page: Any) -> None:
    """The server owes this page nothing."""
    for _ in range(PATIENCE // 200):
        page.wait_for_timeout(200)
        if page.streams == 0:
            return
    pytest.fail("the page still waits for the server")


def ask(page: Any, question: str | None = None) -> None:
    if question is not None:
        page.locator("#od-question textarea").fill(question)
    page.locator("#od-ask").click()


def finished(page: Any) -> None:
    """Both answers and the pictures are there, and nothing waits."""
    page.locator("iframe.od-frame").wait_for()
    page.wait_for_function("!document.querySelector('[aria-busy=true].od-card')")


def answer(page: Any, side: str) -> str:
    return page.locator(f"#od-{side} .od-answer").inner_text()


def number(page: Any, side: str, name: str) -> str:
    row = page.locator(f"#od-{side} dt", has_text=re.compile(f"^{name}$"))
    return row.locator("xpath=following-sibling::dd[1]").inner_text()


def test_a_needle_question_is_answered_right_with_pruning(visit: Callable[..., Any]) -> None:
    page = visit()
    ask(page)
    finished(page)
    assert answer(page, "pruned") == answer(page, "full") == "blue"
    assert page.locator(".od-yes").all_inner_texts() == ["right", "right"]
    assert number(page, "pruned", "Kept, mean over the layers") == "30.0 %"
    assert number(page, "full", "Kept, mean over the layers") == "100.0 %"
    assert "of all tokens" in number(page, "pruned", "KV cache")
    inside = page.frame_locator("iframe.od-frame")
    assert inside.get_by_text(RIGHT).first.is_visible() and inside.locator("#layer").is_visible()
    page.locator("iframe.od-frame").scroll_into_view_if_needed()
    tall = inside.locator("html").evaluate("page => page.offsetHeight")
    assert tall > 900  # else the frame's first height would do
    page.wait_for_function(  # no scroll bar inside the page's own
        "tall => document.querySelector('iframe.od-frame').offsetHeight >= tall", arg=tall
    )


def test_the_frame_is_as_tall_as_it_says_and_believes_no_other(visit: Callable[..., Any]) -> None:
    page = visit()
    ask(page)
    finished(page)
    page.evaluate("window.postMessage({ omnidropHeight: 77 }, '*')")  # not from the frame
    page.frames[-1].evaluate("parent.postMessage({ omnidropHeight: 1234 }, '*')")
    page.wait_for_function("document.querySelector('iframe.od-frame').style.height === '1234px'")


def test_words_appear_one_after_the_other(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate(
        """() => {
          window.seen = [];
          const look = () => {
            const said = document.querySelector("#od-pruned .od-answer")?.innerText.trim();
            if (said && window.seen.at(-1) !== said) window.seen.push(said);
          };
          new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
        }"""
    )
    page.locator("#od-known").get_by_text("spell the pattern ?").click()
    page.wait_for_function("document.querySelector('#od-question textarea').value === 'spell the pattern ?'")
    ask(page)
    finished(page)
    seen = page.evaluate("window.seen")
    assert len(seen) >= 3 and all(later.startswith(earlier) for earlier, later in pairwise(seen))


def test_another_clip_brings_its_own_questions(visit: Callable[..., Any]) -> None:
    page = visit()
    ask(page)
    finished(page)
    page.get_by_role("button", name="Draw another clip").click()
    page.get_by_text(re.compile(r"drawn clip \d+ \(16 s\)")).wait_for()
    assert page.locator("iframe.od-frame").count() == 0  # what was kept of the other clip is gone
    ask(page)
    finished(page)
    assert page.locator(".od-verdict").count() == 2


def test_a_bad_file_is_refused_with_the_right_words_and_a_good_one_is_taken(
    visit: Callable[..., Any], server: Server, tmp_path: Path
) -> None:
    page = visit()
    page.get_by_role("tab", name="Your file").click()
    (tmp_path / "notes.mp4").write_text("no film\n" * 50)
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.mp4")
    refusal = page.get_by_role("alert").filter(has_text="notes.mp4 is")
    refusal.wait_for()
    assert "video, audio or image file" in refusal.inner_text() and str(server.folder) not in refusal.inner_text()
    assert "the shipped clip" in page.locator("#od-clip").inner_text()  # what was chosen still is

    (tmp_path / "big.mp4").write_bytes(bytes(MIB + 1))
    page.locator("input[type=file]").first.set_input_files(tmp_path / "big.mp4")
    page.get_by_text(re.compile("exceed the maximum allowed size of 1(.0)? MB", re.IGNORECASE)).first.wait_for()

    page.locator("input[type=file]").first.set_input_files(DEMO)
    page.locator("#od-clip").get_by_text("demo.mp4 (16.0 s)").wait_for()
    assert refusal.count() == 0
    page.said.clear()  # Gradio asks how far an upload is, and complains when it is done already
    ask(page, RIGHT)
    finished(page)
    assert (
        answer(page, "pruned") == "blue" and page.locator(".od-verdict").count() == 0
    )  # nobody knows the right answer
    assert server.files() == []


def test_a_target_out_of_reach_is_refused_with_the_range(visit: Callable[..., Any]) -> None:
    page = visit()
    page.get_by_label("Method").click()
    page.get_by_role("option", name="FastV (layers)").click()
    page.locator("#od-keep input[type=number]").fill("0.05")
    page.locator("#od-keep input[type=number]").press("Tab")
    ask(page)
    page.get_by_role("alert").filter(has_text="FastV after layer 2 keeps 0.188 to 1.000").wait_for()
    page.wait_for_function("!document.querySelector('[aria-busy=true].od-card')")


def test_an_unforeseen_error_is_shown_and_the_page_goes_on(visit: Callable[..., Any]) -> None:
    page = visit()
    ask(page, "what breaks ?")
    page.get_by_text("a bug that nobody foresaw").first.wait_for()
    page.wait_for_function("!document.querySelector('[aria-busy=true].od-card')")
    page.said.clear()
    ask(page, RIGHT)
    finished(page)
    assert answer(page, "pruned") == "blue"


def test_twenty_quick_clicks(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    page.locator("#od-ask").click(click_count=20)
    finished(page)
    idle(page)
    assert answer(page, "pruned") == answer(page, "full") == "blue"


def test_twenty_clicks_here_and_there_in_one_moment(visit: Callable[..., Any], server: Server) -> None:
    """A script's clicks: all before the page could answer one. What does not fit into the queue is refused politely."""
    page = visit()
    buttons = "['#od-ask', '#od-stop', '#od-ask', '#od-shipped', '#od-draw']"
    page.evaluate(f"() => {{ for (let i = 0; i < 20; i++) document.querySelector({buttons}[i % 5]).click(); }}")
    page.get_by_text("This application is currently busy. Please try again.").first.wait_for()
    idle(page)
    page.said.clear()  # the browser tells the console about each refusal
    page.locator("#od-shipped").click()
    idle(page)
    assert "the shipped clip" in page.locator("#od-clip").inner_text()
    ask(page, RIGHT)
    finished(page)
    assert answer(page, "pruned") == answer(page, "full") == "blue" and server.process.poll() is None


def test_stop_ends_an_answer(visit: Callable[..., Any], server: Server) -> None:
    page, before = visit(), server.said.count("stopped")
    ask(page, "what talks ?")
    page.locator("#od-pruned .od-answer").wait_for()
    page.locator("#od-stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert server.wait(lambda: server.said.count("stopped") == before + 1)
    page.wait_for_function("!document.querySelector('[aria-busy=true].od-card')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(visit: Callable[..., Any], dark: bool) -> None:
    page = visit(width=360, height=780, dark=dark)
    ask(page)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for card in ("#od-pruned", "#od-full", "iframe.od-frame"):
        box = page.locator(card).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["width"] > 250


def test_it_works_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#od-question textarea").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "od-ask":
            break
    page.keyboard.press("Enter")
    finished(page)
    assert answer(page, "pruned") == "blue"


def test_a_recording_of_camera_and_microphone_is_taken(visit: Callable[..., Any], server: Server) -> None:
    """With the browser's own test picture and beep in place of a camera and a microphone."""
    page = visit(permissions=["camera", "microphone"])
    if not page.evaluate("navigator.mediaDevices.enumerateDevices().then(all => all.length)"):
        pytest.skip("this browser has no test camera: start it with --use-fake-device-for-media-stream")
    page.get_by_role("tab", name="Microphone").click()
    page.locator("#od-microphone").get_by_role("button", name="Record").click()
    page.wait_for_timeout(1500)
    page.locator("#od-microphone button:visible", has_text="Stop").click()
    page.locator("#od-clip audio").wait_for()
    page.get_by_role("tab", name="Camera").click()
    page.locator("#od-camera").get_by_role("button", name="Click to Access Webcam").click()
    page.locator("#od-camera button", has_text="Record").click()
    page.wait_for_timeout(4000)  # on a busy machine the browser's encoder needs a while to give anything
    page.locator("#od-camera button", has_text="Stop").click()
    page.locator("#od-clip video").wait_for()
    idle(page)
    page.said.clear()
    ask(page, RIGHT)
    finished(page)
    assert server.wait(lambda: server.files() == [])
