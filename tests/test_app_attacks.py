"""Attacks on the page, against a real server on 127.0.0.1: other files, other sites, visitors who never end."""

from __future__ import annotations

import json
import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from app_server import WORD, Server, Visitor

pytest.importorskip("av")
pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'omnidrop[app]'")

pytestmark = pytest.mark.slow
httpx = pytest.importorskip("httpx")

Visit = Callable[[], Visitor]
RIGHT = "what color is the circle ?"
HEAD = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2.0,\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--max-job-seconds", "6", "--allow-host", "app.example.org")
    running = Server(tmp_path_factory.mktemp("attacks"), *options)
    yield running
    running.end()


@pytest.fixture
def visit(server: Server) -> Iterator[Visit]:
    with ExitStack() as visitors:
        yield lambda: visitors.enter_context(closing(Visitor(server)))


def is_served(visitor: Visitor) -> bool:
    """Whether a visitor gets the right answer now."""
    assert visitor.ask(RIGHT).status_code == 200
    return ">blue</p>" in json.dumps(list(visitor.follow()))


@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4", "a.wav", "a.png", "img%03d.png", "concat:a|b.mp4"])
@pytest.mark.parametrize("kind", ["playlist", "live playlist", "list of files"])
def test_a_playlist_reads_no_other_file_and_blocks_nobody(
    kind: str, name: str, visit: Visit, server: Server, tmp_path: Path
) -> None:
    from omnidrop import loading

    secret = tmp_path / "secret.mp4"
    secret.write_bytes((loading.TINY.parent / "demo.mp4").read_bytes())
    text = {
        "playlist": f"{HEAD}{secret}\n#EXT-X-ENDLIST\n",
        "live playlist": f"{HEAD}{secret}\n",
        "list of files": f"ffconcat version 1.0\nfile {secret}\n",
    }[kind]
    visitor = visit()
    said = visitor.give(visitor.upload(name, text.encode()).json()[0])
    assert "od-error" in said and "is a text file" in said and "<video" not in said and "16.0 s" not in said
    assert server.files() == []


def bomb(answer: int) -> bytes:
    """A black PNG of answer * answer pixels: a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(answer // 8 + 2)) for _ in range(answer)) + rows.flush()
    head = struct.pack(">IIBBBBB", answer, answer, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_a_small_file_of_many_pixels_does_not_grow_the_server(visit: Visit, server: Server) -> None:
    content = bomb(13_000)
    assert len(content) < 60_000
    visitor, before = visit(), server.peak()
    said = visitor.give(visitor.upload("a.png", content).json()[0])
    assert "od-error" in said and server.peak() - before < 100 << 20
    assert is_served(visit())


def test_who_asks_without_an_end_is_stopped_and_the_next_is_served(visit: Visit, server: Server) -> None:
    stopped = server.said.count("stopped")
    first, second = visit(), visit()
    assert first.ask("what talks ?").status_code == 200
    stream = first.follow()
    next(message for message in stream if WORD in json.dumps(message))
    assert is_served(second)  # the first has not left
    assert server.said.count("stopped") == stopped + 1
    assert "took longer than 6 seconds" in json.dumps(list(stream))


def ask_as(server: Server, method: str = "GET", path: str = "config", **headers: str) -> Any:
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.request(method, server.url + path, headers=headers)


EVIL = ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:{port}", "8.8.8.8",
        "user@127.0.0.1", "127.0.0.1:x", "", "[::2]", "0x7f000001", "127.0.0.1/x"]  # fmt: skip


@pytest.mark.parametrize("host", EVIL)
def test_a_name_that_is_not_ours_gets_nothing(host: str, server: Server) -> None:
    """DNS rebinding: the browser asks 127.0.0.1 by the attacker's name, and says so."""
    host = host.format(port=server.url.rsplit(":", 1)[1].strip("/"))
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        answer = ask_as(server, **headers)
        assert answer.status_code in (400, 403) and "components" not in answer.text
        assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = ask_as(server, "OPTIONS", Host=host, Origin=f"http://{host}", **{"Access-Control-Request-Method": "POST"})
    assert answer.status_code in (400, 403)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://", "x"]
)
def test_another_page_may_not_ask(origin: str, server: Server) -> None:
    posts = ("gradio_api/queue/join", "gradio_api/upload", "live/open", "live/push")
    for method, path in (*(("POST", path) for path in posts), ("GET", "config")):
        answer = ask_as(server, method, path, Origin=origin)
        assert answer.status_code == 403 and not [each for each in answer.headers if each.startswith("access-control")]


