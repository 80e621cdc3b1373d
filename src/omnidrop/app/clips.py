"""The clips that can be asked about: the examples, clips drawn by the needle benchmark, and uploaded files.

A file that is longer than allowed is refused while it is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from .. import loading, media
from ..media import Media
from . import reading

SEEN = ("video", "time", "list", "caption")  # types of questions that pictures alone answer
HEARD = ("audio", "order")  # and sound alone
GROUP = "omnidrop.clips"  # entry points with which other packages bring example clips


@dataclass(frozen=True, kw_only=True)
class Known:
    """A question whose answer is known."""

    text: str
    answer: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """A clip to ask about."""

    name: str
    clip: Media
    known: tuple[Known, ...] = ()
    uploaded: bool = False

    def answer_to(self, question: str) -> str | None:
        """The right answer, where it is known."""
        said = " ".join(question.split()).lower()
        return next((each.answer for each in self.known if each.text.lower() == said), None)


def examples(words: bool) -> list[Chosen]:
    """The clip of `omnidrop demo`, then its pictures and its sound alone, with the questions that each can answer.

    `words`: questions in the tiny model's words, else in English.
    """
    assets = loading.TINY.parent
    content = json.loads((assets / "demo.json").read_text(encoding="utf-8"))
    clip = replace(media.read(assets / "demo.mp4"), path="demo.mp4")
    pictures = replace(clip, waveform=None, path="demo pictures.mp4")
    sound = replace(clip, kind="audio", frames=None, times=None, fps=None, path="demo sound.wav")

    def questions(*types: str) -> tuple[Known, ...]:
        return tuple(
            Known(text=each["text" if words else "english"], answer=each["answer"])
            for each in content["questions"]
            if each["type"] in types or not types
        )

    length = f"{clip.seconds:.0f} s"
    return [
        Chosen(name=f"the shipped clip ({length})", clip=clip, known=questions()),
        Chosen(name=f"its pictures alone ({length})", clip=pictures, known=questions(*SEEN)),
        Chosen(name=f"its sound alone ({length})", clip=sound, known=questions(*HEARD)),
    ]


def can_draw() -> bool:
    """Whether an installed package (omnidrop-lab) makes clips whose answers are known."""
    return bool(entry_points(group=GROUP))


def drawn(index: int, tiny: bool) -> Chosen:
    """A clip of the needle benchmark, by its number: the same number, the same clip."""
    (entry,) = entry_points(group=GROUP, name="needle")
    clip, known = entry.load()(index, tiny)
    return Chosen(
        name=f"drawn clip {index} ({clip.seconds:.0f} s)",
        clip=clip,
        known=tuple(Known(text=text, answer=answer) for text, answer in known),
    )


def from_file(path: str | Path, longest: float, called: str | None = None, *, limit: float | None = None) -> Chosen:
    """An uploaded file, of at most `longest` seconds; `called` is its name in messages, which never hold a folder.

    `limit`: read it in a process of its own, which has so many seconds; None reads it here. Raises `MediaError` for
    what cannot be read and what is too long.
    """
    path = Path(path)
    name = called or path.name
    clip = reading.here(path, name, longest) if limit is None else reading.apart(path, name, longest, limit)
    length = f" ({clip.seconds:.1f} s)" if clip.seconds else ""
    return Chosen(name=f"{name}{length}", clip=clip, uploaded=True)
