"""argparse with errors of one line: an unknown option or command is answered with the nearest known one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from ..errors import SettingError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `SettingError`s. `parse` takes files, options and texts in any order."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        raise SettingError(f"{message.removeprefix('argument ')}; `{self.prog} --help` lists the options")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options. Raises `SettingError`."""
        options, unknown = self.parse_known_intermixed_args(arguments)
        if not unknown:
            return options
        name = unknown[0].partition("=")[0]
        if name.startswith("-"):
            known = [option for action in self._actions for option in action.option_strings]
            raise SettingError(f"there is no option {name}{nearest(name, known)}; `{self.prog} --help` lists them")
        raise SettingError(
            f'{name!r} is one argument too many; put a text of several words in quotes, as in "What happens?" '
            f"(`{self.prog} --help`)"
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing where no known word is like it."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""
