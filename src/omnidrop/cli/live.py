"""`omnidrop live`: a file is played as if it came now, and questions are answered over what is held."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from typing import Any

from ..core.units import seconds as in_seconds
from .options import Commands, answer_options, method_options, model_option, output_options, share
from .progress import Progress
from .setup import asked_method, load, made_with
from .setup import question as check_question
from .stream import first_warning

PIECE = 2.0  # seconds that come at once


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "live",
        help="play a file as a live stream, and answer questions about what is held of it",
        usage="omnidrop live FILE [QUESTION] [options]",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE [QUESTION]",
        help="a video or audio file, then a standing question: its answer is printed whenever it changes. Without one "
        "every line of standard input is a question",
    )
    model_option(command)
    group = command.add_argument_group("the stream")
    group.add_argument(
        "--realtime",
        action="store_true",
        help="play the file at its own speed; what comes faster than it is encoded is skipped (default: as fast as it "
        "is encoded, and nothing is skipped)",
    )
    group.add_argument(
        "--every", type=float, default=4.0, metavar="SECONDS", help="how often the question is asked (default 4)"
    )
    group.add_argument(
        "--hold", type=int, default=8192, metavar="TOKENS", help="audio and video tokens held at most (default 8192)"
    )
    group.add_argument(
        "--rule", default="novel", metavar="NAME", help="what is held: newest, spread, novel (default) or novel_spread"
    )
    group.add_argument(
        "--recent", type=share, default=0.25, metavar="SHARE", help="share that is the newest for sure (default 0.25)"
    )
    group.add_argument("--fps", type=float, default=2.0, metavar="N", help="pictures a second (default 2, the paper's)")
    group.add_argument(
        "--max-pixels", type=int, default=128 * 28 * 28, metavar="N", help="pixels of a picture (default 100352)"
    )
    group.add_argument("--no-audio", action="store_true", help="leave the sound out")
    group.add_argument(
        "--limit", action="append", default=[], metavar="NAME=NUMBER", help="as of `run`: omnidrop.media.Limits"
    )
    method_options(command)
    answer_options(command)
    output_options(command)
    return command


def main(options: argparse.Namespace) -> int:
    """Play one file."""
    from .. import media
    from ..errors import SettingError
    from ..livestream import live, paced
    from ..methods import OmniDrop

    if len(options.inputs) > 2:
        raise SettingError(
            f"{len(options.inputs)} arguments were given; give one file and at most one question, in quotes: "
            'omnidrop live clip.mp4 "Who speaks?"'
        )
    file, question = [*options.inputs, None][:2]
    check_question(question)
    chosen = asked_method(options) or OmniDrop(keep=1.0)
    limits = media.Limits.parse(options.limit)
    kinds = _kinds(media, file, options, limits)
    progress = Progress(options.quiet)
    model, processor = load(options, progress)
    warning = None if question is None else first_warning(options, file, question, processor, progress)
    clips = media.segments(
        file,
        PIECE,
        options.fps,
        max_pixels=options.max_pixels,
        sound=False if options.no_audio else None,
        sample_rate=processor.feature_extractor.sampling_rate,
        limits=limits,
    )
    answers: list[dict[str, Any]] = []
    with live(
        model,
        processor,
        chosen,
        **kinds,
        fps=options.fps,
        max_pixels=options.max_pixels,
        max_tokens=options.hold,
        rule=options.rule,
        recent=options.recent,
        system=options.system,
    ) as stream:
        with _View(stream, progress) as view:
            feeder = stream.start(paced(clips) if options.realtime else clips, wait=not options.realtime)
            with closing(_answers(stream, question, options)) as found:
                for answer in found:
                    answers.append(_row(answer))
                    if not options.json:
                        view.print(f"[{answer.at:7.1f} s] {answer}   ({in_seconds(answer.first_token)})")
            feeder.join()
            stream.settle()
        status = stream.status()
    if options.json:
        print(json.dumps(_document(options, model, file, answers, status, warning)))
    else:
        print(status)
    return 0


def _kinds(media: Any, file: str, options: argparse.Namespace, limits: Any) -> dict[str, bool]:
    """Whether the file has pictures and sound; one that cannot be read must not wait for the model to load."""
    with closing(media.segments(file, PIECE, options.fps, max_pixels=options.max_pixels, limits=limits)) as clips:
        first = next(clips)
    return {"pictures": first.frames is not None, "sound": first.waveform is not None and not options.no_audio}


def _answers(stream: Any, question: str | None, options: argparse.Namespace) -> Generator[Any, None, None]:
    """Of the standing question whenever it changes; or of each line of standard input, once something is held."""
    if question is not None:
        yield from stream.watch(question, every=options.every, max_new_tokens=options.max_new_tokens)
        return
    for line in sys.stdin:
        if line.strip():
            stream.wait_for_units()
            yield stream.ask(line.strip(), max_new_tokens=options.max_new_tokens)


class _View:
    """The state of the stream on the terminal, four times a second, and what is printed above it."""

    def __init__(self, stream: Any, progress: Progress) -> None:
        self._stream, self._progress = stream, progress
        self._over, self._line = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> _View:
        if self._progress.live and not self._progress.quiet:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._progress.done()

    def _show(self) -> None:
        while not self._over.wait(0.25):
            with self._line:
                self._progress.stage(str(self._stream.status()))

    def print(self, text: str) -> None:
        with self._line:
            self._progress.done()
            print(text, flush=True)


def _row(answer: Any) -> dict[str, Any]:
    return {
        "question": answer.question,
        "answer": answer.text,
        "at": answer.at,
        "seconds": answer.seconds,
        "first_token_seconds": answer.first_token,
        "units": [{"start": start, "seconds": seconds, "kept": kept} for start, seconds, kept in answer.units],
    }


def _document(
    options: argparse.Namespace, model: Any, file: str, answers: list[dict[str, Any]], status: Any, warning: str | None
) -> dict[str, Any]:
    """Everything as one JSON document."""
    return {
        "format": "omnidrop.live",
        "version": 1,
        "setup": made_with(options, model),
        "media": [file],
        "realtime": options.realtime,
        "rule": options.rule,
        "hold": options.hold,
        "answers": answers,
        "status": asdict(status),
        "warning": warning,
    }
