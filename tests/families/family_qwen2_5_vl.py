"""Qwen2.5-VL; models and prompts are in `vl.py`."""

from __future__ import annotations

import vl

MEMBER = vl.member("qwen2_5_vl")
