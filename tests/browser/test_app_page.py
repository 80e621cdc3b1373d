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
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser").expect

pytestmark = pytest.mark.slow

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


def talk(page: Any) -> None:
    """Ask for an answer without an end, and wait for its first word."""
    ask(page, "what talks ?")
    page.locator("#od-pruned .od-answer", has_text=re.compile(r"\S")).wait_for()


def finished(page: Any) -> None:
    """Both answers and the pictures are there, and nothing waits."""
    page.locator("iframe.od-frame").wait_for()
    page.wait_for_function("!document.querySelector('[aria-busy=true].od-card')")


def expect_in_view(page: Any, selector: str) -> None:
    """Its top comes to lie in the upper half of the window."""
    page.wait_for_function(
        """selector => {
          const top = document.querySelector(selector).getBoundingClientRect().top;
          return top >= -1 && top < innerHeight / 2;
        }""",
        arg=selector,
    )


def choose(page: Any, label: str, option: str, place: int = 0) -> None:
    page.get_by_label(label).nth(place).click()
    page.get_by_role("option", name=option).click()


def keep(page: Any, setting: str) -> dict[str, float]:
    """min, max and value of a setting's slider."""
    slider = f"document.querySelector('#od-{setting}-keep input[type=range]')"
    return page.evaluate(f"(slider => ({{ min: +slider.min, max: +slider.max, value: +slider.value }}))({slider})")


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
    assert number(page, "pruned", "Kept, mean over the layers").startswith("30.0 %")
    assert number(page, "full", "Kept, mean over the layers") == "100.0 %"
    assert "×" in number(page, "pruned", "KV cache")
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
    ask(page, RIGHT)
    finished(page)
    assert (
        answer(page, "pruned") == "blue" and page.locator(".od-verdict").count() == 0
    )  # nobody knows the right answer
    assert server.files() == []


def test_an_empty_question_is_refused_in_a_sentence(visit: Callable[..., Any]) -> None:
    page = visit()
    ask(page, "")
    refusal = page.get_by_role("alert").filter(has_text="Not answered: there is no question; write one")
    refusal.wait_for()
    expect_in_view(page, "#od-said")
    assert page.locator("#od-stop").is_disabled()


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
    buttons = "['#od-ask', '#od-stop', '#od-ask', '#od-example-0', '#od-draw']"
    page.evaluate(f"() => {{ for (let i = 0; i < 20; i++) document.querySelector({buttons}[i % 5]).click(); }}")
    page.get_by_text("This application is currently busy. Please try again.").first.wait_for()
    idle(page)
    page.said.clear()  # the browser tells the console about each refusal
    page.locator("#od-example-0").click()
    idle(page)
    assert "the shipped clip" in page.locator("#od-clip").inner_text()
    ask(page, RIGHT)
    finished(page)
    assert answer(page, "pruned") == answer(page, "full") == "blue" and server.process.poll() is None


def test_stop_ends_an_answer(visit: Callable[..., Any], server: Server) -> None:
    page, before = visit(), server.said.count("stopped")
    talk(page)
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
    ask(page, RIGHT)
    finished(page)
    assert server.wait(lambda: server.files() == [])


def live(page: Any) -> Any:
    """The tab Live, with a running stream of the browser's test picture and beep of which something is held."""
    page.get_by_role("tab", name="Live").click()
    page.locator("#od-live-start").click()
    page.wait_for_function("/Tokens held[^0-9]*[1-9]/.test(document.querySelector('#od-live-state').innerText)")
    return page.locator("#od-live-answers .od-card")


def seconds_running(page: Any) -> float:
    return float(page.locator("#od-live-state dd").first.inner_text().removesuffix(" s"))


def test_camera_and_microphone_are_read_while_they_come(visit: Callable[..., Any], server: Server) -> None:
    page = visit(permissions=["camera", "microphone"])
    answers = live(page)
    assert page.locator("#od-live-video").evaluate("video => video.videoWidth") > 0
    state = page.locator("#od-live-state").inner_text()
    assert "Without sound" not in state and "Without pictures" not in state and server.files() == []
    page.locator("#od-live-question textarea").fill(RIGHT)
    page.locator("#od-live-question textarea").press("Enter")
    answers.filter(has_text=re.compile(r"kept \d+\.\d %, first token")).wait_for()
    assert answers.locator("h3").inner_text() == RIGHT and answers.locator(".od-answer").inner_text().strip()
    then = seconds_running(page)
    page.wait_for_function(f"parseFloat(document.querySelector('#od-live-state dd').innerText) > {then + 1}")
    page.locator("#od-live-standing textarea").fill("how many sounds ?")
    page.locator("#od-live-watch").click()
    answers.filter(has_text="standing question").first.wait_for()
    assert server.children() and server.files() == []
    page.locator("#od-live-stop").click()
    page.locator("#od-live-state").get_by_text("Not running.").wait_for()
    assert server.wait(lambda: not server.children())
    assert page.locator("#od-live-video").evaluate("video => video.srcObject") is None
    ask_of_clip = page.get_by_role("tab", name="Clip", exact=True)
    ask_of_clip.click()
    ask(page, RIGHT)
    finished(page)
    assert answer(page, "pruned") == "blue"


