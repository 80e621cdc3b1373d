"""Clips of the benchmark for `omnidrop app` (the entry point `needle` of the group `omnidrop.clips`)."""

from __future__ import annotations

from omnidrop.media import Media

from . import ask, prompts
from .task import clip, questions

SPLIT = "dev"  # numbers are reported on the test split, which stays unseen
SIZES = {True: 84, False: 448}  # pixels of a clip, for the tiny model and for others


def draw(index: int, tiny: bool) -> tuple[Media, list[tuple[str, str]]]:
    """Clip `index`, decoded, and its questions with their answers, in the tiny model's words or in English."""
    plan = clip(SPLIT, index)
    asked = [(each.text if tiny else prompts.english(each), each.answer) for each in questions(plan)]
    return ask.in_memory(plan, SIZES[tiny]), asked
