"""`omnidrop doctor`: whether omnidrop works here, and if not, what to install."""

from __future__ import annotations

import argparse
import contextlib
import json
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from .options import Commands, json_option
from .setup import quiet_transformers
from .tables import columns

TITLES = {
    "packages": "packages",
    "extras": "extras, and what they are for",
    "add-ons": "other packages of omnidrop",
    "machine": "machine",
    "self-test": "self-test, with the shipped model and clip",
}


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "doctor",
        help="check this installation",
        description=(
            "Check this installation: versions against the tested ones, which extras are there and what to install "
            "for what, device and memory, FFmpeg, attention; then whether prune, lean and stream still fit the "
            "installed transformers, with the shipped model and clip, each against its reference. Exit status 1 if "
            "something that was asked for is broken."
        ),
    )
    command.add_argument(
        "extras",
        nargs="*",
        metavar="EXTRA",
        help="extras that must be there (heif, report, app, ray, completion)",
    )
    command.add_argument("--no-self-test", action="store_true", help="run no model")
    command.add_argument("--device", metavar="NAME", help="device of the self-test (default: cuda where there is one)")
    json_option(command)
    return command


def main(options: argparse.Namespace) -> int:
    """Print what was found; 1 if something is broken."""
    from .. import __version__
    from ..doctor import examine

    with contextlib.suppress(Exception):  # transformers may be what is broken; the findings will say so
        quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other packages; the findings say what is wrong
        findings = examine(extras=options.extras, self_test=not options.no_self_test, device=options.device)
    broken = [each.name for each in findings if each.state == "failed"]
    if options.json:
        document = {
            "format": "omnidrop.doctor",
            "version": 1,
            "omnidrop": __version__,
            "works": not broken,
            "findings": [asdict(each) for each in findings],
        }
        print(json.dumps(document))
    else:
        print(f"omnidrop {__version__}\n\n{report(findings)}\n")
        print(f"broken: {'; '.join(broken)}" if broken else "all that was asked for works")
    return int(bool(broken))


def report(findings: Sequence[Any]) -> str:
    """The findings as text, area by area."""
    parts = []
    for area, members in groupby(findings, key=lambda each: each.area):
        lines = [_line(each) for each in members]
        parts.append("\n".join([TITLES[area], *lines]))
    return "\n\n".join(parts)


def _line(finding: Any) -> str:
    begin = f"  {finding.state:8}{finding.name:17} "
    return textwrap.fill(
        finding.text,
        max(columns(), len(begin) + 20),
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_long_words=False,
        break_on_hyphens=False,
    )
