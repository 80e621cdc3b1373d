"""What the page of `omnidrop app` does, without the page: clips, streamed answers, the desk, HTML, previews."""

from __future__ import annotations

import html
import socket
import sys
import threading
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnidrop import measure, media, memory, needle, prompt
from omnidrop.app import answers, clips, page, preview, show
from omnidrop.app.desk import Desk, Scene, Side, methods, unknown_words
from omnidrop.budget import BUDGETS
from omnidrop.cli import main
from omnidrop.errors import MediaError, OmnidropError, SettingError
from omnidrop.media import Media
from omnidrop.needle import files, render

pytest.importorskip("av")

ASK: dict[str, Any] = {"method": "omnidrop", "keep": 0.3, "budget": "layers", "compare": True}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each measurement costs more than the tiny model's answers."""
    monkeypatch.setattr(memory, "_give_back", lambda: None)


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(*prompt.load(), max_new_tokens=8)


def scenes(desk: Desk, question: str, **changes: Any) -> list[Scene]:
    return list(desk.ask(desk.shipped(), question, **{**ASK, **changes}))


def sound(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(bytes(round(seconds * 32_000)))
    return path


# clips ---------------------------------------------------------------------------------------------------------------


def test_the_shipped_clip_has_questions_in_both_wordings() -> None:
    words, english = clips.shipped(True), clips.shipped(False)
    assert words.answer_to("what color is the circle ?") == "blue"
    assert words.answer_to("  What  color is the circle ? ") == "blue" and words.answer_to("what is love ?") is None
    assert english.answer_to("What is the color of the circle?") == "blue"
    assert words.clip.path == "demo.mp4" and words.clip.waveform is not None


def test_a_drawn_clip_is_the_benchmarks_and_says_its_truth() -> None:
    plan = needle.clip("dev", 7)
    chosen = clips.drawn(7, words=True)
    assert np.array_equal(chosen.clip.frames, render.frames(plan, 84))
    assert [each.answer for each in chosen.known] == [each.answer for each in needle.questions(plan)]
    assert clips.drawn(7, words=False).clip.frames.shape[1:3] == (448, 448)


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


def test_sound_without_a_length_is_counted_as_it_is_decoded(tmp_path: Path) -> None:
    """A browser's recording does not say how long it is: the limit must not wait for its end."""
    clip = clips.shipped(True).clip
    path = tmp_path / "live.webm"
    path.write_bytes(_without_length(replace(clip, kind="audio", frames=None, times=None, fps=None)))
    heard: list[float] = []
    media.read(path, progress=lambda what, done, total: heard.append(max(done, total)))
    assert max(heard[:-1]) > 15 and heard[0] < 1  # no length at first, then what was decoded
    with pytest.raises(MediaError, match="5 seconds long; this page takes 5 at most"):
        clips.from_file(path, 5)


def _without_length(clip: Media) -> bytes:
    """WebM as a browser records it: a stream that is not sought back in to write its length."""
    import io

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


def _stream(desk: Desk, method: Any = None, turn: threading.Lock | None = None) -> Iterator[Any]:
    chosen = desk.shipped()
    inputs = prompt.build(desk.processor, chosen.clip, "spell the pattern ?")
    return answers.stream(desk.model, desk.processor, inputs, method, 8, turn or threading.Lock())


def test_words_come_one_by_one_and_the_measurement_last(desk: Desk) -> None:
    *texts, last = [item for item in _stream(desk)]
    said = list(dict.fromkeys(filter(None, texts)))
    assert len(said) >= 3 and all(len(b.split()) == len(a.split()) + 1 for a, b in pairwise(said))
    inputs = prompt.build(desk.processor, desk.shipped().clip, "spell the pattern ?")
    assert last.answer == said[-1] == measure.answer(desk.model, desk.processor, inputs, None, 8).answer


def test_an_error_of_the_model_comes_out_and_ends_the_turn(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(measure, "answer", fail)
    turn = threading.Lock()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(_stream(desk, turn=turn))
    assert turn.acquire(timeout=5)


def test_who_leaves_stops_the_work_at_the_next_token(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    heard_until: list[int] = []

    def talk(model: Any, processor: Any, inputs: Any, method: Any, most: int, heard: Any) -> None:
        for token in range(10_000):
            heard_until.append(token)
            time.sleep(0.001)
            heard(5)
        pytest.fail("it talked to the end")

    monkeypatch.setattr(measure, "answer", talk)
    turn = threading.Lock()
    stream = _stream(desk, turn=turn)
    next(stream)
    stream.close()
    assert turn.acquire(timeout=5) and len(heard_until) < 5_000


def test_a_reader_is_asked_again_while_nothing_comes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BEAT", 0.01)
    turn = threading.Lock()
    turn.acquire()  # somebody else's prefill still runs
    stream = _stream(desk, turn=turn)
    assert [next(stream) for _ in range(3)] == ["", "", ""]
    turn.release()
    assert list(stream)[-1].answer


# the desk ------------------------------------------------------------------------------------------------------------


def test_a_needle_question_is_answered_right_with_and_without_pruning(desk: Desk) -> None:
    shown = scenes(desk, "what color is the circle ?")
    last = shown[-1]
    assert last.complete and [scene.complete for scene in shown].count(True) == 2
    assert [scene.seen is not None for scene in shown].count(True) == 1 and last.seen.scores is not None
    assert last.seen.counts == last.pruned.measured.trace.counts
    assert last.pruned.text == last.full.text == last.right == "blue" and last.note == ""
    assert last.pruned.measured.trace.keep == pytest.approx(0.3, abs=0.02) and last.full.measured.trace is None
    assert last.pruned.measured.kv_bytes < last.full.measured.kv_bytes
    started = next(i for i, scene in enumerate(shown) if scene.full.working)
    assert all(scene.pruned.measured is None for scene in shown[: started - 1])
    assert all(scene.pruned.measured is not None for scene in shown[started:])


def test_without_comparison_there_is_one_answer(desk: Desk) -> None:
    last = scenes(desk, "what color is the circle ?", compare=False, method="tuned", budget="kv")[-1]
    assert (
        last.full is None and last.complete and last.pruned.measured.trace.budgets["kv"] == pytest.approx(0.3, abs=0.02)
    )


@pytest.mark.parametrize(
    "question, changes, text",
    [
        ("  ", {}, "there is no question"),
        ("what " * 500, {}, "at most 2000"),
        ("what ?", {"keep": 0.0}, "keep is 0.0"),
        ("what ?", {"method": "magic"}, "there is no method 'magic'"),
        ("what ?", {"budget": "tokens"}, "budget is 'tokens'"),
        ("what ?", {"method": "fastv", "keep": 0.05}, "FastV after layer 2 keeps 0.188 to 1.000"),
        ("<|VIDEO|>", {}, "must not contain"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_answered_is_said(desk: Desk, question: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(OmnidropError) as caught:
        scenes(desk, question, **changes)
    assert text in str(caught.value)
    assert scenes(desk, "what color is the circle ?", compare=False)[-1].pruned.text == "blue"  # and life goes on


def test_running_out_of_memory_says_what_to_do(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nlong story")

    monkeypatch.setattr(measure, "answer", fail)
    with pytest.raises(OmnidropError, match=r"Tried to allocate 20 GiB\); lower keep"):
        scenes(desk, "what color is the circle ?")


def test_closing_in_the_middle_leaves_the_model_as_it_was(desk: Desk) -> None:
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in desk.model.modules())
    asking = desk.ask(desk.shipped(), "spell the pattern ?", **ASK)
    next(scene for scene in asking if scene.pruned.text)
    asking.close()
    with desk.turn:
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in desk.model.modules()) == before
    assert scenes(desk, "what color is the circle ?")[-1].pruned.text == "blue"


def test_the_tiny_model_says_which_words_it_does_not_know(desk: Desk) -> None:
    assert unknown_words(desk.processor, "what color is the zebra zebra crossing ?") == ["zebra", "crossing"]
    note = scenes(desk, "what color is the zebra ?", compare=False)[0].note
    assert 'not "zebra"' in note and "--model" in note


def test_methods_are_those_that_keep_and_budget_describe(desk: Desk) -> None:
    assert "omnidrop" in methods() and "tuned" in methods() and "cutoff" not in methods()


def test_limits_are_checked() -> None:
    model, processor = prompt.load()
    for name in ("max_new_tokens", "max_seconds"):
        with pytest.raises(SettingError, match=f"{name} is 0"):
            Desk(model, processor, **{name: 0})


# what is shown -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def last(desk: Desk) -> Scene:
    return scenes(desk, "what color is the circle ?")[-1]


def test_cards_show_the_numbers_of_the_measurement(last: Scene) -> None:
    card, other = show.pruned(last), show.full(last)
    run = last.pruned.measured
    assert ">blue</p>" in card and ">right</p>" in card and "keep 0.3 (mean over the layers)" in card
    assert f"{run.kv_bytes / last.full.measured.kv_bytes:.2f} of all tokens" in card
    for word in BUDGETS:
        assert f"<dt>Kept, {show.COUNTED[word]}</dt><dd>{100 * run.trace.budgets[word]:.1f} %</dd>" in card
    assert other.count("100.0 %") == 4 and "of all tokens" not in other
    assert run.peak_memory_kind in show.footnote(last) and "the pruned one first" in show.footnote(last)


def test_a_wrong_or_open_answer_is_not_called_right(last: Scene) -> None:
    wrong = replace(last, pruned=replace(last.pruned, text="green"))
    assert "expected: blue" in show.pruned(wrong) and ">right<" not in show.pruned(wrong)
    assert "od-verdict" not in show.pruned(replace(last, right=None))


def test_a_card_that_waits_can_be_stilled(last: Scene) -> None:
    waiting = show.pruned(replace(last, pruned=Side(text="bl", working=True)))
    assert show.BUSY in waiting and show.still(waiting) == waiting.replace(' aria-busy="true"', "") != waiting
    assert show.full(replace(last, full=None)) == ""


def test_no_text_becomes_markup(last: Scene) -> None:
    evil = '"><script>alert(1)</script>'
    bad = replace(last, right=evil, pruned=replace(last.pruned, text=evil), chosen=replace(last.chosen, name=evil))
    clip = replace(last.chosen.clip, path=evil)
    for made in (show.pruned(bad), show.message(evil), show.frame(evil), page._clip(bad.chosen),
                 preview.player(replace(clip, kind="image"))):  # fmt: skip
        assert "<script" not in made and 'title=""' not in made
        assert "&lt;script&gt;" in made


def test_the_pictures_come_in_a_frame_that_can_reach_nothing(last: Scene) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    made = show.kept(last)
    assert made.startswith("<iframe") and 'sandbox="allow-scripts"' in made and "allow-same-origin" not in made
    inside = html.unescape(made.split('srcdoc="', 1)[1].rsplit('"', 1)[0])
    assert last.question in inside and "demo.mp4" in inside
    assert show.kept(replace(last, pruned=Side(working=True))) == ""
    assert show.kept(replace(last, seen=None)) == show.message("Drawing what was kept ...")


def test_a_prompt_without_sound_and_video_has_no_such_pictures(desk: Desk) -> None:
    image = Media("a.png", "image", np.zeros((1, 90, 90, 3), np.uint8), np.zeros(1), None, None, 16_000, 0.0)
    asked = desk.ask(clips.Chosen(name="a.png", clip=image), "what color is the circle ?", **ASK)
    assert "no audio or video tokens" in show.kept(list(asked)[-1])


# previews ------------------------------------------------------------------------------------------------------------


def test_the_preview_is_the_clip(tmp_path: Path) -> None:
    clip = clips.shipped(True).clip
    (tmp_path / "a.webm").write_bytes(preview._webm(clip))
    again = media.read(tmp_path / "a.webm")
    assert again.seconds == pytest.approx(clip.seconds, abs=0.1) and len(again.frames) >= len(clip.frames)
    difference = np.abs(again.frames[: len(clip.frames)].astype(int) - clip.frames)
    assert difference.mean() < 12
    assert len(again.waveform) == pytest.approx(len(clip.waveform), abs=1600)
    assert np.corrcoef(again.waveform[: 15 * 16_000], clip.waveform[: 15 * 16_000])[0, 1] > 0.9


def test_previews_of_every_kind() -> None:
    clip = clips.drawn(3, words=True).clip
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
    monkeypatch.setattr(prompt, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["app", "-q", "--json", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("omnidrop: error: ") and text in err and err.count("\n") == 1
