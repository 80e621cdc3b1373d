"""The one thing that is done in a process before anybody knows whether its server prunes.

vLLM calls plugins before it reads the configuration. So `install` wraps the method by which every `VllmConfig` checks
itself: vLLM's own check runs first and unchanged, and only a configuration with our entry goes on, through the gate
(`gate.check`) to `config.prepare`. Without the entry nothing further of this plugin is even imported.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from .registry import ENTRY, SEAM, TESTED

logger = logging.getLogger("vllm.omnidrop")  # below "vllm", whose handlers and level it then has


def install() -> None:
    """Put the hook in place, once. A vLLM that has no such method is left alone, with one warning; raises nothing."""
    try:
        from vllm.config import VllmConfig

        stock = getattr(VllmConfig, SEAM)
    except (ImportError, AttributeError):
        import vllm

        logger.warning(
            "omnidrop cannot prune with vLLM %s, and an entry %r in --additional-config does nothing here: it was "
            "tested with vLLM %s",
            vllm.__version__,
            ENTRY,
            TESTED,
        )
        return
    if not hasattr(stock, "_omnidrop"):
        setattr(VllmConfig, SEAM, _hooked(stock))


def _hooked(stock: Any) -> Any:
    @functools.wraps(stock)
    def verify(self: Any) -> None:
        stock(self)
        asked = isinstance(self.additional_config, Mapping) and ENTRY in self.additional_config
        if asked and self.model_config is not None:
            _prune(self)

    verify._omnidrop = True  # type: ignore[attr-defined]
    return verify


def _prune(vllm_config: Any) -> None:
    """Make a server of it that prunes, unless the entry says false. Raises `ModelError` and `SettingError`."""
    from .settings import read

    settings = read(vllm_config.additional_config)
    if settings is None:
        return
    from . import gate

    gate.check()
    from .config import prepare

    prepare(vllm_config, settings)
