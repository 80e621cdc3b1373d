"""The page's server, spoken to without a browser: the queue, people who leave, files that go, errors, no telemetry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from app_server import WORD, Server, Visitor

pytest.importorskip("av")
pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'omnidrop[app]'")

pytestmark = pytest.mark.slow
httpx = pytest.importorskip("httpx")

Visit = Callable[[], "Visitor"]
RIGHT = "what color is the circle ?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("app"), "--queue", "3", "--max-upload-mb", "1", "--max-seconds", "30")
    yield running
    running.end()


@pytest.fixture
def visit(server: Server) -> Iterator[Callable[[], Visitor]]:
    """visit() -> a new visitor of the page."""
    with ExitStack() as visitors:
        yield lambda: visitors.enter_context(closing(Visitor(server)))


def test_it_says_where_it_is(server: Server) -> None:
    assert server.ready["format"] == "omnidrop.app" and server.url.startswith("http://127.0.0.1:")
    page = httpx.get(server.url, trust_env=False)
    assert page.status_code == 200 and "connect-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(f"{server.url}docs", trust_env=False).status_code == 404


def test_both_answers_are_streamed(visit: Visit) -> None:
    visitor = visit()
    assert visitor.ask(RIGHT).status_code == 200
    messages = list(visitor.follow())
    text = json.dumps(messages)
    assert text.count("process_generating") >= 4 and ">blue</p>" in text and ">right</p>" in text
    assert messages[-2]["msg"] == "process_completed" and messages[-2]["success"]


def test_a_full_queue_refuses_politely_and_the_rest_is_answered(visit: Visit) -> None:
    first = visit()
    first.ask("what talks ?")
    stream = first.follow()
    next(message for message in stream if WORD in json.dumps(message))
    visitors = [visit() for _ in range(5)]
    answers = [visitor.ask(RIGHT) for visitor in visitors]
    assert [answer.status_code for answer in answers] == [200] * 3 + [503] * 2
    assert "Queue is full" in answers[-1].text
    stream.close()  # the first one leaves: the others get their turn
    for visitor in visitors[:3]:
        assert list(visitor.follow())[-2]["success"]


def test_the_job_of_who_leaves_is_stopped(server: Server, visit: Visit) -> None:
    before = server.said.count("stopped")
    visitor = visit()
    visitor.ask("what talks ?")
    stream = visitor.follow()
    next(message for message in stream if WORD in json.dumps(message))
    stream.close()
    visitor.close()
    assert server.wait(lambda: server.said.count("stopped") == before + 1)


def test_an_unforeseen_error_is_shown_and_logged_and_the_server_lives(server: Server, visit: Visit) -> None:
    visitor = visit()
    visitor.ask("what breaks ?")
    last = [message for message in visitor.follow() if message["msg"] == "process_completed"][-1]
    assert not last["success"] and "a bug that nobody foresaw" in json.dumps(last)
    assert "ZeroDivisionError: a bug that nobody foresaw" in server.errors
    again = visit()
    again.ask(RIGHT)
    assert ">blue</p>" in json.dumps(list(again.follow()))


def test_a_clip_that_was_forgotten_is_not_taken_for_another(visit: Visit) -> None:
    visitor = visit()
    visitor.ask(RIGHT, "holiday.mp4 (12.0 s)")
    said = json.dumps(list(visitor.follow()))
    assert "has been forgotten; choose, upload or record it again" in said and "blue" not in said


def test_uploaded_files_are_read_and_gone(server: Server, visit: Visit) -> None:
    from omnidrop import loading

    visitor = visit()
    path = visitor.upload("my clip.mp4", (loading.TINY.parent / "demo.mp4").read_bytes()).json()[0]
    assert Path(path) in server.files()
    said = visitor.give(path)
    assert "my clip.mp4 (16.0 s)" in said and str(server.folder) not in said.replace(json.dumps(path)[1:-1], "")
    assert server.files() == []


def test_a_bad_file_is_refused_in_the_readers_words_and_gone(server: Server, visit: Visit) -> None:
    visitor = visit()
    path = visitor.upload("notes.txt", b"hello\n" * 100).json()[0]
    said = visitor.give(path)
    assert "notes.txt is a text file; give a video, audio or image file" in said and "od-error" in said
    assert server.files() == []


def test_too_large_a_file_is_refused_and_gone(server: Server, visit: Visit) -> None:
    answer = visit().upload("big.mp4", bytes((1 << 20) + 1))
    assert answer.status_code == 413 and "maximum allowed size" in answer.text
    assert server.wait(lambda: server.files() == [])


def test_a_file_that_was_not_uploaded_is_neither_read_nor_deleted(visit: Visit, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("mine\n")
    answer = visit().join(("file", "upload"), [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}])
    assert answer.status_code == 403 and "was not uploaded here" in answer.text
    assert secret.read_text() == "mine\n"


def test_nobody_outside_is_told_anything_and_nothing_is_left(server: Server) -> None:
    """The last test: it ends the server."""
    assert [line for line in server.said if line != "stopped"] == []
    assert server.end() == 0
    assert list(server.folder.iterdir()) == []
