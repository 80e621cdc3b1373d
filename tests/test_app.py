"""What the page of `omnidrop app` does, without the page: clips, streamed answers, the session, HTML, previews."""

from __future__ import annotations

import base64
import html
import io
import signal
import socket
import sys
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omnidrop_lab import needle
from omnidrop_lab.needle import files, render

from omnidrop import loading, measure, media, memory, prompt
from omnidrop.app import answers, clips, folder, gate, guide, layout, page, preview, reading, settings, show
from omnidrop.app.deadline import Deadline
from omnidrop.app.session import Session, Setting, View, methods
from omnidrop.cli import main
from omnidrop.core.budget import BUDGETS
from omnidrop.core.tokens import Modality
from omnidrop.core.trace import Trace
from omnidrop.errors import MediaError, OmnidropError, SettingError
from omnidrop.media import Media
from omnidrop.methods import OmniDrop
from omnidrop.methods.reach import Reach, reachable, reference_prompt
from omnidrop.models import adapt

pytest.importorskip("av")

pytestmark = pytest.mark.slow

FIRST, SECOND = Setting("omnidrop", 0.3, "layers"), Setting("tuned", 0.1, "kv")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each measurement costs more than the tiny model's answers."""
    monkeypatch.setattr(memory, "_give_back", lambda: None)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(*loading.load(), max_new_tokens=8)


def views(session: Session, question: str, *settings: Setting, compare: bool = True) -> list[View]:
    return list(session.ask(session.shipped(), question, settings or [FIRST], compare=compare))


def sound(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(bytes(round(seconds * 32_000)))
    return path


# clips ---------------------------------------------------------------------------------------------------------------


def test_the_shipped_clip_has_questions_in_both_wordings() -> None:
    words, english = clips.examples(True)[0], clips.examples(False)[0]
    assert words.answer_to("what color is the circle ?") == "blue"
    assert words.answer_to("  What  color is the circle ? ") == "blue" and words.answer_to("what is love ?") is None
    assert english.answer_to("What is the color of the circle?") == "blue"
    assert words.clip.path == "demo.mp4" and words.clip.waveform is not None


def test_a_drawn_clip_is_the_benchmarks_and_says_its_truth() -> None:
    plan = needle.clip("dev", 7)
    chosen = clips.drawn(7, tiny=True)
    assert np.array_equal(chosen.clip.frames, render.frames(plan, 84))
    assert [each.answer for each in chosen.known] == [each.answer for each in needle.questions(plan)]
    assert clips.drawn(7, tiny=False).clip.frames.shape[1:3] == (448, 448)


def test_a_file_is_called_by_its_name_alone(tmp_path: Path) -> None:
    chosen = clips.from_file(files.write(needle.clip("dev", 1, 2), tmp_path / "my clip.mp4"), 120)
    assert chosen.name == "my clip.mp4 (4.0 s)" and chosen.clip.path == "my clip.mp4" and chosen.known == ()


@pytest.mark.parametrize(
    "name, content, text",
    [
        ("notes.txt", b"hello\n", "notes.txt is"),
        ("empty.mp4", b"", "empty.mp4 is empty (0 bytes)"),
        ("noise.mp4", bytes(range(256)) * 40, "is no video, audio or image file that FFmpeg knows"),
        ("cut.png", b"\x89PNG\r\n\x1a\n" + bytes(50), "cut.png"),
    ],
)
def test_a_bad_file_is_refused_in_the_readers_words_without_its_folder(
    tmp_path: Path, name: str, content: bytes, text: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError) as own:
        media.read(tmp_path / name)
    with pytest.raises(MediaError) as caught:
        clips.from_file(tmp_path / name, 120)
    assert text in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert str(caught.value) == str(own.value).replace(str(tmp_path / name), name)


def test_a_long_clip_is_refused_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"long\.wav is 7 seconds long; this page takes 5 at most"):
        clips.from_file(sound(tmp_path / "long.wav", 7), 5)
    assert clips.from_file(sound(tmp_path / "short.wav", 5), 5).clip.seconds == 5


