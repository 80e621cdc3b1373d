"""`omnidrop report`: saved traces, and the files that they are about, as one page to look at."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from .options import Commands, output_options
from .progress import Progress
from .setup import writable, writing

if TYPE_CHECKING:
    from ..core.trace import Trace


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "report",
        help="a page that shows what saved traces kept, side by side",
        description=(
            "Make one HTML page of traces (omnidrop run --trace, Trace.save). It needs no network. With the files of "
            "the prompt it shows pictures and sound, what was dropped in the shade. Traces that differ in question or "
            "method can be compared token by token; those of other clips are shown apart."
        ),
    )
    command.add_argument("traces", nargs="+", metavar="TRACE", help="one or more traces (JSON)")
    command.add_argument("--out", required=True, metavar="FILE", help="the page to write")
    command.add_argument("--media", nargs="+", default=[], metavar="FILE", help="the prompt's files, in their order")
    command.add_argument(
        "--title",
        nargs="+",
        metavar="TEXT",
        help="the question of each trace (default: as saved in it, else its file's name)",
    )
    command.add_argument(
        "--answer", nargs="+", metavar="TEXT", help="the answer of each trace (default: as saved in it)"
    )
    output_options(command)
    return command


def main(options: argparse.Namespace) -> int:
    """Read, draw, write."""
    from .. import media
    from ..core.trace import Trace
    from ..reports import check_installed
    from ..reports.views import views

    check_installed()
    writable("--out", options.out)
    progress = Progress(options.quiet)
    traces, titles = [], []
    for file in options.traces:
        progress.stage(f"reading {file}")
        try:
            traces.append(Trace.load(file))
        except OSError as error:
            raise SettingError(f"the trace {file} cannot be read: {error.strerror}; check the path") from error
        titles += _titles(traces[-1], Path(file).name)
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
    size, said = write(
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
        print(said)
    return 0


def _titles(trace: Trace, file: str) -> list[str]:
    """The questions of a trace's rows, or what tells its rows apart."""
    if trace.origin is not None and trace.origin.questions:
        return trace.origin.questions
    rows = trace.layout.shape[0]
    return [file] if rows == 1 else [f"{file}, row {row}" for row in range(rows)]


def write(path: str, option: str, traces: Any, **given: Any) -> tuple[int, str]:
    """`omnidrop.report` into a file: its size in bytes, and a line that says where it is and what it replaced.

    Raises `OmnidropError` naming the option.
    """
    from ..reports import report as page

    text = page(traces, **given)
    there = Path(path).exists()
    with writing(option, path):
        size = Path(path).write_bytes(text.encode())
    return size, f"wrote {path} ({size / 1e6:.2f} MB{', in place of the file that was there' if there else ''})"
