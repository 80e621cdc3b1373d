"""`Conversation`: several questions about media that are encoded once, each pruned anew for its own question."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.trace import Trace
from ..engine.lossless import lean
from ..engine.reuse import EncodedMedia, reuse_encoders
from ..engine.session import prune
from ..errors import InputError, SettingError
from ..media import Media
from ..methods import Method, OmniDrop
from ..models import layout
from ..prompt import Clip, ProcessedClips, Turn, check_processor, check_question, dialogue, process, read_clips
from .pieces import Relay, TextPieces
from .saved import MAX_BYTES, read_file, write_file


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """A question, its answer, the media that came with it, and what was kept (None after `Conversation.load`)."""

    question: str
    answer: str
    media: tuple[Media, ...] = ()
    trace: Trace | None = None


class Conversation:
    """A dialogue about media on one model.

        chat = omnidrop.Conversation(model, processor, omnidrop.OmniDrop(keep=0.3))
        chat.add("clip.mp4")
        print(chat.ask("What is said when the door opens?"))
        print(chat.ask("And who opens it?"))  # the clip is not encoded again

    The prompt of a question is the whole dialogue, with all media at full length, so a question gets what `generate`
    gives for that prompt. The encoders' outputs are kept in `encoded` (`EncodedMedia`: `max_bytes`, `device`), and the
    tokens are pruned anew, guided by the newest turn alone: by its text and what the template adds behind it, where the
    method would take all text behind the media.

    `method`: None is `OmniDrop(keep=0.3)`. `system`: the system text; None leaves that to the chat template.
    `use_audio`, `max_pixels`: as of `build`. `lossless`: whether `omnidrop.lean` is on as well.

    A recording that asks: `ask(speech="question.wav")`, alone or with text. It is never dropped.

    `turns` holds what was asked, `waiting` media for the next question. An error or an interruption in `ask` leaves
    both as they were. One conversation at a time may ask on a model; several may take turns.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        method: Method | None = None,
        *,
        system: str | None = None,
        use_audio: bool = True,
        max_pixels: int | None = None,
        lossless: bool = True,
        encoded: EncodedMedia | None = None,
    ) -> None:
        method = OmniDrop(keep=0.3) if method is None else method
        prune(model, method)  # refuses what cannot be pruned now, not at the first question
        check_processor(processor)
        self.model, self.processor, self.method, self.system = model, processor, method, system
        self.encoded = EncodedMedia() if encoded is None else encoded
        self.turns: list[Answered] = []
        self.waiting: list[Media] = []
        self._use_audio, self._max_pixels, self._lossless = use_audio, max_pixels, lossless
        self._processed: dict[tuple[Media, bool], ProcessedClips] = {}  # by the object: clips are not compared

    def __repr__(self) -> str:
        return f"<Conversation: {len(self.turns)} questions, {len(self._media())} clips, {self.method!r}>"

    @property
    def trace(self) -> Trace | None:
        """What was kept for the newest question."""
        return self.turns[-1].trace if self.turns else None

    def add(self, *media: Clip) -> None:
        """Clips for the next question: files, or what `omnidrop.media.read` gave.

        Raises `MediaError`, and then adds none of them.
        """
        clips = read_clips(self.processor, media, self._use_audio, self._max_pixels)
        together = self._interleaved([*self._media(), *clips])
        for clip in clips:
            self._clips(clip, together)
        self.waiting += clips

    def ask(
        self,
        question: str = "",
        *,
        speech: Clip | None = None,
        max_new_tokens: int = 256,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str:
        """The model's answer, which also ends the turn.

        `speech`: a recording that asks, a file or what `omnidrop.media.read` gave, behind the media of the turn; both
        ask where there is text as well. Without either the newest clip must be such a recording.

        `on_text` is given the answer piece by piece while it is made; an exception from it ends the answer. `options`
        go to `generate` (`do_sample`, `temperature`, ...; greedy without any). Raises as `generate` and `prune` do.
        """
        before = len(self.waiting)
        try:
            if speech is not None:
                self._add_speech(speech)
            return self._answered(question, speech is not None, max_new_tokens, on_text, options)
        except BaseException:
            del self.waiting[before:]
            raise

    def _answered(
        self,
        question: str,
        spoken: bool,
        max_new_tokens: int,
        on_text: Callable[[str], None] | None,
        options: dict[str, Any],
    ) -> str:
        import torch

        spoken = self._spoken(question, spoken)
        inputs = self.inputs(question)
        inputs = {
            name: value.to(self.model.device) if hasattr(value, "to") else value for name, value in inputs.items()
        }
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        if on_text is not None:
            options["streamer"] = TextPieces(self.processor.tokenizer, on_text)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(reuse_encoders(self.model, self.encoded))
            if self._lossless:
                stack.enter_context(lean(self.model))
            trace = stack.enter_context(
                prune(self.model, self.method, query="speech" if spoken else self._asks(inputs))
            )
            output = self.model.generate(**inputs, **options)
        tokens = output[0, inputs["input_ids"].shape[1] :]
        answer = self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        self.turns.append(Answered(question=question, answer=answer, media=tuple(self.waiting), trace=trace))
        self.waiting = []
        return answer

    def _add_speech(self, speech: Clip) -> None:
        """The recording becomes the newest clip. Raises `SettingError` for what is none."""
        self.add(speech)
        if (kind := self.waiting[-1].kind) != "audio":
            raise SettingError(f"speech is {self.waiting[-1].path}, which is {kind}: give a recording, sound alone")

    def _spoken(self, question: str, spoken: bool) -> bool:
        """Whether the newest clip, a recording, asks. Raises `InputError` where nothing does."""
        if spoken or (question == "" and self.waiting and self.waiting[-1].kind == "audio"):
            if len(self._media()) == 1:
                raise InputError(
                    "the recording is all that the conversation has: add the media that it asks about, or ask about "
                    "it in text"
                )
            return True
        check_question(question)
        return False

    def stream(self, question: str = "", **options: Any) -> Iterator[str]:
        """The pieces of the answer as they come; options as of `ask`. The turn ends with the last piece.

        A reader that stops early ends the answer, and the turn is not recorded.
        """
        pieces = Relay()

        def work() -> None:
            try:
                self.ask(question, on_text=pieces.put, **options)
                pieces.close()
            except BaseException as error:
                pieces.close(error)

        worker = threading.Thread(target=work, name="omnidrop.Conversation", daemon=True)
        worker.start()
        try:
            yield from pieces
        finally:
            pieces.stop()
            worker.join()

    def inputs(self, question: str) -> Any:
        """The inputs of `generate` for the dialogue up to `question`, on the CPU."""
        together = self._interleaved(self._media())
        turns: list[Turn] = [(self._joined(t.media, together), t.question, t.answer) for t in self.turns]
        return dialogue(
            self.processor, [*turns, (self._joined(tuple(self.waiting), together), question, None)], self.system
        )

    def _asks(self, inputs: dict[str, Any]) -> Tensor | None:
        """(1, L) bool, the rows that guide the pruning; None leaves that to the method's own rule."""
        if self.method.query != "after_media" or self.waiting or not self.turns:
            return None
        rows = layout(self.model, inputs).query
        first = int(layout(self.model, inputs, query="question").query[0].nonzero()[0])
        rows[:, :first] = False
        return rows

    def _media(self) -> list[Media]:
        return [clip for turn in self.turns for clip in turn.media] + self.waiting

    def _interleaved(self, clips: list[Media]) -> bool:
        """Whether sound lies inside the videos: the models can have that for all videos of a prompt or for none."""
        return self._use_audio and all(clip.waveform is not None for clip in clips if clip.kind == "video")

    def _clips(self, clip: Media, together: bool) -> ProcessedClips:
        key = clip, together
        if key not in self._processed:
            self._processed[key] = process(
                self.processor, clip, use_audio=self._use_audio, max_pixels=self._max_pixels, interleave=together
            )
        return self._processed[key]

    def _joined(self, clips: tuple[Media, ...], together: bool) -> ProcessedClips | None:
        return ProcessedClips.join([self._clips(clip, together) for clip in clips]) if clips else None

    # files ------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write media, texts, method and system text to one file (.npz). Features and traces are not part of it.

        Raises `FileError` where the file cannot be written; one that was there before is then still there.
        """
        turns = [{"question": turn.question, "answer": turn.answer, "media": len(turn.media)} for turn in self.turns]
        settings = {"system": self.system, "use_audio": self._use_audio, "max_pixels": self._max_pixels}
        write_file(Path(path), self._media(), {"method": self.method.to_json(), "turns": turns, "settings": settings})

    @classmethod
    def load(
        cls, path: str | Path, model: Any, processor: Any, *, max_bytes: int = MAX_BYTES, **settings: Any
    ) -> Conversation:
        """A saved conversation, to go on with; its media are encoded at the next question. `settings`: as of the class.

        Raises `FileError` for a file that cannot be read, `InputError` for one that is no saved conversation, or
        unpacks to more than `max_bytes`.
        """
        clips, document = read_file(Path(path), max_bytes)
        method = settings.pop("method", None) or Method.from_json(document["method"])
        chat = cls(model, processor, method, **document["settings"] | settings)
        for turn in document["turns"]:
            media, clips = tuple(clips[: turn["media"]]), clips[turn["media"] :]
            chat.turns.append(Answered(question=turn["question"], answer=turn["answer"], media=media))
        chat.waiting = clips
        return chat
