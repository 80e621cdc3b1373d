"""Named settings of methods, from `presets.json`: name -> the method as `Method.from_json` reads it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def presets() -> dict[str, dict[str, Any]]:
    """All presets, such as "paper/7b/30"."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
