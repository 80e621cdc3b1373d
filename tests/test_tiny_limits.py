"""The shipped tiny model says what it cannot answer: other clips than its own, words that it does not know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnidrop import loading, tiny
from omnidrop.media import Media

QUESTION = "what color is the circle ?"


@pytest.fixture(scope="module")
def processor() -> Any:
    pytest.importorskip("torchvision")
    return loading.load()[1]


def clip(height: int, width: int, path: str = "a.mp4") -> Media:
    frames = np.zeros((4, height, width, 3), np.uint8)
    return Media(path, "video", frames, np.arange(4) / 2, 2.0, np.zeros(32_000, np.float32), 16_000, 2.0)


def sound() -> Media:
    return Media("a.wav", "audio", None, None, None, np.zeros(32_000, np.float32), 16_000, 2.0)


def test_its_own_clip_and_words(processor: Any) -> None:
    assert tiny.foreign(processor, clip(84, 84), QUESTION) is None


def test_the_shipped_clip_is_its_own(processor: Any) -> None:
    pytest.importorskip("av")
    from omnidrop import media

    assert tiny.foreign(processor, media.read(loading.TINY.parent / "demo.mp4"), QUESTION) is None


@pytest.mark.parametrize("other", [clip(84, 112), clip(720, 1280), sound()])
def test_another_clip(processor: Any, other: Media) -> None:
    said = tiny.foreign(processor, [clip(84, 84, "own.mp4"), other], QUESTION)
    assert said is not None and f"; {other.path} is no such clip: its answer means nothing" in said
    assert "own.mp4" not in said and "words that" not in said


def test_other_words(processor: Any) -> None:
    said = tiny.foreign(processor, clip(84, 84), "What is said when the door opens, and by whom on earth?")
    assert said is not None and '("What", "said", "when", "door"' not in said  # "when" is a word of its task
    assert "said" in said and "door" in said and "more words" in said and "no such clip" not in said
    assert tiny.unknown_words(processor, "what color is the zebra zebra crossing ?") == ["zebra", "crossing"]


def test_other_models_are_not_judged() -> None:
    class Tokenizer:
        unk_token_id = None

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": list(range(len(text.split()) * 2))}

    class Processor:
        tokenizer = Tokenizer()

    assert tiny.foreign(Processor(), clip(720, 1280), "Who is there?") is None
