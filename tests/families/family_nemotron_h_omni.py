"""Nemotron 3 Nano Omni; model and prompts are in `nemotron.py`."""

from nemotron import MEMBER

__all__ = ["MEMBER"]
