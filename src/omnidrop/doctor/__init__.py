"""The checks of `omnidrop doctor`: versions, extras, machine, and a self-test; each result is one `Finding`.

`examine` imports torch, transformers and PyAV only inside checks that report their absence, so that it also runs where
one of them is missing, broken or too new.
"""

from __future__ import annotations

from collections.abc import Sequence

from .finding import Finding


def examine(*, extras: Sequence[str] = (), self_test: bool = True, device: str | None = None) -> list[Finding]:
    """All findings, in the order in which they are read.

    `extras`: extras of omnidrop that must be usable; the others are only listed. `device`: of the self-test, as in
    `omnidrop.load`. Raises `SettingError` for an extra that omnidrop does not have.
    """
    from . import machine, packages, selftest

    findings = [*packages.required(), *packages.extras(extras), *packages.add_ons(), *machine.look()]
    if self_test:
        broken = [each.name for each in findings if each.area == "packages" and each.state == "failed"]
        findings += selftest.run(device, broken)
    return findings


__all__ = ["Finding", "examine"]
