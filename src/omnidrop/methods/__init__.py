"""The pruning methods, one file each. A new method adds its file and one import line here; its name is the class's.

A third party's package brings its own by an entry point of the group `omnidrop.methods` (docs/add_a_method.md).
"""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import entry_points
from inspect import isabstract
from typing import Any

from ..errors import SettingError
from .apack import APack as APack
from .base import Method as Method
from .cutoff import Cutoff as Cutoff
from .dash import DASH as DASH
from .divprune import DivPrune as DivPrune
from .dycoke import DyCoke as DyCoke
from .fastv import FastV as FastV
from .omnidrop import OmniDrop as OmniDrop
from .omnipack import OmniPack as OmniPack
from .omnizip import OmniZip as OmniZip
from .pyramiddrop import PyramidDrop as PyramidDrop
from .random import Random as Random
from .seats import SEATS as SEATS
from .tuned import Tuned as Tuned
from .uniform import Uniform as Uniform
from .visionzip import VisionZip as VisionZip

GROUP = "omnidrop.methods"

METHODS: dict[str, type[Method]] = {
    kind.__name__.lower(): kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Method) and not isabstract(kind)
}


def available() -> dict[str, type[Method]]:
    """Every method by its name in lower case: the library's own, then those of installed packages.

    Raises `SettingError` when an installed package's entry point cannot be loaded, is no method, or takes the name of
    another.
    """
    found = dict(METHODS)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        origin = f"the entry point {entry.name!r} ({entry.value}) of {entry.dist.name if entry.dist else 'a package'}"
        try:
            kind = entry.load()
        except Exception as error:
            raise SettingError(f"{origin} cannot be loaded: {error!r}; repair or uninstall the package") from error
        if not (isinstance(kind, type) and issubclass(kind, Method) and not isabstract(kind)):
            raise SettingError(f"{origin} is no omnidrop.Method; it must name a complete subclass")
        if entry.name in found:
            raise SettingError(f"{origin} takes a name that is in use; rename it there")
        found[entry.name] = kind
    return found


def find(name: str) -> type[Method] | None:
    """The method of that name; other packages are loaded only for names that are not our own."""
    return METHODS.get(name) or available().get(name)


def parse(text: str, **defaults: Any) -> Method:
    """A method from its name and settings in words: `parse("omnidrop:lambda_div=0,query=last", keep=0.3)`.

    Values are read as the field's kind: numbers, true/false, none, else words. `defaults` fill fields that the method
    has and the text does not set. Raises `SettingError` for an unknown method or setting.
    """
    name, _, rest = text.partition(":")
    kind = find(name)
    if kind is None:
        raise SettingError(f"there is no method {name!r}; choose one of {', '.join(sorted(available()))}")
    known = {spec.name for spec in fields(kind)}
    settings = {field: value for field, value in defaults.items() if field in known}
    for part in filter(None, rest.split(",")):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or field not in known:
            raise SettingError(
                f"{part!r} is no setting of {name}; write name=value with one of {', '.join(sorted(known))}"
            )
        settings[field] = _value(value)
    return kind(**settings)


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
