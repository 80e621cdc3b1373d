"""The report's page, without a browser: its numbers are the trace's, its text is inert, its size is bounded."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import BATCH, MEDIA, model_of
from prompts import batch, prompt

import omnidrop
from omnidrop import InputError, SettingError, Trace, memory
from omnidrop.cli import main
from omnidrop.core import units
from omnidrop.core.tokens import Modality
from omnidrop.media import Media
from omnidrop.reports import pictures, sound, views

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.slow
Image = pytest.importorskip("PIL.Image")

TINY = omnidrop.loading.TINY
DEMO = str(TINY.parent / "demo.mp4")
QUESTION = "what color is the circle ?"
EVIL = """</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1">"'&"""


class Reader(HTMLParser):
    """The page as a reader of HTML sees it: elements with their attributes, and the text of each script and table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and not self.scripts[-1]:
            self.scripts[-1] = data
        else:
            self.text += data

    def values(self, name: str) -> dict[str, float]:
        """What the elements with the attribute `name` say in data-value."""
        return {attrs[name]: float(attrs["data-value"]) for _, attrs in self.elements if attrs.get(name)}  # type: ignore

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each measurement costs more than the tiny model's answers."""
    monkeypatch.setattr(memory, "_give_back", lambda: None)


@pytest.fixture(scope="module")
def demo() -> tuple[Trace, Media]:
    """The shipped clip and model, with scores."""
    model, processor = omnidrop.load()
    clip = omnidrop.media.read(DEMO)
    inputs = omnidrop.build(processor, clip, QUESTION)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3), scores=True) as trace:
        model(**inputs)
    return trace, clip


def traced(family: str, *names: str, scores: bool = False) -> Trace:
    rows = [prompt(family, MEDIA[name], seed=i) for i, name in enumerate(names)]
    with torch.no_grad(), omnidrop.prune(model_of(family), omnidrop.OmniDrop(keep=0.3), scores=scores) as trace:
        model_of(family)(**(batch(rows) if len(rows) > 1 else rows[0].inputs))
    return trace


def video(seconds: float = 4.0, height: int = 36, width: int = 64, sound: bool = True, fps: float = 2.0) -> Media:
    count = int(seconds * fps)
    frames = np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)
    wave = np.zeros(int(16_000 * seconds), np.float32) if sound else None
    return Media("clip.mp4", "video", frames, np.arange(count) / fps, fps, wave, 16_000, seconds)


# views: a slow and obvious count beside the fast one -----------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("names", [["mixed"], ["three videos"], ["audio"], ["image"], BATCH], ids="+".join)
def test_views_count_what_the_trace_kept(family: str, names: list[str]) -> None:
    trace = traced(family, *names)
    shown = views.views([trace])
    assert len(shown) == len(names)
    for row, view in enumerate(shown):
        for layer in range(view.layers):
            entered = set(trace.kept[layer][row].tolist())
            for kind in views.KINDS:
                mine = (trace.layout.modality[row] == Modality[kind.upper()]).nonzero()[:, 0].tolist()
                expected = sum(position in entered for position in mine)
                tracks = [track for track in view.tracks if track.kind == kind]
                assert sum(int((track.depth > layer).sum()) for track in tracks) == expected
                if mine:
                    assert view.input_count[kind][layer].sum() == expected
                    assert view.tokens[kind].sum() == len(mine)
                else:
                    assert kind not in view.tokens and not tracks
    for layer, counts in enumerate(trace.counts):
        for kind in views.KINDS:
            assert sum(int(v.input_count[kind][layer].sum()) for v in shown if kind in v.input_count) == counts[kind]


def test_a_stretch_holds_its_own_seconds() -> None:
    trace = traced("qwen2_5", "three videos")
    (view,) = views.views([trace])
    assert [track.clip for track in view.tracks if track.kind == "video"] == [0, 1, 2]
    assert [track.clip for track in view.tracks if track.kind == "audio"] == [0, 1, 2]  # a video's own sound
    layout = trace.layout
    for column, stretch in enumerate(view.stretches):
        for kind in ("audio", "video"):
            track = next(t for t in view.tracks if t.kind == kind and t.clip == stretch.clip)
            mine = (layout.modality[0] == Modality[kind.upper()]) & (layout.item[0] == track.item)
            second = layout.second[0]
            inside = mine & (second >= stretch.start - 1e-5) & (second < stretch.end - 1e-5)
            assert view.tokens[kind][column] == int(inside.sum())
            for layer in (0, 5):
                here = inside[trace.kept[layer][0]].sum()
                assert view.input_count[kind][layer, column] == int(here)


