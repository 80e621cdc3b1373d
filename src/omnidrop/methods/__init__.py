"""The pruning methods, one file each. A new method adds its file, one import and one entry here."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import SettingError
from .base import Method
from .cutoff import Cutoff
from .fastv import FastV
from .omnidrop import OmniDrop
from .random import Random
from .uniform import Uniform

METHODS: dict[str, type[Method]] = {
    "omnidrop": OmniDrop,
    "random": Random,
    "uniform": Uniform,
    "fastv": FastV,
    "cutoff": Cutoff,
}


def parse(text: str, **defaults: Any) -> Method:
    """A method from its name and settings in words: `parse("omnidrop:lambda_div=0,query=last", keep=0.3)`.

    Values are read as the field's kind: numbers, true/false, none, else words. `defaults` fill fields that the method
    has and the text does not set. Raises `SettingError` for an unknown method or setting.
    """
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise SettingError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
    known = {spec.name for spec in fields(METHODS[name])}
    settings = {field: value for field, value in defaults.items() if field in known}
    for part in filter(None, rest.split(",")):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or field not in known:
            raise SettingError(
                f"{part!r} is no setting of {name}; write name=value with one of {', '.join(sorted(known))}"
            )
        settings[field] = _value(value)
    return METHODS[name](**settings)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


__all__ = ["METHODS", "Cutoff", "FastV", "Method", "OmniDrop", "Random", "Uniform", "parse"]
