"""`omnidrop app`: the page to ask a clip with and without pruning, served until it is interrupted."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading

from .options import Commands, model_option, model_options
from .progress import Progress
from .setup import load


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options. Their defaults live in `omnidrop.app`, which is looked up when it runs: help must be instant."""
    command = commands.add_parser(
        "app",
        help="a page in the browser: ask, and see what was kept",
        description=(
            "A page in the browser: choose, upload or record a clip, ask about it, and see the answers with and "
            "without pruning and what was kept. It serves one job at a time, to this machine alone unless --host says "
            "otherwise. It has no accounts: open it only to a network whose people you trust. Ctrl+C ends it."
        ),
    )
    model_option(command)
    serving = command.add_argument_group("serving")
    serving.add_argument("--host", metavar="ADDRESS", help="where to listen (default 127.0.0.1: this machine alone)")
    serving.add_argument("--port", type=int, metavar="N", help="port to listen on (default 7860; 0 takes a free one)")
    serving.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="another name by which browsers may call the page, as behind a proxy; may be given again",
    )
    serving.add_argument("--queue", type=int, metavar="N", help="jobs that may wait (default 8)")
    serving.add_argument(
        "--live", type=int, metavar="N", help="live streams of cameras at a time (default 2; 0: without that tab)"
    )
    bounds = command.add_argument_group("bounds")
    bounds.add_argument(
        "--max-upload-mb", type=float, metavar="MB", help="size of a file at most, in MB of 2^20 bytes (default 200)"
    )
    bounds.add_argument("--max-seconds", type=float, metavar="SECONDS", help="length of a clip at most (default 120)")
    bounds.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="length of an answer in tokens at most (default 128)"
    )
    bounds.add_argument(
        "--max-job-seconds",
        type=float,
        metavar="SECONDS",
        help="time for one question, or to read one file, at most (default 300)",
    )
    model_options(command)
    command.add_argument(
        "--json", action="store_true", help="print one JSON document, with the page's address, when it is ready"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
    return command


def main(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl+C or SIGTERM. Cheap checks come first."""
    progress = Progress(options.quiet)
    from ..app import page, session

    served = {name: getattr(options, name) for name in ("host", "port", "queue", "live", "max_upload_mb", "allow_host")}
    asked = {name: getattr(options, name) for name in ("max_seconds", "max_new_tokens", "max_job_seconds")}
    served, asked = ({k: v for k, v in each.items() if v is not None} for each in (served, asked))
    page.check(**served)
    session.check(**asked)
    model, processor = load(options, progress)
    served_by = session.Session(model, processor, name=options.model, **asked)
    progress.stage("warming up")
    served_by.warm_up()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with page.serve(served_by, **served) as url:
        progress.done()
        ready = {"format": "omnidrop.app", "version": 1, "url": url}
        print(json.dumps(ready) if options.json else url, flush=True)
        if not options.quiet:
            print("Ctrl+C to stop", file=sys.stderr, flush=True)
        ended.wait()
        progress.stage("stopping")
    progress.done()
    return 0