def test_long_timelines_have_longer_stretches() -> None:
    def track(clip: int, seconds: float, step: float, kind: str = "video") -> views.Track:
        second = np.arange(0, seconds, step)
        return views.Track(
            kind=kind, item=0, clip=clip, depth=np.zeros(len(second), int), second=second, step=step, scores=None
        )

    short = views._stretches([track(0, 16, 1.0)])
    assert [(s.start, s.end) for s in short] == [(2.0 * i, 2.0 * i + 2) for i in range(8)]
    hour = views._stretches([track(0, 3600, 56.25), track(0, 3600, 0.04, "audio")])
    assert len(hour) <= views.MOST_STRETCHES and hour[0].end >= 56.25 and hour[-1].end >= 3600
    two = views._stretches([track(0, 600, 1.0), track(1, 300, 1.0)])
    assert len(two) <= views.MOST_STRETCHES and {s.clip for s in two} == {0, 1}
    many = views._stretches([track(clip, 2, 1.0) for clip in range(200)])
    assert len(many) == 200


@pytest.mark.parametrize("scores", [True, False], ids=["scores", "none"])
@pytest.mark.parametrize("names", [["mixed"], ["audio"], ["three videos"], BATCH], ids="+".join)
def test_a_report_opens_where_the_best_of_the_last_survivors_is(names: list[str], scores: bool) -> None:
    trace = traced("qwen2_5", *names, scores=scores)
    for row, view in enumerate(views.views([trace])):
        media = {p for p, kind in enumerate(trace.layout.modality[row].tolist()) if kind}
        if not media:
            assert views.start(view) is None
            continue
        last = max(layer for layer, kept in enumerate(trace.kept) if media & set(kept[row].tolist()))
        start = views.start(view)
        assert start is not None and start.layer == last
        track = view.tracks[start.track]
        kind = Modality[track.kind.upper()]
        layout = trace.layout
        mine = ((layout.modality[row] == kind) & (layout.item[row] == track.item)).nonzero()[:, 0].tolist()
        position = mine[start.token]
        assert position in trace.kept[last][row].tolist()
        assert start.second == pytest.approx(float(layout.second[row, position]))
        if scores:
            assert trace.scores is not None
            prunable = [
                p for p in trace.kept[last][row].tolist() if int(layout.modality[row, p]) in trace.record.prunable
            ]
            values = dict(zip(prunable, trace.scores[last][row].tolist(), strict=True))
            if values:
                assert values[position] == max(values.values())


def test_a_prompt_without_media_has_no_place_to_open_at() -> None:
    (view,) = views.views([traced("qwen2_5", "text")])
    assert views.start(view) is None


def test_without_scores_it_opens_where_kept_and_dropped_are_balanced() -> None:
    depth = np.array([4, 4, 4, 4, 1, 4, 1, 4, 1, 1, 1, 4])  # 4 kept, 2 kept, 1 kept
    track = views.Track(
        kind="video", item=0, clip=0, depth=depth, second=np.repeat([0.0, 1.0, 2.0], 4), step=1.0, scores=None
    )
    view = views.View(trace=Trace(), row=0, layers=4, tracks=[track], stretches=[], tokens={}, input_count={})
    assert views.start(view) == views.Start(layer=3, second=1.0, track=0, token=5)


@pytest.mark.parametrize("names", [["mixed"], BATCH], ids="+".join)
def test_scores_belong_to_their_tokens(names: list[str]) -> None:
    trace = traced("qwen2_5", *names, scores=True)
    assert trace.scores is not None
    for row, view in enumerate(views.views([trace])):
        for layer in range(view.layers):
            kept = trace.kept[layer][row].tolist()
            prunable = [p for p in kept if int(trace.layout.modality[row, p]) in trace.record.prunable]
            expected = dict(zip(prunable, trace.scores[layer][row].tolist(), strict=True))
            for track in view.tracks:
                if track.scores is None:
                    assert track.kind == "image"
                    continue
                kind, layout = Modality[track.kind.upper()], trace.layout
                mine = ((layout.modality[row] == kind) & (layout.item[row] == track.item)).nonzero()[:, 0].tolist()
                assert track.scores[layer].tolist() == [expected[p] for p in mine if p in expected]


