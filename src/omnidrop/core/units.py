"""Numbers as text: bytes, seconds, operations and shares as short text with their unit."""

from __future__ import annotations


def size(count: float | None) -> str:
    """Bytes, in powers of 1000."""
    if count is None:
        return "n/a"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def seconds(value: float) -> str:
    """Seconds, or milliseconds below one."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def operations(count: float) -> str:
    """Floating-point operations, in powers of 1000."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"):
        if count < 1000 or unit == "PFLOP":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def percent(share: float) -> str:
    """A share in [0, 1]."""
    return f"{100 * share:.1f} %"