@pytest.mark.parametrize("done, total", [(1.0, 6.0), (6.0, 0.0)], ids=["by its header", "as it is decoded"])
def test_a_long_clip_is_refused_while_it_is_read(monkeypatch: pytest.MonkeyPatch, done: float, total: float) -> None:
    def read(path: Path, progress: Any) -> None:
        progress("sound", done, total)
        pytest.fail("the rest was read")

    monkeypatch.setattr(media, "read", read)
    with pytest.raises(MediaError, match="5 at most"):
        clips.from_file("a.wav", 5)


def test_sound_without_a_length_is_measured_before_it_is_decoded(tmp_path: Path) -> None:
    """A browser's recording does not say how long it is: the limit must not wait until all of it is decoded."""
    clip = clips.examples(True)[0].clip
    path = tmp_path / "live.webm"
    path.write_bytes(_without_length(replace(clip, kind="audio", frames=None, times=None, fps=None)))
    heard: list[float] = []
    media.read(path, progress=lambda what, done, total: heard.append(max(done, total)))
    assert heard[0] > 15  # by its packets' times, since its head says nothing
    with pytest.raises(MediaError, match="16 seconds long; this page takes 5 at most"):
        clips.from_file(path, 5)


def _without_length(clip: Media) -> bytes:
    """WebM as a browser records it: a stream that is not sought back in to write its length."""
    import av

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.parts.append(bytes(data))
            return len(data)

    pipe = Pipe()
    with av.open(pipe, "w", format="webm", options={"live": "1"}) as container:
        for packet in preview._sound(container, clip):
            container.mux(packet)
    return b"".join(pipe.parts)


# one answer ----------------------------------------------------------------------------------------------------------


def _stream(session: Session, method: Any = None, turn: threading.Lock | None = None) -> Iterator[Any]:
    chosen = session.shipped()
    inputs = prompt.build(session.processor, chosen.clip, "spell the pattern ?")
    return answers.stream(session.model, session.processor, inputs, method, 8, turn or threading.Lock(), Deadline(60))


def test_words_come_one_by_one_and_the_measurement_last(session: Session) -> None:
    *texts, last = [item for item in _stream(session)]
    said = list(dict.fromkeys(filter(None, texts)))
    assert len(said) >= 3 and all(len(b.split()) == len(a.split()) + 1 for a, b in pairwise(said))
    inputs = prompt.build(session.processor, session.shipped().clip, "spell the pattern ?")
    assert last.answer == said[-1] == measure.answer(session.model, session.processor, inputs, None, 8).answer


