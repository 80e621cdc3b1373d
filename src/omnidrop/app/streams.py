"""Live streams of visitors: camera and microphone come in pieces, questions are answered over what is held.

Whoever has a stream's token has the stream. It ends when it is closed, when no piece came for `IDLE` seconds, after
`LONGEST` seconds and when its engine fails; then all of it is let go. Nothing is written to disk.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..core.units import percent
from ..errors import InputError, ModelError, OmnidropError, SettingError, described
from ..livestream import Answer, live
from ..methods import parse
from ..models import adapt
from ..streaming import check_family
from .answers import BEAT
from .deadline import Deadline, between_blocks
from .frames import Decoder
from .session import LONGEST_QUESTION, Session, methods

log = logging.getLogger(__name__)
MOST = 2  # streams at a time
IDLE, LONGEST = 20.0, 3600.0  # seconds
EVERY = 4.0  # seconds of stream after which a standing question is asked again
AHEAD = 1.0  # seconds that a browser's clock may be ahead of ours
ANSWERS = 50  # of the newest, those that can be shown
RATES = 8_000, 96_000  # samples a second
PIECES, QUESTIONS, OPENINGS = (8.0, 16), (0.5, 4), (1.0, 4)  # how many a second, and at once
KINDS = {"Camera and microphone": (True, True), "Camera": (True, False), "Microphone": (False, True)}
SHOWN = ("seconds", "units", "held_seconds", "held_tokens", "held_bytes", "waiting_units", "skipped_seconds",
         "lost_seconds", "filled")  # fmt: skip
ENDED = f"this stream has ended: it was stopped, or no piece came for {IDLE:g} seconds; start another one"


class RefusedError(Exception):
    """A request that is not answered, with the status of HTTP that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _LeftError(Exception):
    """A standing question that stands no more."""


class Bucket:
    """`rate` calls a second, and `burst` at once."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._then = float(burst), clock()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Raise `RefusedError` where there were too many."""
        with self._lock:
            now = self._clock()
            self._left, self._then = min(self._burst, self._left + (now - self._then) * self._rate), now
            if self._left < 1:
                raise RefusedError(429, f"at most {self._rate:g} of these requests a second; wait a moment")
            self._left -= 1


