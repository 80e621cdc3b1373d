"""Leaving packets out changes no picture: against PyAV's plain decoding of the whole file, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidrop import media
from omnidrop.media import pictures, plan, survey
from omnidrop.media.decoder import Decoder

pytestmark = pytest.mark.slow

av = pytest.importorskip("av")
RATE, SIZE = 30, (96, 64)
# name -> suffix, codec, its options
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "as x264 does": ("mp4", "libx264", {}),
    "camera": ("mp4", "libx264", {"g": "15", "bf": "0", "sc_threshold": "0"}),
    "short groups": ("mkv", "libx264", {"g": "24"}),
    "open groups": ("mp4", "libx264", {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0"}),
    "open groups in ts": ("ts", "libx264", {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0"}),
    "no key frames": ("mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    "no key frames in ts": ("ts", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    "deep pyramid": ("mp4", "libx264", {"x264-params": "bframes=8:b-pyramid=normal:b-adapt=0:keyint=40"}),
    "interlaced": ("mp4", "libx264", {"x264-params": "interlaced=1:keyint=30"}),
    "all key frames": ("mp4", "libx264", {"g": "1"}),
    "many references": ("mkv", "libx264", {"x264-params": "ref=16:b-pyramid=strict:keyint=45"}),
    "bare": ("h264", "libx264", {"g": "24"}),
    "hevc": ("mp4", "libx265", {"x265-params": "log-level=none:keyint=20:min-keyint=20"}),
    "hevc, closed": ("mkv", "libx265", {"x265-params": "log-level=none:keyint=20:min-keyint=20:open-gop=0"}),
    "vp8": ("webm", "libvpx", {"g": "20"}),
    "vp9": ("webm", "libvpx-vp9", {"g": "20", "cpu-used": "8", "auto-alt-ref": "1"}),
    "mpeg4": ("mp4", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4 in avi": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2": ("ts", "mpeg2video", {"g": "12", "bf": "2"}),
    "mpeg2 in mpg": ("mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    "mjpeg": ("mkv", "mjpeg", {}),
    "wmv": ("wmv", "msmpeg4", {"g": "12"}),
}


def write(path: Path, codec: str, options: dict[str, str], ticks: list[int], cut: int | None = None) -> Path:
    """Moving noise on a moving ramp, the picture changed at `cut`. `ticks`: times of the pictures, in 1 / RATE s."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=RATE, options=options)
        video.width, video.height = SIZE
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.time_base = Fraction(1, RATE)
        ramp = np.add.outer(np.arange(SIZE[1]) * 2, np.arange(SIZE[0]))[..., None] * np.ones(3, int)
        for number, at in enumerate(ticks):
            picture = np.roll(ramp, 3 * number, 1) + random.integers(0, 24, ramp.shape)
            picture = 255 - picture if cut is not None and number >= cut else picture
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), "rgb24")
            frame.pts, frame.time_base = at, Fraction(1, RATE)
            out.mux(video.encode(frame))
        out.mux(video.encode())
    return path


def expected(path: Path, times: np.ndarray, fps: float) -> list[np.ndarray]:
    """By decoding everything: for each picture of `times` (on a clock that begins at 0) the frame of that time."""
    with av.open(str(path)) as opened:
        frames = list(opened.decode(video=0))
    at = np.array([frame.time if frame.time is not None else n / RATE for n, frame in enumerate(frames)])
    at -= at.min()
    shown = [max(0, int(np.searchsorted(at, target + 0.005, "right")) - 1) for target in np.arange(len(times)) / fps]
    np.testing.assert_allclose(at[shown], times, atol=2e-3)
    scale = pictures.ToArray("", None, media.Limits())
    return [scale(frames[number]) for number in shown]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives, for each packet that is decoded, the number of frames that come out."""
    counts: list[int] = []
    decode = Decoder._decode

    def counting(self: Any, packet: Any) -> list[Any]:
        frames = decode(self, packet)
        counts.append(len(frames))
        return frames

    monkeypatch.setattr(Decoder, "_decode", counting)
    return counts


def kinds(name: str) -> tuple[str, str, dict[str, str]]:
    suffix, codec, options = KINDS[name]
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this PyAV has no encoder {codec}")
    return suffix, codec, options


@pytest.mark.parametrize("name", KINDS)
def test_same_pictures_as_decoding_everything(tmp_path: Path, name: str) -> None:
    suffix, codec, options = kinds(name)
    path = write(tmp_path / f"a.{suffix}", codec, options, list(range(150)), cut=70)
    for fps in (2.0, 5.0):
        clip = media.read(path, fps, max_pixels=None)
        assert clip.fps == fps
        np.testing.assert_array_equal(clip.frames, expected(path, clip.times, fps))
    parts = list(media.segments(path, 1.0, 2.0, max_pixels=None))
    clip = media.read(path, 2.0, max_pixels=None)
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), clip.frames)


@pytest.mark.parametrize("name", ["as x264 does", "camera", "short groups", "open groups", "no key frames", "mpeg2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_same_pictures_at_odd_times(tmp_path: Path, name: str, seed: int) -> None:
    """A variable rate: pictures 1/30 to 2/3 s apart."""
    suffix, codec, options = kinds(name)
    if codec == "mpeg2video":
        suffix = "mkv"
    gaps = np.random.default_rng(seed).choice([1, 1, 1, 2, 3, 20], 120)
    path = write(tmp_path / f"a.{suffix}", codec, options, [0, *np.cumsum(gaps).tolist()])
    clip = media.read(path, 2.0, max_pixels=None)
    np.testing.assert_array_equal(clip.frames, expected(path, clip.times, 2.0))


@pytest.mark.parametrize("name", ["as x264 does", "camera", "short groups"])
def test_thinned_over_long_gaps(tmp_path: Path, name: str) -> None:
    """So far apart that the file is also sought in."""
    suffix, codec, options = kinds(name)
    path = write(tmp_path / f"a.{suffix}", codec, options, list(range(0, 900, 2)))
    clip = media.read(path, 2.0, max_frames=4, max_pixels=None)
    assert len(clip.frames) == 4
    np.testing.assert_array_equal(clip.frames, expected(path, clip.times, clip.fps))


def test_packets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each 15 pictures the first is shown. Where it is a key frame, it alone is decoded, and all of the last 15;
    x264's default has no key frames between, and leaves out the B-frames that nothing is predicted from."""
    decoded = {}
    for name in ("camera", "as x264 does", "all key frames"):
        suffix, codec, options = KINDS[name]
        path = write(tmp_path / f"a.{suffix}", codec, options, list(range(150)))
        counts = counted(monkeypatch)
        media.read(path, 2.0)
        decoded[name] = sum(counts)
        monkeypatch.undo()
    assert decoded["all key frames"] <= 9 + 15 and decoded["camera"] <= 9 + 15
    assert 10 < decoded["as x264 does"] <= 0.75 * 150


