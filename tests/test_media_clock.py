"""Pictures and sound lie where their timestamps say, whatever the container: gaps, joins, priming, odd rates, cuts."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from clips import TIMED, beeps, onsets, steady, white, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnidrop import media
from omnidrop.errors import MediaError

pytestmark = pytest.mark.slow

av = pytest.importorskip("av")
FFMPEG = shutil.which("ffmpeg")
NEAR = 0.035  # seconds: the reader sets sound right from 30 ms on; containers and encoders round by some more


def rate_of(suffix: str) -> int:
    return 25 if suffix in ("ts", "mpg") else 10  # MPEG-2 knows no 10 pictures a second


def by_ffmpeg(path: Path, *options: str) -> bytes:
    if FFMPEG is None:
        pytest.skip("ffmpeg is not installed")
    return subprocess.run([FFMPEG, "-v", "error", "-i", str(path), *options, "-"], capture_output=True).stdout


# sound ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", TIMED)
def test_a_gap_in_the_sound_is_silence(tmp_path: Path, suffix: str) -> None:
    """A muted recorder sends nothing for a while; picture and sound of what follows belong together."""
    path = write(
        tmp_path / f"a.{suffix}",
        steady(4.0, (3.0, 3.5), rate_of(suffix)),
        beeps(4.0, [(0.5, 0.6), (3.0, 3.1)]),
        lost=[(1.0, 2.4)],
        rate=rate_of(suffix),
    )
    clip = media.read(path, fps=10)
    np.testing.assert_allclose(onsets(clip.waveform), [0.5, 3.0], atol=NEAR)
    assert abs(white(clip.frames)[0] / 10 - 3.0) < 0.11 and abs(len(clip.waveform) / 16_000 - 4.0) < 0.08
    assert np.abs(clip.waveform[round(1.1 * 16_000) : round(2.3 * 16_000)]).max() < 1e-3
    parts = list(media.segments(path, 1.0, fps=10))
    assert np.array_equal(np.concatenate([part.waveform for part in parts]), clip.waveform)


def test_a_gap_as_ffmpeg_fills_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", steady(4.0, rate=25), beeps(4.0, [(3.0, 3.1)]), lost=[(1.0, 2.4)], rate=25)
    raw = by_ffmpeg(path, "-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", "16000", "-f", "f32le")
    wave, ours = np.frombuffer(raw, np.float32), media.read(path).waveform
    np.testing.assert_allclose(onsets(ours), onsets(wave), atol=0.03)
    assert abs(len(ours) - len(wave)) < 0.05 * 16_000


@pytest.mark.parametrize("suffix", ["mka", "flac", "ogg"])
def test_a_gap_in_sound_alone(tmp_path: Path, suffix: str) -> None:
    if suffix != "mka":
        path = write(tmp_path / f"a.{suffix}", (), beeps(3.0, [(0.5, 0.6), (2.5, 2.6)]))
    else:
        path = write(tmp_path / "a.mka", (), beeps(3.0, [(0.5, 0.6), (2.5, 2.6)]), lost=[(1.0, 2.0)])
    clip = media.read(path)
    np.testing.assert_allclose(onsets(clip.waveform), [0.5, 2.5], atol=NEAR)
    assert abs(clip.seconds - 3.0) < 0.05


def test_single_lost_packets_do_not_add_up(tmp_path: Path) -> None:
    """Every fifth packet of 20 ms is lost: without places for them a minute would drift by 12 seconds."""
    lost = [(second - 0.001, second + 0.019) for second in np.arange(0.1, 5.0, 0.1)]
    path = write(tmp_path / "a.mka", (), beeps(5.0, [(4.505, 4.6)]), lost=lost)
    wave = media.read(path).waveform
    assert abs(onsets(wave)[-1] - 4.5) < NEAR + 0.02 and abs(len(wave) / 16_000 - 5.0) < 0.05


def test_overlapping_sound_is_cut_and_drift_is_bounded(tmp_path: Path) -> None:
    """The recorder's clock runs 5 % fast: its timestamps, which the pictures share, are right, its blocks too long."""

    def fast(kind: str, second: float) -> float:
        return second / 1.05 if kind == "audio" else second

    path = write(tmp_path / "a.mkv", steady(6.0, (5.0, 5.5)), beeps(6.3, [(1.05, 1.15), (5.25, 5.35)]), move=fast)
    wave = media.read(path).waveform
    np.testing.assert_allclose(onsets(wave), [1.0, 5.0], atol=2 * NEAR)
    assert abs(len(wave) / 16_000 - 6.0) < 0.1


