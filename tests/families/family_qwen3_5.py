"""Qwen3.5, recurrent and full layers; models and prompts are in `vl.py`."""

from __future__ import annotations

import vl

MEMBER = vl.member("qwen3_5")
