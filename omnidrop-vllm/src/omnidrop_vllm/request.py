"""A request whose override is wrong is refused when it comes in: HTTP 400 for that request, and nothing else stops.

The check that vLLM's front end runs on the sampling parameters of every request before the engine sees them. vLLM
offers it as a part of a logits processor, so `RequestValidator` is one by name; no engine ever builds it (`unguard`).
What comes in another way and is wrong runs unpruned, and is counted.

`validate_params` is a class method and is told the parameters alone. So the settings that they are judged
by are those of the latest engine that was configured in this process; a front end has one.
"""

from __future__ import annotations

from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import LogitsProcessor

from .overrides import overrides
from .settings import Settings, for_request


def guard(vllm_config: Any, settings: Settings) -> None:
    """Have the front end of this process check what requests ask of `settings`."""
    RequestValidator.settings = settings
    model_config = vllm_config.model_config
    model_config.logits_processors = [*_others(model_config), PATH]


def unguard(vllm_config: Any) -> None:
    """Take the guard out again, in a worker and before its runner is built.

    Its runner would keep every request's output tokens on the host for a logits processor that is only a check.
    """
    model_config = vllm_config.model_config
    model_config.logits_processors = _others(model_config) or None


class RequestValidator(LogitsProcessor):
    """Admits requests; changes no logits."""

    settings: Settings | None = None

    @classmethod
    @overrides
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise vLLM's error of a bad request where `for_request` raises ours."""
        if cls.settings is None:
            return
        try:
            for_request(cls.settings, sampling_params.extra_args)
        except (ValueError, TypeError, ArithmeticError) as error:  # a SettingError, or what a number does in Python
            raise VLLMValidationError(str(error)) from error

    @overrides
    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        raise AssertionError("the worker takes the guard out before it builds logits processors")

    @overrides
    def apply(self, logits: Any) -> Any:
        """Never called."""
        raise NotImplementedError

    @overrides
    def is_argmax_invariant(self) -> bool:
        """Never called."""
        raise NotImplementedError

    @overrides
    def update_state(self, batch_update: Any) -> None:
        """Never called."""
        raise NotImplementedError


PATH = f"{RequestValidator.__module__}:{RequestValidator.__qualname__}"


def _others(model_config: Any) -> list[Any]:
    return [each for each in model_config.logits_processors or [] if each != PATH]
