"""One result of the doctor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "note", "missing", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """`failed` is what makes the exit status 1; `missing` is an extra that was not asked for."""

    area: str  # packages, extras, add-ons, machine, self-test
    name: str
    state: State
    text: str
    details: dict[str, Any] = field(default_factory=dict)  # the numbers behind the text, plain JSON
