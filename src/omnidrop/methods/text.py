"""A method as text, for command lines: `NAME`, `NAME:FIELD=VALUE,...` or `PRESET:FIELD=VALUE,...`."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import fields
from types import NoneType
from typing import Any

from ..errors import SettingError
from .base import Method, find
from .checks import kinds_of
from .presets import presets


def read(text: str) -> dict[str, Any]:
    """The settings that `text` names, as `Method.from_json` reads them: `{"name": ..., field: value, ...}`.

    Values are read by the field's type; what does not fit it stays text, and `Method.from_json` refuses it. Raises
    `SettingError` for an unknown method and an unknown setting.
    """
    name, _, rest = text.partition(":")
    document = dict(presets().get(name, {"name": name}))
    kinds = kinds_of(find(document["name"]))
    for part in filter(None, rest.split(",")):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or field not in kinds:
            raise SettingError(
                f"{part!r} is no setting of {name}; write name=value with one of {', '.join(sorted(kinds))}"
            )
        document[field] = _value(value, kinds[field])
    return document


def parse(text: str, **defaults: Any) -> Method:
    """The method that `text` names: `parse("omnidrop:lambda_div=0,query=last", keep=0.3)`.

    `defaults` fill the fields that the method has and the text does not set. Raises `SettingError`.
    """
    said = read(text)
    known = {field.name for field in fields(find(said["name"]))}
    return Method.from_json({**{name: value for name, value in defaults.items() if name in known}, **said})


def _value(text: str, kinds: Set[type]) -> Any:
    words = {"none": (NoneType, None), "true": (bool, True), "false": (bool, False)}
    kind, value = words.get(text.lower(), (str, text))
    if kind in kinds:
        return value
    numbers = (int, float) if float in kinds else (int,) if int in kinds else ()  # 4 stays a whole number
    for number in numbers:
        try:
            return number(text)
        except ValueError:
            continue
    return text
