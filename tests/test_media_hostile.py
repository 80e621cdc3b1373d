"""A file cannot be turned against who reads it: no other file, no network, no endless wait, bounded memory."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
from clips import beeps, steady, write
from PIL import Image

import omnidrop
from omnidrop import loading, media
from omnidrop.cli import main
from omnidrop.errors import MediaError, SettingError
from omnidrop.media import Limits, opening

pytest.importorskip("av")
DEMO = loading.TINY.parent / "demo.mp4"
LIST = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2.0,\n"


def refused(text: str, path: Any, **options: Any) -> str:
    """`read` and `segments` and `length` refuse it alike."""
    with pytest.raises(MediaError, match=text) as caught:
        media.read(path, **options)
    with pytest.raises(MediaError):
        list(media.segments(path, 2.0, **options))
    assert ";" in str(caught.value)
    return str(caught.value)


def wav(path: Path, data: bytes, *, rate: int = 16_000, bits: int = 16, kind: int = 1, channels: int = 1) -> Path:
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8 % 2**32, channels * bits // 8, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


# other files and addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        LIST + "secret.ts\n#EXT-X-ENDLIST\n",
        LIST + "secret.ts\n",  # never ends
        "ffconcat version 1.0\nfile secret.ts\n",
        "\ufeff#EXTM3U\nsecret.ts\n",
        '<?xml version="1.0"?>\n<MPD><Period><BaseURL>secret.ts</BaseURL></Period></MPD>\n',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
        "[playlist]\nFile1=secret.ts\n",
    ],
    ids=["hls", "live hls", "concat", "with a mark", "dash", "sdp", "pls"],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ts", "a.jpg"])
def test_playlists_are_not_followed(tmp_path: Path, text: str, name: str) -> None:
    write(tmp_path / "secret.ts", steady(1.0, rate=25), rate=25)
    (tmp_path / name).write_text(text)
    refused("is a playlist|is a text file", tmp_path / name)


def test_a_pattern_of_images_is_a_name(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"img{number:03d}.png")
    refused("does not exist", tmp_path / "img%03d.png")
    refused("does not exist", tmp_path / "img*.png")


@pytest.mark.parametrize(
    "name", ["2024-05-01T12:30:45.mp4", "take:2.mp4", "file:x.mp4", "concat:a|b", "tcp:127.0.0.1:9", "%d.mp4"]
)
def test_a_name_is_never_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    refused("does not exist", name)
    Path(name).write_bytes(DEMO.read_bytes())
    assert media.read(name).kind == "video" and media.read(tmp_path / name).seconds == 16.0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/a.mp4", "https://a.b/c.mp4", "file:///etc/hostname", "rtsp://a.b/c"]
)
def test_urls_are_refused_by_name(url: str) -> None:
    refused("is a URL, and URLs are not read; download it", url)


def test_a_reference_inside_a_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QuickTime file may hold its samples in another file, by name."""
    write(tmp_path / "secret.mov", steady(1.0))
    data = (tmp_path / "secret.mov").read_bytes()
    place = b"secret.mov\0"
    own = struct.pack(">I4sI", 12, b"url ", 1)
    assert own in data
    other = struct.pack(">I4sI", 12 + len(place), b"url ", 0) + place
    (tmp_path / "a.mov").write_bytes(data.replace(own, other))
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(omnidrop.OmnidropError):
        clip = media.read(tmp_path / "a.mov")
        assert clips.white(clip.frames).size == 0


@pytest.mark.parametrize("path", [b"a.mp4", 3, None, ["a.mp4"], np.zeros(3)])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(SettingError, match="a path is wanted, not") as caught:
        media.read(path)
    assert len(str(caught.value)) < 120


