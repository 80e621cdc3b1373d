"""`Live`: one thread pushes pictures and sound, a worker encodes them, and any thread asks about what is held.

The model is used by one thread at a time. A question goes before units that wait to be encoded; while it is answered,
units wait, and when more wait than `backlog` allows the oldest of them are skipped, which is counted and logged.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from ..engine.lossless import lean
from ..engine.session import prune
from ..errors import InputError, SettingError
from ..media import FPS, MAX_PIXELS, Media
from ..methods import Method, OmniDrop
from ..models import adapt, layout
from ..processors import port_of
from ..prompt import ProcessedClips, check_processor, check_question
from ..streaming import check_family, unit_seconds
from ..streaming.place import split
from .answering import AnswerPieces, around, shares_of
from .assemble import Assembler, Stretch
from .backlog import Backlog
from .holding import Holding
from .records import Answer, Piece, Status
from .units import Unit, answering, encode_unit, joined_inputs, positions


class Live:
    """A stream that is read as it comes; use it in a `with`, or call `close`.

        with omnidrop.live(model, processor, omnidrop.OmniDrop(keep=0.3)) as live:
            live.start(camera)
            print(live.ask("Who is at the door?"))

    `method` (None is `OmniDrop(keep=0.3)`) prunes each question's prompt, as in `generate`. `pictures`, `sound`: what
    the stream has; where one of both does not come for `patience` seconds longer than a unit, the last picture is
    repeated, or the sound is silent. `fps`, `max_pixels`: as of `media.read`. `max_bytes`, `max_tokens`: limits of what
    is held. `rule`, `recent`, `guide`, `horizon`: which units are held, see `core.select.holding.leaving`. `backlog`:
    units that may wait for the encoders. `system`: the system text. `lossless`: whether `omnidrop.lean` is on as well.
    `device`: where features are held; None for where they were made. `turn`: gives a context to enter while this stream
    uses the model, for programs that use it elsewhere too (a lock, for example).

    Raises `ModelError` for a family that cannot be read in parts, `SettingError` for settings out of range.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        method: Method | None = None,
        *,
        pictures: bool = True,
        sound: bool = True,
        fps: float = FPS,
        max_pixels: int | None = MAX_PIXELS,
        max_bytes: int = 2 << 30,
        max_tokens: int = 8192,
        rule: str = "novel",
        recent: float = 0.25,
        guide: float = 1.0,
        horizon: float = float("inf"),
        backlog: int = 4,
        patience: float = 2.0,
        system: str | None = None,
        lossless: bool = True,
        device: Any = None,
        turn: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._adapter = adapt(model)
        self._model, self.processor = self._adapter.thinker, processor
        self.method = OmniDrop(keep=0.3) if method is None else method
        prune(self._model, self.method)  # refuses what cannot be pruned now, not at the first question
        self._check(pictures, sound, patience)
        self._backlog = Backlog(backlog)
        self.unit = unit_seconds(self._adapter, processor)
        self._assembler = Assembler(
            unit=self.unit,
            fps=fps,
            sample_rate=processor.feature_extractor.sampling_rate,
            pictures=pictures,
            sound=sound,
            max_pixels=max_pixels,
            patience=patience,
        )
        self._holding = Holding(
            self._adapter, max_bytes=max_bytes, max_tokens=max_tokens,
            rule=rule, recent=recent, guide=guide, horizon=horizon,
        )  # fmt: skip
        self._system, self._lossless, self._device, self._max_pixels = system, lossless, device, max_pixels
        self._turn = turn
        self._frame: ProcessedClips | None = None  # of the first unit: the tokens around a clip
        self._size: tuple[int, ...] | None = None  # of the first picture
        self._encoded = 0.0  # seconds
        self.standing: list[str] = []  # questions that guide what is held
        self._began: float | None = None
        self._pushing = threading.Lock()  # the assembler's
        self._state = threading.Condition()  # of all that follows
        self._asking = 0  # questions that wait for the model or have it
        self._encoding = self._answering = self._closed = self._ended = False
        self._answerer: int | None = None  # the thread that makes an answer
        self._error: BaseException | None = None
        self._worker = threading.Thread(target=self._work, name="omnidrop.live", daemon=True)
        self._worker.start()

    def _check(self, pictures: bool, sound: bool, patience: float) -> None:
        """Raise for a model, processor or settings with which no stream can begin."""
        check_processor(self.processor)
        check_family(self._adapter)
        if not (pictures or sound):
            raise SettingError("pictures=False and sound=False leave nothing to stream")
        if not 0.0 <= patience < float("inf"):
            raise SettingError(f"patience is {patience!r}; it must be seconds, 0 or more")

    def __repr__(self) -> str:
        return f"<Live: {self.status()}, {self.method!r}>"

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # the stream -------------------------------------------------------------------------------------------------------

    def push(
        self,
        frames: np.ndarray | None = None,
        times: Sequence[float] | None = None,
        sound: np.ndarray | None = None,
        sound_time: float | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Take what came: `frames` (H, W, 3) or (T, H, W, 3) uint8, `sound` (N,) float, mono, at the model's rate.

        `times`: the second of each frame since the stream began; None for now, for one frame. Sound goes on where it
        ended, or at `sound_time`: silence stands for what is missing. `wait`: whether to wait for the encoders where
        too many units wait, instead of skipping the oldest of them. Raises `InputError` for what cannot be meant, and
        the error of the worker, if it met one.
        """
        with self._pushing:
            if self._ended:
                raise InputError("the stream has ended (`finish` was called): open another one")
            with self._state:
                self._raise()
            now = time.monotonic()
            self._began = now if self._began is None else self._began
            units = self._assembler.push(frames, [now - self._began] if times is None else times, sound, sound_time)
            self._enqueue(units, wait)

    def feed(self, source: Iterable[Piece | Media], *, wait: bool = False) -> None:
        """Push all that a source gives, and `finish`: a generator of `Piece`s, or clips of `media.segments`."""
        for piece in source:
            if isinstance(piece, Media):
                frames, times = piece.frames, None if piece.times is None else piece.times.tolist()
                self.push(frames, times, piece.waveform, wait=wait)
            else:
                self.push(piece.frames, piece.times, piece.sound, piece.sound_time, wait=wait)
        self.finish()

    def start(self, source: Iterable[Piece | Media], *, wait: bool = False) -> threading.Thread:
        """`feed` in a thread of its own; what the source raises is raised by the next call, as of the worker."""

        def run() -> None:
            try:
                self.feed(source, wait=wait)
            except BaseException as error:
                with self._state:
                    self._error = self._error or (None if self._closed else error)
                    self._state.notify_all()

        feeder = threading.Thread(target=run, name="omnidrop.live source", daemon=True)
        feeder.start()
        return feeder

    def finish(self) -> None:
        """The stream has ended: encode what is left of it, and return when all is held."""
        with self._pushing:
            if not self._ended:
                self._enqueue(self._assembler.finish(), wait=True)
            with self._state:
                self._ended = True
                self._state.notify_all()
        self.settle()

    def settle(self) -> None:
        """Return when all whole units that were pushed so far are held, or were skipped."""
        with self._state:
            self._state.wait_for(lambda: self._stopped or not (self._backlog or self._encoding))
            self._raise()

    def close(self) -> None:
        """Stop: the worker ends, an answer that is being made ends with `InputError`, what is held is let go."""
        with self._state:
            self._closed = True
            self._backlog.clear()
            self._state.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()
        with self._state:
            self._holding.clear()

    def _enqueue(self, stretches: Sequence[Stretch], wait: bool) -> None:
        for stretch in stretches:
            with self._state:
                if wait:
                    self._state.wait_for(lambda: self._stopped or not self._backlog.full)
                self._raise()
                self._backlog.put(stretch)
                self._state.notify_all()

    @property
    def _stopped(self) -> bool:
        return self._closed or self._error is not None

    def _raise(self) -> None:
        """Raise what ended the stream, if something did."""
        if self._error is not None:
            raise self._error
        if self._closed:
            raise InputError("the stream was closed: open another one")

    def _work(self) -> None:
        """Encode what waits, while no question does."""
        while True:
            with self._state:
                self._state.wait_for(
                    lambda: self._stopped or (len(self._backlog) > 0 and not self._asking and not self._answering)
                )
                if self._stopped:
                    return
                stretch, self._encoding = self._backlog.take(), True
            try:
                unit = self._encode(stretch)
                with self._state:
                    self._holding.add(unit)
                    self._encoded += unit.seconds
            except BaseException as error:  # of whatever kind: the thread that pushes or asks gets it
                with self._state:
                    self._error = error
            finally:
                with self._state:
                    self._encoding = False
                    self._state.notify_all()

    def _encode(self, stretch: Stretch) -> Unit:
        clip = stretch.clip
        if clip.frames is not None:
            self._size = clip.frames.shape[1:] if self._size is None else self._size
            if clip.frames.shape[1:] != self._size:
                raise InputError(
                    f"pictures became {clip.frames.shape[1:3]} (height, width) after {self._size[:2]}: one prompt's "
                    "video has one size; open another stream"
                )
        with ExitStack() as stack:
            stack.enter_context(self._turn())
            processed = self._processed(clip)
            if self._lossless:
                stack.enter_context(lean(self._model))
            unit = encode_unit(
                self._model, self.method, processed.ask(self.processor, "."), stretch.start, clip.seconds, self._device
            )
        self._frame = processed if self._frame is None else self._frame
        return unit

    def _processed(self, clip: Media) -> ProcessedClips:
        """As `prompt.process`, but sound is not padded to the window of the feature extractor, of up to 300 s."""
        port, kind = port_of(self.processor), clip.kind
        port.pads = False
        interleaved = kind == "video" and clip.waveform is not None
        piece = port.video(clip, interleaved, self._max_pixels) if kind == "video" else port.audio(clip)
        tokens = piece.pop("input_ids")[0].tolist()
        return ProcessedClips(
            content=({"type": kind},), tokens=(tokens,), tensors=piece, interleaved=interleaved, system=self._system
        )

    # questions --------------------------------------------------------------------------------------------------------

    def ask(
        self,
        question: str,
        *,
        since: float = float("-inf"),
        max_new_tokens: int = 256,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Answer:
        """The model's answer over what is held now, from any thread; several questions take turns.

        `since`: a second of the stream; what began before it is left out.

        `on_text` is given the answer piece by piece; an exception from it, or an interruption, ends the answer and
        changes nothing that is held. `options` go to `generate` (greedy without any; no beams). Raises `InputError`
        where nothing is held yet, and as `generate` and `prune` do.
        """
        check_question(question)
        began = time.perf_counter()
        with self._model_free():
            with self._state:
                units = [unit for unit in self._holding.units if unit.start >= since]
            if not units:
                raise InputError("nothing is held yet: push a whole unit first, and `settle`, or ask later")
            pieces = AnswerPieces(self.processor.tokenizer, on_text, lambda: self._closed)
            options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
            with ExitStack() as stack:
                stack.enter_context(self._turn())
                stack.enter_context(torch.inference_mode())
                inputs = self.inputs(units, question)
                first = split(layout(self._model, inputs))[0]
                if self._lossless:
                    stack.enter_context(lean(self._model))
                at = positions(self._adapter, inputs, units, first)
                stack.enter_context(answering(self._adapter, units, at))
                trace = stack.enter_context(prune(self._model, self.method))
                there = {k: v.to(self._model.device) if hasattr(v, "to") else v for k, v in inputs.items()}
                output = self._model.generate(**there, streamer=pieces, **options)
        text = self.processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        shares = shares_of(trace, units, first)
        with self._state:
            self._raise()
            if question in self.standing:
                self._holding.note(dict(zip(units, shares, strict=True)))
        return Answer(
            question=question,
            text=text.strip(),
            at=units[-1].end,
            units=tuple((unit.start, unit.seconds, share) for unit, share in zip(units, shares, strict=True)),
            seconds=time.perf_counter() - began,
            first_token=pieces.first - began,
            trace=trace,
        )

    def watch(self, question: str, *, every: float = 0.0, **options: Any) -> Iterator[Answer]:
        """A standing question: asked whenever `every` more seconds are held, it gives each answer that is a new one.

            for answer in live.watch("Is somebody at the door?"):
                print(answer.at, answer)

        Until the iterator is closed the question guides what is held: of each unit, what its pruning kept. It ends
        with the stream. `options` as of `ask`.
        """
        check_question(question)
        with self._state:
            self.standing.append(question)
        try:
            asked, text = float("-inf"), None
            while self._news(asked, every):
                answer = self.ask(question, **options)
                asked = answer.at
                if answer.text != text:
                    text = answer.text
                    yield answer
        finally:
            with self._state:
                self.standing.remove(question)
                if not self.standing:
                    self._holding.relevance.clear()

    def wait_for_units(self) -> None:
        """Return when something is held, or nothing will be."""
        self._news(float("-inf"), 0.0)

    def _news(self, since: float, every: float) -> bool:
        """Wait until `every` seconds more than `since` are held, or the stream has ended; False where nothing came."""

        def newest() -> float:
            return self._holding.units[-1].end if self._holding.units else float("-inf")

        def over() -> bool:
            return self._ended and not (self._backlog or self._encoding)

        with self._state:
            self._state.wait_for(lambda: self._stopped or over() or since < newest() >= since + every)
            if self._error is not None:
                raise self._error
            return not self._closed and newest() > since

    def inputs(self, units: Sequence[Unit], question: str) -> Any:
        """The prompt of `question` over `units` (a `BatchFeature` on the CPU), with zeros in place of the media."""
        assert self._frame is not None
        opening, closing = around(self._frame.tokens[0], set(self._adapter.prompt.vocabulary.media))
        clip = [token for unit in units for token in unit.ids.tolist()]
        tensors = joined_inputs(units)
        interleaved = tensors.pop("use_audio_in_video", False)
        return ProcessedClips(
            content=self._frame.content,
            tokens=(opening + clip + closing,),
            tensors=tensors,
            interleaved=interleaved,
            system=self._system,
        ).ask(self.processor, question)

    @contextmanager
    def _model_free(self) -> Iterator[None]:
        """Hold the model: before units that wait, after questions that came earlier."""
        me = threading.get_ident()
        with self._state:
            if self._answerer == me:
                raise InputError("a question was asked while this thread makes an answer (in on_text): ask afterwards")
            self._asking += 1
            try:
                self._state.wait_for(lambda: self._stopped or not (self._encoding or self._answering))
                self._raise()
                self._answering, self._answerer = True, me
            finally:
                self._asking -= 1
                self._state.notify_all()
        try:
            yield
        finally:
            with self._state:
                self._answering, self._answerer = False, None
                self._state.notify_all()

    # its state --------------------------------------------------------------------------------------------------------

    @property
    def units(self) -> list[Unit]:
        """What is held, oldest first."""
        with self._state:
            return list(self._holding.units)

    @property
    def skipped(self) -> deque[tuple[float, float]]:
        """The newest stretches that were skipped by back pressure: (start, end) in seconds of the stream."""
        return self._backlog.skipped

    @property
    def most_bytes(self) -> int:
        """The most that features took so far: the limit, and the unit that came on top of it."""
        return self._holding.most_bytes

    def status(self) -> Status:
        """Where the stream stands."""
        with self._state:
            held = self._holding
            return Status(
                seconds=self._assembler.seconds,
                encoded=self._encoded,
                units=len(held.units),
                held_seconds=sum(unit.seconds for unit in held.units),
                held_tokens=held.tokens,
                held_bytes=held.nbytes,
                waiting_bytes=self._assembler.nbytes + self._backlog.nbytes,
                waiting_units=len(self._backlog) + self._encoding,
                skipped_units=self._backlog.skipped_units,
                skipped_seconds=self._backlog.skipped_seconds,
                lost_seconds=self._assembler.lost,
                filled=dict(self._assembler.filled),
                left_units=held.left,
            )