def test_a_picture_that_does_not_come_is_decoded_the_long_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decoder may be wrong about what it left out: what is shown is compared with the plan."""
    suffix, codec, options = KINDS["as x264 does"]
    path = write(tmp_path / f"a.{suffix}", codec, options, list(range(150)))
    right = media.read(path, 2.0, max_pixels=None)
    need = plan.Plan.need
    # from the middle on, everything is left out
    monkeypatch.setattr(plan.Plan, "need", lambda self, pts: plan.SKIP if pts > self.ticks[75] else need(self, pts))
    counts = counted(monkeypatch)
    clip = media.read(path, 2.0, max_pixels=None)
    np.testing.assert_array_equal(clip.frames, right.frames)
    np.testing.assert_array_equal(clip.times, right.times)
    assert sum(counts) > 150
    parts = list(media.segments(path, 1.0, 2.0, max_pixels=None))
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), right.frames)


@pytest.mark.parametrize("number", [30, 75, 76, 77, 140])
def test_damage_is_counted_as_in_a_whole_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A packet of zeros, which may be one that is left out or one that others need."""
    suffix, codec, options = KINDS["as x264 does"]
    whole = write(tmp_path / f"whole.{suffix}", codec, options, list(range(150)))
    path = tmp_path / f"a.{suffix}"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for at, packet in enumerate(p for p in source.demux() if p.dts is not None):
            if at == number:
                broken = av.Packet(bytes(packet.size))
                broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
                packet = broken
            packet.stream = stream
            out.mux(packet)
    clip = media.read(path, 2.0, max_pixels=None)
    monkeypatch.setattr(plan.Plan, "of", lambda *_: None)
    before = media.read(path, 2.0, max_pixels=None)
    np.testing.assert_array_equal(clip.times, before.times)
    np.testing.assert_array_equal(clip.frames, before.frames)
    assert clip.notes in (before.notes, ())  # of what nobody needs, nothing is said


@given(data=st.data(), size=st.integers(1, 14))
def test_what_is_left_out_is_not_needed(data: st.DataObject, size: int) -> None:
    """Against the definition, pair by pair: a packet may be left out if between it and every wanted one behind it
    there is a key frame before which, and behind which, order of decoding and of showing agree."""
    ticks = np.array(data.draw(st.permutations(range(size))))
    key = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    wanted = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4)))
    found = plan._unneeded(ticks, key, wanted)

    def fresh(k: int) -> bool:
        return (
            key[k]
            and all(ticks[i] < ticks[k] for i in range(k))
            and all(ticks[i] > ticks[k] for i in range(k + 1, size))
        )

    free = [all(w < u or any(fresh(k) for k in range(u + 1, w + 1)) for w in wanted.tolist()) for u in range(size)]
    # runs of fewer than `FEWEST` are decoded all the same
    at = 0
    while at < size:
        end = at
        while end < size and free[end] == free[at]:
            end += 1
        assert (found[at:end] == (free[at] and end - at >= plan.FEWEST)).all()
        at = end


@pytest.mark.parametrize("suffix", ["mp4", "ts", "h264"])
def test_a_picture_that_recovers_later_is_no_key(tmp_path: Path, suffix: str) -> None:
    """x264's periodic intra refresh marks a packet where pictures become whole some frames later."""
    for options, wanted in (("intra-refresh=1:keyint=20", 1), ("keyint=20:min-keyint=20:scenecut=0", 5)):
        path = write(tmp_path / f"a.{suffix}", "libx264", {"x264-params": options}, list(range(100)))
        with av.open(str(path)) as opened:
            packets = [packet for packet in opened.demux(video=0) if packet.size]
            marked, keys = (sum(map(test, packets)) for test in (lambda p: p.is_keyframe, plan.is_key))
        assert marked >= 5 and keys == wanted


def test_times_beyond_exact_numbers_make_no_plan(tmp_path: Path) -> None:
    suffix, codec, options = KINDS["camera"]
    path = write(tmp_path / f"a.{suffix}", codec, options, list(range(30)))
    found = survey.survey(str(path), None, media.Limits(), lambda *_: None)
    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]
        assert plan.Plan.of(found, stream, [0.0]) is not None
        for far in (2.0**50, 2.0**63):
            assert plan.Plan.of(replace(found, decoded=found.decoded + far), stream, [0.0]) is None
