"""Warnings and progress bars of other packages, silenced for a moment.

`warnings.catch_warnings` puts the process's filters back when it is left: two threads inside it undo each other, so
one thread at a time is inside.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_one = threading.RLock()


@contextmanager
def silenced(message: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Ignore warnings of `category` whose text begins with the expression `message`."""
    with _one, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category)
        yield


@dataclass
class _Bars:
    """Which progress bars were shown before the first of the open blocks of `no_weight_bars`."""

    blocks: int = 0
    weights: bool = True
    downloads: bool = True


_bars = _Bars()


@contextmanager
def no_weight_bars() -> Iterator[None]:
    """Hide transformers' bar "Loading weights". Downloads keep theirs: they take minutes."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    with _one:
        if _bars.blocks == 0:
            _bars.weights = logging.is_progress_bar_enabled()
            _bars.downloads = not hub.are_progress_bars_disabled()
            _show_bars(weights=False, downloads=_bars.downloads)
        _bars.blocks += 1
    try:
        yield
    finally:
        with _one:
            _bars.blocks -= 1
            if _bars.blocks == 0:
                _show_bars(weights=_bars.weights, downloads=_bars.downloads)


def _show_bars(*, weights: bool, downloads: bool) -> None:
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    with silenced():  # the hub warns where an environment variable decides
        (logging.enable_progress_bar if weights else logging.disable_progress_bar)()  # changes the hub's too
        (hub.enable_progress_bars if downloads else hub.disable_progress_bars)()
