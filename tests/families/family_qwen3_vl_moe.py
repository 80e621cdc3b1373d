"""Qwen3-VL-MoE; models and prompts are in `vl.py`."""

from __future__ import annotations

import vl

MEMBER = vl.member("qwen3_vl_moe")
