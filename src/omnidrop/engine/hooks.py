"""Callables that are attached to a model for the duration of a `with`: forward hooks, and temporary attributes.

They belong to one thread and one model object. A copy of the model would carry them along and be pruned for ever, and a
second thread would mix its prompt with the first one's: both get a `ModelError`. torch.compile does not trace them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

from ..errors import ModelError

_NOTHING = object()


class Owned:
    """`function`, for the thread that made this object. `what`: the call that put it on the model, for messages."""

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self.__wrapped__ = function  # `inspect.signature` follows it: `generate` looks at the signature of `forward`
        self._what, self._thread = what, threading.get_ident()

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            raise ModelError(
                f"the model runs in another thread than the one that entered `with {self._what}(...)`: enter the "
                "`with` inside the function that this thread runs, and let one thread at a time use the model"
            )
        return self.__wrapped__(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise ModelError(
            f"the model cannot be copied or pickled inside `with {self._what}(...)`: its hooks would travel with the "
            "copy; copy or save it before or after, or save its state_dict()"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__deepcopy__(None)


@contextmanager
def temporary_attribute(module: nn.Module, name: str, function: Callable[..., Any], what: str) -> Iterator[None]:
    """Set `module.name` on this module object; afterwards restore the instance attribute that was there, or none."""
    before = vars(module).get(name, _NOTHING)
    setattr(module, name, Owned(function, what))
    try:
        yield
    finally:
        vars(module).pop(name, None)  # someone else may have removed it meanwhile
        if before is not _NOTHING:
            setattr(module, name, before)


def refuse_compiled(modules: list[nn.Module]) -> None:
    """Raise `ModelError` for modules that were compiled in place: compiled code does not see hooks."""
    for module in modules:
        own = vars(module).get("forward")
        if module._compiled_call_impl is not None or hasattr(own, "_torchdynamo_orig_callable"):
            raise ModelError(
                f"{type(module).__name__} was compiled in place (module.compile(), or forward = torch.compile(...)): "
                "compiled code does not run hooks. Load the model again and leave it as it is; parts that are not "
                "hooked, such as each layer's mlp, may be compiled"
            )
