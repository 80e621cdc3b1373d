"""Installed distributions against what omnidrop declares, and against what it was tested with.

What is declared is read from omnidrop's own metadata, the same that pip read.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, metadata, version
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import SettingError
from ..tested import TESTED
from .finding import Finding, State

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PURPOSES = {  # the extras
    "heif": "HEIC images",
    "report": "reports and plots",
    "app": "the page `omnidrop app`",
    "ray": "`omnidrop batch --workers`",
    "completion": "completion of commands and options in a shell",
}
ADD_ONS = {  # distribution -> (its module, what it is for)
    "omnidrop-lab": ("omnidrop_lab", "the commands bench, needle, eval and compare"),
    "omnidrop-vllm": ("omnidrop_vllm", "the plugin for vLLM"),
}
# Imported, and not only looked up: what the library itself stands on, and whose compiled parts may not fit each other.
MODULES = {name: name for name in ("torch", "transformers", "numpy", "av", "torchvision")} | {"pillow": "PIL"}


def required() -> list[Finding]:
    """Python, and each distribution that omnidrop cannot do without."""
    try:
        declared = metadata("omnidrop")
    except PackageNotFoundError:
        text = "runs from a folder that is not installed; `pip install -e .` there tells pip what it requires"
        return [Finding("packages", "omnidrop", "failed", text)]
    try:
        wanted = [each for each, extra in _requirements() if extra is None]
    except ImportError:
        return [Finding("packages", "packaging", "failed", 'not installed; pip install "omnidrop"')]
    return [_python(declared["Requires-Python"]), *(_checked(each, None) for each in wanted)]


def extras(asked: Sequence[str]) -> list[Finding]:
    """Each extra for users, and what to install for it. Raises `SettingError` for an unknown one in `asked`."""
    known = list(PURPOSES)
    try:
        requirements = list(_requirements())
        known += sorted({extra for _, extra in requirements if extra} - set(known))
    except (ImportError, PackageNotFoundError):
        requirements = []
    for name in asked:
        if name not in known:
            raise SettingError(f"extra is {name!r}; choose {', '.join(known)}")
    listed = [name for name in known if name in PURPOSES or name in asked]
    return [_extra(name, requirements, name in asked) for name in listed] if requirements else []


def add_ons() -> list[Finding]:
    """The other distributions of this project, each with its version and whether it can be imported."""
    return [_add_on(name, *about) for name, about in ADD_ONS.items()]


def _add_on(name: str, module: str, purpose: str) -> Finding:
    details: dict[str, Any] = {"version": None, "declared": __version__}
    try:
        details["version"] = here = version(name)
    except PackageNotFoundError:
        text = f"{purpose}; pip install ./{name} in a checkout of omnidrop"
        return Finding("add-ons", name, "missing", text, details)
    try:
        import_module(module)
        for entry in entry_points(group="omnidrop.commands"):
            if entry.value.startswith(f"{module}."):
                entry.load()
    except Exception as error:  # a broken package raises anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding("add-ons", name, "failed", f"{here} is installed and cannot be imported: {reason}", details)
    if here != __version__:
        text = f"{here} is of another release than omnidrop, {__version__}; install the same"
        return Finding("add-ons", name, "note", text, details)
    return Finding("add-ons", name, "ok", f"{here}: {purpose}", details)


def _requirements() -> Iterator[tuple[Requirement, str | None]]:
    """What omnidrop declares, each with the extra that brings it."""
    from packaging.requirements import Requirement

    for text in metadata("omnidrop").get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        yield requirement, marker.split('extra == "')[1].split('"')[0] if "extra ==" in marker else None


def _python(declared: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    here = platform.python_version()
    fits = SpecifierSet(declared).contains(here, prereleases=True)
    text = here if fits else f"{here} is outside the range {declared}"
    return Finding("packages", "python", "ok" if fits else "failed", text, {"version": here, "declared": declared})


def _extra(name: str, requirements: Sequence[tuple[Requirement, str | None]], asked: bool) -> Finding:
    wanted = list(_of_extra(name, requirements))
    checks = [_checked(each, name) for each in wanted]
    absent = [each for each in checks if each.details["version"] is None]
    broken = [each for each in checks if each.state == "failed" and each not in absent]
    purpose = PURPOSES.get(name, "for work on omnidrop itself")
    details: dict[str, Any] = {each.name: each.details["version"] for each in checks}
    parts = [f"{each.name}: {each.text}" for each in broken]
    if absent:
        parts.insert(0, f'pip install "omnidrop[{name}]" (not here: {", ".join(each.name for each in absent)})')
    state: State = "ok" if not parts else "failed" if asked else "note" if broken else "missing"
    return Finding("extras", name, state, "; ".join([purpose, *parts]), {"requires": details, "asked": asked})


def _of_extra(name: str, requirements: Sequence[tuple[Requirement, str | None]]) -> Iterator[Requirement]:
    """The distributions of an extra, those of the extras that it names included."""
    for requirement, extra in requirements:
        if extra != name:
            continue
        if requirement.name == "omnidrop":
            for inner in sorted(requirement.extras):
                yield from _of_extra(inner, requirements)
        else:
            yield requirement


def _checked(requirement: Requirement, extra: str | None) -> Finding:
    """A distribution: there, in the declared range, importable, tested?"""
    name, declared = requirement.name, str(requirement.specifier)
    details: dict[str, Any] = {"version": None, "declared": declared, "tested": list(TESTED.get(name, ())) or None}
    of = f"omnidrop[{extra}]" if extra else "omnidrop"
    try:
        details["version"] = here = version(name)
    except PackageNotFoundError:
        return Finding("packages", name, "failed", f'not installed; pip install "{of}"', details)
    if not requirement.specifier.contains(here, prereleases=True):
        text = f'{here} is outside the range {declared}; pip install "{name}{declared}"'
        return Finding("packages", name, "failed", text, details)
    if error := _import_error(name):
        return Finding("packages", name, "failed", f"{here} is installed and cannot be imported: {error}", details)
    return Finding("packages", name, *_tested(name, here), details)


def _import_error(name: str) -> str:
    """Why a distribution's module cannot be imported; empty where it can be, or is not tried."""
    from .._torchvision import ensure_importable

    if name not in MODULES:
        return ""
    try:
        if name == "torchvision":
            ensure_importable()
        import_module(MODULES[name])
    except Exception as error:  # a broken package raises anything: ImportError, OSError, RuntimeError, AttributeError
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _tested(name: str, here: str) -> tuple[State, str]:
    """Whether a release lies in the tested range, in words."""
    from packaging.version import Version

    if name not in TESTED:
        return "ok", here
    low, high = TESTED[name]
    span = low if low == high else f"{low} to {high}"
    inside = Version(low) <= Version(Version(here).public) <= Version(high)
    return ("ok", f"{here} (tested: {span})") if inside else ("note", f"{here}; tested with {span} only")
