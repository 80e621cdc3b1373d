"""The command `omnidrop`: argument parsing and error handling. `omnidrop --help` imports neither torch nor numpy."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from .. import __version__
from ..errors import OmnidropError, SettingError
from . import config, progress
from .parsing import Parser, nearest

COMMANDS = ("run", "live", "demo", "methods", "report", "app", "batch", "doctor")
GROUP = "omnidrop.commands"  # entry points with which other packages add commands
ELSEWHERE = dict.fromkeys(("bench", "needle", "eval", "compare"), "omnidrop-lab")  # command -> the package that has it
EXAMPLES = """\
examples:
  omnidrop demo
  omnidrop run clip.mp4 "What is said at the door?" --model Qwen/Qwen2.5-Omni-3B
  omnidrop run clip.mp4 "Who speaks?" --model ./my-model --keep 0.2 --compare
  omnidrop run talk.wav slide.png "Do they fit?" --model ./my-model --json
  omnidrop live talk.mp4 "What is the topic now?" --model ./my-model --realtime
  omnidrop batch clips/ "What happens?" --model ./my-model --out answers.jsonl
  omnidrop app --model ./my-model

completion of commands and options (extra "completion"), for bash, and for zsh
after bashcompinit:
  eval "$(register-python-argcomplete omnidrop)"
"""
LOST = (errno.ENOSPC, errno.EIO, errno.EBADF)  # what a standard output that cannot be written raises


def parser(only: str | None = None) -> tuple[Parser, dict[str, Parser]]:
    """The top-level parser, and that of each command, or of the command `only`. Raises `SettingError`."""
    top = Parser(
        prog="omnidrop",
        description="Drop audio and video tokens inside the decoder of multimodal models, guided\nby the question.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    found = {}
    for name in [*COMMANDS, *_joined()] if only is None else [only]:
        try:
            found[name] = _module(name).add(commands)
        except SettingError as error:
            if only is not None:
                raise
            commands.add_parser(name, help=f"(broken: `omnidrop {name}` says why)", description=str(error))
            continue
        config.option(found[name])
    if only is None:
        commands.add_parser("help", help="this list, or the options of a command: omnidrop help COMMAND")
    return top, found


def _joined() -> dict[str, str]:
    """Commands of other installed packages (entry points of the group `omnidrop.commands`): name -> module."""
    return {entry.name: entry.value for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name)}


def _module(name: str) -> Any:
    """The module of a command: `add(commands)` adds its parser, `main(options)` runs it."""
    if name in COMMANDS:
        return import_module(f".{name}", __package__)
    where = _joined()[name]
    try:
        return import_module(where)
    except Exception as error:
        raise SettingError(
            f"the command {name} ({where}, of another package) cannot be loaded: {error!r}; repair or uninstall it"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0; 1 for results with errors among them, 2 for a clear error, 130 when interrupted.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error can still be reported
        return status
    except OmnidropError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        progress.clear()
        print("omnidrop: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `omnidrop ... | head`
        _discard_output()
        return 0
    except OSError as error:
        if error.errno not in LOST or error.filename is not None:
            raise
        _discard_output()
        return _failed(f"standard output cannot be written: {error.strerror}")
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        return _failed(
            f"out of memory ({str(error).splitlines()[0]}); lower --keep, --max-frames or --max-pixels, use --dtype "
            "bfloat16, or spread the model with --device auto"
        )


def _failed(reason: str) -> int:
    """One line, below whatever stands on the terminal."""
    progress.clear()
    print(f"omnidrop: error: {reason}", file=sys.stderr)
    return 2


def _discard_output() -> None:
    """Python flushes standard output once more when it ends: nowhere, since there it failed."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    """Run a command line. Raises `OmnidropError`."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    known = [*COMMANDS, *_joined()]
    asked = arguments[0] if arguments and arguments[0] in known else None
    top, commands = parser(asked if "_ARGCOMPLETE" not in os.environ else None)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        import argcomplete

        argcomplete.autocomplete(top)
    if asked is None:
        return _without_command(top, arguments, known)
    config.apply(commands[asked], arguments[1:])
    # files, options and the question may come in any order, which argparse allows only without sub-commands
    options = commands[asked].parse(arguments[1:])
    if sys.stdout is None:
        raise SettingError("standard output is closed, and the result goes there; redirect it, such as to /dev/null")
    with contextlib.suppress(AttributeError, ValueError):  # an answer in any script must not break a plain terminal
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    return _module(asked).main(options)


def _without_command(top: Parser, arguments: list[str], known: list[str]) -> int:
    """--version, --help, no arguments at all, or a command that is not there. Raises `SettingError`."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name in ELSEWHERE:
        package = ELSEWHERE[name]
        raise SettingError(f"`omnidrop {name}` comes with {package}: pip install ./{package} in a checkout of omnidrop")
    if name is not None:
        hint = nearest(name, [*known, *ELSEWHERE])
        raise SettingError(f"there is no command {name!r}{hint}; `omnidrop --help` lists them")
    options = top.parse_args(arguments)
    if options.version:
        print(f"omnidrop {__version__}")
        return 0
    top.print_help()
    return 0
