"""Bounds on what one file may ask for. They are checked before memory is taken, so that a small file stays small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import MediaError, SettingError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may ask for at most. A file beyond one of them is a `MediaError` that names the bound.

    Raises `SettingError` for a bound that is not above 0.
    """

    seconds: float = 24 * 3600.0  # of pictures or sound, gaps between timestamps included
    pixels: int = 128_000_000  # of one picture as it is stored
    frames: int = 10_000_000  # packets of a stream, or pictures of an animation
    channels: int = 64  # of sound
    lowest_rate: int = 1_000  # samples a second as stored: below it is no sound, and a byte would become seconds
    highest_rate: int = 1_000_000
    memory: int = 4 << 30  # bytes of decoded pictures and samples held at once
    patience: float = 30.0  # seconds to open a file, and to wait while reading one brings nothing new

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise SettingError(f"{field.name} of the limits is {value}; it must be above 0")

    @classmethod
    def parse(cls, given: Sequence[str]) -> Limits:
        """From words such as "pixels=200000000". Raises `SettingError` for an unknown name or what is no number."""
        kinds = {field.name: type(getattr(cls, field.name)) for field in fields(cls)}
        values: dict[str, Any] = {}
        for text in given:
            name, _, value = text.partition("=")
            if name not in kinds:
                raise SettingError(f"limit is {text!r}; choose NAME=NUMBER with a name of {', '.join(kinds)}")
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise SettingError(f"limit is {text!r}; it must be NAME=NUMBER, such as {name}=1000000") from None
        return cls(**values)

    def check(self, name: str, bound: str, value: float, what: str) -> None:
        """Raise `MediaError` if `value` (`what`, in words with their unit) is above the limit named `bound`."""
        most = getattr(self, bound)
        if not value <= most:  # a NaN is refused, too
            raise MediaError(
                f"{name} has {_plain(value)} {what}, and the limit is {_plain(most)}; if the file is right, read it "
                f"with limits=omnidrop.media.Limits({bound}={_enough(value)}), as a command with --limit "
                f"{bound}={_enough(value)}"
            )

    def check_sound(self, name: str, channels: int, sample_rate: int) -> None:
        """The same for a sound track as it is stored."""
        self.check(name, "channels", channels, "channels of sound")
        self.check(name, "highest_rate", sample_rate, "samples of sound a second")
        if sample_rate < self.lowest_rate:
            raise MediaError(
                f"{name} has {sample_rate} samples of sound a second, and at least {self.lowest_rate} are wanted; if "
                f"the file is right, read it with limits=omnidrop.media.Limits(lowest_rate={max(sample_rate, 1)}), as "
                f"a command with --limit lowest_rate={max(sample_rate, 1)}"
            )


def _plain(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) and abs(value) < 1e15 else f"{value:g}"


def _enough(value: float) -> str:
    return _plain(math.ceil(value)) if math.isfinite(value) else "..."
