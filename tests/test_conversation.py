"""`Conversation`: what `generate` gives for the whole dialogue, with media encoded once."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import omnidrop
from omnidrop import loading, media
from omnidrop.conversation.pieces import TextPieces

pytestmark = pytest.mark.slow

CLIP = loading.TINY.parent / "demo.mp4"
QUESTIONS = ["what color is the circle ?", "what pattern is the tenor one ?", "what color is the square ?"]


@cache
def tiny() -> tuple[Any, Any]:
    return omnidrop.load(device="cpu")


@cache
def clip() -> media.Media:
    return media.read(CLIP)


@cache
def picture() -> media.Media:
    return dataclasses.replace(
        clip(), kind="image", frames=clip().frames[:1], times=clip().times[:1], fps=None, waveform=None, seconds=0.0
    )


def chat_of(**settings: Any) -> omnidrop.Conversation:
    return omnidrop.Conversation(*tiny(), omnidrop.OmniDrop(keep=0.3), **settings)


def by_hand(turns: list[tuple[list[media.Media], str, str | None]]) -> tuple[str, torch.Tensor]:
    """The answer of `generate` to the whole dialogue, without the class: ids spliced by search and replace."""
    model, processor = tiny()
    messages: list[dict[str, Any]] = []
    for clips, question, answer in turns:
        content = [*({"type": each.kind} for each in clips), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    singles = [dict(omnidrop.build(processor, each, "x")) for clips, *_ in turns for each in clips]
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    marks = [
        processor.tokenizer.convert_tokens_to_ids(t) for t in (processor.vision_bos_token, processor.vision_eos_token)
    ]
    joined: list[int] = []
    waiting = list(singles)
    place = 0
    while place < len(ids):
        if ids[place] == marks[0]:
            inner = waiting.pop(0)["input_ids"][0].tolist()
            joined += inner[inner.index(marks[0]) : len(inner) - inner[::-1].index(marks[1])]
            place = ids.index(marks[1], place)
        else:
            joined.append(ids[place])
        place += 1
    whole = torch.tensor([joined])
    inputs: dict[str, Any] = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    for name in dict.fromkeys(name for single in singles for name in single if name not in inputs):
        values = [single[name] for single in singles if name in single]
        inputs[name] = torch.cat(values) if isinstance(values[0], torch.Tensor) else values[0]
    asks = torch.zeros_like(whole, dtype=torch.bool)
    if turns[-1][0]:  # all behind the newest clip
        names = (processor.image_token, processor.video_token, processor.audio_token)
        placeholders = {processor.tokenizer.convert_tokens_to_ids(name) for name in names}
        last = max(i for i, token in enumerate(joined) if token in placeholders)
        asks[:, last + 1 :] = True
    else:  # the newest question, and the template behind it
        words = processor.tokenizer(turns[-1][1], add_special_tokens=False)["input_ids"]
        asks[:, max(i for i in range(len(joined)) if joined[i : i + len(words)] == words) :] = True
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3), query=asks) as trace:
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.tokenizer.decode(output[0, len(joined) :], skip_special_tokens=True).strip(), trace.kept[-1][0]


def encoder_runs() -> list[str]:
    """Names of the encoders, each time one runs until the test ends."""
    model = tiny()[0]
    runs: list[str] = []
    for encoder in omnidrop.models.adapt(model).encoders:
        handle = encoder.attention.register_forward_pre_hook(lambda m, a, name=encoder.name: runs.append(name))
        HANDLES.append(handle)
    return runs


HANDLES: list[Any] = []


@pytest.fixture(autouse=True)
def _remove_hooks() -> Any:
    yield
    while HANDLES:
        HANDLES.pop().remove()


def test_every_question_gets_what_the_whole_dialogue_gets_and_media_are_encoded_once() -> None:
    chat = chat_of()
    chat.add(CLIP)
    runs = encoder_runs()
    turns: list[tuple[list[media.Media], str, str | None]] = []
    for number, question in enumerate(QUESTIONS):
        clips = [[clip()], [], [picture()]][number]
        if number == 2:
            chat.add(picture())
        before = len(runs)
        answer = chat.ask(question, max_new_tokens=8)
        ran = set(runs[before:])
        assert ran == [{"audio_encoder", "vision_encoder"}, set(), {"vision_encoder"}][number]
        want, kept = by_hand([*turns, (clips, question, None)])
        assert answer == want
        assert chat.trace is not None and torch.equal(chat.trace.kept[-1][0], kept)
        turns.append((clips, question, answer))
    assert [turn.question for turn in chat.turns] == QUESTIONS and chat.waiting == []
    assert chat.turns[0].trace is not chat.turns[1].trace


def test_the_second_question_is_pruned_for_itself() -> None:
    """By the newest question alone: with all text behind the media, earlier ones would ask too."""
    chat = chat_of()
    chat.add(clip())
    for question in QUESTIONS[:2]:
        chat.ask(question, max_new_tokens=8)
    layout = chat.trace.layout
    ids = chat.inputs("x")["input_ids"][0]
    asked = ids[: layout.shape[1]][layout.query[0]]
    words = tiny()[1].tokenizer.decode(asked, skip_special_tokens=True).split()
    assert words == [*QUESTIONS[1].split(), "assistant"]
    single = chat_of()
    single.add(clip())
    assert single.ask(QUESTIONS[1], max_new_tokens=8) == chat.turns[1].answer


def test_parts_of_a_video_that_were_not_encoded_are_not_encoded_later() -> None:
    """Whatever is asked: what is encoded follows from the clip alone, so the second question finds it."""
    method = omnidrop.OmniDrop(keep=0.3, pixels="temporal")
    chat = omnidrop.Conversation(*tiny(), method)
    chat.add(clip())
    chat.ask(QUESTIONS[0], max_new_tokens=8)
    first, runs = chat.trace.encoded, encoder_runs()
    answer = chat.ask(QUESTIONS[2], max_new_tokens=8)
    assert runs == [] and chat.trace.encoded == first and first.ratio < 0.5
    single = omnidrop.Conversation(*tiny(), method)
    single.add(clip())
    assert single.ask(QUESTIONS[2], max_new_tokens=8) == answer


def test_an_answer_comes_piece_by_piece() -> None:
    chat, other = chat_of(), chat_of()
    for each in (chat, other):
        each.add(clip())
    pieces = list(chat.stream(QUESTIONS[0], max_new_tokens=8))
    assert "".join(pieces) == chat.turns[0].answer == other.ask(QUESTIONS[0], max_new_tokens=8)


def test_a_reader_that_stops_ends_the_answer_and_the_turn_is_not_recorded() -> None:
    chat = chat_of()
    chat.add(clip())
    reader = chat.stream(QUESTIONS[0], max_new_tokens=400, min_new_tokens=400)
    next(reader)
    reader.close()
    assert chat.turns == [] and chat.waiting == [clip()]
    assert chat.ask(QUESTIONS[0], max_new_tokens=8)


@pytest.mark.parametrize("where", ["processor", "encoder", "layer", "text"])
def test_an_interruption_leaves_the_conversation_as_it_was(where: str) -> None:
    model = tiny()[0]
    chat = chat_of()
    chat.add(clip())
    want = chat.ask(QUESTIONS[0], max_new_tokens=8)
    chat.add(picture())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    adapter = omnidrop.models.adapt(model)
    parts = {"encoder": adapter.vision.attention, "layer": adapter.decoder.layers[3]}
    if where in parts:
        HANDLES.append(parts[where].register_forward_pre_hook(stop))
    if where == "processor":
        chat.processor = None
    with pytest.raises((KeyboardInterrupt, AttributeError, omnidrop.OmnidropError)):
        chat.ask(QUESTIONS[1], max_new_tokens=8, on_text=stop if where == "text" else None)
    chat.processor = tiny()[1]
    while HANDLES:
        HANDLES.pop().remove()
    assert len(chat.turns) == 1 and chat.waiting == [picture()]
    again = chat.ask(QUESTIONS[1], max_new_tokens=8)
    turns = [([clip()], QUESTIONS[0], want), ([picture()], QUESTIONS[1], None)]
    assert again == by_hand(turns)[0] and want == chat.turns[0].answer


def test_two_conversations_take_turns_and_may_share_what_is_encoded() -> None:
    store = omnidrop.EncodedMedia()
    chats = [chat_of(encoded=store), chat_of(encoded=store)]
    for chat in chats:
        chat.add(clip())
    chats[0].ask(QUESTIONS[0], max_new_tokens=8)
    runs = encoder_runs()
    chats[1].ask(QUESTIONS[1], max_new_tokens=8)
    chats[0].ask(QUESTIONS[1], max_new_tokens=8)
    assert runs == []


def test_features_that_do_not_fit_are_made_again() -> None:
    chat = chat_of(encoded=omnidrop.EncodedMedia(max_bytes=0))
    chat.add(clip())
    one = [chat.ask(question, max_new_tokens=8) for question in QUESTIONS[:2]]
    other = chat_of()
    other.add(clip())
    assert one == [other.ask(question, max_new_tokens=8) for question in QUESTIONS[:2]]


def test_a_silent_video_takes_the_sound_out_of_the_others() -> None:
    """The models put sound inside all videos of a prompt or inside none; a later turn may change which."""
    silent = dataclasses.replace(clip(), waveform=None)
    chat = chat_of()
    chat.add(clip())
    chat.ask(QUESTIONS[0], max_new_tokens=4)
    assert chat.inputs("x").get("use_audio_in_video")
    chat.add(silent)
    inputs = chat.inputs(QUESTIONS[1])
    assert "use_audio_in_video" not in inputs
    assert torch.equal(
        inputs["input_ids"],
        omnidrop.prompt.dialogue(
            tiny()[1],
            [
                (omnidrop.prompt.process(tiny()[1], clip(), interleave=False), QUESTIONS[0], chat.turns[0].answer),
                (omnidrop.prompt.process(tiny()[1], silent), QUESTIONS[1], None),
            ],
        )["input_ids"],
    )
    assert chat.ask(QUESTIONS[1], max_new_tokens=4) is not None


def test_saved_and_resumed(tmp_path: Path) -> None:
    chat = chat_of(system="you are a helpful assistant .")
    chat.add(clip())
    chat.ask(QUESTIONS[0], max_new_tokens=8)
    chat.add(picture())
    chat.save(tmp_path / "chat.npz")
    again = omnidrop.Conversation.load(tmp_path / "chat.npz", *tiny())
    assert again.method == chat.method and again.system == chat.system and len(again.waiting) == 1
    assert [(turn.question, turn.answer) for turn in again.turns] == [(chat.turns[0].question, chat.turns[0].answer)]
    assert np.array_equal(again.turns[0].media[0].waveform, clip().waveform)
    assert again.ask(QUESTIONS[1], max_new_tokens=8) == chat.ask(QUESTIONS[1], max_new_tokens=8)
    assert list(tmp_path.iterdir()) == [tmp_path / "chat.npz"]


def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path) -> None:
    def load(name: str, **options: Any) -> None:
        omnidrop.Conversation.load(tmp_path / name, *tiny(), **options)

    with pytest.raises(omnidrop.FileError, match=r"nothing\.npz cannot be read"):
        load("nothing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(omnidrop.InputError, match="is no saved conversation"):
        load("text.npz")
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    with pytest.raises(omnidrop.InputError, match="is no saved conversation"):
        load("other.npz")
    np.savez(tmp_path / "pickle.npz", document=np.array([{}], dtype=object))
    with pytest.raises(omnidrop.InputError, match="is no saved conversation"):
        load("pickle.npz")
    chat = chat_of()
    chat.save(tmp_path / "chat.npz")
    with pytest.raises(omnidrop.InputError, match="unpacks to"):
        load("chat.npz", max_bytes=10)
    with np.load(tmp_path / "chat.npz") as arrays:
        document = json.loads(arrays["document"].tobytes())
    document["version"] = 99
    np.savez(tmp_path / "new.npz", document=np.frombuffer(json.dumps(document).encode(), dtype=np.uint8))
    with pytest.raises(omnidrop.InputError, match="has version 99"):
        load("new.npz")
    for change, says in (
        ({"settings": {"system": None, "use_audio": True, "max_pixels": None, "more": 1}}, "its settings are not"),
        ({"turns": [{"question": "q", "answer": "a", "media": 3}]}, "refers to clips"),
    ):
        bad = np.frombuffer(json.dumps({**document, "version": 1, **change}).encode(), dtype=np.uint8)
        np.savez(tmp_path / "bad.npz", document=bad)
        with pytest.raises(omnidrop.InputError, match=says):
            load("bad.npz")
    chat.add(clip())
    chat.save(tmp_path / "clip.npz")
    with np.load(tmp_path / "clip.npz") as arrays:
        held = dict(arrays)
    np.savez(tmp_path / "bad.npz", **held | {"frames_0": held["frames_0"].astype(float)})
    with pytest.raises(omnidrop.InputError, match="frames of clip 0 are of type float64"):
        load("bad.npz")
    with pytest.raises(omnidrop.FileError, match="cannot be saved at"):
        chat.save(tmp_path / "no" / "folder.npz")


def test_mistakes_are_answered() -> None:
    chat = chat_of()
    with pytest.raises(omnidrop.InputError, match="the question is empty"):
        chat.ask("  ")
    with pytest.raises(omnidrop.MediaError):
        chat.add("/no/such/file.mp4")
    with pytest.raises(omnidrop.MediaError):
        chat.add(clip(), dataclasses.replace(clip(), kind="image", frames=None))
    assert chat.waiting == [] and chat.turns == [] and chat.trace is None
    with pytest.raises(omnidrop.SettingError, match="the method is"):
        omnidrop.Conversation(*tiny(), 0.3)  # type: ignore[arg-type]
    assert repr(chat).startswith("<Conversation: 0 questions, 0 clips, OmniDrop")


def test_half_a_character_waits_for_its_other_half() -> None:
    class Bytes:
        def decode(self, tokens: list[int], **_: Any) -> str:
            return bytes(tokens).decode("utf-8", errors="replace")

    given: list[str] = []
    pieces = TextPieces(Bytes(), given.append)
    pieces.put(torch.tensor([[1, 2]]))
    for token in " a é ü".encode():
        pieces.put(torch.tensor([token]))
    pieces.end()
    assert "".join(given) == "a é ü" and len(given) > 1 and not any("\ufffd" in piece for piece in given)


def test_a_clip_that_was_not_added_leaves_nothing_behind() -> None:
    """What was made of it must not be taken for that of a later object at the same place in memory."""
    chat, other = chat_of(), chat_of()
    gone = dataclasses.replace(clip(), waveform=clip().waveform[: len(clip().waveform) // 2])
    place = id(gone)
    with pytest.raises(omnidrop.MediaError):
        chat.add(gone, dataclasses.replace(clip(), kind="image", frames=None))
    del gone
    tried = [dataclasses.replace(clip()) for _ in range(5000)]
    same = next((each for each in tried if id(each) == place), tried[0])
    for each in (chat, other):
        each.add(same)
    assert torch.equal(chat.inputs("x")["input_ids"], other.inputs("x")["input_ids"])
