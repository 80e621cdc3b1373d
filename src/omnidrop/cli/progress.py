"""Progress on standard error, by tqdm: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..core.units import size

EVERY_SECONDS = 20.0  # between two lines of progress where standard error is no terminal
_current: list[Progress] = []  # the one whose line stands on the terminal; at most one


def clear() -> None:
    """Clear the line of whichever progress there is: what follows on standard error begins a line of its own."""
    for progress in list(_current):
        progress.done()


class Progress:
    """What a command is doing and how far it has come; silent with `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty()
        self.bar: Any = None
        self.label = ""
        self.counting = False

    def stage(self, label: str) -> None:
        """A new stage begins."""
        self.done()
        self.label = label
        if self.live:
            self._open(desc=label, bar_format="{desc} ...")
        else:
            self._line(label)

    def at(self, what: str, done: float, total: float) -> None:
        """How far reading a file has come; a `media.Progress`."""
        if self.bar is None:
            return
        label = f"{self.label}: {what}"
        self.bar.total, self.bar.bar_format = total or None, "{desc} {percentage:3.0f} %" if total else "{desc}"
        self.bar.update(min(done, total or done) - self.bar.n)
        if self.bar.desc != label:
            self.bar.set_description_str(label)

    def rows(self, done: int, total: int, what: str) -> None:
        """`done` of `total` rows, with the time left; rows of an earlier run do not count for the speed."""
        if not self.counting:
            self.done()
            self.counting = True
            if done:
                self._line(f"{done} of {total} rows are there already")
            wait = 0.2 if self.live else EVERY_SECONDS
            form = "{n_fmt} of {total_fmt} rows, {remaining} left: {desc}"
            self._open(total=total, initial=done, bar_format=form, mininterval=wait, delay=wait)
        elif self.bar is not None:
            self.bar.set_description_str(what, refresh=False)
            self.bar.update(done - self.bar.n)

    def note(self, text: str) -> None:
        """Something worth knowing that is no error."""
        self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """A line of its own, that stays."""
        self.done()
        self._line(text)

    def wrote(self, path: str | Path) -> None:
        """A file of the results is there."""
        self.done()
        self._line(f"wrote {path} ({size(Path(path).stat().st_size)})")

    def warn(self, text: str) -> None:
        """What makes the result worthless or incomplete; said also with `quiet`."""
        self.done()
        print(f"omnidrop: warning: {text}", file=sys.stderr, flush=True)

    def done(self) -> None:
        """Clear the live line, so that the answer stands alone."""
        if self.bar is not None:
            self.bar.close()
        self.bar, self.counting = None, False
        _current.clear()

    def _open(self, **settings: Any) -> None:
        if not self.quiet:
            from tqdm import tqdm

            self.bar = tqdm(file=sys.stderr if self.live else _Lines(), leave=False, miniters=1, **settings)
            _current[:] = [self]

    def _line(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


class _Lines:
    """Standard error as a file for tqdm: each update is a line of its own, where no line can be rewritten."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()
