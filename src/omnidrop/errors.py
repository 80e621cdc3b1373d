"""Every error that omnidrop raises on purpose. A message says what was wrong, the value, and the next step."""

from __future__ import annotations


class OmnidropError(Exception):
    """Base of all errors of this library: `except omnidrop.OmnidropError` catches exactly what it says itself."""


class SettingError(OmnidropError, ValueError):
    """A method or option was given a value it cannot take. Raised where the value is given, before any model runs."""


class KeywordError(SettingError, TypeError):
    """A function was given a keyword that it does not have. The message lists the keywords that it has."""


class InputError(OmnidropError, ValueError):
    """The model's inputs cannot be pruned as they are (no attention mask, media on a filled cache, ...)."""


class ModelError(OmnidropError, RuntimeError):
    """The model, its cache or its way of decoding is not supported."""


class MediaError(OmnidropError, OSError):
    """A file could not be read as video, sound or image."""


class FileError(OmnidropError, OSError):
    """A file of the library itself, such as a trace, could not be read or written; `strerror` is the reason."""

    @classmethod
    def of(cls, message: str, error: Exception) -> FileError:
        """`message`, followed by the reason that the system gave."""
        reason = getattr(error, "strerror", None) or str(error)
        made = cls(f"{message}: {reason}; check the path")
        made.strerror = reason
        return made


def error_fields(error: Exception) -> dict[str, str]:
    """The class and the first line of the message of any error, for a row of a result file."""
    lines = str(error).strip().splitlines()
    return {"kind": type(error).__name__, "message": lines[0] if lines else ""}


def described(value: object) -> str:
    """A wrong argument in a message: short text and numbers as they are, anything else by its type and size alone."""
    name = type(value).__name__
    if value is None or (isinstance(value, (bool, int, float, str)) and len(ascii(value)) <= 60):
        return ascii(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    size = getattr(value, "shape", None)
    if isinstance(size, tuple):
        return f"{name} of shape {tuple(size)}"
    return f"{name} of length {len(value)}" if isinstance(value, (str, bytes, bytearray, list, dict)) else name


def first_line(error: BaseException) -> str:
    """What an error of a library says, for a message of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
