"""Checks that several commands share."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from omnidrop.cli.setup import writable
from omnidrop.errors import SettingError


def plot_option(options: argparse.Namespace) -> None:
    """Raise `SettingError` where --plot is given and cannot be drawn."""
    if options.plot and not find_spec("matplotlib"):
        raise SettingError("--plot needs matplotlib: pip install matplotlib, or leave --plot out")
    writable("--plot", options.plot, make_folder=True)
