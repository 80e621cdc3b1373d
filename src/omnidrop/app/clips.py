"""What may be asked about: the shipped clip, clips of the needle benchmark drawn on the spot, and people's own files.

What it is: from a choice to a `Chosen`, the decoded clip with the questions whose answers are known. What it is not: a
prompt (`desk` builds it) or a picture (`preview` makes it). A file longer than allowed is refused while it is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from .. import media, needle, prompt
from ..errors import MediaError
from ..media import Media
from ..needle import ask, prompts

SPLIT = "dev"  # of the needle benchmark: numbers are reported on its test split, which stays unseen
SIZES = {True: 84, False: 448}  # pixels of a drawn clip, for the tiny model and for real ones


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

    def answer_to(self, question: str) -> str | None:
        """The right answer, where it is known."""
        said = " ".join(question.split()).lower()
        return next((each.answer for each in self.known if each.text.lower() == said), None)


def shipped(words: bool) -> Chosen:
    """The clip of `omnidrop demo`. `words`: questions in the tiny model's words, else in English."""
    assets = prompt.TINY.parent
    content = json.loads((assets / "demo.json").read_text(encoding="utf-8"))
    known = [Known(text=each["text" if words else "english"], answer=each["answer"]) for each in content["questions"]]
    clip = replace(media.read(assets / "demo.mp4"), path="demo.mp4")
    return Chosen(name=f"the shipped clip ({clip.seconds:.0f} s)", clip=clip, known=tuple(known))


def drawn(index: int, words: bool) -> Chosen:
    """A clip of the needle benchmark, by its number: the same number, the same clip."""
    plan = needle.clip(SPLIT, index)
    known = [
        Known(text=each.text if words else prompts.english(each), answer=each.answer) for each in needle.questions(plan)
    ]
    clip = ask.in_memory(plan, SIZES[words])
    return Chosen(name=f"drawn clip {index} ({clip.seconds:.0f} s)", clip=clip, known=tuple(known))


def from_file(path: str | Path, longest: float, called: str | None = None) -> Chosen:
    """Somebody's file, of at most `longest` seconds; `called` is its name in messages, which never hold a folder.

    Raises `MediaError` for what cannot be read and what is too long.
    """
    path = Path(path)
    name = called or path.name

    def watch(what: str, done: float, total: float) -> None:
        _check_length(name, max(done, total), longest)

    try:
        clip = media.read(path, progress=watch)
        _check_length(name, clip.seconds, longest)
    except MediaError as error:
        raise MediaError(str(error).replace(str(path), name)) from error
    length = f" ({clip.seconds:.1f} s)" if clip.seconds else ""
    return Chosen(name=f"{name}{length}", clip=replace(clip, path=name))


def _check_length(name: str, seconds: float, longest: float) -> None:
    if seconds > longest:
        raise MediaError(
            f"{name} is {seconds:.0f} seconds long; this page takes {longest:g} at most: cut it (ffmpeg -i in "
            f"-t {longest:g} out.mp4), or start the page with a larger --max-seconds"
        )