def test_an_error_of_the_model_comes_out_and_ends_the_turn(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(measure, "answer", fail)
    turn = threading.Lock()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(_stream(session, turn=turn))
    assert turn.acquire(timeout=5)


def test_who_leaves_stops_the_work_at_the_next_token(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    heard_until: list[int] = []

    def talk(model: Any, processor: Any, inputs: Any, method: Any, most: int, heard: Any) -> None:
        for token in range(10_000):
            heard_until.append(token)
            time.sleep(0.001)
            heard(5)
        pytest.fail("it talked to the end")

    monkeypatch.setattr(measure, "answer", talk)
    turn = threading.Lock()
    stream = _stream(session, turn=turn)
    next(stream)
    stream.close()
    assert turn.acquire(timeout=5) and len(heard_until) < 5_000


def test_a_reader_is_asked_again_while_nothing_comes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BEAT", 0.01)
    turn = threading.Lock()
    turn.acquire()  # somebody else's prefill still runs
    stream = _stream(session, turn=turn)
    assert [next(stream) for _ in range(3)] == ["", "", ""]
    turn.release()
    assert list(stream)[-1].answer


def test_the_deadline_ends_a_prefill_between_two_layers(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = adapt(session.model).decoder.layers
    deadline, entered = Deadline(60), []

    def slow(*_: Any) -> None:
        entered.append(1)
        deadline.end = 0.0  # while the first layer runs, the time is over

    inputs = prompt.build(session.processor, session.shipped().clip, "spell the pattern ?")
    with layers[0].register_forward_hook(slow), pytest.raises(OmnidropError, match=r"longer than 60 .*--max-job"):
        list(answers.stream(session.model, session.processor, inputs, None, 8, threading.Lock(), deadline))
    assert entered == [1]
    assert list(_stream(session))[-1].answer  # the next one is answered


def test_who_waits_for_a_layer_that_does_not_end_is_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BEAT", 0.01)
    monkeypatch.setattr(answers, "GRACE", 0.0)
    turn = threading.Lock()
    turn.acquire()  # the layer of somebody before
    inputs = prompt.build(session.processor, session.shipped().clip, "spell the pattern ?")
    stream = answers.stream(session.model, session.processor, inputs, None, 8, turn, Deadline(0.05))
    with pytest.raises(OmnidropError, match="took longer"):
        list(stream)
    turn.release()


def test_a_whole_question_has_one_deadline(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "max_job_seconds", -1.0)
    before = sum(len(m._forward_pre_hooks) for m in session.model.modules())
    with pytest.raises(OmnidropError, match="took longer"):
        views(session, "what color is the circle ?")
    with session.turn:
        assert sum(len(m._forward_pre_hooks) for m in session.model.modules()) == before


# files of others ------------------------------------------------------------------------------------------------------


def test_a_file_read_apart_is_the_same_clip(session: Session) -> None:
    path = loading.TINY.parent / "demo.mp4"
    own, other = media.read(path), session.from_file(str(path)).clip
    assert other.path == "demo.mp4" and (other.kind, other.fps, other.seconds) == (own.kind, own.fps, own.seconds)
    for name in ("frames", "times", "waveform"):
        assert np.array_equal(getattr(own, name), getattr(other, name))


PICTURES = (".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp")
VIDEOS = {
    ".mp4": "mpeg4",
    ".mov": "mpeg4",
    ".mkv": "mpeg4",
    ".avi": "mpeg4",
    ".ts": "mpeg4",
    ".flv": "flv1",
    ".mpg": "mpeg2video",
}
SOUNDS = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".flac": "flac", ".ogg": "libopus", ".aac": "aac"}


@pytest.mark.parametrize("suffix", [*PICTURES, *VIDEOS, *SOUNDS])
def test_what_files_begin_with(suffix: str, tmp_path: Path) -> None:
    """Files as FFmpeg and Pillow write them are let through; the reader has the last word."""
    import av
    from PIL import Image

    path = tmp_path / f"a{suffix}"
    if suffix in PICTURES:
        Image.new("RGB", (32, 32)).save(path)
    elif suffix in VIDEOS:
        with av.open(path, "w") as out:
            stream = out.add_stream(VIDEOS[suffix], rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            out.mux([*stream.encode(picture), *stream.encode()])
    else:
        with av.open(path, "w") as out:
            sounding = out.add_stream(SOUNDS[suffix], rate=48_000)
            sounding.layout = "mono"
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="mono")
            silence.sample_rate = 48_000
            out.mux([*sounding.encode(silence), *sounding.encode()])
    reading.check_kind(path, path.name)


NO_CLIPS = {
    "a playlist": b"#EXTM3U\n#EXTINF:2.0,\n/etc/hostname\n#EXT-X-ENDLIST\n",
    "a playlist with a mark": b"\xef\xbb\xbf#EXTM3U\n",
    "a list of files": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "markup": b"<svg/>",
    "a document": b"%PDF-1.4",
    "an archive": b"PK\x03\x04" + bytes(50),
    "a program": b"\x7fELF" + bytes(50),
}


@pytest.mark.parametrize("content", NO_CLIPS)
@pytest.mark.parametrize("name", ["a.mp4", "a.wav", "a.png", "a.m3u8"])
def test_what_is_no_clip_reaches_no_decoder(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHILD", ["/nonexistent"])
    (tmp_path / name).write_bytes(NO_CLIPS[content])
    with pytest.raises(MediaError, match=r"is a text file|does not begin like"):
        reading.apart(tmp_path / name, name, 120, 60)


def test_a_reader_that_hangs_or_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sound(tmp_path / "a.wav", 1)
    monkeypatch.setattr(reading, "CHILD", [sys.executable, "-c", "import time; time.sleep(1000)"])
    with pytest.raises(MediaError, match=r"a\.wav could not be read in 0\.5 seconds.*--max-job-seconds"):
        reading.apart(path, "a.wav", 120, 0.5)
    monkeypatch.setattr(reading, "CHILD", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(MediaError, match=r"reading a\.wav ended its process \(status -9"):
        reading.apart(path, "a.wav", 120, 60)


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, age in (("dead", 0), ("young", 0), ("old", 3600)):
        (tmp_path / f"omnidrop-app-{name}" / "files").mkdir(parents=True)
        os.utime(tmp_path / f"omnidrop-app-{name}", (time.time() - age,) * 2)
    (tmp_path / "omnidrop-app-dead" / "lock").touch()  # nobody holds it
    (tmp_path / "omnidrop-app-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "omnidrop-app-file").touch()
    with folder.uploads() as living:
        with folder.uploads() as other:
            assert living.is_dir() and other.is_dir() and other != living
        assert living.is_dir() and not other.exists()
        left = {path.name for path in tmp_path.iterdir()} - {living.parent.name}
    assert left == {"omnidrop-app-young", "omnidrop-app-link", "omnidrop-app-file", "elsewhere"}
    assert not living.exists()


# the gate -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "http://x", "x/y", "x@y", "", "x?y", "[::1", "x:y"])
def test_what_is_no_name_of_a_host_is_refused(name: str) -> None:
    pytest.importorskip("gradio")
    with pytest.raises(SettingError, match="allow_host is"):
        page.check(port=0, allow_host=[name])


def test_other_sites_show_the_page_in_a_frame_only_where_they_are_named() -> None:
    assert gate.policy_of([]).endswith("frame-ancestors 'self'")
    assert gate.policy_of(["https://huggingface.co"]).endswith("frame-ancestors 'self' https://huggingface.co")
    for origin in ("huggingface.co", "https://x.example/path", "https://x.example; script-src *", "*", "https://"):
        with pytest.raises(SettingError, match="allow_frame is"):
            gate.policy_of([origin])


def test_names_are_compared_as_browsers_write_them() -> None:
    assert gate.names_of("127.0.0.1", ["App.Example.org:8443", "::2"]) == {*gate.OWN, "app.example.org", "::2"}
    assert "fe80::1" in gate.names_of("fe80::1", [])


# the session ---------------------------------------------------------------------------------------------------------


def test_a_needle_question_is_answered_right_with_and_without_pruning(session: Session) -> None:
    shown = views(session, "what color is the circle ?")
    last = shown[-1]
    (pruned,) = last.pruned
    assert last.complete and [view.complete for view in shown].count(True) == 2
    scored = [view.answers[0].scored for view in shown]
    assert scored[:-1] == [None] * (len(shown) - 1) and scored[-1].scores is not None
    assert scored[-1].counts == pruned.measured.trace.counts
    assert pruned.text == last.full.text == last.right == "blue" and last.note == ""
    assert pruned.measured.trace.keep == pytest.approx(0.3, abs=0.02) and last.full.measured.trace is None
    assert pruned.measured.kv_bytes < last.full.measured.kv_bytes
    started = next(i for i, view in enumerate(shown) if view.full.working)
    assert all(view.answers[0].measured is None for view in shown[: started - 1])
    assert all(view.answers[0].measured is not None for view in shown[started:])


def test_without_comparison_there_is_one_answer(session: Session) -> None:
    last = views(session, "what color is the circle ?", Setting("tuned", 0.3, "kv"), compare=False)[-1]
    (answer,) = last.answers
    assert last.full is None and last.complete
    assert answer.measured.trace.budgets["kv"] == pytest.approx(0.3, abs=0.02)


def test_two_settings_are_answered_one_after_the_other(session: Session) -> None:
    shown = views(session, "what color is the circle ?", FIRST, SECOND)
    working = [tuple(place for place, answer in enumerate(view.answers) if answer.working) for view in shown]
    assert set(working) == {(), (0,), (1,), (2,)} and [place for place in working if place] == sorted(
        filter(None, working)
    )
    first, second, full = shown[-1].answers
    assert first.measured.trace.budgets["layers"] == pytest.approx(0.3, abs=0.02)
    assert second.measured.trace.budgets["kv"] == pytest.approx(0.1, abs=0.02)
    assert first.scored.counts == first.measured.trace.counts and second.scored.counts == second.measured.trace.counts
    assert full.method is None and full.scored is None and shown[-1].full == full


@pytest.mark.parametrize(
    "question, settings, text",
    [
        ("  ", [], "there is no question"),
        ("what " * 500, [], "at most 2000"),
        ("what ?", [FIRST, FIRST], "both settings are the same"),
        ("what ?", [FIRST._replace(keep=0.0)], "keep is 0.0"),
        ("what ?", [FIRST, FIRST._replace(method="magic")], "there is no method 'magic'"),
        ("what ?", [FIRST._replace(budget="tokens")], "budget is 'tokens'"),
        ("what ?", [Setting("fastv", 0.05, "layers")], "FastV after layer 1 keeps 0.125 to 1.000"),
        ("<|VIDEO|>", [], "must not contain"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_answered_is_said(session: Session, question: str, settings: list[Setting], text: str) -> None:
    with pytest.raises(OmnidropError) as caught:
        views(session, question, *settings)
    assert text in str(caught.value)
    assert views(session, "what color is the circle ?", compare=False)[-1].answers[0].text == "blue"  # life goes on


def test_running_out_of_memory_says_what_to_do(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nlong story")

    monkeypatch.setattr(measure, "answer", fail)
    with pytest.raises(OmnidropError, match=r"Tried to allocate 20 GiB\); lower keep"):
        views(session, "what color is the circle ?")


def test_closing_in_the_middle_leaves_the_model_as_it_was(session: Session) -> None:
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in session.model.modules())
    asking = session.ask(session.shipped(), "spell the pattern ?", [FIRST], compare=True)
    next(view for view in asking if view.answers[0].text)
    asking.close()
    with session.turn:
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in session.model.modules()) == before
    assert views(session, "what color is the circle ?")[-1].answers[0].text == "blue"


def test_the_tiny_model_says_which_words_it_does_not_know(session: Session) -> None:
    note = views(session, "what color is the zebra ?", compare=False)[0].note
    assert 'does not know ("zebra")' in note and "--model" in note


def test_the_tiny_model_says_that_it_does_not_know_files_of_others(session: Session) -> None:
    chosen = replace(session.shipped(), uploaded=True)
    view = next(session.ask(chosen, "what color is the circle ?", [FIRST], compare=False))
    assert "your file means nothing" in view.note and "--model" in view.note


def test_examples_are_answered_right(session: Session) -> None:
    for chosen in session.examples():
        for known in chosen.known if chosen.name != session.shipped().name else ():
            *_, last = session.ask(chosen, known.text, [FIRST], compare=False)
            assert last.answers[0].text == known.answer, (chosen.name, known.text)


def test_methods_are_those_that_keep_and_budget_describe(session: Session) -> None:
    assert "omnidrop" in methods() and "tuned" in methods() and "cutoff" not in methods()


def test_limits_are_checked() -> None:
    model, processor = loading.load()
    for name in ("max_new_tokens", "max_seconds", "max_job_seconds"):
        with pytest.raises(SettingError, match=f"{name} is 0"):
            Session(model, processor, **{name: 0})


# what is shown -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def last(session: Session) -> View:
    return views(session, "what color is the circle ?")[-1]


@pytest.fixture(scope="module")
def two(session: Session) -> View:
    return views(session, "what color is the circle ?", FIRST, SECOND)[-1]


def card(made: str, name: str) -> str:
    """One card of `show.cards`."""
    return made.split(f'id="od-{name}"')[1].split("</section>")[0]


def test_cards_show_the_numbers_of_the_measurement(last: View) -> None:
    pruned, full = card(show.cards(last), "pruned"), card(show.cards(last), "full")
    run = last.answers[0].measured
    assert ">blue</p>" in pruned and ">right</p>" in pruned and "keep 0.3 (mean over the layers)" in pruned
    assert f"× {run.kv_bytes / last.full.measured.kv_bytes:.2f}<" in pruned
    for word in BUDGETS:
        assert f"<dt>Kept, {guide.BUDGETS[word][0]}</dt><dd>{100 * run.trace.budgets[word]:.1f} %" in pruned
    assert full.count("100.0 %") == 5 and "×" not in full
    assert run.peak_memory_kind in show.footnote(last) and "in the order of the cards" in show.footnote(last)


def test_cards_count_the_tokens(last: View) -> None:
    trace = last.answers[0].measured.trace
    total = sum(int((trace.layout.modality[0] == kind).sum()) for kind in (Modality.AUDIO, Modality.VIDEO))
    entered = [len(layer[0]) - (trace.layout.modality.shape[1] - total) for layer in trace.kept]
    made = card(show.cards(last), "pruned")
    assert f"<small>{sum(entered) / len(entered):.1f} of {total} tokens</small>" in made
    assert f"<small>{entered[0]} of {total} tokens</small>" in made


def test_two_settings_have_a_card_each(two: View) -> None:
    made = show.cards(two)
    assert made.count("<section") == 3 and "First setting" in card(made, "pruned")
    assert "Tuned, keep 0.1 (bytes of the cache)" in card(made, "second")
    assert f">{two.answers[1].text}</p>" in card(made, "second")


def test_what_is_being_done_is_said(two: View) -> None:
    waiting = two.changed(1, working=True, measured=None, scored=None)
    assert "Answer 2 of 3: Tuned, keep 0.1 (bytes of the cache) ..." in show.status(waiting)
    assert "Drawing what was kept" in show.status(two.changed(1, scored=None)) and show.status(two) == ""


def test_a_wrong_or_open_answer_is_not_called_right(last: View) -> None:
    wrong = show.cards(last.changed(0, text="green"))
    assert "expected: blue" in card(wrong, "pruned") and ">right<" not in card(wrong, "pruned")
    assert "od-verdict" not in show.cards(replace(last, right=None))


def test_a_card_that_waits_can_be_stilled(last: View) -> None:
    waiting = show.cards(last.changed(0, text="bl", working=True, measured=None))
    assert show.BUSY in waiting and show.still(waiting) == waiting.replace(' aria-busy="true"', "") != waiting
    assert 'id="od-full"' not in show.empty(second=True, full=False)


def test_no_text_becomes_markup(last: View) -> None:
    evil = '"><script>alert(1)</script>'
    bad = replace(last, right=evil, question=evil, chosen=replace(last.chosen, name=evil)).changed(0, text=evil)
    clip = replace(last.chosen.clip, path=evil)
    for made in (show.cards(bad), show.message(evil), show.frame(evil), show.table(show.remember(None, bad)),
                 show._download("x", "x", evil), layout._clip(bad.chosen, reference_prompt()),
                 preview.player(replace(clip, kind="image"))):  # fmt: skip
        assert "<script" not in made and 'title=""' not in made
        assert "&lt;script&gt;" in made


def test_the_pictures_come_in_a_frame_that_can_reach_nothing(last: View) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    made = show.kept(last)
    assert "<iframe" in made and 'sandbox="allow-scripts"' in made and "allow-same-origin" not in made
    inside = html.unescape(made.split('srcdoc="', 1)[1].rsplit('"', 1)[0])
    assert last.question in inside and "demo.mp4" in inside
    assert show.kept(last.changed(0, scored=None)) == ""


def test_report_and_traces_can_be_saved(two: View, tmp_path: Path) -> None:
    made = show.downloads(two)
    texts = [html.unescape(part.split("</span>")[0]) for part in made.split("<span hidden>")[1:]]
    names = [part.split('"')[0] for part in made.split('data-name="')[1:]]
    assert names == [
        "omnidrop-report.html",
        "omnidrop-trace-OmniDrop-0.3-layers.json",
        "omnidrop-trace-Tuned-0.1-kv.json",
    ]
    for text, answer in zip(texts, two.pruned, strict=True):
        (tmp_path / "trace.json").write_text(text)
        assert Trace.load(tmp_path / "trace.json").counts == answer.scored.counts


def test_earlier_answers_are_listed_the_newest_first(last: View, two: View) -> None:
    rows = show.remember(show.remember(None, last), two)
    assert [row["setting"].split(",")[0] for row in rows] == [
        "OmniDrop",
        "Tuned",
        "all tokens",
        "OmniDrop",
        "all tokens",
    ]
    assert rows[0]["kept"] == f"{100 * two.answers[0].measured.trace.keep:.1f} %" and rows[2]["kept"] == "100.0 %"
    assert show.table(rows).count("<tr>") == 6
    for _ in range(30):
        rows = show.remember(rows, two)
    assert len(rows) == show.LONGEST_HISTORY


def test_a_prompt_without_sound_and_video_has_no_such_pictures(session: Session) -> None:
    image = Media("a.png", "image", np.zeros((1, 90, 90, 3), np.uint8), np.zeros(1), None, None, 16_000, 0.0)
    chosen = clips.Chosen(name="a.png", clip=image)
    last = list(session.ask(chosen, "what color is the circle ?", [FIRST], compare=True))[-1]
    assert "no audio or video tokens" in show.kept(last) and "of 0 tokens" not in show.cards(last)
    assert "no audio or video tokens" in guide.about(
        "omnidrop", OmniDrop, "layers", session.counts(chosen).budget.total, None
    )


# the settings --------------------------------------------------------------------------------------------------------


def test_every_method_and_unit_is_explained() -> None:
    assert set(guide.METHODS) == set(methods()) and set(guide.BUDGETS) == set(BUDGETS)
    for name, kind in methods().items():
        made = guide.about(name, kind, "kv", 10, None)
        assert guide.METHODS[name].split("'")[0] in made and "bytes of keys and values" in made
        assert ("https://arxiv.org/abs/" in made) == ("arXiv" in kind.reference)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "method, budget", [("omnidrop", "layers"), ("fastv", "layers"), ("omnizip", "flops"), ("tuned", "kv")]
)
def test_the_slider_has_the_shares_that_are_met(session: Session, place: int, method: str, budget: str) -> None:
    chosen = session.examples()[place]
    low, high = settings.limits(reachable(methods()[method], budget, session.counts(chosen)))
    question = max((each.text for each in chosen.known), key=len)
    for keep in (low, high):
        *_, last = session.ask(chosen, question, [Setting(method, keep, budget)], compare=False)
        assert last.answers[0].measured.trace.budgets[budget] == pytest.approx(keep, abs=0.02)
    with pytest.raises(SettingError, match="keeps"):
        list(session.ask(chosen, question, [Setting(method, round(low - 0.02, 2) or 0.001, budget)], compare=False))


def test_a_slider_without_a_known_range_has_all() -> None:
    assert settings.limits(None) == (0.01, 1.0)
    assert settings.limits(Reach(low=0.0, high=0.998)) == (0.01, 1.0)
    assert settings.limits(Reach(low=0.211, high=0.704)) == (0.22, 0.7)


# previews ------------------------------------------------------------------------------------------------------------


def test_the_preview_is_the_clip(tmp_path: Path) -> None:
    clip = clips.examples(True)[0].clip
    (tmp_path / "a.webm").write_bytes(preview._webm(clip))
    again = media.read(tmp_path / "a.webm")
    assert again.seconds == pytest.approx(clip.seconds, abs=0.1) and len(again.frames) >= len(clip.frames)
    difference = np.abs(again.frames[: len(clip.frames)].astype(int) - clip.frames)
    assert difference.mean() < 12
    assert len(again.waveform) == pytest.approx(len(clip.waveform), abs=1600)
    assert np.corrcoef(again.waveform[: 15 * 16_000], clip.waveform[: 15 * 16_000])[0, 1] > 0.9


def test_thumbnails_are_small_pictures() -> None:
    from PIL import Image

    for example in clips.examples(True):
        data = preview.thumbnail(example.clip).partition("base64,")[2]
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.width > 40 and len(data) < 60_000


def test_previews_of_every_kind() -> None:
    clip = clips.drawn(3, tiny=True).clip
    odd = replace(clip, frames=np.ascontiguousarray(clip.frames[:5, :61, :33]), times=clip.times[:5], waveform=None)
    kinds = {
        "<video": odd,
        "<audio": replace(clip, kind="audio", frames=None, times=None, fps=None),
        "<img": replace(clip, kind="image", frames=clip.frames[:1], waveform=None),
    }
    for tag, each in kinds.items():
        made = preview.player(each)
        assert made.startswith(tag) and 'src="data:' in made and len(made) > 1_000


# serving -------------------------------------------------------------------------------------------------------------


def test_a_page_that_cannot_be_served_is_refused_before_a_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SettingError, match=r"pip install 'omnidrop\[app\]'"):
        page.check()


def test_settings_of_the_server_are_checked() -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"cannot listen on 127.0.0.1, port {port}"):
            page.check(port=port)
    for changes, text in [
        ({"port": 70_000}, "port 70000"),
        ({"host": "no.such.host.invalid"}, "no.such.host.invalid"),
        ({"max_upload_mb": 0}, "max_upload_mb is 0"),
        ({"queue": 0}, "queue is 0"),
        ({"live": -1}, "live is -1"),
    ]:
        with pytest.raises(SettingError, match=text):
            page.check(**changes)
    assert page.check(port=0) > 0


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--queue", "0"], "queue is 0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--max-seconds", "nan"], "max_seconds is nan"),
        (["--port", "70000"], "port 70000"),
    ],
)
def test_the_command_refuses_in_one_line_before_it_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], text: str
) -> None:
    pytest.importorskip("gradio")
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["app", "-q", "--json", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("omnidrop: error: ") and text in err and err.count("\n") == 1


def test_the_command_says_how_to_stop_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    @contextmanager
    def serve(*_: Any, **__: Any) -> Iterator[str]:
        signal.raise_signal(signal.SIGINT)  # as Ctrl+C does, once it is served
        yield "http://127.0.0.1:7860/"

    monkeypatch.setattr(page, "serve", serve)
    monkeypatch.setattr(page, "check", lambda **_: 7860)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main(["app"]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    out, err = capsys.readouterr()
    assert out == "http://127.0.0.1:7860/\n" and err.splitlines()[-2:] == ["Ctrl+C to stop", "stopping"]


def test_a_value_that_left_the_sliders_range_on_its_way_is_moved_and_no_error() -> None:
    """Gradio's own slider raises, in whatever event it is an input of."""
    gr = pytest.importorskip("gradio")

    from omnidrop.app import settings as controls

    with pytest.raises(gr.Error, match="less than minimum"):
        gr.Slider(0.32, 1.0, 0.4).preprocess(0.3)
    slider = controls._slider()(0.32, 1.0, 0.4)
    assert slider.preprocess(0.3) == 0.3 and slider.get_block_name() == "slider"
    assert not list(Path(controls.__file__).parent.glob("*.pyi"))
