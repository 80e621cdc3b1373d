"""omnidrop: drop audio and video tokens inside the decoder of omni-modal LLMs, guided by the question.

    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        output = model.generate(**inputs)

Importing this package imports nothing heavy: every name below is looked up when it is first used. The logger
"omnidrop" says which prompts ran pruned, and which did not and why.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until an application sets logging up

__version__ = "0.1.0"

_HOMES = {
    "prune": "engine.session",
    "lean": "engine.lossless",
    "stream": "streaming",
    "live": "livestream",
    "Conversation": "conversation",
    "reuse_encoders": "engine.reuse",
    "EncodedMedia": "engine.reuse",
    "Streamed": "streaming",
    "report": "reports",
    "OmniDrop": "methods",
    "Method": "methods",
    "Random": "methods",
    "Uniform": "methods",
    "FastV": "methods",
    "Cutoff": "methods",
    "Trace": "core.trace",
    "Cost": "core.trace",
    "TokenLayout": "core.tokens",
    "Modality": "core.tokens",
    "layout": "models",
    "load": "loading",
    "build": "prompt",
    "OmnidropError": "errors",
    "SettingError": "errors",
    "InputError": "errors",
    "ModelError": "errors",
    "MediaError": "errors",
    "FileError": "errors",
}
_MODULES = {  # public modules: their short name -> where they are
    "errors": "errors",
    "loading": "loading",
    "media": "media",
    "methods": "methods",
    "models": "models",
    "prompt": "prompt",
    "schedule": "core.schedule",
    "score": "core.score",
    "select": "core.select",
    "tokens": "core.tokens",
    "trace": "core.trace",
}

__all__ = ["__version__", "errors", "media", "methods", *_HOMES]

if TYPE_CHECKING:  # for editors and type checkers: what `__getattr__` finds
    from . import errors as errors
    from . import loading as loading
    from . import media as media
    from . import methods as methods
    from . import models as models
    from . import prompt as prompt
    from .conversation import Conversation as Conversation
    from .core import schedule as schedule
    from .core import score as score
    from .core import select as select
    from .core import tokens as tokens
    from .core import trace as trace
    from .core.tokens import Modality as Modality
    from .core.tokens import TokenLayout as TokenLayout
    from .core.trace import Cost as Cost
    from .core.trace import Trace as Trace
    from .engine.lossless import lean as lean
    from .engine.reuse import EncodedMedia as EncodedMedia
    from .engine.reuse import reuse_encoders as reuse_encoders
    from .engine.session import prune as prune
    from .errors import FileError as FileError
    from .errors import InputError as InputError
    from .errors import MediaError as MediaError
    from .errors import ModelError as ModelError
    from .errors import OmnidropError as OmnidropError
    from .errors import SettingError as SettingError
    from .livestream import live as live
    from .loading import load as load
    from .methods import Cutoff as Cutoff
    from .methods import FastV as FastV
    from .methods import Method as Method
    from .methods import OmniDrop as OmniDrop
    from .methods import Random as Random
    from .methods import Uniform as Uniform
    from .models import layout as layout
    from .prompt import build as build
    from .reports import report as report
    from .streaming import Streamed as Streamed
    from .streaming import stream as stream


if not TYPE_CHECKING:  # a type checker that saw this would take every misspelled name for an Any

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        if name in _MODULES:
            return import_module(f".{_MODULES[name]}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