@pytest.mark.parametrize("late", [0.7, -0.05])
def test_sound_that_begins_beside_the_pictures(tmp_path: Path, late: float) -> None:
    def shifted(kind: str, second: float) -> float:
        return 1.0 + second + (late if kind == "audio" else 0.0)

    path = write(tmp_path / "a.mkv", steady(3.0, (2.0, 2.5)), beeps(3.0, [(1.0, 1.1)]), move=shifted)
    clip = media.read(path, fps=10)
    flash, beep = clip.times[white(clip.frames)[0]], onsets(clip.waveform)[0]
    assert abs((beep - flash) - (late - 1.0)) < NEAR


def test_damaged_packets_are_silent_and_said(tmp_path: Path) -> None:
    """What cannot be decoded leaves a hole of its own length; what follows stays where it was."""
    path = write(tmp_path / "a.m4a", (), beeps(5.0, [(0.5, 0.6), (4.0, 4.1)]))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        hurt = [p for p in container.demux(audio=0) if p.pts is not None and 2.0 < p.pts * p.time_base < 2.3]
    for packet in hurt:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    clip = media.read(path)
    np.testing.assert_allclose(onsets(clip.waveform), [0.5, 4.0], atol=NEAR)
    assert any("are damaged and were skipped" in note for note in clip.notes)


def test_far_timestamps_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    def far(kind: str, second: float) -> float:
        return second + (30 * 3600.0 if kind == "audio" else 0.0)

    path = write(tmp_path / "a.mkv", steady(1.0), beeps(1.0, []), move=far)
    with pytest.raises(MediaError, match=r"108001 seconds, and the limit is 86400; .*Limits\(seconds=108001\)"):
        media.read(path)
    with pytest.raises(MediaError, match=r"the limit is 1000000; .*Limits\(memory="):
        media.read(path, limits=media.Limits(seconds=1e6, memory=1_000_000))


# the whole clock -----------------------------------------------------------------------------------------------------


