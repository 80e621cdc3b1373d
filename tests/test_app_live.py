"""The app's live streams without a browser: the requests, their limits, malformed pieces, questions meanwhile, the end.

Requests go through the gate and the route as a server would give them; the clock is the test's.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnidrop import loading, media
from omnidrop.app import frames, gate, route, streams
from omnidrop.app.gate import Gate
from omnidrop.app.route import Route
from omnidrop.app.session import Session
from omnidrop.app.streams import Stream, Streams
from omnidrop.errors import MediaError
from omnidrop.models import adapt

pytest.importorskip("av")
pytestmark = pytest.mark.slow

RIGHT = "what color is the circle ?"
OPEN = {"kind": "Camera and microphone", "method": "omnidrop", "keep": 0.3, "rate": 16_000}
PATIENCE = 120.0  # seconds: an upper bound for a busy machine, nothing is timed


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(*loading.load(device="cpu"), max_new_tokens=8)


@pytest.fixture(scope="module")
def clip() -> media.Media:
    return media.read(loading.TINY.parent / "demo.mp4")


class Page:
    """The server; `now` is its clock."""

    def __init__(self, session: Session, most: int = 2) -> None:
        self.now = 0.0
        self.streams = Streams(session, most, clock=lambda: self.now)
        self.app = Gate(Route(self._nothing, self.streams), host="127.0.0.1", allowed=[], folder=Path("/nowhere"))

    async def _nothing(self, scope: Any, receive: Any, send: Any) -> None:
        await gate.respond(send, 200, {"from": "another application"})

    def post(
        self, action: str, body: bytes = b"", token: str = "", method: str = "POST", path: str = "",
        receive: Any = None, headers: dict[str, str] | None = None, **query: float,
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        """(status, document) of a request."""
        given = {"host": "127.0.0.1:7860", "x-omnidrop-stream": token, "content-length": str(len(body))}
        scope = {
            "type": "http", "method": method, "path": path or f"/live/{action}",
            "query_string": "&".join(f"{name}={value}" for name, value in query.items()).encode(),
            "headers": [(name.encode(), value.encode()) for name, value in (given | (headers or {})).items()],
        }  # fmt: skip
        sent: list[Any] = []

        async def whole() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive or whole, send))
        return sent[0]["status"], json.loads(sent[1]["body"])

    def say(self, action: str, token: str = "", **document: Any) -> tuple[int, dict[str, Any]]:
        return self.post(action, json.dumps(document).encode(), token)

    def open(self, **changes: Any) -> tuple[str, Stream]:
        status, document = self.say("open", **{**OPEN, **changes})
        assert status == 200, document
        return document["token"], self.streams.find(document["token"])

    def close(self) -> None:
        self.streams.close()


@pytest.fixture
def page(session: Session) -> Iterator[Page]:
    made = Page(session)
    yield made
    made.close()


def jpeg(picture: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", **{"quality": 95, "subsampling": 0, **options})
    return out.getvalue()


def piece(picture: bytes = b"", sound: np.ndarray | None = None) -> bytes:
    samples = b"" if sound is None else np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()
    return len(picture).to_bytes(4, "little") + picture + samples


GREY = jpeg(np.full((84, 84, 3), 90, np.uint8))


def play(
    page: Page, token: str, clip: media.Media, begin: float = 0.0, end: float = 16.0, settle: bool = True
) -> dict[str, Any]:
    """The included clip, half a second a piece, as a browser sends it; the last answer."""
    said: dict[str, Any] = {}
    for number in range(round(begin * 2), round(end * 2)):
        page.now = (number + 1) / 2
        place = number % len(clip.frames)
        sound = clip.waveform[place * 8000 : place * 8000 + 8000]
        status, said = page.post("push", piece(jpeg(clip.frames[place]), sound), token, time=number / 2)
        assert status == 200, said
        if settle:
            page.streams.find(token).live.settle()
    return said


def until(is_so: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    return found


# a stream and its questions -------------------------------------------------------------------------------------------


def test_a_question_is_answered_right_and_the_state_is_told(page: Page, clip: media.Media) -> None:
    token, stream = page.open()
    play(page, token, clip)
    said = page.post("push", piece(), token)[1]
    assert said["seconds"] == 16.0 and said["held_seconds"] == 16.0 and said["units"] == 8
    assert said["held_tokens"] == sum(unit.tokens for unit in stream.live.units) > 0 and said["held_bytes"] > 0
    assert said["skipped_seconds"] == 0.0 and said["answers"] == [] and said["asking"] is None
    assert page.say("ask", token, question=f" {RIGHT} ")[0] == 200
    until(lambda: stream.answers)
    (answer,) = page.post("push", piece(), token, after=0)[1]["answers"]
    assert answer["question"] == RIGHT and answer["text"] == "blue" and not answer["standing"]
    assert answer["at"] == 16.0 and answer["kept"] == "30.0 %" and answer["number"] == 1
    assert page.post("push", piece(), token, after=1)[1]["answers"] == []  # it was seen


def test_pieces_are_taken_while_a_question_is_answered(page: Page, clip: media.Media, session: Session) -> None:
    """Another job has the model: the question waits, pieces go on, and what is too much is skipped and said."""
    token, stream = page.open()
    play(page, token, clip)
    with session.turn:
        assert page.say("ask", token, question=RIGHT)[1]["asking"]["question"] == RIGHT
        assert page.say("ask", token, question=RIGHT)[0] == 409
        said = play(page, token, clip, 16.0, 28.0, settle=False)
        assert said["asking"] == {"question": RIGHT, "text": ""} and said["seconds"] == 28.0
        assert said["waiting_units"] >= 4 and said["skipped_seconds"] >= 2.0
    (answer,) = until(lambda: stream.state(0)["answers"])
    assert answer["text"] == "blue" and answer["at"] <= 18.0  # one unit may have been faster than the question
    stream.live.settle()
    assert stream.live.units[-1].end > 18.0 and stream.state(0)["asking"] is None


def test_two_streams_and_clips_take_turns(page: Page, clip: media.Media, session: Session) -> None:
    """No two of them meet in the model: all answers are right."""
    tokens = [page.open()[0] for _ in range(2)]
    for token in tokens:
        page.now = 0.0
        play(page, token, clip)
        page.say("watch", token, question=RIGHT)
    for token in tokens:
        page.say("ask", token, question=RIGHT)
    from omnidrop.app.session import Setting

    views = list(session.ask(session.shipped(), RIGHT, [Setting("omnidrop", 0.3, "layers")], compare=True))
    assert [answer.text for answer in views[-1].answers] == ["blue", "blue"]
    for token in tokens:
        answers = until(lambda t=token: len(page.streams.find(t).answers) == 2 and page.streams.find(t).answers)
        assert [answer["text"] for answer in answers] == ["blue", "blue"]
        assert sorted(answer["standing"] for answer in answers) == [False, True]


def test_a_standing_question_is_asked_again_until_there_is_none(
    page: Page, clip: media.Media, session: Session
) -> None:
    token, stream = page.open()
    assert page.say("watch", token, question=RIGHT)[1]["standing"] == RIGHT
    play(page, token, clip, end=8.0)
    first = until(lambda: list(stream.answers))[0]
    assert first["standing"] and first["question"] == RIGHT and stream.live.standing == [RIGHT]
    with session.turn:
        page.now += 10
        assert page.say("watch", token, question="what pattern is the tenor one ?")[0] == 200
        status, said = page.say("watch", token, question="what talks ?")
        assert status == 409 and "has not ended yet" in said["detail"]
        assert page.say("watch", token, question=" ")[1]["standing"] is None
    page.now = 8.0
    play(page, token, clip, 8.0, 14.0)
    until(lambda: stream.live.standing == [])
    count = len(stream.answers)
    play(page, token, clip, 14.0, 20.0)
    assert len(stream.answers) == count


def test_a_question_before_anything_is_held_waits_for_it(page: Page, clip: media.Media) -> None:
    token, stream = page.open()
    assert page.say("ask", token, question=RIGHT)[1]["asking"]["text"] == ""
    play(page, token, clip, end=4.0)
    assert "error" not in until(lambda: list(stream.answers))[0]


def test_an_error_of_an_answer_is_noted_and_the_stream_goes_on(
    page: Page, clip: media.Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, stream = page.open()
    play(page, token, clip, end=4.0)
    with monkeypatch.context() as patch:
        patch.setattr(stream._session, "max_job_seconds", 0.0)
        page.say("ask", token, question=RIGHT)
        (answer,) = until(lambda: list(stream.answers))
    assert "took longer than 0 seconds" in answer["error"]
    play(page, token, clip, 4.0, 8.0)


def test_sound_alone_and_pictures_alone(page: Page, clip: media.Media) -> None:
    sound, hearing = page.open(kind="Microphone")
    picture, seeing = page.open(kind="Camera")
    for number in range(8):
        page.now = (number + 1) / 2
        samples = clip.waveform[number * 8000 : number * 8000 + 8000]
        assert page.post("push", piece(sound=samples), sound)[0] == 200
        assert page.post("push", piece(jpeg(clip.frames[number])), picture, time=number / 2)[0] == 200
    for stream in (hearing, seeing):
        stream.live.settle()
        assert stream.live.units
    assert page.post("push", piece(GREY), sound, time=page.now)[0] == 400
    assert page.post("push", piece(sound=np.zeros(100)), picture)[0] == 400
    assert page.post("push", piece(), sound)[0] == page.post("push", piece(), picture)[0] == 200


def test_sound_of_another_rate_is_that_of_the_model(session: Session) -> None:
    """A tone in pieces of any size: the same tone at 16 kHz, without a gap or a click."""
    rate, rng = 44_100, np.random.default_rng(5)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)
    cuts = np.sort(rng.integers(1, len(tone), 12))
    resampled = streams._resampler(rate, session)
    parts = [resampled(np.round(part * 32767).astype(np.int16)) for part in np.split(tone, cuts)]
    made = np.concatenate(parts)
    assert abs(len(made) - 3 * 16_000) < 100 and made.dtype == np.float32
    inside = made[1000:-1000]
    phase = np.arange(len(inside)) * 2 * np.pi * 440 / 16_000
    wave = np.stack([np.sin(phase), np.cos(phase)], 1)
    weights, *_ = np.linalg.lstsq(wave, inside, rcond=None)
    assert np.hypot(*weights) == pytest.approx(0.5, abs=0.005) and np.abs(wave @ weights - inside).max() < 0.005


def test_sound_stands_at_its_time(page: Page) -> None:
    """A browser that lost a second says so: silence stands there, and what follows comes later."""
    token, stream = page.open(kind="Microphone")
    loud = np.full(16_000, 0.5)
    for now, at in ((1.0, {}), (3.0, {"sound_time": 2.0})):
        page.now = now
        assert page.post("push", piece(sound=loud), token, **at)[0] == 200
    assert stream.live.status().filled["sound"] == pytest.approx(1.0, abs=0.01)
    assert stream.live.status().seconds == pytest.approx(3.0, abs=0.01)


# what is refused ------------------------------------------------------------------------------------------------------


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (84, 84)).save(out, "PNG")
    return out.getvalue()


WIDE = jpeg(np.zeros((8, frames.SIDE + 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("body", "query", "says"),
    [
        (b"", {}, "a piece of 0 bytes is not"),
        (b"\x01\0\0", {}, "a piece of 3 bytes is not"),
        (b"\xff\xff\xff\xff" + GREY, {"time": 1}, "whole samples of 16 bits"),
        (piece(GREY) + b"\0", {"time": 1}, "whole samples of 16 bits"),
        (piece(GREY), {}, "time is None"),
        (piece(GREY), {"time": "nan"}, "time is 'nan'"),
        (piece(GREY), {"time": "x"}, "time is 'x'"),
        (piece(GREY), {"time": -1}, "time is -1.0"),
        (piece(GREY), {"time": 1e8}, "time is 100000000.0; it must be the picture's second of the stream, 0 to 2"),
        (piece(png()), {"time": 1}, "is no JPEG picture of at most 1024 x 1024 pixels"),
        (piece(GREY[: len(GREY) // 2]), {"time": 1}, "is no JPEG picture"),
        (piece(bytes(1000)), {"time": 1}, "is no JPEG picture"),
        (piece(WIDE), {"time": 1}, "is no JPEG picture"),
        (piece(sound=np.zeros(16_000 * 4)), {}, "sound up to second 4 came at second 2"),
        (piece(sound=np.zeros(160)), {"sound_time": 1e8}, "came at second 2"),
        (piece(sound=np.zeros(160)), {"sound_time": -5}, "sound up to second -4.99"),
        (piece(sound=np.zeros(160)), {"sound_time": "nan"}, "sound_time is 'nan'"),
    ],
)
def test_a_malformed_piece_is_refused_and_the_stream_goes_on(
    page: Page, body: bytes, query: dict[str, Any], says: str
) -> None:
    token, stream = page.open()
    page.now = 2.0
    before = stream.live.status()
    status, said = page.post("push", body, token, **query)
    assert status == 400 and says in said["detail"]
    assert stream.live.status() == before
    assert page.post("push", piece(GREY, np.zeros(1600)), token, time=1.9)[0] == 200


def test_times_go_on_and_sizes_stay(page: Page) -> None:
    token, _ = page.open()
    page.now = 2.0
    assert page.post("push", piece(GREY), token, time=1.5)[0] == 200
    assert "time is 1.0" in page.post("push", piece(GREY), token, time=1.0)[1]["detail"]
    other = jpeg(np.zeros((56, 84, 3), np.uint8))
    status, said = page.post("push", piece(other), token, time=1.8)
    assert status == 400 and "84 x 56 pixels and the first one had 84 x 84" in said["detail"]
    assert page.post("push", piece(GREY), token, time=1.8)[0] == 200


def test_a_grey_picture_is_a_picture(page: Page) -> None:
    out = io.BytesIO()
    Image.new("L", (84, 84), 70).save(out, "JPEG")
    token, _ = page.open()
    assert page.post("push", piece(out.getvalue()), token, time=0.0)[0] == 200


def test_a_body_is_bounded(page: Page) -> None:
    token, _ = page.open()
    status, said = page.post("push", b"", token, receive=never, headers={"content-length": str(gate.MAX_BODY + 1)})
    assert status == 413 and str(gate.MAX_BODY) in said["detail"]
    status, said = page.post("push", b"", token, receive=never, headers={"content-length": "many"})
    assert status == 400 and "content-length is 'many'" in said["detail"]

    async def endless() -> Any:  # without a length
        return {"type": "http.request", "body": bytes(1 << 16), "more_body": True}

    assert page.post("push", b"", token, receive=endless)[0] == 413

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    assert page.post("push", b"", token, receive=gone)[0] == 413


def test_a_body_that_does_not_come_is_not_waited_for(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "PATIENCE", 0.05)

    async def slow() -> Any:
        await asyncio.sleep(60)

    token, _ = page.open()
    assert page.post("push", b"", token, receive=slow)[0] == 408


async def never() -> Any:
    pytest.fail("the body was read")


@pytest.mark.parametrize("token", ["", "x", "a" * 32])
@pytest.mark.parametrize("action", ["push", "ask", "watch", "close"])
def test_who_has_no_token_has_no_stream(page: Page, action: str, token: str) -> None:
    page.open()
    status, said = page.post(action, b"", token, receive=never)
    assert status == 404 and "this stream has ended" in said["detail"] and len(page.streams) == 1


def test_only_what_there_is_is_answered(page: Page) -> None:
    assert page.post("open", method="GET", receive=never)[0] == 405
    for action in ("", "state", "open/", "../config", "__init__"):
        assert page.post(action or "x", path=f"/live/{action}", receive=never)[0] == 404
    assert page.post("", path="/config") == (200, {"from": "another application"})


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}, {"host": ""}],
)
def test_another_site_may_not_send_anything(page: Page, headers: dict[str, str]) -> None:
    token, _ = page.open()
    for action in route.ACTIONS:
        assert page.post(action, b"{}", token, headers=headers, receive=never)[0] == 403


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "Screen"}, "kind is 'Screen'"),
        ({"kind": ["Camera"]}, "kind is list of length 1"),
        ({"method": "novelty"}, "method is 'novelty'"),
        ({"method": "omnidrop:keep=0.1"}, "method is"),
        ({"method": {}}, "method is"),
        ({"keep": "0.3"}, "keep is '0.3'"),
        ({"keep": 7}, "keep"),
        ({"rate": 16_000.5}, "rate is 16000.5"),
        ({"rate": 1}, "8000 to 96000"),
        ({"rate": None}, "rate is None"),
    ],
)
def test_what_no_stream_can_be_opened_with(page: Page, changes: dict[str, Any], says: str) -> None:
    status, said = page.say("open", **{**OPEN, **changes})
    assert status == 400 and says in said["detail"] and len(page.streams) == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_object(page: Page, body: bytes) -> None:
    token, _ = page.open()
    for action in ("open", "ask", "watch"):
        assert page.post(action, body, token) == (400, {"detail": "the request is no JSON object"})


@pytest.mark.parametrize(
    ("question", "says"),
    [("", "there is no question"), ("  ", "there is no question"), ("x" * 2001, "2001 characters")],
)
def test_questions_that_cannot_be_asked(page: Page, question: str, says: str) -> None:
    token, _ = page.open()
    status, said = page.say("ask", token, question=question)
    assert status == 400 and says in said["detail"]


def test_requests_are_bounded_in_number(page: Page) -> None:
    token, _ = page.open()
    statuses = [page.post("push", piece(), token)[0] for _ in range(streams.PIECES[1] + 2)]
    assert statuses == [200] * streams.PIECES[1] + [429] * 2
    page.now += 1.0
    assert [page.post("push", piece(), token)[0] for _ in range(9)] == [200] * 8 + [429]
    asked = [page.say("ask", token, question="")[0] for _ in range(6)]
    assert asked == [400] * streams.QUESTIONS[1] + [429] * 2


def test_streams_are_bounded_in_number(page: Page) -> None:
    first, _ = page.open()
    page.open()
    status, said = page.say("open", **OPEN)
    assert status == 503 and "2 live streams are open, as many as this page takes" in said["detail"]
    assert page.post("close", token=first) == (200, {})
    page.open()
    assert len(page.streams) == 2
    assert page.say("open", **OPEN)[0] == 429  # the fifth in one moment


def test_a_model_that_cannot_be_asked_so_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Streams(session).refusal == ""
    monkeypatch.setattr(type(adapt(session.model)), "unstreamed", "it is a test")
    page = Page(session)
    assert "cannot be streamed: it is a test" in page.streams.refusal
    status, said = page.say("open", **OPEN)
    assert status == 400 and "it is a test" in said["detail"] and len(page.streams) == 0


# its end --------------------------------------------------------------------------------------------------------------


def test_stop_lets_go_of_everything(page: Page, clip: media.Media, session: Session) -> None:
    """Also while another job has the model, and this stream's question and next unit wait for it."""
    token, stream = page.open()
    play(page, token, clip, end=8.0)
    held = [weakref.ref(unit.outputs[name].output) for unit in stream.live.units for name in unit.outputs]
    child, worker = stream._decoder._child, stream.live._worker
    assert held and child.poll() is None
    with session.turn:
        page.say("ask", token, question=RIGHT)
        page.say("watch", token, question=RIGHT)
        play(page, token, clip, 8.0, 10.0, settle=False)
        assert page.post("close", token=token) == (200, {})
        assert child.poll() is not None and not worker.is_alive() and len(page.streams) == 0
    assert page.post("push", piece(), token)[0] == page.post("close", token=token)[0] == 404
    until(lambda: not [each for each in threading.enumerate() if "_answer" in each.name])
    del stream, worker
    until(lambda: gc.collect() is not None and not any(ref() is not None for ref in held))


