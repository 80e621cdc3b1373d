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
    "lean": "savings",
    "stream": "streaming",
    "Streamed": "streaming",
    "report": "reports",
    "OmniDrop": "methods",
    "Method": "methods",
    "Random": "methods",
    "Uniform": "methods",
    "FastV": "methods",
    "Cutoff": "methods",
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

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:  # for editors and type checkers: what `__getattr__` finds
    from . import errors as errors
    from . import media as media
    from . import prompt as prompt
    from . import schedule as schedule
    from . import score as score
    from . import select as select
    from . import tokens as tokens
    from .errors import InputError as InputError
    from .errors import MediaError as MediaError
    from .errors import ModelError as ModelError
    from .errors import OmnidropError as OmnidropError
    from .errors import SettingError as SettingError
    from .methods import Cutoff as Cutoff
    from .methods import FastV as FastV
    from .methods import Method as Method
    from .methods import OmniDrop as OmniDrop
    from .methods import Random as Random
    from .methods import Uniform as Uniform
    from .models import layout as layout
    from .prompt import build as build
    from .prompt import load as load
    from .reports import report as report
    from .runtime import prune as prune
    from .savings import lean as lean
    from .streaming import Streamed as Streamed
    from .streaming import stream as stream
    from .tokens import Modality as Modality
    from .tokens import TokenLayout as TokenLayout
    from .trace import Cost as Cost
    from .trace import Trace as Trace


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