@given(
    suffix=st.sampled_from(["mkv", "mp4", "ts", "webm"]),
    begin=st.floats(0.8, 1.4),
    length=st.floats(0.1, 0.9),
    late=st.floats(0.0, 0.5),
    offset=st.sampled_from([0.0, 1.0, 77.5]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sample_sounds_at_its_time(
    tmp_path: Path, suffix: str, begin: float, length: float, late: float, offset: float
) -> None:
    """A beep with a flash before and after a gap of any place and length, the sound beginning late, at any offset."""
    if suffix == "mp4":
        offset = 0.0  # its edit lists count from 0

    def moved(kind: str, second: float) -> float:
        return second + offset + (late if kind == "audio" else 0.0)

    flash = 2.6 + late
    path = write(
        tmp_path / f"a.{suffix}",
        steady(4.0, (flash, flash + 0.4), 25),
        beeps(3.4, [(0.4, 0.5), (2.6, 2.7)]),
        lost=[(begin, begin + length)],
        move=moved,
        rate=25,
    )
    clip = media.read(path, fps=25)
    np.testing.assert_allclose(onsets(clip.waveform), [0.4 + late, 2.6 + late], atol=NEAR)
    assert abs(clip.times[white(clip.frames)[0]] - flash) < 0.041 + NEAR
    ends_apart = abs(len(clip.waveform) / 16_000 - clip.seconds) > 0.3
    assert ends_apart <= any("end at second" in note for note in clip.notes)


@given(gaps=st.lists(st.integers(1, 40), min_size=4, max_size=25), fps=st.sampled_from([1.0, 2.0, 4.0]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_variable_rate_shows_what_is_on_screen(tmp_path: Path, gaps: list[int], fps: float) -> None:
    """Pictures at any times: at 0, 1/fps, 2/fps, ... it is the last one that came before."""
    times = np.concatenate([[0.0], np.cumsum(gaps) * 0.05])
    levels = [20 + 8 * (number % 26) for number in range(len(times))]
    path = write(tmp_path / "a.mkv", list(zip(times.tolist(), levels, strict=True)), rate=20, gop=1)
    clip = media.read(path, fps=fps, max_frames=10_000)
    at = np.arange(len(clip.frames)) / clip.fps
    expected = np.searchsorted(times, at + 1e-3, "right") - 1
    np.testing.assert_allclose(clip.times, times[expected], atol=2e-3)
    assert np.abs(clip.frames.mean((1, 2, 3)) - np.array(levels)[expected]).max() < 6
    assert clip.fps <= fps and (clip.fps == fps or np.diff(times).min() >= 1 / fps)
    assert at[-1] >= times[-1] - 1 / clip.fps - 1e-3


def test_a_screen_recording_is_not_thinned_to_its_mean_rate(tmp_path: Path) -> None:
    """13 pictures in 20 s, ten of them in two seconds: the mean rate says nothing."""
    times = [0.0, *(11 + 0.2 * number for number in range(10)), 13.0, 19.9]
    path = write(tmp_path / "a.mp4", [(t, 255 if 11 <= t < 13 else 0) for t in times])
    clip = media.read(path, fps=2)
    assert clip.fps == 2.0 and (white(clip.frames) / 2).tolist() == [11.0, 11.5, 12.0, 12.5]
    raw = by_ffmpeg(path, "-vf", "fps=2:round=down", "-f", "rawvideo", "-pix_fmt", "gray")
    expected = np.frombuffer(raw, np.uint8).reshape(-1, 48 * 64).mean(1) > 128
    assert (np.flatnonzero(expected) / 2).tolist() == [11.0, 11.5, 12.0, 12.5]


def test_priming_of_the_sound_does_not_shift_pictures(tmp_path: Path) -> None:
    """The sound begins 21 ms before the first picture; at the video's own rate each picture comes once all the same."""

    def primed(kind: str, second: float) -> float:
        return second + (0.021 if kind == "video" else 0.0)

    pictures = [(number / 2, 20 + 20 * number) for number in range(10)]
    path = write(tmp_path / "a.mkv", pictures, beeps(5.0, []), move=primed, rate=2)
    clip = media.read(path)
    assert np.abs(clip.frames.mean((1, 2, 3)) - [level for _, level in pictures]).max() < 6


@pytest.mark.parametrize("suffix", ["ts", "mpg", "mkv", "webm"])
def test_timestamps_that_begin_anew_go_on(tmp_path: Path, suffix: str) -> None:
    """Two recordings put together byte by byte: dash cameras, television, browsers."""
    rate = rate_of(suffix)
    for number, flash in enumerate([(9.0, 9.0), (1.0, 1.6)]):
        spans = [(1.0, 1.1)] if number else []
        write(tmp_path / f"{number}.{suffix}", steady(3.0, flash, rate), beeps(3.0, spans), rate=rate)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join((tmp_path / f"{number}.{suffix}").read_bytes() for number in range(2)))
    clip = media.read(path, fps=5)
    assert abs(clip.seconds - 6.0) < 0.15 and abs(len(clip.waveform) / 16_000 - 6.0) < 0.15
    beep, flash = onsets(clip.waveform)[0], white(clip.frames)[0] / 5
    assert abs(beep - 4.0) < 0.15 and abs(flash - 4.0) < 0.21
    assert any("joined of 2 parts" in note for note in clip.notes)
    parts = list(media.segments(path, 2.0, fps=5))
    assert np.array_equal(np.concatenate([part.frames for part in parts if part.frames is not None]), clip.frames)


def test_a_transport_stream_may_leap_forward(tmp_path: Path) -> None:
    for number, leap in enumerate([0.0, 5000.0]):
        write(
            tmp_path / f"{number}.ts",
            steady(2.0, (1.0, 1.4) if number else None, 25),
            beeps(2.0, []),
            move=lambda kind, second, leap=leap: second + leap,
            rate=25,
        )
    (tmp_path / "a.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    clip = media.read(tmp_path / "a.ts", fps=5)
    assert abs(clip.seconds - 4.0) < 0.15 and abs(white(clip.frames)[0] / 5 - 3.0) < 0.21


def test_files_that_cannot_be_joined_say_so(tmp_path: Path) -> None:
    part = write(tmp_path / "0.flv", steady(2.0), beeps(2.0, [])).read_bytes()
    (tmp_path / "a.flv").write_bytes(part + part)
    assert any("were not read" in note for note in media.read(tmp_path / "a.flv").notes)


@pytest.mark.parametrize(("video", "audio"), [(2.0, 4.0), (4.0, 2.0)])
def test_tracks_of_unequal_length_are_said(tmp_path: Path, video: float, audio: float) -> None:
    path = write(tmp_path / "a.mkv", steady(video), beeps(audio, []))
    clip = media.read(path)
    assert abs(clip.seconds - video) < 0.11 and abs(len(clip.waveform) / 16_000 - audio) < 0.05
    note = f"the pictures of {path} end at second {video:.1f} and its sound at second {audio:.1f}"
    assert clip.notes == (note,)
    assert list(media.segments(path, 2.0))[-1].notes == (note,)


def test_a_stream_may_last_longer_than_its_head_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", steady(4.0), beeps(4.0, [(3.5, 3.6)]))
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a double, in milliseconds
    data[at : at + 8] = np.array([1500.0], ">f8").tobytes()
    path.write_bytes(data)
    clip = media.read(path)
    assert len(clip.frames) == 8 and abs(onsets(clip.waveform)[0] - 3.5) < NEAR


# bare streams --------------------------------------------------------------------------------------------------------


def test_a_bare_stream_has_the_rate_that_it_says(tmp_path: Path) -> None:
    pictures = [(number / 10, 20 + 3 * number) for number in range(60)]
    path = write(tmp_path / "a.h264", pictures, rate=10, codecs=("libx264", None))
    clip = media.read(path)
    assert len(clip.frames) == 12 and clip.fps == 2.0 and abs(clip.seconds - 6.0) < 0.11
    assert np.abs(clip.frames.mean((1, 2, 3)) - (20 + 15 * np.arange(12))).max() < 8


def test_pictures_in_a_row_are_a_video(tmp_path: Path) -> None:
    """Motion JPEG without a container, as network cameras write it: 25 a second, since nothing says otherwise."""
    from PIL import Image

    with (tmp_path / "a.mjpeg").open("wb") as out:
        for number in range(50):
            Image.new("RGB", (64, 48), (5 * number,) * 3).save(out, "JPEG")
    clip = media.read(tmp_path / "a.mjpeg")
    assert clip.kind == "video" and clip.frames.shape == (4, 48, 64, 3) and abs(clip.seconds - 2.0) < 0.05
    assert np.abs(clip.frames.mean((1, 2, 3)) - 5 * 12.5 * np.arange(4)).max() < 6


# cut files -----------------------------------------------------------------------------------------------------------

CUT = sorted({*clips.CODECS} - {"mp4", "mov", "m4a", "nut"})


@pytest.mark.parametrize("suffix", [*CUT, "mp4 index first", "live.webm"])
def test_a_cut_file_says_how_many_seconds_could_be_read(tmp_path: Path, suffix: str) -> None:
    options = {"mp4 index first": {"movflags": "faststart"}, "live.webm": {"live": "1"}}.get(suffix)
    name = "a.mp4" if suffix.startswith("mp4") else f"a.{suffix.removeprefix('live.')}"
    random = np.random.default_rng(0)
    noise = [(t, random.integers(0, 255, (48, 64, 3), np.uint8)) for t, _ in steady(4.0, rate=rate_of(name[2:]))]
    wave = random.normal(0, 0.1, round(4.0 * clips.RATE)).astype(np.float32)
    has_pictures = clips.CODECS[Path(name).suffix[1:]][0] is not None
    path = write(tmp_path / name, noise if has_pictures else (), wave, rate=rate_of(name[2:]), options=options)
    data = path.read_bytes()
    assert not any("damaged" in note for note in media.read(path).notes)
    path.write_bytes(data[: round(0.6 * len(data)) + 5])
    with pytest.raises(MediaError, match=r"\d\.\d (of its \d\.\d )?.*seconds.* could be decoded") as caught:
        media.read(path)
    said = float(str(caught.value).partition("only ")[2].split()[0])
    assert 1.2 < said < 3.3
    with pytest.raises(MediaError, match="could be decoded"):
        list(media.segments(path, 2.0))


@pytest.mark.parametrize("begun", [b"\xa3", b"\xa3\x45", b"\x1f\x43\xb6", b"\x1f\x43\xb6\x75\x01\xff"])
def test_a_live_recording_may_end_in_the_head_of_an_element(tmp_path: Path, begun: bytes) -> None:
    """Chrome's MediaRecorder stops so; a file with known sizes that does has lost its end."""
    for live in (True, False):
        path = write(tmp_path / "a.webm", steady(2.0), beeps(2.0, []), options={"live": "1"} if live else {})
        whole = media.read(path)
        path.write_bytes(path.read_bytes() + begun)
        if live:
            assert media.read(path).seconds == whole.seconds
        else:
            with pytest.raises(MediaError, match="breaks off"):
                media.read(path)


def test_a_cut_file_whose_index_was_at_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", steady(4.0), beeps(4.0, []))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 20])
    with pytest.raises(MediaError, match="0 seconds could be read, since the index"):
        media.read(path)
    path.write_bytes(data[:-20])  # within the index
    with pytest.raises(MediaError, match="could be decoded"):
        media.read(path)


# which stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_track_is_heard(tmp_path: Path, default: int) -> None:
    tracks = [beeps(3.0, [(1.0, 1.2)], pitch=400), beeps(3.0, [(2.0, 2.2)])]
    path = write(tmp_path / "a.mkv", steady(3.0), tracks, default=default)
    np.testing.assert_allclose(onsets(media.read(path).waveform), [1.0 + default], atol=NEAR)


def test_pictures_that_change_size_keep_the_first_ones(tmp_path: Path) -> None:
    """Calls and television: the stream goes on with smaller pictures."""
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("mjpeg", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(8):
            coder = av.CodecContext.create("mjpeg", "w")
            coder.width, coder.height = (64, 48) if number < 4 else (32, 24)
            coder.pix_fmt, coder.time_base = "yuvj420p", Fraction(1, 2)
            grey = np.full((coder.height, coder.width, 3), 20 + 25 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 2)
            for packet in coder.encode(frame):
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 2)
                out.mux(packet)
    for clip in (media.read(tmp_path / "a.mkv"), next(iter(media.segments(tmp_path / "a.mkv", 4.0)))):
        assert clip.frames.shape == (8, 48, 64, 3)
        assert np.abs(clip.frames.mean((1, 2, 3)) - (20 + 25 * np.arange(8))).max() < 6