# pictures ------------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_processors() -> None:
    """Against the function by which the processors of the models themselves choose a size."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    draw = np.random.default_rng(0)
    for _ in range(1500):
        height, width = (int(n) for n in draw.integers(60, 1500, 2))
        if max(height, width) > 4 * min(height, width):
            continue
        for least, most in ((128, 768), (4, 128)):
            tall, wide = smart_resize(height, width, factor=28, min_pixels=least * 28**2, max_pixels=most * 28**2)
            grid = tall // 28, wide // 28
            assert pictures.grid_of(grid[0] * grid[1], height, width) == grid, (height, width)


def test_pictures_are_those_of_their_second_and_bounded() -> None:
    clip = video(200.0, height=300, width=600)
    times = np.arange(100) * 2.0
    second = np.repeat(times, 8)
    track = views.Track(
        kind="video", item=0, clip=0, depth=np.zeros(len(second), int), second=second, step=2.0, scores=None
    )
    album = pictures.Album()
    shown = album.frames(clip, track)
    assert len(shown) == pictures.MOST_PICTURES == len(album.pictures)
    assert shown[0][0] == 0 and shown[-1][0] == 99
    assert clip.frames is not None and clip.times is not None
    for grid, place in shown:
        (number,) = np.nonzero(clip.times == times[grid])[0]
        assert album.pictures[place] == pictures.picture(clip.frames[number])
    image = opened(album.pictures[0])
    assert image.size[0] * image.size[1] <= 1.01 * pictures.MOST_PIXELS and abs(image.size[0] - 2 * image.size[1]) <= 1
    again = len(album.pictures)
    album.frames(clip, track)
    assert len(album.pictures) == again  # a second prompt on the same clip adds nothing


def opened(address: str) -> Any:
    head, _, body = address.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_a_spectrogram_shows_pitch_and_time() -> None:
    rate, seconds = 16_000, 10
    time = np.arange(rate * seconds) / rate
    wave = np.where(time < 5, np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 3000 * time)).astype(np.float32)
    picture = np.asarray(opened(pictures.spectrogram(wave, rate)))  # indices of the palette: brightness
    bands, columns = picture.shape
    assert columns == 500

    def pitch(column: int) -> float:
        mel = (bands - 1 - int(picture[:, column].argmax())) / bands * 2595 * np.log10(1 + rate / 2 / 700)
        return 700 * (10 ** (mel / 2595) - 1)

    assert 200 < pitch(100) < 400 and 2600 < pitch(400) < 3400


def test_long_sound_is_bounded_and_nothing_is_left_out() -> None:
    rate = 16_000
    wave = np.zeros(rate * 300, np.float32)
    wave[rate * 123 + 4567] = 1.0  # one click, shorter than any stride
    picture = np.asarray(opened(pictures.spectrogram(wave, rate)))
    assert picture.shape[1] == pictures.COLUMNS
    bright = np.nonzero(picture.max(0) > 100)[0]
    assert len(bright) and np.all(np.abs(bright / pictures.COLUMNS * 300 - 123.3) < 0.6)
    assert np.asarray(opened(pictures.spectrogram(np.zeros(100, np.float32), rate))).size  # silence, and very little


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_sound_in_the_page_is_small_and_in_time(rate: int) -> None:
    """Decoded again: a tone from second 4.0 to 4.1, of the same loudness, at 3 kB a second."""
    import av

    wave = np.zeros(10 * rate, np.float32)
    wave[4 * rate : 4 * rate + rate // 10] = 0.8 * np.sin(2 * np.pi * 800 * np.arange(rate // 10) / rate)
    file = sound.mp3(wave, rate)
    assert file is not None and len(file) < 3_300 * 10 and file == sound.mp3(wave, rate)
    with av.open(io.BytesIO(file)) as container:
        again = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(again) / 16_000 == pytest.approx(10, abs=0.05)
    loud = np.nonzero(np.abs(again) > 0.4)[0] / 16_000
    assert loud[0] == pytest.approx(4.0, abs=0.005) and loud[-1] == pytest.approx(4.1, abs=0.005)
    inside = again[int(16_000 * 4.02) : int(16_000 * 4.08)]
    level = 20 * np.log10(np.sqrt((inside**2).mean()) / (0.8 / np.sqrt(2)))
    assert abs(level) < 1  # dB: the file is lossy


def test_sound_is_bounded_over_the_whole_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def clip(seconds: int) -> Media:
        return replace(video(seconds), waveform=np.zeros(16_000 * seconds, np.float32))

    album = pictures.Album(seconds=30.0)
    first, second, third = clip(20), clip(16), clip(10)
    assert [album.audible(each) for each in (first, first, second, third, second)] == [0, 0, None, 1, None]
    assert len(album.audio) == 2 and album.seconds == 0
    monkeypatch.setattr(pictures, "mp3", lambda *given: None)  # FFmpeg without LAME
    assert pictures.Album().audible(first) is None


# the page ------------------------------------------------------------------------------------------------------------


def test_numbers_on_the_page_are_the_traces(demo: tuple[Trace, Media]) -> None:
    trace, clip = demo
    sides = {
        "pruned": {"first_token_seconds": 0.0312, "peak_memory_bytes": 3_112_960, "peak_memory_kind": "RAM of a kind"},
        "unpruned": {"first_token_seconds": 0.078, "peak_memory_bytes": 6_131_712, "answer": "blue, unpruned"},
    }
    text = omnidrop.report(trace, media=clip, answers=["blue"], titles=[QUESTION], measured=[sides])
    page = Reader(text)
    assert page.values("data-budget") == trace.budgets
    costs = page.values("data-cost")
    assert costs == {
        "first_token_seconds.full": 0.078, "first_token_seconds.pruned": 0.0312,
        "peak_memory_bytes.full": 6_131_712, "peak_memory_bytes.pruned": 3_112_960,
        "prompt_kv_bytes.full": trace.kv_bytes.full, "prompt_kv_bytes.pruned": trace.kv_bytes.pruned,
        "decoder_flops.full": trace.flops.full, "decoder_flops.pruned": trace.flops.pruned,
    }  # fmt: skip
    assert (
        "31 ms" in page.text and "3.11 MB" in page.text and "RAM of a kind" in page.text and "whole answer" not in text
    )
    assert QUESTION in page.text and "blue, unpruned" in page.text
    table = re.search(r'<table class="counts">(.*?)</table>', text, re.S)
    assert table
    rows = [[int(n) for n in re.findall(r"<td>(\d+)</td>", row)] for row in table[1].split("</tr>")[1:-1]]
    assert rows[0] == [80, 144]
    assert rows[1:] == [[layer["audio"], layer["video"]] for layer in trace.counts]
    (view,) = page.data["views"]
    assert view["entering"] == {kind: [layer[kind] for layer in trace.counts] for kind in ("audio", "video")}
    video_track, audio_track = view["tracks"]
    assert (video_track["rows"], video_track["columns"]) == (3, 3) and len(video_track["frames"]) == 16
    assert len(page.data["pictures"]) == 16 and audio_track["sound"] == 0 and audio_track["end"] == 16.0
    assert len(text) < 1_000_000


def test_only_what_was_measured_is_shown(demo: tuple[Trace, Media]) -> None:
    trace, _ = demo
    page = Reader(omnidrop.report(trace))
    assert set(page.values("data-cost")) == {
        f"{key}.{side}" for key in ("prompt_kv_bytes", "decoder_flops") for side in ("full", "pruned")
    }
    text = page.text.replace("arithmetic of the first token", "")  # a budget, counted
    assert "first token" not in text and "measured" not in text and not page.data["pictures"]
    assert 'data-track="0"' not in omnidrop.report(trace)  # no pictures without the media


def test_untrusted_text_stays_text(demo: tuple[Trace, Media]) -> None:
    trace, clip = demo
    text = omnidrop.report(trace, media=replace(clip, path=f"a{EVIL}.mp4"), answers=[EVIL], titles=[EVIL],
                           measured=[{"pruned": {"seconds": 1.0, "peak_memory_bytes": 1, "peak_memory_kind": EVIL},
                                      "unpruned": {"answer": EVIL}}])  # fmt: skip
    page = Reader(text)
    assert page.text.count(EVIL) >= 4
    assert len(page.scripts) == 2 and not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_nothing_is_loaded_from_elsewhere(demo: tuple[Trace, Media]) -> None:
    trace, clip = demo
    page = Reader(omnidrop.report(trace, media=clip))
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("names", [["mixed"], ["audio"], ["image"], ["text"], BATCH], ids="+".join)
def test_every_kind_of_prompt_has_a_page(names: list[str]) -> None:
    trace = traced("qwen2_5", *names)
    text = omnidrop.report(trace)
    assert text.count("<article") == len(names)
    assert ("nothing to drop" in text) == ("text" in names)
    assert ("of the whole batch" in text) == (len(names) > 1)
    ids = [attrs["id"] for _, attrs in Reader(text).elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_two_methods_side_by_side_share_their_pictures(demo: tuple[Trace, Media], tmp_path: Path) -> None:
    trace, clip = demo
    model, processor = omnidrop.load()
    with torch.no_grad(), omnidrop.prune(model, omnidrop.methods.Uniform(keep=0.3)) as other:
        model(**omnidrop.build(processor, clip, QUESTION))
    text = omnidrop.report([trace, other], tmp_path / "page.html", media=clip, titles=[QUESTION] * 2)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    assert omnidrop.report([trace, other], media=[[clip], [clip]], titles=[QUESTION] * 2) == text
    page = Reader(text)
    assert len(page.data["pictures"]) == 16 and len(page.data["sounds"]) == 1
    assert [view["tracks"][0]["scores"] is None for view in page.data["views"]] == [False, True]
    assert "<small>OmniDrop</small>" in text and "<small>Uniform</small>" in text


def test_too_many_scores_are_left_out_and_said(demo: tuple[Trace, Media], monkeypatch: pytest.MonkeyPatch) -> None:
    from omnidrop.reports import panel

    monkeypatch.setattr(panel, "MOST_SCORES", 10)
    text = omnidrop.report(demo[0])
    assert Reader(text).data["views"][0]["tracks"][0]["scores"] is None and "too many for this page" in text


def test_a_score_that_is_no_number_is_none_on_the_page(demo: tuple[Trace, Media]) -> None:
    trace = Trace.from_json(demo[0].to_json())
    trace.record.scores[0][0][0] = float("nan")
    page = Reader(omnidrop.report(trace))
    assert "NaN" not in page.scripts[0]
    assert sum(score is None for track in page.data["views"][0]["tracks"] for score in track["scores"][0]) == 1


def test_the_page_says_how_many_pictures_it_shows(monkeypatch: pytest.MonkeyPatch, demo: tuple[Trace, Media]) -> None:
    monkeypatch.setattr(pictures, "MOST_PICTURES", 5)
    text = omnidrop.report(demo[0], media=demo[1])
    assert "5 of 16 are on this page" in text and len(Reader(text).data["pictures"]) == 5


def test_a_page_says_why_sound_cannot_be_played(demo: tuple[Trace, Media], monkeypatch: pytest.MonkeyPatch) -> None:
    trace, clip = demo
    text = omnidrop.report(trace, media=clip)
    assert len(Reader(text).data["audio"]) == 1 and text.count('data-play="kept"') == 1
    monkeypatch.setattr(pictures, "mp3", lambda *given: None)
    text = omnidrop.report(trace, media=clip)
    assert not Reader(text).data["audio"] and 'data-play="kept"' not in text and "no MP3 encoder" in text


def test_question_answer_model_and_versions_come_from_the_trace(demo: tuple[Trace, Media], tmp_path: Path) -> None:
    trace, clip = Trace.from_json(demo[0].to_json()), demo[1]
    trace.describe(question=EVIL, answer=f"blue{EVIL}", files=[f"{EVIL}.mp4"], model=f"hub/{EVIL}")
    trace.save(tmp_path / "a.json")
    assert trace.origin is not None
    page = Reader(omnidrop.report(Trace.load(tmp_path / "a.json")))
    assert page.text.count(EVIL) >= 5 and len(page.scripts) == 2 and not any(tag == "img" for tag, _ in page.elements)
    for fact in (trace.origin.date[:10], torch.__version__, f"omnidrop {omnidrop.__version__}", "hub/"):
        assert fact in page.text
    named = Reader(omnidrop.report(trace, media=clip, titles=["a title"], answers=["an answer"]))
    assert "a title" in named.text and "an answer" in named.text and f"blue{EVIL}" not in named.text


def test_without_files_the_page_says_what_is_missing(demo: tuple[Trace, Media]) -> None:
    text = Reader(omnidrop.report(demo[0])).text
    assert "The stripe marks what is kept. The spectrogram needs the file" in text
    assert "The pictures are not on this page" in text


def test_other_clips_stand_in_sections_of_their_own(demo: tuple[Trace, Media]) -> None:
    first, second = (Trace.from_json(demo[0].to_json()) for _ in range(2))
    assert '<h2 class="clip"' not in omnidrop.report([first, second])  # nothing tells them apart
    first.describe(files=["/no/one.mp4"])
    second.describe(files=["/no/two.mp4"])
    text = omnidrop.report([first, second, first])
    headings = re.findall(r'<h2 class="clip">(\S+)', text)
    assert headings == ["one.mp4", "two.mp4"] and 'id="compare"' in text
    assert [view["group"] for view in Reader(text).data["views"]] == [0, 1, 0]
    assert 'id="compare"' not in omnidrop.report([first, second])  # nothing to compare
    other = traced("qwen2_5", "video")
    assert [view["group"] for view in Reader(omnidrop.report([demo[0], other])).data["views"]] == [0, 1]


# errors --------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_the_traces_is_refused(demo: tuple[Trace, Media], tmp_path: Path) -> None:
    trace, clip = Trace.from_json(demo[0].to_json()), demo[1]
    trace.describe(files=[DEMO])
    omnidrop.report(trace, media=clip)
    omnidrop.report(trace, media=replace(clip, path="gone.mp4"))  # nothing to compare
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(DEMO).read_bytes())
    omnidrop.report(trace, media=replace(clip, path=str(copy)))
    copy.write_bytes(Path(DEMO).read_bytes() + b"\0")
    with pytest.raises(
        InputError, match=r"the trace is of demo.mp4 with checksum \w{16}, and .*copy.mp4 has \w{16}: give"
    ):
        omnidrop.report(trace, media=replace(clip, path=str(copy)))


def test_wrong_arguments_are_refused(demo: tuple[Trace, Media], monkeypatch: pytest.MonkeyPatch) -> None:
    trace, clip = demo
    for given, message in (
        ({"titles": ["a", "b"]}, "titles has 2 entries for 1 prompts"),
        ({"answers": "blue"}, "answers has 1 entries for 1 prompts; give a list"),
        ({"media": [[clip], [clip]]}, "media has 2 lists for 1 prompts"),
        ({"media": [clip, clip]}, "the trace has 1 video inputs, the media given have 2"),
        ({"media": video(16.0, sound=False)}, "the trace has 1 audio inputs, the media given have 0"),
        ({"media": video(4.0)}, "the trace goes on to second 15.0 of clip.mp4, which is 4.0 s long"),
    ):
        with pytest.raises(InputError, match=message):
            omnidrop.report(trace, **given)
    with pytest.raises(InputError, match="no trace was given"):
        omnidrop.report([])
    with pytest.raises(InputError, match="the trace is empty"):
        omnidrop.report(Trace())
    monkeypatch.setattr("omnidrop.reports.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"needs jinja2 and matplotlib: pip install 'omnidrop\[report\]'"):
        omnidrop.report(trace)


@pytest.mark.parametrize(
    "count, text", [(12, "12 FLOP"), (1.42e9, "1.42 GFLOP"), (3.21e13, "32.1 TFLOP"), (4e18, "4e+03 PFLOP")]
)
def test_operations_for_people(count: float, text: str) -> None:
    assert units.operations(count) == text


# the command ---------------------------------------------------------------------------------------------------------


def test_run_writes_a_page_and_its_numbers(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    assert main(["run", DEMO, QUESTION, "--compare", "--json", "--report", str(file), "--max-new-tokens", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    page = Reader(file.read_text(encoding="utf-8"))
    costs = page.values("data-cost")
    for side, name in (("unpruned", "full"), ("pruned", "pruned")):
        for key in ("first_token_seconds", "seconds", "kv_bytes"):
            assert costs[f"{key}.{name}"] == document[side][key]
    assert page.values("data-budget") == document["budgets"] and QUESTION in page.text
    assert "tiny (shipped)" in page.text
    assert page.data["views"][0]["tracks"][0]["scores"] is not None


def test_demo_writes_a_page_of_all_questions(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    assert main(["demo", "--json", "-q", "--report", str(file)]) == 0
    asked = [each["question"] for each in json.loads(capsys.readouterr().out)["questions"]]
    text = file.read_text(encoding="utf-8")
    assert text.count("<article") == len(asked) and all(question in text for question in asked)
    assert len(text) < 3_000_000


def test_saved_traces_become_a_page(demo: tuple[Trace, Media], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    trace, out = tmp_path / "a.json", tmp_path / "page.html"
    demo[0].save(trace)
    assert main(["report", str(trace), str(trace), "--media", DEMO, "--out", str(out), "--json",
                 "--answer", "blue", "red"]) == 0  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert document["prompts"] == 2 and document["bytes"] == out.stat().st_size
    page = Reader(out.read_text(encoding="utf-8"))
    assert len(page.data["pictures"]) == 16 and "a.json" in page.text and "red" in page.text
    assert page.values("data-budget") == demo[0].budgets


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["report", "none.json", "--out", "x.html"], "the trace none.json cannot be read"),
        (["report", "TRACE", "--title", "a", "b", "--out", "x.html"], "--title has 2 texts for 1 prompts"),
        (["report", "TRACE", "--out", "/no/folder/x.html"], "--out /no/folder/x.html cannot be written"),
        (["report", "TRACE", "--media", "none.mp4", "--out", "x.html"], "none.mp4 does not exist"),
        (["run", DEMO, QUESTION, "--report", "/no/x.html", "--max-new-tokens", "1"], "--report /no/x.html cannot be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_clear_errors(
    demo: tuple[Trace, Media], capsys: pytest.CaptureFixture, tmp_path: Path, arguments: list[str], text: str
) -> None:
    demo[0].save(tmp_path / "t.json")
    given = [str(tmp_path / "t.json") if word == "TRACE" else word for word in arguments]
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert text in err.splitlines()[-1] and "Traceback" not in err and not out


def test_a_saved_run_needs_no_title_and_no_answer(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    trace, out = tmp_path / "a.json", tmp_path / "page.html"
    assert main(["run", DEMO, QUESTION, "--trace", str(trace), "--max-new-tokens", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert main(["report", str(trace), "--media", DEMO, "--out", str(out)]) == 0
    page = Reader(out.read_text(encoding="utf-8"))
    assert (
        all(text in page.text for text in (QUESTION, answer, "tiny (shipped)", "demo.mp4"))
        and "a.json" not in page.text
    )


def test_it_says_where_the_page_is_and_what_it_replaced(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    for times in range(2):
        assert main(["run", DEMO, QUESTION, "--json", "--report", str(file), "--max-new-tokens", "1"]) == 0
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("wrote")]
        replaced = ", in place of the file that was there" if times else ""
        assert line == f"wrote {file} ({file.stat().st_size / 1e6:.2f} MB{replaced})" and json.loads(out)


def test_a_warning_about_the_answer_is_on_the_page(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Where the tiny model is asked what it does not know, a page that is passed on says so too."""
    for question, warned in (("what color is the circle ?", False), ("who opens the door ?", True)):
        out = tmp_path / f"{warned}.html"
        demo = str(TINY.parent / "demo.mp4")
        assert main(["run", demo, question, "--report", str(out), "-q", "--max-new-tokens", "2"]) == 0
        assert ("its answer means nothing" in out.read_text()) == warned
    capsys.readouterr()
