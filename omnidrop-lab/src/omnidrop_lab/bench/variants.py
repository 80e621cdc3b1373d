"""What is measured against what: "stock", "lean", "omnidrop:keep=0.3", "lean+omnidrop:keep=0.3" in words.

A part before or after the plus is `lean` with its switches (`lean:last_layer=false`), or a pruning method with its
settings, as everywhere (`omnidrop methods` lists them), or what a user does without a library (`kit.fewer`):
"fewer-frames:keep=0.3". "stock" stands alone: the model of transformers as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

from omnidrop.core.trace import Trace
from omnidrop.engine.lossless import Lean, lean
from omnidrop.engine.session import prune
from omnidrop.errors import SettingError
from omnidrop.methods import Method, parse

from ..kit.fewer import KINDS, Fewer
from ..kit.fewer import read as read_fewer

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
    fewer: Fewer | None = None  # its prompt is another

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
    fewer: Fewer | None = None
    for part in text.split("+"):
        name, _, settings = part.partition(":")
        if name == "lean" and saved is None:
            saved = _switches(settings)
        elif name == STOCK and text == STOCK:
            continue
        elif name in KINDS and fewer is None:
            fewer = read_fewer(part)
        elif name not in ("lean", STOCK, *KINDS) and method is None:
            method = parse(part)
        else:
            raise SettingError(
                f"{text!r} is no variant; write stock, lean, a method such as omnidrop:keep=0.3, lean+METHOD, "
                "fewer-frames:keep=0.5 or fewer-pixels:keep=0.5"
            )
    return Variant(text=text, lean=saved, method=method, fewer=fewer)


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
