"""`omnidrop report`: saved traces, and the files that they are about, as one page to look at."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import OmnidropError, SettingError
from .setup import Progress


def add(commands: Any) -> argparse.ArgumentParser:
    """The options."""
    command: argparse.ArgumentParser = commands.add_parser(
        "report", help="a page that shows what saved traces kept, side by side"
    )
    command.description = (
        "Make one HTML page of traces (omnidrop run --trace, Trace.save). It needs no network. With the files of the "
        "prompt it shows pictures and sound, what was dropped in the shade. All traces are of the same files: two "
        "questions on one clip, or two methods on one question."
    )
    command.add_argument("traces", nargs="+", metavar="TRACE", help="one or more traces (JSON)")
    command.add_argument("--out", required=True, metavar="FILE", help="the page to write")
    command.add_argument("--media", nargs="+", default=[], metavar="FILE", help="the prompt's files, in their order")
    command.add_argument(
        "--title", nargs="+", metavar="TEXT", help="the question of each trace (default: its file's name)"
    )
    command.add_argument("--answer", nargs="+", metavar="TEXT", help="the answer of each trace")
    command.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    command.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
    return command


def report(options: argparse.Namespace) -> int:
    """Read, draw, write."""
    from .. import media
    from ..reports import check_installed
    from ..reports.views import views
    from ..trace import Trace

    check_installed()
    progress = Progress(options.quiet)
    traces, titles = [], []
    for file in options.traces:
        progress.stage(f"reading {file}")
        try:
            traces.append(Trace.load(file))
        except OSError as error:
            raise SettingError(f"the trace {file} cannot be read: {error.strerror}; check the path") from error
        rows = traces[-1].layout.shape[0]
        titles += [Path(file).name] if rows == 1 else [f"{Path(file).name}, row {row}" for row in range(rows)]
    prompts = views(traces)
    for name in ("title", "answer"):
        given = getattr(options, name)
        if given is not None and len(given) != len(prompts):
            raise SettingError(f"--{name} has {len(given)} texts for {len(prompts)} prompts; give one for each")
    videos = [track for prompt in prompts for track in prompt.tracks if track.kind == "video"]
    fps = max((2 / track.step for track in videos), default=media.FPS)  # a temporal grid is two pictures
    most = max((2 * len(track.times) for track in videos), default=media.MAX_FRAMES)
    clips = []
    for file in options.media:
        progress.stage(f"reading {file}")
        clips.append(media.read(file, fps, most, progress=progress.at))
    progress.stage("drawing")
    size = write(
        options.out, "--out", traces, media=clips or None, answers=options.answer, titles=options.title or titles
    )
    progress.done()
    if options.json:
        document = {
            "format": "omnidrop.report",
            "version": 1,
            "file": options.out,
            "bytes": size,
            "prompts": len(prompts),
        }
        print(json.dumps(document))
    else:
        print(f"wrote {options.out} ({size / 1e6:.2f} MB)")
    return 0


def write(path: str, option: str, traces: Any, **given: Any) -> int:
    """`omnidrop.report` into a file, whose size in bytes is returned. Raises `OmnidropError` naming the option."""
    from ..reports import report as page

    text = page(traces, **given)
    try:
        return Path(path).write_bytes(text.encode())
    except OSError as error:
        raise OmnidropError(f"{option} {path} cannot be written: {error.strerror}") from error
