"""`--config FILE`: options of a command from a JSON or TOML file. What the command line says takes precedence."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SettingError
from .parsing import nearest

SKIPPED = ("help", "config")


def option(command: argparse.ArgumentParser) -> None:
    """Add --config."""
    command.add_argument(
        "--config",
        metavar="FILE",
        help='a JSON or TOML file with options of this command, such as {"keep": 0.2, "max_frames": 64}; the command '
        "line takes precedence",
    )


def apply(command: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Make the options of the file that --config names the command's defaults. Raises `SettingError`."""
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--config")
    try:
        path = only.parse_known_args(arguments)[0].config
    except argparse.ArgumentError:  # without a file: the command's own parser says so
        return
    if path is None:
        return
    known = {action.dest: action for action in command._actions if action.option_strings and action.dest not in SKIPPED}
    for name, value in _read(path).items():
        key = name.replace("-", "_")
        if key not in known:
            names = sorted(each.replace("_", "-") for each in known)
            hint = nearest(name.replace("_", "-"), names)
            raise SettingError(
                f"--config {path}: {command.prog} has no option {name!r}{hint}; known are {', '.join(names)}"
            )
        known[key].required = False
        command.set_defaults(**{key: _value(known[key], value, f"--config {path}: {name}")})


def _read(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
    except OSError as error:
        raise SettingError(f"--config {path} cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:  # of either format; a file that is no text too
        kind = "TOML" if path.endswith(".toml") else "JSON"
        raise SettingError(f"--config {path} is no {kind}: {error} (a TOML file ends in .toml)") from error
    if not isinstance(document, dict):
        raise SettingError(f'--config {path} is no table of options; write such as {{"keep": 0.2}}')
    return document


def _value(action: argparse.Action, value: Any, where: str) -> Any:
    """A value as the option itself would give it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise SettingError(f"{where} is {value!r}; it must be true or false")
        return value
    several = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    if isinstance(value, list) != several or isinstance(value, (bool, dict)):
        raise SettingError(f"{where} is {value!r}; it must be {'a list' if several else 'a number or a text'}")
    return [_single(action, each, where) for each in value] if several else _single(action, value, where)


def _single(action: argparse.Action, value: Any, where: str) -> Any:
    kind = action.type if callable(action.type) else str
    try:
        found = kind(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise SettingError(
            f"{where} is {value!r}; it must be {'a whole number' if kind is int else 'a number'}"
        ) from error
    if action.choices is not None and found not in action.choices:
        raise SettingError(f"{where} is {value!r}; choose {', '.join(map(str, action.choices))}")
    return found
