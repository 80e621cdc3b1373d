"""Which files a page's prompts are about: the media given, or what the traces say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.origin import checksum
from ..errors import InputError
from ..media import Media
from .views import View, comparable


def of_prompts(media: Any, prompts: int) -> list[list[Media]]:
    """The clips of each prompt."""
    if media is None:
        return [[] for _ in range(prompts)]
    if isinstance(media, Media):
        media = [media]
    if all(isinstance(clip, Media) for clip in media):
        return [list(media)] * prompts
    if len(media) != prompts:
        raise InputError(f"media has {len(media)} lists for {prompts} prompts; give one list, or one for each prompt")
    return [list(clips) for clips in media]


def groups(shown: Sequence[View], clips: Sequence[Sequence[Media]]) -> list[int]:
    """A number for each prompt: the same where tokens can be compared, those of one clip cut in the same way."""
    numbers: dict[Any, int] = {}
    keys = [(comparable(view), _identity(view, given)) for view, given in zip(shown, clips, strict=True)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _identity(view: View, clips: Sequence[Media]) -> Any:
    """What tells the files of a prompt from others: the media given, else what the trace says of them."""
    if clips:
        return tuple(clip.path for clip in clips)
    return tuple(source.checksum or source.name for source in said(view, "media") or ())


def said(view: View, what: str) -> Any:
    """What the trace's origin says of the row; None where it says nothing."""
    origin = view.trace.origin
    rows = getattr(origin, what) if origin is not None else None
    return rows[view.row] if rows else None


def names(view: View, clips: Sequence[Media]) -> list[str]:
    """Of the prompt's files, without their folders; none where nobody said."""
    if clips:
        return [Path(clip.path).name for clip in clips]
    return [source.name for source in said(view, "media") or ()]


def check(view: View, clips: Sequence[Media]) -> None:
    """Raise `InputError` where a file is not the one that the trace was made from."""
    for clip, source in zip(clips, said(view, "media") or (), strict=False):
        found = checksum(clip.path) if source.checksum else None
        if found is not None and found != source.checksum:
            raise InputError(
                f"the trace is of {source.name} with checksum {source.checksum}, and {clip.path} has {found}: "
                "give the files of this prompt"
            )
