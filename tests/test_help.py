"""What `help`, `dir` and editors show: every setting of a method with its range, and public names alone."""

from __future__ import annotations

import inspect
import math
import pydoc
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from types import ModuleType
from typing import Any

import pytest

import omnidrop
from omnidrop import SettingError
from omnidrop.methods import METHODS
from omnidrop.methods.base import Budgeted

KINDS = [*METHODS.values(), Budgeted]
RANGE = re.compile(r"\bin ([\[(])(-?[\d.]+), ([\d.]+)\]")
LEAST = re.compile(r"\b([\d.]+) or more\b")


def described(kind: type) -> dict[str, str]:
    """Field -> its text in the section "Fields:" of the class's own docstring."""
    section = inspect.cleandoc(vars(kind)["__doc__"]).partition("\nFields:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in entries}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_explained(kind: type) -> None:
    found = described(kind)
    assert list(found) == [field.name for field in fields(kind)]
    assert all(len(text) > 8 for text in found.values()), found
    shown = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    assert all(f"{name}: {text[:30]}" in shown for name, text in found.items())


def made(kind: Any, **settings: Any) -> Any:
    """With a value for each setting that has no default."""
    needed = {field.name: 1 for field in fields(kind) if field.default is MISSING}
    return kind(**{**needed, **settings})


def bounds() -> list[tuple[type, str, float, float]]:
    """(method, field, last value inside, first value outside), as far as the docstrings name bounds."""
    found: list[tuple[type, str, float, float]] = []
    for kind in METHODS.values():
        for name, text in described(kind).items():
            if match := RANGE.search(text):
                low, high = float(match[2]), float(match[3])
                found.append((kind, name, high, high + 0.01))
                found.append((kind, name, low + 0.001, low) if match[1] == "(" else (kind, name, low, low - 0.01))
            elif match := LEAST.search(text):
                low, default = float(match[1]), getattr(made(kind), name)
                if isinstance(default, int) or name in ("stages", "tds_start"):  # whole numbers
                    found.append((kind, name, int(low), int(low) - 1))
                else:
                    found.append((kind, name, low, low - 0.0001))
    return found


@pytest.mark.parametrize(
    ("kind", "name", "inside", "outside"), bounds(), ids=lambda value: getattr(value, "__name__", str(value))
)
def test_the_ranges_in_the_docstrings_are_true(kind: Any, name: str, inside: float, outside: float) -> None:
    other = {}
    if name in ("p_init", "p_final"):
        other = {"keep": None, "p_init": 0.1, "p_final": 0.2}
    with pytest.raises(SettingError, match=rf"^{name} is {re.escape(str(outside))}"):
        made(kind, **{**other, name: outside})
    try:
        method = made(kind, **{**other, name: inside})
    except SettingError as error:  # depths must rise: only their order may be at fault
        assert "must not fall" in str(error), error
    else:
        assert math.isclose(getattr(method, name), inside)


def test_bounds_are_read_from_the_docstrings() -> None:
    """The test above is not empty."""
    assert len(bounds()) > 80 and {kind for kind, *_ in bounds()} == {*METHODS.values()}


def test_dir_holds_public_names_alone() -> None:
    code = "import omnidrop, omnidrop.cli, omnidrop.engine.session; print(*dir(omnidrop))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(names) >= set(omnidrop.__all__)
    assert not {"Any", "TYPE_CHECKING", "annotations", "import_module", "logging", "cli", "engine", "core"} & set(names)
    for name in names:
        value = getattr(omnidrop, name)
        assert name == "__version__" or getattr(value, "__module__", value.__name__).startswith("omnidrop"), name


def test_all_names_the_modules_that_the_readme_uses() -> None:
    for name in ("media", "methods", "errors"):
        assert name in omnidrop.__all__ and isinstance(getattr(omnidrop, name), ModuleType)
    namespace: dict[str, Any] = {}
    exec("from omnidrop import *", namespace)
    assert set(omnidrop.__all__) <= set(namespace)


def test_a_misspelled_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'omnidrop' has no attribute 'prun'"):
        _ = omnidrop.prun
