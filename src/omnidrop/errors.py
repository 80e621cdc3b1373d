"""Every error that omnidrop raises on purpose. A message says what was wrong, the value, and the next step."""

from __future__ import annotations


class OmnidropError(Exception):
    """Base of all errors of this library: `except omnidrop.OmnidropError` catches exactly what it says itself."""


class SettingError(OmnidropError, ValueError):
    """A method or option was given a value it cannot take. Raised where the value is given, before any model runs."""


class InputError(OmnidropError, ValueError):
    """The model's inputs cannot be pruned as they are (no attention mask, media on a filled cache, ...)."""


class ModelError(OmnidropError, TypeError):
    """The model, its cache or its way of decoding is not supported."""


class MediaError(OmnidropError, OSError):
    """A file could not be read as video, sound or image."""