def test_closing_the_page_ends_its_stream(visit: Callable[..., Any], server: Server) -> None:
    page = visit(permissions=["camera", "microphone"])
    live(page)
    assert server.children()
    page.goto("about:blank")
    assert server.wait(lambda: not server.children())


def test_a_camera_that_is_not_allowed_and_a_page_that_is_not_secure_are_said(visit: Callable[..., Any]) -> None:
    page = visit(width=360, height=780)
    refuse = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); }"
    page.evaluate(f"() => {{ {refuse}; }}")
    page.get_by_role("tab", name="Live").click()
    page.locator("#od-live-start").click()
    page.locator("#od-live-said").get_by_text("Not started: NotAllowedError").wait_for()
    assert page.locator("#od-live-start").is_enabled()
    page.locator("#od-live-ask").click()
    page.locator("#od-live-said").get_by_text("Start the stream first.").wait_for()
    page.evaluate("Object.defineProperty(window, 'isSecureContext', { value: false })")
    page.locator("#od-live-start").click()
    page.locator("#od-live-said").get_by_text("http://localhost) or over HTTPS only").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


# help and convenience -----------------------------------------------------------------------------------------------


def test_enter_asks_and_shift_enter_starts_a_new_line(visit: Callable[..., Any]) -> None:
    page = visit()
    field = page.locator("#od-question textarea")
    expect(page.get_by_text("Enter asks. Shift+Enter starts a new line.")).to_be_visible()
    field.fill("what color")
    field.press("Shift+Enter")
    field.press_sequentially("is the circle ?")
    assert field.input_value() == "what color\nis the circle ?" and page.locator(".od-answer").count() == 0
    field.press("Enter")
    finished(page)
    assert answer(page, "pruned") == "blue" and field.input_value() == "what color\nis the circle ?"


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_answers_come_into_view(visit: Callable[..., Any], size: tuple[int, int]) -> None:
    page = visit(width=size[0], height=size[1])
    page.locator("#od-question textarea").press("Enter")
    expect_in_view(page, "#od-answers")
    finished(page)
    expect_in_view(page, "#od-answers")


def test_stop_can_be_pressed_only_while_there_is_something_to_stop(visit: Callable[..., Any], server: Server) -> None:
    page, before = visit(), server.said.count("stopped")
    stop = page.locator("#od-stop")
    assert stop.is_disabled()
    talk(page)
    assert stop.is_enabled()
    stop.click()
    page.get_by_text("Stopped.").wait_for()
    page.wait_for_function("document.querySelector('#od-stop').disabled")
    assert server.wait(lambda: server.said.count("stopped") == before + 1)
    ask(page, RIGHT)
    finished(page)
    page.wait_for_function("document.querySelector('#od-stop').disabled")


def test_who_waits_sees_the_place_in_the_queue_and_legible_cards(visit: Callable[..., Any]) -> None:
    first, second = visit(), visit()
    talk(first)
    ask(second, RIGHT)
    second.locator("#od-status").get_by_text(re.compile(r"queue: \d+/\d+")).wait_for()
    assert second.locator("#od-answers").evaluate(OPACITY) == 1.0 and second.locator("#od-stop").is_enabled()
    first.locator("#od-stop").click()
    finished(second)
    assert answer(second, "pruned") == "blue"


def test_who_waits_can_leave_the_queue(visit: Callable[..., Any]) -> None:
    first, second = visit(), visit()
    talk(first)
    ask(second, RIGHT)
    second.locator("#od-status").get_by_text("queue:").wait_for()
    second.locator("#od-stop").click()
    second.get_by_text("Stopped.").wait_for()
    first.locator("#od-stop").click()
    idle(first)
    idle(second)
    assert second.locator("iframe.od-frame").count() == 0


# the product of the opacities of an element and of all around it
OPACITY = """element => {
  let product = 1;
  for (; element; element = element.parentElement) product *= +getComputedStyle(element).opacity;
  return product;
}"""


def test_cards_stay_legible_while_it_works(visit: Callable[..., Any]) -> None:
    page = visit()
    talk(page)
    assert page.locator("#od-status").inner_text().startswith("Answer 1 of 2: OmniDrop, keep 0.3")
    for card in ("#od-pruned", "#od-full"):
        assert page.locator(card).evaluate(OPACITY) == 1.0
    page.locator("#od-stop").click()
    page.get_by_text("Stopped.").wait_for()


