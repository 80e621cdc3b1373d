"""What both commands need before a model runs: quiet libraries, progress, the method that the options ask for."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import fields
from typing import Any

from ..errors import SettingError


class Progress:
    """Stages on standard error: one line that is rewritten on a terminal, one line a stage elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty()
        self.label, self.shown = "", 0.0

    def stage(self, label: str) -> None:
        """A new stage begins."""
        self.done()
        self.label = label
        if not self.quiet:
            print(f"{label} ..." if self.live else label, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def at(self, what: str, done: float, total: float) -> None:
        """How far reading a file has come; a `media.Progress`."""
        now = time.monotonic()
        if self.quiet or not self.live or now - self.shown < 0.1:
            return
        self.shown = now
        share = f" {100 * done / total:3.0f} %" if total else ""
        print(f"\r\033[K{self.label}: {what}{share}", end="", file=sys.stderr, flush=True)

    def done(self) -> None:
        """Clear the live line, so that the answer stands alone."""
        if self.live and not self.quiet and self.label:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self.label = ""

    def note(self, text: str) -> None:
        """Something worth knowing that is no error."""
        self.done()
        if not self.quiet:
            print(f"note: {text}", file=sys.stderr, flush=True)


def quiet_transformers() -> None:
    """Its warnings speak to programmers; the command's own messages say what its users can do."""
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def one_thread_if_tiny(model: Any) -> None:
    """The shipped model's matrices are too small to share among threads, which then only wait for each other."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and model.device.type == "cpu" and model.num_parameters() < 10_000_000:
        torch.set_num_threads(1)


def method(options: argparse.Namespace) -> Any:
    """The method value that --method, --keep, --budget and --paper ask for. Raises `SettingError`."""
    from ..methods import OmniDrop, find, parse

    text, keep = options.method, options.keep
    if options.paper is not None:
        if keep is not None or options.budget is not None or text != "omnidrop":
            raise SettingError("--paper is a complete setting of omnidrop; leave out --keep, --budget and --method")
        size, _, percent = options.paper.partition("/")
        if not percent.isdigit():
            raise SettingError(f"--paper is {options.paper!r}; choose 7b/30, 7b/20, 3b/30 or 3b/20")
        return OmniDrop.paper(size, int(percent))
    name, _, rest = text.partition(":")
    said = {part.partition("=")[0].strip() for part in rest.split(",")}
    kind = find(name)
    for option in ("keep", "budget"):
        has = kind is None or option in {field.name for field in fields(kind)}
        if getattr(options, option) is not None and not has:
            raise SettingError(
                f"--{option} does not apply to the method {name}, which has no such setting; leave it out"
            )
    if options.budget is not None and "budget" in said:
        raise SettingError(f"--budget {options.budget} and --method {text} both name the budget; leave one out")
    if keep is not None and said & {"keep", "p_init", "p_final"}:
        raise SettingError(f"--keep {keep:g} and --method {text} both say how much remains; leave one out")
    if keep is None and not said & {"p_init", "p_final"}:
        keep = 0.3
    try:
        return parse(text, keep=keep, **({"budget": options.budget} if options.budget else {}))
    except TypeError as error:  # a field without a default was left out
        raise SettingError(f"--method {text}: {error}; write NAME:FIELD=VALUE") from error
