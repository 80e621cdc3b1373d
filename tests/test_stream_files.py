"""A long file in segments: pictures and sound of the whole, checks before anything is decoded, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from omnidrop_lab.needle import clip, files, render

import omnidrop
from omnidrop import loading, media, memory
from omnidrop.cli import main
from omnidrop.errors import InputError, MediaError, SettingError
from omnidrop.models import adapt
from omnidrop.streaming import check_segment

pytest.importorskip("av")

pytestmark = pytest.mark.slow

DEMO = loading.TINY.parent / "demo.mp4"  # 16 s, 2 pictures a second, with sound
QUESTION = "what color is the circle ?"
ALL = omnidrop.OmniDrop(keep=1.0)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return omnidrop.load()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before a measurement costs more than the tiny model's answers."""
    monkeypatch.setattr(memory, "_give_back", lambda: None)


def rejoined(path: Path, seconds: float, **options: Any) -> tuple[list[media.Media], media.Media]:
    """The segments, and what `read` gives of the same file."""
    parts = list(media.segments(path, seconds, **options))
    return parts, media.read(path, max_frames=10_000, **{k: v for k, v in options.items() if k != "least"})


@pytest.mark.parametrize("seconds", [1.0, 5.0, 8.0, 16.0, 40.0])
@pytest.mark.parametrize("sound", [None, False])
def test_segments_are_the_file_cut_up(seconds: float, sound: bool | None) -> None:
    parts, whole = rejoined(DEMO, seconds, sound=sound)
    assert len(parts) == -(-16 // seconds) or len(parts) == -(-16 // seconds) + 1  # AAC's last block may stand over
    assert np.array_equal(np.concatenate([part.frames for part in parts if part.frames is not None]), whole.frames)
    assert np.array_equal(np.concatenate([part.times for part in parts if part.times is not None]), whole.times)
    assert all(part.fps == whole.fps for part in parts if part.frames is not None)
    assert all(len(part.frames) == 2 * seconds for part in parts[: int(16 // seconds)])
    if sound is False:
        assert whole.waveform is None and all(part.waveform is None for part in parts)
    else:
        assert np.array_equal(np.concatenate([part.waveform for part in parts]), whole.waveform)
        assert all(len(part.waveform) == seconds * 16_000 for part in parts[: int(16 // seconds)])


def test_recordings_and_tracks_of_unequal_length(tmp_path: Path) -> None:
    """Where one track is over, the rest of the other comes alone."""
    made = clip("dev", 0, 5)
    pictures, sound = render.frames(made, 84), render.waveform(made)
    short_sound = files.write_arrays(tmp_path / "a.mp4", pictures, sound[: 5 * 16_000])
    parts, whole = rejoined(short_sound, 4.0)
    assert [part.kind for part in parts] == ["video"] * 3
    assert [part.waveform is not None for part in parts] == [True, True, False]
    assert np.array_equal(np.concatenate([p.waveform for p in parts if p.waveform is not None]), whole.waveform)
    short_pictures = files.write_arrays(tmp_path / "b.mp4", pictures[:8], sound)
    parts, whole = rejoined(short_pictures, 4.0)
    assert [part.kind for part in parts][:3] == ["video", "audio", "audio"]
    assert parts[0].seconds == 4.0 and parts[1].frames is None and parts[1].seconds == 4.0
    assert np.array_equal(np.concatenate([part.waveform for part in parts]), whole.waveform)


def test_a_short_rest_joins_the_segment_before(tmp_path: Path) -> None:
    made = clip("dev", 0, 5)
    path = files.write_arrays(tmp_path / "a.mp4", render.frames(made, 84)[:17], render.waveform(made)[: 17 * 8_000])
    alone, whole = rejoined(path, 4.0)
    joined, _ = rejoined(path, 4.0, least=2.0)
    assert len(alone) == 3 and len(joined) == 2
    assert len(joined[-1].frames) == 9 and joined[-1].seconds == pytest.approx(alone[1].seconds + alone[2].seconds)
    assert np.array_equal(np.concatenate([part.frames for part in joined]), whole.frames)
    assert np.array_equal(np.concatenate([part.waveform for part in joined]), whole.waveform)


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"1\.5 s of .* at 2 pictures a second are 3 pictures"):
        next(media.segments(DEMO, 1.5))
    with pytest.raises(SettingError, match="fps is 0"):
        next(media.segments(DEMO, 4.0, 0))
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SettingError, match=f"seconds is {seconds}; it must be above 0"):
            next(media.segments(DEMO, seconds))
    with pytest.raises(MediaError, match=r"bytes of pictures, and the limit is 100000; .*Limits\(memory="):
        next(media.segments(DEMO, 4.0, limits=media.Limits(memory=100_000)))
    with pytest.raises(MediaError, match="does not exist"):
        next(media.segments(tmp_path / "none.mp4", 4.0))
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    with pytest.raises(MediaError, match="is an image, which has no length"):
        next(media.segments(tmp_path / "still.png", 4.0))
    cut = tmp_path / "cut.mp4"
    content = DEMO.read_bytes()
    cut.write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(MediaError, match=r"damaged: only [\d.]+ of its 16\.0 seconds"):
        list(media.segments(cut, 4.0))


def test_the_length_that_a_file_claims() -> None:
    assert media.length(DEMO) == pytest.approx(16.0, abs=0.1)


@pytest.mark.parametrize(("segment", "bound"), [(4.0, 0.01), (8.0, 0.01), (16.0, 1e-4), (32.0, 1e-4)])
def test_a_file_in_segments_is_the_file_as_one_prompt(loaded: tuple[Any, Any], segment: float, bound: float) -> None:
    """To rounding in one segment; in several the spectrogram of the sound differs at the cuts (docs/long.md)."""
    model, processor = loaded
    inputs = omnidrop.build(processor, media.read(DEMO), QUESTION, system="be brief")
    stock = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    streamed = omnidrop.stream(model, processor, DEMO, QUESTION, method=ALL, segment=segment, system="be brief")
    ours = streamed.generate(max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert len(streamed.segments) == -(-16 // segment)
    assert torch.equal(streamed.input_ids, inputs["input_ids"]) and torch.equal(ours.sequences, stock.sequences)
    torch.testing.assert_close(ours.logits[0], stock.logits[0], atol=bound, rtol=0)


def test_pruned_with_a_limit_it_still_answers(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    method = omnidrop.OmniDrop.tuned(keep=0.2)
    streamed = omnidrop.stream(model, processor, DEMO, QUESTION, method=method, segment=4.0, hold=24)
    said = streamed.generate(max_new_tokens=1, do_sample=False)[0, -1]
    assert processor.tokenizer.decode(said) == "blue"
    assert max(map(len, streamed.held)) == 24 and max(streamed.most) <= 24 + 56
    where = streamed.trace.layout
    assert int(where.chunk.max()) == 7 and float(where.second[~where.second.isnan()].max()) < 16.0


def test_segments_of_whole_windows(loaded: tuple[Any, Any]) -> None:
    """The tiny model's encoder hears 2 s at once; Qwen3-Omni's real one 8 s, Qwen2.5-Omni's 2 s."""
    model, processor = loaded
    for segment in (3.0, 0.0, -2.0, float("nan"), float("inf")):
        with pytest.raises(SettingError, match=f"segment is {segment}; it must be a multiple of 2 seconds .*as 32:"):
            omnidrop.stream(model, processor, DEMO, QUESTION, method=ALL, segment=segment)
    real = {"qwen2_5": ({"n_window": 100}, 2), "qwen3": ({"n_window": 50, "n_window_infer": 800}, 8)}
    for family, (sizes, unit) in real.items():
        thinker = tiny.THINKERS[family](layers=2)
        adapter = adapt(thinker)
        for name, value in sizes.items():
            setattr(adapter.audio.module, name, value)

        class Whisper:
            class feature_extractor:  # noqa: N801
                sampling_rate, hop_length = 16_000, 160

        check_segment(adapter, Whisper, 32.0)
        with pytest.raises(SettingError, match=f"multiple of {unit} seconds"):
            check_segment(adapter, Whisper, 31.0)


def test_a_file_beyond_the_models_positions_is_not_decoded(loaded: tuple[Any, Any], monkeypatch: Any) -> None:
    model, processor = loaded
    monkeypatch.setattr(model.config.get_text_config(), "max_position_embeddings", 2048)
    monkeypatch.setattr(media, "length", lambda path: 1000.0)
    with pytest.raises(InputError, match=r"1000 seconds, at 5 positions a second 5000 .* time_scale=0\.2, with which"):
        omnidrop.stream(model, processor, DEMO, QUESTION, method=ALL)
    monkeypatch.setattr(media, "segments", lambda *_, **__: iter(()))
    with pytest.raises(InputError, match="no segment"):  # with the proposed scale it goes on to read
        omnidrop.stream(model, processor, DEMO, QUESTION, method=ALL, time_scale=0.2)


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in ("run", *arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    options = ("--segment", 4, "--hold", 24, "--method", "tuned", "--keep", 0.2)
    status, out, _ = run(capsys, DEMO, QUESTION, *options, "--json", "--trace", trace)
    document = json.loads(out)
    assert status == 0 and document["answer"] == "blue" and document["format"] == "omnidrop.stream"
    assert max(document["held_by_layer"]) == 24 and len(document["segments"]) == 4
    assert omnidrop.Trace.load(trace).keep == document["keep"]
    status, out, _ = run(capsys, DEMO, QUESTION, *options, "-q")
    assert status == 0 and out.startswith("blue\n") and "at most 24 audio and video tokens in a layer's cache" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((DEMO, DEMO, QUESTION, "--hold", 100), "--segment reads one video or audio file, and 2 were given"),
        ((DEMO, QUESTION, "--segment", 8, "--compare"), "--compare needs the clip as one prompt"),
        ((DEMO, QUESTION, "--segment", 7), "segment is 7.0; it must be a multiple of 2 seconds"),
        ((DEMO, QUESTION, "--hold", 0), "hold is 0; it must be"),
        (("none.mp4", QUESTION, "--segment", 8), "none.mp4 does not exist"),
    ],
)
def test_the_commands_errors(capsys: pytest.CaptureFixture, arguments: tuple, text: str) -> None:
    status, out, err = run(capsys, *arguments, "-q")
    assert status == 2 and out == "" and text in err and err.count("\n") == 1


def test_what_the_reader_had_to_do_is_said(
    loaded: tuple[Any, Any], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    made = clip("dev", 0, 5)
    path = files.write_arrays(tmp_path / "a.mp4", render.frames(made, 84)[:16], render.waveform(made)[: 4 * 16_000])
    said = f"the pictures of {path} end at second 8.0 and its sound at second 4."
    model, processor = loaded
    streamed = omnidrop.stream(model, processor, path, QUESTION, method=ALL, segment=4.0)
    assert len(streamed.notes) == 1 and streamed.notes[0].startswith(said)
    for options in ((), ("--segment", 4)):
        status, out, err = run(capsys, path, QUESTION, *options, "--json")
        document = json.loads(out)
        notes = document["notes"] if options else document["media"][0]["notes"]
        assert status == 0 and f"note: {said}" in err and notes[0].startswith(said)


def test_limits_reach_the_reader(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with pytest.raises(MediaError, match=r"Limits\(seconds="):
        omnidrop.stream(model, processor, DEMO, QUESTION, method=ALL, limits=media.Limits(seconds=10))
