"""omnidrop: drop audio and video tokens inside the decoder of omni-modal LLMs, guided by the question.

    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        output = model.generate(**inputs)

Importing this package imports nothing else: every name below is looked up when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "prune": "runtime",
    "OmniDrop": "methods",
    "Method": "methods",
    "Trace": "trace",
    "Cost": "trace",
    "TokenLayout": "tokens",
    "Modality": "tokens",
    "layout": "models",
    "load": "prompt",
    "build": "prompt",
    "OmnidropError": "errors",
    "SettingError": "errors",
    "InputError": "errors",
    "ModelError": "errors",
    "MediaError": "errors",
}
_ROOMS = ("errors", "tokens", "schedule", "score", "select", "trace", "methods", "models", "runtime", "media", "prompt")

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604

if TYPE_CHECKING:
    from . import errors, media, prompt, schedule, score, select, tokens
    from .errors import InputError, MediaError, ModelError, OmnidropError, SettingError
    from .methods import Method, OmniDrop
    from .models import layout
    from .prompt import build, load
    from .runtime import prune
    from .tokens import Modality, TokenLayout
    from .trace import Cost, Trace


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