def test_who_has_gone_is_forgotten(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    token, stream = page.open()
    page.now = streams.IDLE - 1
    assert page.post("push", piece(), token)[0] == 200
    page.now += streams.IDLE - 1
    assert not stream.closed.wait(1.5)
    page.now += 2.0
    assert stream.closed.wait(PATIENCE)
    until(lambda: len(page.streams) == 0)
    status, said = page.post("push", piece(), token)
    assert status == 404 and "no piece came for 20 seconds" in said["detail"]


def test_no_stream_lasts_for_ever(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "IDLE", 1e9)
    _, stream = page.open()
    page.now = streams.LONGEST - 1
    assert not stream.closed.wait(1.5)
    page.now += 2.0
    assert stream.closed.wait(PATIENCE)


def test_a_stream_whose_engine_fails_is_ended(page: Page, clip: media.Media, monkeypatch: pytest.MonkeyPatch) -> None:
    token, stream = page.open()
    monkeypatch.setattr(stream._session, "max_job_seconds", 0.0)
    with pytest.raises(AssertionError, match="took longer than 0 seconds"):
        for begin in (0.0, 2.0, 4.0):
            play(page, token, clip, begin, begin + 2.0, settle=False)
            until(lambda: not stream.live.status().waiting_units)
    until(lambda: len(page.streams) == 0)


def test_a_server_that_ends_ends_its_streams(page: Page) -> None:
    opened = [page.open()[1] for _ in range(2)]
    page.streams.close()
    assert all(stream.closed.is_set() for stream in opened) and len(page.streams) == 0


# pictures -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoder() -> Iterator[frames.Decoder]:
    made = frames.Decoder()
    yield made
    made.close()


def test_pictures_are_those_that_pillow_reads(decoder: frames.Decoder, clip: media.Media) -> None:
    for picture in clip.frames[::8]:
        data = jpeg(picture, quality=80)
        assert np.array_equal(decoder.decode(data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_decoder_that_died_is_an_error_and_the_next_picture_is_read(decoder: frames.Decoder) -> None:
    decoder.decode(GREY)
    os.kill(decoder._child.pid, signal.SIGKILL)
    decoder._child.wait()
    with pytest.raises(MediaError, match="ended its process"):
        decoder.decode(GREY)
    assert decoder.decode(GREY).shape == (84, 84, 3)


def test_a_decoder_that_hangs_is_ended(decoder: frames.Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "CHILD", [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(frames, "LIMIT", 0.5)
    with pytest.raises(MediaError, match=r"more than 0\.5 seconds"):
        decoder.decode(GREY)
