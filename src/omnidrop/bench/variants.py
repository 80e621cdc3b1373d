"""What is measured against what: "stock", "lean", "omnidrop:keep=0.3", "lean+omnidrop:keep=0.3" in words.

A part before or after the plus is `lean` with its switches (`lean:last_layer=false`), or a pruning method with its
settings, as everywhere (`omnidrop methods` lists them). "stock" stands alone: the model of transformers as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

from ..errors import SettingError
from ..methods import Method, parse
from ..runtime import prune
from ..savings import Lean, lean
from ..trace import Trace

STOCK = "stock"
DEFAULT = (STOCK, "lean", "lean+omnidrop:keep=0.3", "lean+tuned:keep=0.2")
SWITCHES = tuple(signature(lean).parameters)[1:]


class Applied(NamedTuple):
    """What a variant has applied to the model."""

    lean: Lean | None
    trace: Trace | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One column of a comparison. Nothing applied is the stock model."""

    text: str
    lean: dict[str, Any] | None  # switches that differ from their defaults
    method: Method | None

    @contextmanager
    def applied(self, model: Any) -> Iterator[Applied]:
        """Apply it to `model` for the length of the `with`."""
        with ExitStack() as stack:
            saved = None if self.lean is None else stack.enter_context(lean(model, **self.lean))
            trace = None if self.method is None else stack.enter_context(prune(model, self.method))
            yield Applied(saved, trace)


def read(text: str) -> Variant:
    """The variant in words. Raises `SettingError`."""
    saved: dict[str, Any] | None = None
    method: Method | None = None
    for part in text.split("+"):
        name, _, settings = part.partition(":")
        if name == "lean" and saved is None:
            saved = _switches(settings)
        elif name == STOCK and text == STOCK:
            continue
        elif name != "lean" and name != STOCK and method is None:
            method = parse(part)
        else:
            raise SettingError(
                f"{text!r} is no variant; write stock, lean, a method such as omnidrop:keep=0.3, or lean+METHOD"
            )
    return Variant(text=text, lean=saved, method=method)


def _switches(settings: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        name, _, value = part.partition("=")
        if name not in SWITCHES or not (value in ("true", "false") or value.isdigit()):
            raise SettingError(
                f"{part!r} is no switch of lean; write name=true, name=false or name=ROWS with one of "
                f"{', '.join(SWITCHES)}"
            )
        found[name] = int(value) if value.isdigit() else value == "true"
    return found
