"""A JSON document against a JSON schema: the part of draft 2020-12 that our own schemas are written in.

A package of its own would do it too, and slowly: a trace holds millions of numbers, which are checked here as whole
lists. A keyword that is not known here is an error of ours, so a schema cannot say more than is checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
ABOUT = {"$schema", "$id", "$defs", "title", "description"}  # say something, demand nothing
NUMERIC = {"type", "minimum", "maximum", "exclusiveMinimum"}
SHOWN = 60  # characters of a wrong value in a message


class SchemaError(ValueError):
    """The first thing in a document that its schema forbids, in one line."""


def check(document: Any, schema: Mapping[str, Any]) -> None:
    """Raise `SchemaError` for the first place of `document` that `schema` does not allow.

    Keywords: type, const, enum, pattern (searched), maxLength, minimum, maximum, exclusiveMinimum, items, minItems,
    maxItems, uniqueItems (of numbers or texts), properties, required, additionalProperties, maxProperties,
    propertyNames, $ref to "#/$defs/...". `true` and `false` are no numbers, and 1.0 is an integer no more than "1" is.
    """
    for problem in _problems(document, schema, schema, "the document"):
        raise SchemaError(problem)


def _problems(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    allowed = schema.get("type", [])
    allowed = [allowed] if isinstance(allowed, str) else allowed
    if allowed and not _is(value, allowed):
        yield f"{where} is {shown(value)}; it must be of type {' or '.join(allowed)}"
        return
    for word, wanted in schema.items():
        if word in ABOUT or word == "type":
            continue
        yield from RULES[word](value, wanted, schema, root, where)


def _is(value: Any, allowed: Sequence[str]) -> bool:
    name = "null" if value is None else NAMES.get(type(value), "")
    return name in allowed or (name == "integer" and "number" in allowed)


def shown(value: Any) -> str:
    """A value in a message: short, and printable whatever it holds."""
    if isinstance(value, dict) or (isinstance(value, list) and (len(value) > 3 or any(map(_nested, value)))):
        return f"an {NAMES[type(value)]} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _nested(value: Any) -> bool:
    return isinstance(value, (dict, list)) or (isinstance(value, int) and value.bit_length() > 200)


def _const(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    if type(value) is not type(wanted) or value != wanted:
        yield f"{where} is {shown(value)}; it must be {wanted!r}"


def _enum(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    if not any(type(value) is type(one) and value == one for one in wanted):
        yield f"{where} is {shown(value)}; choose one of {', '.join(map(repr, wanted))}"


def _pattern(value: Any, wanted: str, schema: Any, root: Any, where: str) -> Iterator[str]:
    if isinstance(value, str) and not re.search(wanted.replace("$", r"\Z"), value):  # no line end behind it either
        yield f"{where} is {shown(value)}; it must match {wanted}"


def _range(value: Any, wanted: Any, schema: Any, root: Any, where: str) -> Iterator[str]:
    low, above, high = (schema.get(word) for word in ("minimum", "exclusiveMinimum", "maximum"))
    if _is(value, ["number"]) and not (
        (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high)
    ):
        left = f"({above}" if above is not None else "(" if low is None else f"[{low}"
        yield f"{where} is {shown(value)}; it must lie in {left}, {high if high is not None else ''}]"


def _count(kind: type[str] | type[list] | type[dict], most: bool, what: str) -> Any:
    def rule(value: Any, wanted: int, schema: Any, root: Any, where: str) -> Iterator[str]:
        if isinstance(value, kind) and (len(value) > wanted if most else len(value) < wanted):
            yield f"{where} has {len(value)} {what}; at {'most' if most else 'least'} {wanted}"

    return rule


def _unique(value: Any, wanted: bool, schema: Any, root: Any, where: str) -> Iterator[str]:
    if wanted and isinstance(value, list) and len(set(map(repr, value))) < len(value):
        yield f"{where} holds the same entry twice"


def _items(value: Any, wanted: Mapping[str, Any], schema: Any, root: Any, where: str) -> Iterator[str]:
    if not isinstance(value, list) or _all_in_range(value, wanted):
        return
    for place, entry in enumerate(value):
        yield from _problems(entry, wanted, root, f"{where}[{place}]")


def _all_in_range(values: list[Any], schema: Mapping[str, Any]) -> bool:
    """Whether a list of numbers is right as a whole: the quick way for what nearly all of a trace is."""
    if not values or not NUMERIC.issuperset(schema):
        return not values
    kinds = set(map(type, values))
    if not kinds <= ({int} if schema["type"] == "integer" else {int, float}):
        return False
    return not any(problem for edge in (min(values), max(values)) for problem in _range(edge, None, schema, schema, ""))


def _required(value: Any, wanted: Sequence[str], schema: Any, root: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (f"{where} has no {name!r}" for name in wanted if name not in value)


def _properties(value: Any, wanted: Mapping[str, Any], schema: Any, root: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, rules in wanted.items():
            if name in value:
                yield from _problems(value[name], rules, root, f"{where}.{name}".removeprefix("the document."))


def _others(value: Any, wanted: Any, schema: Mapping[str, Any], root: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    for name in value.keys() - schema.get("properties", {}).keys():
        if wanted is False:
            yield f"{where} has {shown(name)}, which is not known"
        else:
            yield from _problems(value[name], wanted, root, f"{where}[{shown(name)}]")


def _names(value: Any, wanted: Mapping[str, Any], schema: Any, root: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name in value:
            yield from _problems(name, wanted, root, f"a name in {where}")


RULES: dict[str, Any] = {
    "const": _const,
    "enum": _enum,
    "pattern": _pattern,
    "maxLength": _count(str, True, "characters"),
    "minimum": _range,
    "exclusiveMinimum": _range,
    "maximum": _range,
    "items": _items,
    "minItems": _count(list, False, "entries"),
    "maxItems": _count(list, True, "entries"),
    "uniqueItems": _unique,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _others,
    "maxProperties": _count(dict, True, "entries"),
    "propertyNames": _names,
}
