"""Which rows of a prompt ask: the query of eq. 5, which is text, or a recording that is a question itself.

Shapes: B batch, L sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError, SettingError
from .tokens import Modality, Vocabulary, first_tokens, sounds_of_videos
from .turns import newest_turn, turn_around, turn_before

QUERIES = ("after_media", "question", "last", "speech")
NUMBERED = re.compile(r"speech:([1-9][0-9]{0,5})")  # the recording of that number in the prompt, from 1


def known_query(query: object) -> bool:
    """Whether a query is one of `QUERIES`, or the number of a recording ("speech:2")."""
    return isinstance(query, str) and (query in QUERIES or NUMBERED.fullmatch(query) is not None)


def unknown_query(query: object) -> str:
    """What to say of another one."""
    return f"query is {query!r}; choose one of {', '.join(map(repr, QUERIES))}, or a recording by number: 'speech:1'"


def query_rows(
    query: str | Tensor, input_ids: Tensor, modality: Tensor, item: Tensor, valid: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """The rows of eq. 5. Text after the last media token, else the last token; or what `query` says."""
    if isinstance(query, Tensor):
        if query.shape != input_ids.shape or query.dtype != torch.bool:
            raise SettingError(
                f"an explicit query must be a bool tensor of shape {tuple(input_ids.shape)}, "
                f"got {query.dtype} of shape {tuple(query.shape)}"
            )
        asks = query.cpu() & valid & (modality == Modality.TEXT)
        if not asks.any(1).all():
            raise SettingError("an explicit query must mark at least one text token in every row")
        return asks
    if not known_query(query):
        raise SettingError(unknown_query(query))
    if query == "last":
        return _newest_rows(valid)
    spoken = torch.zeros_like(valid)
    for row in range(len(valid)):
        spoken[row] = _spoken(query, input_ids[row], modality[row], item[row], valid[row], vocabulary)
    media = (modality != Modality.TEXT) & ~spoken
    last_media = _newest_place(media)
    covered = _newest_place(spoken) < last_media  # a recording before other media, which it cannot see
    texts = _text_rows("after_media" if query.startswith("speech") else query, input_ids, media, valid, vocabulary)
    both = spoken.any(1) & ~covered[:, 0]
    if both.any():
        texts[both] = _said_beside(input_ids[both], spoken[both], last_media[both], valid[both], vocabulary)
    return spoken | texts


def _spoken(query: str, ids: Tensor, modality: Tensor, item: Tensor, valid: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(L,) bool: the recording that asks in one row; none where the query is another and the newest turn has text."""
    media, explicit = modality != Modality.TEXT, query.startswith("speech")
    none = torch.zeros_like(valid)
    if not media.any():
        return none
    owned = sounds_of_videos(ids, modality, item, vocabulary).values()
    found = [n for _, kind, n in first_tokens(modality, item) if kind == Modality.AUDIO and n not in owned]
    number = int(named[1]) if (named := NUMBERED.fullmatch(query)) else len(found)
    if not 1 <= number <= len(found):
        if explicit:
            raise InputError(
                f"query={query!r} needs a recording, and the prompt has {len(found) or 'none'} (the sound inside a "
                "video is the video's): put it behind the media, or let text ask with query='after_media'"
            )
        return none
    own = (modality == Modality.AUDIO) & (item == found[number - 1])
    if not (media & ~own).any():
        if explicit:
            raise InputError(
                f"query={query!r}: the recording is all that the prompt has, and what asks is never dropped; give the "
                "media that it asks about before it, or text that asks about the recording, with query='after_media'"
            )
        return none
    return own if explicit or _without_text(ids.where(valid, -1).tolist(), own, media, vocabulary) else none


def _without_text(ids: Sequence[int], own: Tensor, media: Tensor, vocabulary: Vocabulary) -> bool:
    """Whether the marked recording stands in the newest turn, and no text beside it."""
    _, content, end = turn_around(ids, int(own.nonzero()[-1]), vocabulary)
    if content is None or any(token in vocabulary.end_of_turn for token in ids[end + 1 :]):
        return False
    return all(media[place] or ids[place] in vocabulary.marks for place in range(content, end))


def _said_beside(
    input_ids: Tensor, spoken: Tensor, last_media: Tensor, valid: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """(B, L) bool: the text of the recording's turn, behind all other media and without the template."""
    rows = torch.zeros_like(spoken)
    marks = torch.tensor(sorted(vocabulary.marks), dtype=torch.long)
    for row, ids in enumerate(input_ids.where(valid, -1).tolist()):
        start, content, end = turn_around(ids, int(spoken[row].nonzero()[-1]), vocabulary)
        rows[row, start if content is None else content : end] = bool(vocabulary.end_of_turn)
        rows[row, : int(last_media[row]) + 1] = False
    return rows & ~spoken & valid & ~torch.isin(input_ids, marks)


def _newest_place(where: Tensor) -> Tensor:
    """(B, 1) long, the last position of each row that is marked; -1 where none is."""
    position = torch.arange(where.shape[1]).expand_as(where)
    return torch.where(where, position, -1).max(1, keepdim=True).values


def _newest_rows(valid: Tensor) -> Tensor:
    """(B, L) bool: the newest token of each row."""
    return torch.arange(valid.shape[1]).expand_as(valid) == _newest_place(valid)


def _text_rows(query: str, input_ids: Tensor, media: Tensor, valid: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The text that asks, behind the last of `media` (B, L)."""
    last_media, position = _newest_place(media), torch.arange(media.shape[1]).expand_as(media)
    after = valid & (position > last_media)
    before = torch.zeros_like(valid)
    if vocabulary.asks_before:
        for row, (ids, last) in enumerate(zip(input_ids.where(valid, -1).tolist(), last_media[:, 0], strict=True)):
            start, end = turn_before(ids, int(last), vocabulary, header=query == "after_media")
            before[row, start:end] = ~media[row, start:end] & valid[row, start:end]
    if query == "question":
        after = after & _said(input_ids, last_media, valid, vocabulary)
    return torch.where(after.any(1, keepdim=True), after, _newest_rows(valid)) | before


def _said(input_ids: Tensor, last_media: Tensor, valid: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(B, L) bool: the newest user turn's text, without the template and the marks that close media."""
    if not vocabulary.end_of_turn:
        raise InputError(
            "query='question' needs the model's end-of-turn token, and its configuration names none; use 'after_media'"
        )
    rows = zip(input_ids.where(valid, -1).tolist(), last_media[:, 0].tolist(), strict=True)
    turns = torch.tensor([newest_turn(ids, media, vocabulary) for ids, media in rows])
    position = torch.arange(input_ids.shape[1])
    closing = torch.isin(input_ids, torch.tensor(sorted(vocabulary.closings), dtype=torch.long))
    if vocabulary.closed:
        closing = closing | (position == last_media + 1)
    return (position >= turns[:, :1]) & (position < turns[:, 1:]) & ~closing
