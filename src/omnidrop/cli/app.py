"""`omnidrop app`: the page to ask a clip with and without pruning, served until it is interrupted."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from typing import Any

from .setup import Progress, one_thread_if_tiny, quiet_transformers


def add(commands: Any) -> argparse.ArgumentParser:
    """The options. Their defaults live in `omnidrop.app`, which is looked up when it runs: help must be instant."""
    command: argparse.ArgumentParser = commands.add_parser(
        "app", help="a page in the browser: ask, and see what was kept"
    )
    command.description = (
        "A page in the browser: choose, upload or record a clip, ask about it, and see the answers with and without "
        "pruning and what was kept. It serves one job at a time, to this machine alone unless --host says otherwise. "
        "It has no accounts: open it only to a network whose people you trust. Ctrl+C ends it."
    )
    command.add_argument(
        "--model", metavar="PATH_OR_HUB_ID", help="a saved model or a hub id (default: the shipped tiny model)"
    )
    serving = command.add_argument_group("serving")
    serving.add_argument("--host", metavar="ADDRESS", help="where to listen (default 127.0.0.1: this machine alone)")
    serving.add_argument("--port", type=int, metavar="N", help="(default 7860; 0 takes a free one)")
    serving.add_argument("--queue", type=int, metavar="N", help="jobs that may wait (default 8)")
    bounds = command.add_argument_group("bounds")
    bounds.add_argument("--max-upload-mb", type=float, metavar="MB", help="of one file, in 2^20 bytes (default 200)")
    bounds.add_argument("--max-seconds", type=float, metavar="S", help="of one clip (default 120)")
    bounds.add_argument("--max-new-tokens", type=int, metavar="N", help="of one answer (default 128)")
    running = command.add_argument_group("running")
    running.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the checkpoint's own)")
    running.add_argument("--device", help="cpu, cuda, ... or auto for several (default: cuda where there is one)")
    running.add_argument("--attn", metavar="NAME", help="attention of transformers: sdpa, eager, ...")
    command.add_argument(
        "--json", action="store_true", help="print one JSON document, with the page's address, when it is ready"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
    return command


def app(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl+C or SIGTERM. Cheap checks come first."""
    progress = Progress(options.quiet)
    progress.stage(f"loading {options.model or 'the shipped tiny model'}")
    from .. import prompt
    from ..app import desk, page

    served = {name: getattr(options, name) for name in ("host", "port", "queue", "max_upload_mb")}
    asked = {name: getattr(options, name) for name in ("max_seconds", "max_new_tokens")}
    served, asked = ({k: v for k, v in each.items() if v is not None} for each in (served, asked))
    page.check(**served)
    desk.check(**asked)
    quiet_transformers()
    model, processor = prompt.load(options.model, options.dtype, options.device, options.attn)
    one_thread_if_tiny(model)
    served_by = desk.Desk(model, processor, name=options.model, **asked)
    progress.stage("warming up")
    served_by.warm_up()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with page.serve(served_by, **served) as url:
        progress.done()
        print(json.dumps({"format": "omnidrop.app", "version": 1, "url": url}) if options.json else url, flush=True)
        ended.wait()
    return 0
