"""The mark of a method that replaces one of vLLM's: `gate` compares its name and arguments with the original's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

MARK = "_omnidrop_overrides"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def overrides(function: _Function) -> _Function:
    """Mark a method that replaces one of vLLM's."""
    setattr(function, MARK, True)
    return function