def test_two_settings_are_compared(visit: Callable[..., Any]) -> None:
    page = visit()
    expect(page.locator("#od-other-keep")).to_be_hidden()
    page.get_by_label("Compare with a second setting").check()
    page.locator("#od-other-keep").wait_for()
    choose(page, "Method", "Tuned (input + layers)", 1)
    ask(page)
    finished(page)
    assert page.locator(".od-card h3").all_inner_texts() == ["First setting", "Second setting", "All tokens"]
    assert page.locator("#od-second .od-by").inner_text() == "Tuned, keep 0.1 (mean over the layers)"
    assert number(page, "pruned", "Kept, mean over the layers") == "30.0 % 67.2 of 224 tokens"
    assert number(page, "second", "Kept, mean over the layers").startswith("10.")
    inside = page.frame_locator("iframe.od-frame")
    expect(inside.get_by_text(f"{RIGHT} OmniDrop 0.3 layers").first).to_be_visible()
    expect(inside.get_by_text(f"{RIGHT} Tuned 0.1 layers").first).to_be_visible()


def test_the_same_setting_twice_is_refused(visit: Callable[..., Any]) -> None:
    page = visit()
    page.get_by_label("Compare with a second setting").check()
    page.locator("#od-other-keep input[type=number]").fill("0.3")
    page.locator("#od-other-keep input[type=number]").press("Tab")
    ask(page)
    page.get_by_role("alert").filter(has_text="Not answered: both settings are the same").wait_for()


def test_method_and_unit_are_explained_and_the_slider_follows(visit: Callable[..., Any]) -> None:
    page = visit()
    about = page.locator("#od-first-about")
    assert "OmniDrop." in about.inner_text() and "reaches 0.03 to 1.00" in about.inner_text()
    assert keep(page, "first") == {"min": 0.03, "max": 1, "value": 0.3}
    choose(page, "Method", "PyramidDrop (layers)")
    about.get_by_text("PyramidDrop.").wait_for()
    page.wait_for_function("document.querySelector('#od-first-keep input[type=range]').min > 0.2")
    low = keep(page, "first")["min"]
    choose(page, "What keep counts", "kv: bytes of the cache")
    about.get_by_text("bytes of keys and values").wait_for()
    page.wait_for_function(f"document.querySelector('#od-first-keep input[type=range]').min > {low}")
    now = keep(page, "first")
    assert now["value"] >= now["min"]
    ask(page)
    finished(page)
    for link in page.locator(".od-head a, #od-first-about a").all():
        assert link.get_attribute("href").startswith("https://") and "noopener" in link.get_attribute("rel")


def test_examples_have_thumbnails_and_bring_their_questions(visit: Callable[..., Any]) -> None:
    page = visit()
    for place in range(3):
        image = page.locator(f"#od-example-{place}").evaluate("b => getComputedStyle(b, '::before').backgroundImage")
        assert image.startswith('url("data:image/')
    page.get_by_role("button", name="Sound alone").click()
    page.locator("#od-clip audio").wait_for()
    assert "80 audio and video tokens" in page.locator("#od-clip").inner_text()
    page.get_by_role("button", name="Pictures alone").click()
    page.locator("#od-clip video").wait_for()
    assert "144 audio and video tokens" in page.locator("#od-clip").inner_text()
    page.wait_for_function("document.querySelector('#od-question textarea').value === 'what color is the circle ?'")
    assert "sound" not in page.locator("#od-known").inner_text()
    ask(page)
    finished(page)
    assert answer(page, "pruned") == "blue"


def test_report_and_trace_are_saved_without_the_server(visit: Callable[..., Any], tmp_path: Path) -> None:
    from omnidrop import Trace

    page = visit()
    ask(page)
    finished(page)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    saved = {}
    for label in ("Report (HTML)", "Trace (JSON)"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=label).click()
        saved[label] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved[label])
    assert RIGHT in saved["Report (HTML)"].read_text() and saved["Report (HTML)"].name == "omnidrop-report.html"
    trace = Trace.load(saved["Trace (JSON)"])
    assert trace.keep == pytest.approx(0.3, abs=0.01) and trace.scores is not None
    assert not [url for url in requests if not url.startswith("blob:")]


def test_earlier_answers_are_listed(visit: Callable[..., Any]) -> None:
    page = visit()
    for question in (RIGHT, "when is the triangle ?"):
        ask(page, question)
        finished(page)
        idle(page)
    rows = page.locator(".od-past tbody tr")
    rows.nth(3).wait_for()
    newest = rows.first.inner_text()
    assert rows.count() == 4 and "when is the triangle ?" in newest and "14s" in newest


def test_the_left_column_is_in_line(visit: Callable[..., Any]) -> None:
    page = visit()
    lefts = [page.locator(each).first.bounding_box()["x"] for each in (
        "#od-example-0", ".od-name", "#od-clip video", "#od-known", "#od-answers", ".od-head h1")]  # fmt: skip
    assert max(lefts) - min(lefts) <= 1
