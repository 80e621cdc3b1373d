"""Checks of a method's settings. Each raises `SettingError` with the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from ..core.query import known_query, unknown_query
from ..core.schema import shown
from ..core.select.pixels import RULES
from ..errors import SettingError

LARGEST = 2**63 - 1  # of whole numbers in settings
PLAIN = {int, float, str, bool, NoneType}  # types that JSON and the command line can spell


def kinds_of(method: type) -> dict[str, set[type]]:
    """The types that each field of a dataclass takes."""
    hints = get_type_hints(method)
    return {field.name: set(get_args(hints[field.name])) or {hints[field.name]} for field in fields(method)}


def check_types(method: type, settings: Mapping[str, Any]) -> None:
    """Raise `SettingError` for a value of another type than its field's. A whole number is good for a float."""
    kinds = kinds_of(method)
    for name, value in settings.items():
        wanted = kinds[name]
        if wanted <= PLAIN and type(value) not in wanted and not (type(value) is int and float in wanted):
            legal = " or ".join(sorted(kind.__name__.replace("NoneType", "null") for kind in wanted))
            raise SettingError(f"{name} is {shown(value)}; it must be of the kind {legal}")


def check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise `SettingError` unless value is a finite number with low <= value <= high (low < value with `open_low`)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        raise SettingError(f"{name} is {shown(value)}; it must be a number")
    if not (low < value <= high if open_low else low <= value <= high):
        left = "(" if open_low else "["
        raise SettingError(f"{name} is {value}; it must lie in {left}{low}, {high}]")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise `SettingError` unless value is a whole number, and at least `least`."""
    if type(value) is not int or value < least:
        raise SettingError(f"{name} is {value!r}; it must be a whole number, {least} or more")


def check_keep(keep: float) -> None:
    """`check_range` of a share that remains, in (0, 1], with a hint for percentages."""
    if isinstance(keep, (int, float)) and 1 < keep <= 100:
        raise SettingError(f"keep is {keep}; it must lie in (0, 1]: write {keep / 100:g} for {keep:g} %")
    check_range("keep", keep, 0.0, 1.0, open_low=True)


def check_sizes(method: object) -> None:
    """Raise `SettingError` where a whole number is too large for tensors to count with (64 bits)."""
    for name, value in vars(method).items():
        if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            raise SettingError(f"{name} is {shown(value)}; it must be a number of at most 63 bits")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def check_query(query: str) -> None:
    """Raise `SettingError` for a word that names no rows."""
    if not known_query(query):
        raise SettingError(unknown_query(query))


def check_stages(stages: object) -> None:
    """Raise `SettingError` for anything but None and a whole number, 1 or more; the depth is not known yet."""
    if stages is not None and (type(stages) is not int or stages < 1):
        raise SettingError(f"stages is {stages!r}; it must be a whole number, 1 or more, or None for every layer")


def check_pixels(rule: object) -> None:
    """Raise `SettingError` for anything but None and the name of a rule for pixel values."""
    if rule is not None and rule not in RULES:
        raise SettingError(f"pixels is {shown(rule)}; choose one of {', '.join(map(repr, RULES))}, or None")


def check_flag(name: str, value: object) -> None:
    """Raise `SettingError` for anything but True and False."""
    if not isinstance(value, bool):
        raise SettingError(f"{name} is {value!r}; it must be True or False")
