"""What the shipped tiny model cannot answer: clips that are not of its own kind, and words that it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .loading import has_tiny_vocabulary
from .media import Media

SHOWN = 4  # unknown words named in a message


def foreign(processor: Any, clips: Media | Sequence[Media], question: str) -> str | None:
    """Why an answer of the tiny model to this prompt means nothing; None where it can, and for every other model."""
    if not has_tiny_vocabulary(processor):
        return None
    names = [clip.path for clip in ([clips] if isinstance(clips, Media) else clips) if not is_own(clip, processor)]
    reasons = []
    if names:
        reasons.append(f"{', '.join(names)} {'is no such clip' if len(names) == 1 else 'are no such clips'}")
    if words := unknown_words(processor, question):
        named = ", ".join(f'"{word}"' for word in words[:SHOWN])
        rest = f" and {len(words) - SHOWN} more words" if len(words) > SHOWN else ""
        reasons.append(f"the question has words that it does not know ({named}{rest})")
    if not reasons:
        return None
    return (
        "the shipped tiny model knows only its own synthetic clips and the words of its own task; "
        f"{', and '.join(reasons)}: its answer means nothing"
    )


def is_own(clip: Media, processor: Any) -> bool:
    """Whether a clip may be one of the needle benchmark as the tiny model was trained on it: by the pictures' size."""
    side = round(processor.video_processor.size["shortest_edge"] ** 0.5)  # all its pictures are squares of this size
    return clip.frames is not None and clip.frames.shape[1:3] == (side, side)


def unknown_words(processor: Any, text: str) -> list[str]:
    """Words that the tokenizer does not have."""
    tokenizer = processor.tokenizer
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in dict.fromkeys(text.split())}
    return [word for word, found in ids.items() if tokenizer.unk_token_id in found]
