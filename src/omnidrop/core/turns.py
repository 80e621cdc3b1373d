"""Where the turns of a chat template begin and end in one prompt's token ids; padding is -1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .tokens import Vocabulary


def turn_around(ids: Sequence[int], place: int, vocabulary: Vocabulary) -> tuple[int, int | None, int]:
    """Where the turn that holds `place` begins, where its header ends (None: not known), and where it ends (exclusive).

    The header is known by its role, or by the likeness to that of the answer, which ends the prompt. Padding is -1.
    """
    ends = vocabulary.end_of_turn
    end = next((i for i in range(place, len(ids)) if ids[i] in ends), len(ids))
    before = max((i for i in range(place) if ids[i] in ends), default=-1)
    start, answer = before + 1, list(ids[end + 1 :])  # its header: a newline, a token that opens the turn, the role
    if before < 0:  # the first turn: no newline of the turn before, and padding before it
        start, answer = next(i for i, token in enumerate(ids) if token >= 0), answer[1:]
    own = list(ids[start : start + len(answer)])
    if answer and len(own) == len(answer) and sum(a != b for a, b in zip(own, answer, strict=True)) <= 1:
        return start, start + len(answer), end
    return start, None if before < 0 else after_header(ids, before, vocabulary), end


def turn_before(ids: Sequence[int], last_media: int, vocabulary: Vocabulary, *, header: bool) -> tuple[int, int]:
    """Where the text before the media of the newest turn begins and ends (exclusive), where that text is what asks.

    It is where the turn ends with its media and no other turn follows: all that stands behind is the template's tail.
    (0, 0) elsewhere. `header`: with what opens the turn; else without, as far as it looks like the header of the answer
    with another role.
    """
    if last_media < 0 or last_media + 1 >= len(ids) or ids[last_media + 1] not in vocabulary.end_of_turn:
        return 0, 0
    if any(token in vocabulary.end_of_turn for token in ids[last_media + 2 :]):
        return 0, 0
    start, content, _ = turn_around(ids, last_media, vocabulary)
    return (start if header or content is None else content), last_media


def after_header(ids: Sequence[int], before: int, vocabulary: Vocabulary) -> int | None:
    """Where the header ends of the user turn that follows the end of a turn at `before`; None: no user turn does.

    It is a newline if the template has one, a token that opens the turn, the role, and the same newline.
    """
    for newline in (0, 1):
        role = before + newline + 2
        if role < len(ids) and ids[role] == vocabulary.user:
            return role + 1 + (newline and ids[role + 1 : role + 2] == [ids[before + 1]])
    return None


def newest_turn(ids: Sequence[int], last_media: int, vocabulary: Vocabulary) -> tuple[int, int]:
    """Where the newest user turn's text begins and ends (exclusive) in one prompt's L token ids.

    Without a header that names the user, or where media follow the turn, it is what ends first behind `last_media`.
    """
    ends = [place for place, token in enumerate(ids) if token in vocabulary.end_of_turn]
    for before, end in reversed(list(pairwise([*ends, len(ids)]))):
        content = after_header(ids, before, vocabulary)
        if content is not None and end >= content and end > last_media:
            return content, end
    return 0, next((end for end in ends if end > last_media), len(ids))