class Stream:
    """One visitor's stream. `rate`: of the samples that come; `clock`: seconds, for tests."""

    def __init__(
        self, session: Session, method: Any, kind: str, rate: int, left: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self.closed = threading.Event()
        self.asking: dict[str, str] | None = None  # the question that is being answered, and its text so far
        self.standing: str | None = None
        self.answers: deque[dict[str, Any]] = deque(maxlen=ANSWERS)
        self._count = self._watched = self._watching = 0  # answers; standing questions so far; those not yet ended
        self._session, self._rate, self._left, self._clock = session, rate, left, clock
        self._began = self._newest = clock()
        self._size: tuple[int, ...] | None = None  # of the first picture
        self._seen = self._heard = 0.0  # seconds of the stream, by the browser's clock
        self._decoder, self._resampled = Decoder(), _resampler(rate, session)
        self._pieces, self._questions = Bucket(*PIECES, clock), Bucket(*QUESTIONS, clock)
        self._pushing, self._state = threading.Lock(), threading.Lock()
        self.pictures, self.sound = KINDS[kind]
        self.live = live(
            session.model, session.processor, method, pictures=self.pictures, sound=self.sound, turn=self._turn
        )
        threading.Thread(target=self._keep, name="omnidrop-stream", daemon=True).start()

    # what comes -------------------------------------------------------------------------------------------------------

    def push(self, piece: bytes, at: float | None, sound_at: float | None) -> None:
        """Take a piece: 4 bytes with the length of its JPEG picture (little-endian), the picture, samples of 16 bits.

        `at`: the picture's second of the stream. `sound_at`: the first sample's; None where it follows the last one.
        Raises `RefusedError` and `MediaError` for what cannot be taken, and the engine's error if it has failed.
        """
        self._pieces.take()
        if not self._pushing.acquire(blocking=False):
            raise RefusedError(429, "the piece before this one is still being read; send one after the other")
        try:
            if self.closed.is_set():
                raise RefusedError(404, ENDED)
            self._newest = self._clock()
            picture, samples = _split(piece)
            if (picture and not self.pictures) or (len(samples) and not self.sound):
                raise RefusedError(400, "this stream has no such media; start another one")
            frame = self._picture(picture, at) if picture else None
            sound = self._sound(samples, sound_at) if len(samples) else None
            try:
                self.live.push(frame, None if at is None else [at], sound, sound_at)
            except Exception:  # what comes was looked at: the engine has failed
                threading.Thread(target=self.close).start()
                raise
        finally:
            self._pushing.release()

    def _picture(self, jpeg: bytes, at: float | None) -> np.ndarray:
        now = self._clock() - self._began
        if at is None or not max(0.0, self._seen) <= at <= now + AHEAD:
            raise RefusedError(
                400, f"time is {at}; it must be the picture's second of the stream, {self._seen:g} to {now:g} now"
            )
        frame = self._decoder.decode(jpeg)
        self._size = self._size or frame.shape
        if frame.shape != self._size:
            raise RefusedError(
                400,
                f"a picture has {frame.shape[1]} x {frame.shape[0]} pixels and the first one had {self._size[1]} x "
                f"{self._size[0]}; one stream has one size: start another one",
            )
        self._seen = at
        return frame

    def _sound(self, samples: np.ndarray, at: float | None) -> np.ndarray:
        """Float samples at the model's rate."""
        now = self._clock() - self._began
        end = (self._heard if at is None else at) + len(samples) / self._rate
        if not (at is None or at >= 0) or not end <= now + AHEAD:
            raise RefusedError(400, f"sound up to second {end:g} came at second {now:g}; send it when it is recorded")
        self._heard = max(self._heard, end)
        return self._resampled(samples)

    # questions --------------------------------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        """Answer over what is held, as soon as something is; `state` has the answer."""
        question = self._question(question)
        with self._state:
            if self.asking is not None:
                raise RefusedError(409, "a question is being answered; ask again when its answer is there")
            now = self.asking = {"question": question, "text": ""}

        def on_text(text: str) -> None:
            now["text"] += text

        def answers() -> Iterator[Answer]:
            self.live.wait_for_units()
            yield self.live.ask(question, max_new_tokens=self._session.max_new_tokens, on_text=on_text)

        self._start(question, answers(), standing=False)

    def watch(self, question: str) -> None:
        """Set the standing question, in place of the one before; an empty one sets none."""
        question = self._question(question) if question.strip() else ""
        with self._state:
            if question and self._watching > 1:
                raise RefusedError(409, "the standing question before the last one has not ended yet; wait a moment")
            self.standing, self._watched = question or None, self._watched + 1
            self._watching += bool(question)
            mine = self._watched
        if not question:
            return

        def on_text(text: str) -> None:
            if self._watched != mine:
                raise _LeftError

        watching = self.live.watch(question, every=EVERY, max_new_tokens=self._session.max_new_tokens, on_text=on_text)
        self._start(question, watching, standing=True)

    def _question(self, question: str) -> str:
        self._questions.take()
        if not question.strip():
            raise SettingError("there is no question; write one")
        if len(question) > LONGEST_QUESTION:
            raise SettingError(f"the question has {len(question)} characters; at most {LONGEST_QUESTION}")
        return question.strip()

    def _start(self, question: str, answers: Iterable[Answer], *, standing: bool) -> None:
        threading.Thread(target=self._answer, args=(question, answers, standing), daemon=True).start()

    def _answer(self, question: str, answers: Iterable[Answer], standing: bool) -> None:
        """Note all answers, or why there is none."""
        try:
            for answer in answers:
                kept = sum(share for _, _, share in answer.units) / len(answer.units)
                self._note(
                    question, standing, text=answer.text, at=answer.at, kept=percent(kept), first=answer.first_token
                )
        except _LeftError:
            pass
        except Exception as error:
            if not isinstance(error, OmnidropError):
                log.exception("a question to a live stream")
            if not self.closed.is_set():
                self._note(question, standing, error=str(error) or type(error).__name__)
        finally:
            with self._state:
                if standing:
                    self._watching -= 1
                else:
                    self.asking = None

    def _note(self, question: str, standing: bool, **what: Any) -> None:
        with self._state:
            self._count += 1
            self.answers.append({"number": self._count, "question": question, "standing": standing, **what})

    def state(self, after: int) -> dict[str, Any]:
        """What to show: where the stream stands, and answers with a number above `after`."""
        status, asking = self.live.status(), self.asking
        with self._state:
            new = [answer for answer in self.answers if answer["number"] > after]
        return {
            **{name: getattr(status, name) for name in SHOWN},
            "asking": asking, "standing": self.standing, "answers": new,
        }  # fmt: skip

    # its end ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the model, which clips and other streams use as well, for `max_job_seconds` at most."""
        while not self._session.turn.acquire(timeout=BEAT):
            self._go_on()
        try:
            deadline = Deadline(self._session.max_job_seconds)

            def check() -> None:
                self._go_on()
                deadline.check()

            with between_blocks(self._session.model, check):
                yield
        finally:
            self._session.turn.release()

    def _go_on(self) -> None:
        if self.closed.is_set():
            raise InputError(ENDED)

    def _keep(self) -> None:
        """Close the stream when its visitor has gone, or has been here long enough."""
        while not self.closed.wait(min(1.0, IDLE / 4)):
            now = self._clock()
            if now - self._newest > IDLE or now - self._began > LONGEST:
                self.close()

    def close(self) -> None:
        """End the stream and let go of all that it holds; what runs for it ends at the next block of the model."""
        self.closed.set()
        self._decoder.close()  # whoever waits for a picture gets an error
        with self._pushing:
            self._decoder.close()
            self.live.close()
        self._left()


class Streams:
    """The open streams by their tokens; at most `most`. `refusal` says why the model can have none, or nothing."""

    def __init__(self, session: Session, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self.session, self.most, self.refusal = session, most, ""
        self._clock, self._open = clock, Bucket(*OPENINGS, clock)
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()
        try:
            check_family(adapt(session.model))
        except ModelError as error:
            self.refusal = str(error)

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A new stream; `asked`: {"kind", "method", "keep", "rate"}. Raises `RefusedError` and `OmnidropError`."""
        kind, method, keep, rate = (asked.get(name) for name in ("kind", "method", "keep", "rate"))
        if kind not in [*KINDS] or method not in [*methods()]:
            raise SettingError(f"kind is {described(kind)}, method is {described(method)}; choose those of the page")
        if not isinstance(keep, int | float) or not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
            raise SettingError(
                f"keep is {described(keep)}, rate is {described(rate)}; they must be a share in (0, 1] and "
                f"{RATES[0]} to {RATES[1]} samples a second"
            )
        chosen, token = parse(method, keep=keep, budget="layers"), secrets.token_urlsafe(24)
        self._open.take()
        with self._lock:
            if len(self._streams) >= self.most:
                raise RefusedError(
                    503, f"{self.most} live streams are open, as many as this page takes; try again later"
                )
            self._streams[token] = Stream(self.session, chosen, kind, rate, lambda: self._forget(token), self._clock)
        return {"token": token}

    def _forget(self, token: str) -> None:
        with self._lock:
            self._streams.pop(token, None)

    def find(self, token: str) -> Stream:
        """The stream of a token. Raises `RefusedError`."""
        found = self._streams.get(token)
        if found is None or found.closed.is_set():
            raise RefusedError(404, ENDED)
        return found

    def close(self) -> None:
        """End all of them."""
        for stream in list(self._streams.values()):
            stream.close()


def _split(piece: bytes) -> tuple[bytes, np.ndarray]:
    """JPEG bytes and (N,) int16. Raises `RefusedError`."""
    end = 4 + int.from_bytes(piece[:4], "little")
    if len(piece) < 4 or end > len(piece) or (len(piece) - end) % 2:
        raise RefusedError(
            400,
            f"a piece of {len(piece)} bytes is not the length of a picture (4 bytes, little-endian), the picture, and "
            "whole samples of 16 bits",
        )
    return piece[4:end], np.frombuffer(piece, "<i2", offset=end)


def _resampler(rate: int, session: Session) -> Callable[[np.ndarray], np.ndarray]:
    """From (N,) int16 at `rate` to (N',) float32 at the model's, piece by piece."""
    from av import AudioFrame, AudioResampler

    own = session.processor.feature_extractor.sampling_rate
    inner = AudioResampler(format="flt", layout="mono", rate=own)

    def resampled(samples: np.ndarray) -> np.ndarray:
        frame = AudioFrame.from_ndarray(samples[None].astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = rate
        return np.concatenate([np.zeros(0, np.float32), *(each.to_ndarray()[0] for each in inner.resample(frame))])

    return resampled
