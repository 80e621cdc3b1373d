"""An attribute lent to a module for the length of a `with`. Hooks need no such thing: torch's handles are contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_NOTHING = object()


@contextmanager
def lent(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Set `module.name` on this very module; afterwards what stood on it before stands on it again, or nothing."""
    before = vars(module).get(name, _NOTHING)
    setattr(module, name, value)
    try:
        yield
    finally:
        vars(module).pop(name, None)  # someone else may have removed it meanwhile
        if before is not _NOTHING:
            setattr(module, name, before)