def test_our_own_names_and_pages_are_answered(server: Server) -> None:
    port = server.url.rsplit(":", 1)[1].strip("/")
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "app.example.org"):
        answer = ask_as(server, Host=host)
        assert answer.status_code == 200 and "components" in answer.text
        answer = ask_as(server, Host=host, Origin=f"http://{host}")
        assert answer.status_code == 200 and "access-control-allow-credentials" not in answer.headers
    assert ask_as(server, Origin="https://app.example.org").status_code == 200  # a proxy that renames the host


@pytest.mark.parametrize(
    "path",
    ["gradio_api/file=/etc/hostname", "gradio_api/file=../../etc/hostname", "gradio_api/file=http://127.0.0.1:1/",
     "gradio_api/file=https://example.org/x.png", "gradio_api/proxy=http://127.0.0.1:1/", "gradio_api/file/etc/x",
     "gradio_api/file=%2Fetc%2Fhostname", "gradio_api/file=//etc/hostname", "file=/etc/hostname", "gradio_api/runs",
     "gradio_api/vibe-code/", "gradio_api/call/x/y", "gradio_api/openapi.json", "monitoring", "monitoring/summary",
     "gradio_api/deep_link", "static/../../../../../../etc/hostname", "assets/..%2f..%2f..%2f..%2f..%2fetc/hostname"],
)  # fmt: skip
def test_no_route_reads_another_file_or_the_network(path: str, server: Server) -> None:
    own = Path("/etc/hostname").read_text().strip() if Path("/etc/hostname").exists() else "\0"
    answer = ask_as(server, "GET", path)
    assert answer.status_code in (403, 404, 405) and (not own or own not in answer.text)


@pytest.mark.parametrize("path", ["gradio_api/api/predict", "gradio_api/call/ask", "gradio_api/component_server",
                                  "gradio_api/process_recording"])  # fmt: skip
def test_no_route_is_open_that_the_page_does_not_use(path: str, server: Server) -> None:
    assert ask_as(server, "POST", path).status_code in (404, 405)


@pytest.mark.parametrize("file", [{"path": "https://example.org/a.mp4"}, {"path": "/etc/hostname"}, {"path": 3},
                                  {"path": "/etc/hostname", "url": "http://127.0.0.1:1/"}])  # fmt: skip
def test_a_question_about_a_file_that_was_not_uploaded_is_refused(file: Any, visit: Visit) -> None:
    for data in ([file], [[[[file]]]], [{"a": {"b": [file]}}]):
        assert visit().join(("file", "upload"), data).status_code == 403


@pytest.mark.parametrize("file", [{"path": "https://example.org/a.mp4"}, {"path": "/etc/hostname"}])
def test_a_call_that_needs_no_queue_is_looked_at_too(file: Any, server: Server) -> None:
    asked = {"fn_index": 0, "data": [file], "session_hash": "a"}
    with httpx.Client(trust_env=False, timeout=60) as client:
        assert client.post(server.url + "gradio_api/run/predict", json=asked).status_code == 403


def test_a_question_is_bounded(visit: Visit) -> None:
    assert visit().join(("od-ask", "click"), ["x" * (2 << 20)]).status_code == 413


def test_nobody_outside_was_asked(server: Server) -> None:
    assert [line for line in server.said if line != "stopped"] == []


def test_what_a_killed_server_left_is_removed_at_the_next_start(server: Server, visit: Visit, tmp_path: Path) -> None:
    """The last test: it kills a server of its own, beside one that goes on."""
    killed = Server(tmp_path)
    with closing(Visitor(killed)) as visitor:
        visitor.upload("a.mp4", b"somebody's film")
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    assert [path.read_bytes() for path in killed.files()] == [b"somebody's film"]
    living = visit().upload("b.mp4", b"of a visitor who waits").json()[0]
    (tmp_path / "tmp" / "omnidrop-app-living").symlink_to(Path(living).parents[2])
    again = Server(tmp_path)
    try:
        assert [path.name for path in killed.folder.glob("omnidrop-app-*/files")] == [
            "files"
        ] * 2  # the link, and its own
        assert killed.files() == [] and Path(living).exists()
    finally:
        again.end()
        killed.end()