def test_names_that_cannot_be(tmp_path: Path) -> None:
    refused("cannot be opened", "a\0b.mp4")
    refused("cannot be opened", "a" * 5000)
    refused("does not exist", DEMO / "a.mp4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    refused("is no regular file but a pipe or device", tmp_path / "a.mp4")
    refused("is no regular file but a pipe or device", "/dev/zero")


# time ----------------------------------------------------------------------------------------------------------------


def test_reading_that_leads_nowhere_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the test goes a minute a look; the file is a good one."""
    now = [0.0]

    def later() -> float:
        now[0] += 60.0
        return now[0]

    monkeypatch.setattr(opening.time, "monotonic", later)
    refused("leads nowhere: opening it takes more than 30 seconds", DEMO)


def test_waiting_starts_anew_with_every_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slowly() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr(opening.time, "monotonic", slowly)
    assert media.read(DEMO, limits=media.Limits(patience=5.0)).kind == "video"
    assert now[0] > 5.0


# limits --------------------------------------------------------------------------------------------------------------


def test_limits_name_themselves(tmp_path: Path) -> None:
    from PIL import Image

    video = write(tmp_path / "a.mkv", steady(3.0), beeps(3.0, []))
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    shown = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    shown[0].save(tmp_path / "a.gif", save_all=True, append_images=shown[1:], duration=1000)
    wide = wav(tmp_path / "wide.wav", bytes(6_400), channels=20)
    fast = wav(tmp_path / "fast.wav", bytes(6_400), rate=96_000)
    for path, bound, value in [
        (video, "seconds", 2),
        (video, "pixels", 1000),
        (video, "frames", 10),
        (video, "memory", 10_000),
        (tmp_path / "a.png", "pixels", 1000),
        (tmp_path / "a.png", "memory", 10_000),
        (tmp_path / "a.gif", "frames", 2),
        (tmp_path / "a.gif", "seconds", 2),
        (wide, "channels", 8),
        (fast, "highest_rate", 48_000),
        (fast, "lowest_rate", 100_000),
    ]:
        limits = media.Limits(**{bound: value})
        with pytest.raises(MediaError, match=rf"limits=omnidrop\.media\.Limits\({bound}=") as caught:
            media.read(path, limits=limits)
        assert str(value) in str(caught.value)
    assert media.read(wide, limits=media.Limits(channels=20)).kind == "audio"


@pytest.mark.parametrize("name", ["seconds", "pixels", "frames", "channels", "memory", "patience"])
def test_limits_are_above_zero(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} of the limits is 0; it must be above 0"):
        media.Limits(**{name: 0})


def test_small_files_that_ask_for_much(tmp_path: Path) -> None:
    """2 kB that claim 2,000 s, 1 MB that claims 11 days, more channels than there are, a picture of 169 megapixels."""
    refused("has 1 samples of sound a second", wav(tmp_path / "a.wav", b"\x80" * 2000, rate=1, bits=8))
    refused("has 1 samples of sound a second", wav(tmp_path / "b.wav", b"\x80" * 10**6, rate=1, bits=8))
    refused("samples of sound a second, and the limit", wav(tmp_path / "c.wav", b"\x80" * 2000, rate=2**31 - 1, bits=8))
    refused("has 200 channels of sound", wav(tmp_path / "d.wav", b"\x80" * 20_000, bits=8, channels=200))
    from PIL import Image

    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    finally:
        Image.MAX_IMAGE_PIXELS = before
    refused("has 169000000 pixels in a picture, and the limit is 128000000", tmp_path / "a.png")


@pytest.mark.parametrize("channels", [3, 9, 12, 32, 64])
def test_unusual_channels_are_mixed(tmp_path: Path, channels: int) -> None:
    wave = np.repeat((beeps(1.0, [(0.5, 0.7)], 16_000) * 20_000).astype("<i2")[:, None], channels, 1)
    clip = media.read(wav(tmp_path / "a.wav", wave.tobytes(), channels=channels))
    np.testing.assert_allclose(clips.onsets(clip.waveform), [0.5], atol=0.006)
    assert 0.2 < np.abs(clip.waveform).max() < 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_that_are_no_sound(tmp_path: Path, value: float, rate: int) -> None:
    wave = beeps(2.0, [], rate)
    wave[rate] = value
    path = wav(tmp_path / "a.wav", wave.astype("<f4").tobytes(), rate=rate, bits=32, kind=3)
    refused(r"holds samples that are no sound .* near second (0\.9|1\.0)", path)


# errors --------------------------------------------------------------------------------------------------------------


def test_running_out_of_memory_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnidrop.media import sound

    def none(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(sound, "_kind", none)
    refused("needs more memory than there is", write(tmp_path / "a.wav", (), beeps(1.0, [])))


def test_many_readers_at_once(tmp_path: Path) -> None:
    """Errors of one thread's file do not surface in another's."""
    good = write(tmp_path / "a.mkv", steady(1.0), beeps(1.0, []))
    bad = tmp_path / "b.mp4"
    bad.write_bytes(DEMO.read_bytes()[:5000])
    wrong: list[BaseException] = []

    def work(path: Path, fails: bool) -> None:
        for _ in range(5):
            try:
                media.read(path)
                if fails:
                    wrong.append(AssertionError(path))
            except MediaError as error:
                if not fails:
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in [(good, False), (bad, True)] * 2]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_limits_in_words() -> None:
    assert Limits.parse(["pixels=12", "seconds=1.5"]) == Limits(pixels=12, seconds=1.5)
    assert Limits.parse([]) == Limits()
    for given, says in (
        ("pixel=1", "choose NAME=NUMBER"),
        ("pixels=many", "must be NAME=NUMBER"),
        ("pixels=0", "above 0"),
    ):
        with pytest.raises(SettingError, match=says):
            Limits.parse([given])


@pytest.mark.parametrize("command", ["run", "batch"])
def test_a_limit_on_the_command_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    what = [str(tmp_path / "a.png"), "what ?"]
    if command == "batch":
        what = [str(tmp_path), "what ?", "--out", str(tmp_path / "out.jsonl")]
    status = main([command, *what, "--limit", "pixels=100"])
    assert status != 0
    failures = "".join(file.read_text() for file in tmp_path.glob("*failures*"))
    assert "--limit pixels=4096" in capsys.readouterr().err + failures
