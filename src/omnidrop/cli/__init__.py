"""The command `omnidrop`: options in, one answer (or one JSON document) out.

What it is: argument parsing and the top-level error handling. What it is not: it measures nothing (`measure`), prints
no table (`show`), and imports nothing heavy before it must: `omnidrop --help` is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .app import add as add_app
from .batch import add as add_batch
from .bench import add as add_bench
from .compare import add as add_compare
from .eval import add as add_eval
from .methods import add as add_methods
from .needle import add as add_needle
from .report import add as add_report

ENTRIES = {"eval": "evaluate"}  # the function of a command's file, where it is not called as the command is
EXAMPLES = """\
examples:
  omnidrop demo
  omnidrop run clip.mp4 "What is said when the door opens?" --model Qwen/Qwen2.5-Omni-3B
  omnidrop run clip.mp4 "What is said when the door opens?" --model Qwen/Qwen2.5-Omni-3B --keep 0.2 --compare
  omnidrop app --model Qwen/Qwen2.5-Omni-3B
  omnidrop batch clips/ "What happens?" --model Qwen/Qwen2.5-Omni-3B --out answers.jsonl
  omnidrop run talk.wav slide.png "Does the talk fit the slide?" --model ./my-model --json > answer.json
"""

METHOD_HELP = (
    "the pruning method and its settings, such as omnidrop:evict=true,lambda_div=0 (default omnidrop; "
    "`omnidrop methods` lists them)"
)


def parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The top-level parser, and that of each command."""
    top = argparse.ArgumentParser(
        prog="omnidrop",
        description="Drop audio and video tokens inside the decoder of omni-modal models, guided by the question.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser("run", help="answer a question about video, audio or image files")
    run.usage = "omnidrop run MEDIA [MEDIA ...] QUESTION [options]"
    run.add_argument(
        "inputs",
        nargs="+",
        metavar="MEDIA ... QUESTION",
        help="one or more video, audio or image files, then the question",
    )
    run.add_argument(
        "--model", metavar="PATH_OR_HUB_ID", help="a saved model or a hub id (default: the shipped tiny model)"
    )
    _method_options(run)
    run.add_argument("--compare", action="store_true", help="also answer without pruning, and print both side by side")
    reading = run.add_argument_group("reading")
    reading.add_argument("--fps", type=float, default=2.0, help="pictures a second (default 2, the paper's)")
    reading.add_argument("--max-frames", type=int, default=128, help="pictures of a video at most (default 128)")
    reading.add_argument(
        "--max-pixels", type=int, default=128 * 28 * 28, help="pixels of a video's picture at most (default 100352)"
    )
    reading.add_argument("--no-audio", action="store_true", help="leave the sound of videos out")
    long = run.add_argument_group("long clips (one file, read in segments; no --compare, --report, --max-frames)")
    long.add_argument(
        "--segment",
        type=float,
        metavar="SECONDS",
        help="decode, encode and prune so many seconds at once (default 32 where --hold is given)",
    )
    long.add_argument(
        "--hold",
        type=int,
        metavar="TOKENS",
        help="audio and video tokens that a layer's cache keeps at most (default: no limit)",
    )
    long.add_argument(
        "--time-scale",
        type=float,
        metavar="SHARE",
        help="positions a second, relative to the model's own, for clips beyond its range",
    )
    answering = run.add_argument_group("answering")
    answering.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="length of the answer (default 128)"
    )
    answering.add_argument("--system", help="a system prompt (default: the chat template's own)")
    _model_options(answering)
    _output_options(run)
    run.add_argument("--trace", metavar="FILE", help="write what was kept at every layer as JSON")
    run.add_argument(
        "--report", metavar="FILE", help="write a page (HTML) that shows what was kept: pictures, sound, layers"
    )

    demo = commands.add_parser("demo", help="the shipped clip and tiny model, with and without pruning")
    _method_options(demo)
    _model_options(demo)
    _output_options(demo)
    demo.add_argument(
        "--report", metavar="FILE", help="write a page (HTML) that shows what was kept for every question"
    )
    return top, {
        "run": run,
        "demo": demo,
        "methods": add_methods(commands),
        "report": add_report(commands),
        "app": add_app(commands),
        "bench": add_bench(commands),
        "needle": add_needle(commands),
        "eval": add_eval(commands),
        "compare": add_compare(commands),
        "batch": add_batch(commands),
    }


def _method_options(target: Any) -> None:
    group = target.add_argument_group("pruning")
    group.add_argument(
        "--keep",
        type=float,
        help="share of audio and video tokens to keep, counted as --budget says, in (0, 1] (default 0.3)",
    )
    group.add_argument(
        "--budget",
        metavar="WORD",
        help="what --keep counts: layers (mean over the layers, default), input (what enters the decoder), flops (of "
        "the decoder's prefill) or kv (bytes of the cache)",
    )
    group.add_argument("--method", default="omnidrop", metavar="NAME[:FIELD=VALUE,...]", help=METHOD_HELP)
    group.add_argument("--paper", metavar="MODEL/PERCENT", help="the paper's setting: 7b/30, 7b/20, 3b/30 or 3b/20")


def _model_options(target: Any) -> None:
    target.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the checkpoint's own)")
    target.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... or auto for several (default: cuda where there is one)"
    )
    target.add_argument("--attn", metavar="NAME", help="attention of transformers: sdpa, eager, flash_attention_2, ...")


def _output_options(target: Any) -> None:
    target.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    target.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0; 1 for results with errors among them, 2 for a clear error, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    top, commands = parser()
    if arguments and arguments[0] in commands:
        # files, options and the question may come in any order, which argparse allows only without sub-commands
        options = commands[arguments[0]].parse_intermixed_args(arguments[1:])
        command = arguments[0]
    else:
        options = top.parse_args(arguments)
        if options.version:
            print(f"omnidrop {version()}")
            return 0
        top.print_help()
        return 0 if not arguments else 2
    from ..errors import OmnidropError

    with contextlib.suppress(AttributeError, ValueError):  # an answer in any script must not break a plain terminal
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        entry = import_module(f".{command}", __package__)
        return getattr(entry, ENTRIES.get(command, command))(options)
    except OmnidropError as error:
        print(f"omnidrop: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("omnidrop: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `omnidrop ... | head`
        sys.stderr.close()
        return 0
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"omnidrop: error: out of memory ({reason}); lower --keep, --max-frames or --max-pixels, use --dtype "
            "bfloat16, or spread the model with --device auto",
            file=sys.stderr,
        )
        return 2


def version() -> str:
    """The version of the package."""
    from .. import __version__

    return __version__
