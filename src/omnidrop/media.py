"""A file on disk becomes pictures with their times, and sound: plain arrays, of bounded size.

What it is: the one place that opens media files (through PyAV; images through Pillow where it is installed). What it is
not: it knows no model and no prompt; the model's own processor does all further preprocessing (`prompt.build`).

The one idea: decide first at which seconds a picture is wanted, then decode only what leads there (seeking over the
rest) and shrink each picture while it is decoded, so that an hour of full-HD video takes no more memory than its 128
small pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .errors import MediaError, SettingError

FPS = 2.0  # the paper's setting (sec. 4, app. A), as are the two limits
MAX_FRAMES = 128
MAX_PIXELS = 128 * 28 * 28
SAMPLE_RATE = 16_000  # what the audio encoders of both model families hear

SEEK_GAP = 4.0  # seconds to the next wanted picture from which on a seek is tried: about one group of pictures
TIMESTAMP_SLACK = 0.005  # containers round times (Matroska: to 1 ms); a picture that is due within this counts as shown
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

Progress = Callable[[str, float, float], None]  # (what is read: "pictures" or "sound", seconds done, seconds in all)


@dataclass(frozen=True, eq=False)
class Media:
    """One clip, recording or image, decoded."""

    path: str
    kind: str  # "video", "audio" or "image"
    frames: np.ndarray | None  # (T, H, W, 3) uint8; T = 1 for an image
    times: np.ndarray | None  # (T,) seconds since the start of the clip at which each picture came on screen
    fps: float | None  # pictures a second in `frames`: the rate asked for, or less where `max_frames` thinned them
    waveform: np.ndarray | None  # (N,) float32 in [-1, 1], mono
    sample_rate: int
    seconds: float  # length of the clip; 0 for an image


def read(
    path: str | Path,
    fps: float = FPS,
    max_frames: int = MAX_FRAMES,
    *,
    max_pixels: int | None = MAX_PIXELS,
    sound: bool | None = None,
    sample_rate: int = SAMPLE_RATE,
    progress: Progress | None = None,
) -> Media:
    """Read a video (with or without sound), an audio file or an image.

    Pictures are taken at 0, 1/fps, 2/fps, ... seconds: each time the one then on screen. A video with more than
    `max_frames` of them is thinned evenly over its whole length, one with fewer pictures a second is not stretched. An
    odd number stays odd: the models' video processor repeats the last picture to fill its temporal patch of two.
    Pictures larger than `max_pixels` are scaled down, proportions kept; None leaves them. Images keep their size: the
    model's image processor has its own limit.

    `sound`: None reads the sound if there is one, True demands it, False leaves it out. Raises `MediaError` for what
    cannot be read, `SettingError` for an option out of range.
    """
    if max_frames < 1:
        raise SettingError(f"max_frames is {max_frames}; it must be at least 1 (the paper's setting is {MAX_FRAMES})")
    _check_options(fps, max_pixels, sample_rate)
    name = _check_file(path)
    if (image := _still_image(name)) is not None:
        if sound:
            raise MediaError(f"{name} is an image, and sound was demanded; give a video or an audio file")
        return _image(name, image, sample_rate)
    return _read_av(name, fps, max_frames, max_pixels, sound, sample_rate, progress or (lambda *_: None))


def segments(
    path: str | Path,
    seconds: float,
    fps: float = FPS,
    *,
    max_pixels: int | None = MAX_PIXELS,
    sound: bool | None = None,
    sample_rate: int = SAMPLE_RATE,
    least: float = 0.0,
    progress: Progress | None = None,
) -> Iterator[Media]:
    """Read a video or an audio file in stretches of `seconds`, in one pass and with two stretches in memory.

    Pictures and sound are those of `read` without a limit on pictures, cut up; `times` count from the start of the
    file. Where the pictures end before the sound, what follows is sound alone, and the other way round. A rest shorter
    than `least` seconds joins the stretch before it. Every stretch holds an even, whole number of pictures, as the
    models' temporal patches of two need: else `SettingError`. Errors otherwise as for `read`; damage is found at the
    end.
    """
    _check_options(fps, max_pixels, sample_rate)
    name = _check_file(path)
    if _still_image(name) is not None:
        raise MediaError(f"{name} is an image, which has no length to cut; read it with omnidrop.media.read")
    held: Media | None = None
    for each in _stretches(name, seconds, fps, max_pixels, sound, sample_rate, progress or (lambda *_: None)):
        if held is None:
            held = each
        elif each.seconds < least:
            held = _joined(held, each)
        else:
            yield held
            held = each
    if held is not None:
        yield held


def length(path: str | Path) -> float:
    """Seconds that a video or audio file claims to have, without decoding it; 0.0 where it does not say."""
    name = _check_file(path)
    with _open(name) as container:
        return container.duration / 1_000_000 if container.duration is not None else 0.0


def _check_options(fps: float, max_pixels: int | None, sample_rate: int) -> None:
    if not fps > 0:
        raise SettingError(f"fps is {fps}; it must be above 0 (the paper's setting is {FPS:g})")
    if max_pixels is not None and max_pixels < 1:
        raise SettingError(f"max_pixels is {max_pixels}; it must be at least 1, or None for no limit")
    if sample_rate < 1:
        raise SettingError(
            f"sample_rate is {sample_rate}; it must be at least 1 ({SAMPLE_RATE} for the models' encoders)"
        )


def _check_file(path: str | Path) -> str:
    name = str(path)
    if "://" in name:
        return name  # PyAV reads some protocols itself
    file = Path(path)
    if not file.exists():
        raise MediaError(f"{name} does not exist; check the path (looked from {Path.cwd()})")
    if file.is_dir():
        raise MediaError(f"{name} is a folder; give one video, audio or image file")
    if file.stat().st_size == 0:
        raise MediaError(f"{name} is empty (0 bytes); copy or download it again")
    return name


def _image(name: str, picture: np.ndarray, sample_rate: int) -> Media:
    return Media(name, "image", picture[None], np.zeros(1), None, None, sample_rate, 0.0)


def _still_image(name: str) -> np.ndarray | None:
    """(H, W, 3) uint8 of an image file, upright; None for anything else, animations included."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        return None
    if "://" in name:
        return None
    try:
        with Image.open(name, formats=IMAGE_FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                return None
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{name} is an image that cannot be decoded ({error}); save or download it again") from error


def _open(name: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MediaError(f"reading {name} needs PyAV, which is not installed; pip install 'omnidrop[media]'") from error
    try:
        container = av.open(name, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{name} is no video, audio or image file that FFmpeg knows, or it is damaged ({_reason(error)}); "
            "try to play it, then convert it (ffmpeg -i in -c:v libx264 -c:a aac out.mp4) or download it again"
        ) from error
    if container.format.name == "tty":  # FFmpeg "plays" text files as a terminal
        container.close()
        raise MediaError(f"{name} is a text file; give a video, audio or image file")
    return container


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


@dataclass(frozen=True, kw_only=True)
class _Tracks:
    """What a file holds: the streams to read, by number, and the time at which it starts."""

    pictures: int | None
    sound: int | None
    origin: float
    format: str


def _tracks(name: str, sound: bool | None) -> _Tracks:
    from av.stream import Disposition

    with _open(name) as container:
        # the cover of an mp3 or m4a is a video stream of one picture, marked as attached
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        audios = list(container.streams.audio)
        if not videos and not audios:
            raise MediaError(
                f"{name} holds neither pictures nor sound (format {container.format.name}); "
                "give a video, audio or image"
            )
        if sound and not audios:
            raise MediaError(
                f"{name} has no sound track, and sound was demanded; leave that out to use the pictures alone"
            )
        if sound is False and not videos:
            raise MediaError(f"{name} is sound alone, and sound was to be left out: nothing remains; allow the sound")
        return _Tracks(
            pictures=videos[0].index if videos else None,
            sound=audios[0].index if audios and sound is not False else None,
            origin=container.start_time / 1_000_000 if container.start_time is not None else 0.0,
            format=container.format.name,
        )


def _read_av(
    name: str,
    fps: float,
    max_frames: int,
    max_pixels: int | None,
    sound: bool | None,
    sample_rate: int,
    progress: Progress,
) -> Media:
    tracks = _tracks(name, sound)
    frames = times = rate = waveform = None
    seconds = 0.0
    if tracks.pictures is not None:
        frames, times, rate, seconds = _pictures(
            name, tracks.pictures, tracks.origin, fps, max_frames, max_pixels, progress
        )
        if tracks.format == "image2" or tracks.format.endswith("_pipe"):  # an image, and no Pillow to say so
            return _image(name, frames[0], sample_rate)
    if tracks.sound is not None:
        waveform = _sound(name, tracks.sound, tracks.origin, sample_rate, progress)
        if len(waveform) == 0:
            waveform = None  # a track without a sample is no sound
            if frames is None or sound:
                raise _empty(name)
        elif frames is None:
            seconds = len(waveform) / sample_rate
    return Media(name, "audio" if frames is None else "video", frames, times, rate, waveform, sample_rate, seconds)


def _empty(name: str) -> MediaError:
    return MediaError(
        f"the sound track of {name} is empty: not one sample could be decoded; record or convert it again"
    )


def _stretches(
    name: str,
    seconds: float,
    fps: float,
    max_pixels: int | None,
    sound: bool | None,
    sample_rate: int,
    progress: Progress,
) -> Iterator[Media]:
    """`segments`, before a short rest is joined."""
    tracks = _tracks(name, sound)
    rate: float | None = None
    wanted = seen = heard = 0
    shown: Iterator[tuple[float, np.ndarray]] = iter(())
    pictures = track = None
    if tracks.pictures is not None:
        native, claimed, exact = _pace(name, tracks.pictures, tracks.origin)
        rate = min(fps, native) if native else fps
        each = seconds * rate
        if abs(each / 2 - round(each / 2)) > 1e-6 or each < 2:
            raise SettingError(
                f"{seconds:g} s of {name} at {rate:g} pictures a second are {each:g} pictures, and a segment needs an "
                "even, whole number: choose another length, or a lower fps that the file has"
            )
        wanted = max(1, math.ceil(claimed * rate - 1e-6))
        pictures = _Pictures(name, tracks.pictures, tracks.origin, native, max_pixels, progress, claimed)
        shown = pictures.at((i / rate for i in range(wanted)), seek=False)
    if tracks.sound is not None:
        track = _Sound(name, tracks.sound, tracks.origin, sample_rate, progress)
    samples = _Regrouped(track.blocks() if track is not None else iter(()), round(seconds * sample_rate))
    while True:
        part = list(islice(shown, round(seconds * rate))) if rate is not None else []
        waveform = samples.next()
        if not part and not len(waveform):
            break
        seen, heard = seen + len(part), heard + len(waveform)
        yield Media(
            name,
            "video" if part else "audio",
            np.stack([picture for _, picture in part]) if part else None,
            np.array([time for time, _ in part]) if part else None,
            rate if part else None,
            waveform if len(waveform) else None,
            sample_rate,
            max(len(part) / rate if rate is not None else 0.0, len(waveform) / sample_rate),
        )
    if pictures is not None:
        pictures.check(seen, wanted, exact)
    if track is not None:
        track.check(heard / sample_rate)
        if heard == 0 and (pictures is None or sound):
            raise _empty(name)


class _Regrouped:
    """Blocks of samples of any length -> arrays of `size` samples, the last one shorter, then empty ones."""

    def __init__(self, blocks: Iterator[np.ndarray], size: int) -> None:
        self.blocks, self.size, self.rest = blocks, size, np.empty(0, np.float32)

    def next(self) -> np.ndarray:
        parts, have = [self.rest], len(self.rest)
        while have < self.size and (block := next(self.blocks, None)) is not None:
            parts.append(block)
            have += len(block)
        whole = np.concatenate(parts)
        self.rest = whole[self.size :].copy()
        return whole[: self.size]


def _joined(first: Media, then: Media) -> Media:
    """Two stretches of one clip as one. What the second has of pictures or sound, the first has to its end."""
    return Media(
        first.path,
        first.kind,
        _appended(first.frames, then.frames),
        _appended(first.times, then.times),
        first.fps,
        _appended(first.waveform, then.waveform),
        first.sample_rate,
        first.seconds + then.seconds,
    )


def _appended(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return one if one is None or other is None else np.concatenate([one, other])


class _Decoder:
    """Frames of one stream in order; a damaged packet is skipped and counted, the end of a cut file is the end."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream, self.damaged = container, stream, 0

    def frames(self) -> Iterator[Any]:
        from av import FFmpegError

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:
                self.damaged += 1
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except FFmpegError:
                self.damaged += 1


def _pictures(
    name: str, index: int, origin: float, fps: float, max_frames: int, max_pixels: int | None, progress: Progress
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(T, H, W, 3) pictures, their times, their rate, and the length of the video in seconds."""
    native, length, exact = _pace(name, index, origin)
    rate = min(fps, native) if native else fps
    wanted = max(1, math.ceil(length * rate - 1e-6))
    if wanted > max_frames:
        wanted = max(1, max_frames - max_frames % 2)
        rate = wanted / length
    targets = [i / rate for i in range(wanted)]

    try:
        pictures = _Pictures(name, index, origin, native, max_pixels, progress, length)
        shown = list(pictures.at(targets, seek=True))
    except _SeekError:
        pictures = _Pictures(name, index, origin, native, max_pixels, progress, length)
        shown = list(pictures.at(targets, seek=False))
    pictures.check(len(shown), len(targets), exact)
    progress("pictures", length, length)
    if len(shown) < len(targets):
        length = pictures.end
    return np.stack([picture for _, picture in shown]), np.array([time for time, _ in shown]), rate, length


def _pace(name: str, index: int, origin: float) -> tuple[float, float, bool]:
    """Of a video stream: its own pictures a second (0: it has no rate), its seconds, and whether it says so itself."""
    with _open(name) as container:
        stream = container.streams[index]
        if stream.codec_context is None:
            raise MediaError(
                f"{name} holds video that no installed decoder reads; convert it to H.264 (ffmpeg -c:v libx264)"
            )
        native = float(stream.average_rate or stream.guessed_rate or 0)
        length, exact = _length(container, stream, origin)
    if length <= 0:  # live recordings (webm from a browser) do not say: read the packets' times, without decoding
        length, exact = _scan(name, index, origin, native), False
    if native and exact and native * length < 1.5:
        native = 0.0  # one picture: its rate means nothing
    return native, length, exact


class _SeekError(Exception):
    """A seek landed behind the wanted picture: the file has no usable index."""


def _length(container: Any, stream: Any, origin: float) -> tuple[float, bool]:
    """Seconds, and whether the stream itself says so (the container's length is that of its longest stream)."""
    if stream.duration is not None and stream.time_base is not None and stream.duration > 0:
        start = float((stream.start_time or 0) * stream.time_base) - origin
        return float(stream.duration * stream.time_base) + max(start, 0.0), True
    if container.duration is not None:
        return container.duration / 1_000_000, False
    return 0.0, False


def _scan(name: str, index: int, origin: float, native: float) -> float:
    """The length by the packets' own times; where a bare stream has none, by their number."""
    from av import FFmpegError

    end, count = 0.0, 0
    with _open(name) as container:
        try:
            for packet in container.demux(container.streams[index]):
                count += packet.size > 0
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 1)) * packet.time_base) - origin)
        except FFmpegError:
            pass
    return end or count / (native or FPS)


@dataclass
class _Pictures:
    """The pictures of one video stream, decoded as they are asked for. `end`, `damaged` are known once all were."""

    name: str
    index: int
    origin: float
    native: float
    max_pixels: int | None
    progress: Progress
    length: float  # seconds that the file claims
    end: float = 0.0  # seconds at which the video ends
    damaged: int = 0  # packets that could not be decoded

    def at(self, targets: Iterable[float], *, seek: bool) -> Iterator[tuple[float, np.ndarray]]:
        """For each target time, ascending, the picture then on screen, with its own time; until the video is over."""
        from av import FFmpegError

        last: tuple[float, np.ndarray] | None = None
        with _open(self.name) as container:
            stream = container.streams[self.index]
            stream.thread_type = "AUTO"
            decoder, to_array = _Decoder(container, stream), _ToArray(self.max_pixels)
            frames, count = decoder.frames(), 0
            current: Any = None
            pending: Any = None
            now, end = 0.0, math.inf

            def time_of(frame: Any) -> float:
                if frame.time is not None:
                    return frame.time - self.origin
                return (count - 1) / (self.native or FPS)  # bare streams carry no times

            for target in targets:
                landed = False
                if seek and target - now > SEEK_GAP and current is not None and current.pts is not None:
                    try:
                        container.seek(int((target + self.origin) / stream.time_base), stream=stream)
                    except FFmpegError as error:
                        raise _SeekError from error
                    frames, pending, landed = decoder.frames(), None, True
                while True:
                    if pending is None:
                        pending = next(frames, None)
                        count += pending is not None
                    if pending is None:
                        break
                    time = time_of(pending)
                    if landed:
                        landed = False
                        if time > target + TIMESTAMP_SLACK:
                            raise _SeekError
                        if time <= now:
                            seek = False  # one key frame for many targets: from here on straight through is cheaper
                    elif time > target + TIMESTAMP_SLACK and current is not None:
                        break
                    current, pending, now = pending, None, time
                if current is None:
                    break
                if pending is None:  # the video is over: its last picture stays for its own duration, no longer
                    own = float((current.duration or 0) * (current.time_base or 0))
                    end = now + max(own, 1 / self.native if self.native else 0.0)
                    if target >= end - TIMESTAMP_SLACK:
                        break
                if last is None or last[0] != now:
                    last = (now, to_array(current))
                yield last
                self.progress("pictures", min(target, self.length), self.length)
            self.end, self.damaged = self.length if end is math.inf else end, decoder.damaged

    def check(self, shown: int, wanted: int, exact: bool) -> None:
        """Raise `MediaError` where the stream gave no picture, or far fewer than it claimed (`exact`) to have."""
        if not shown:
            why = "its data is damaged" if self.damaged else "the stream is empty"
            raise MediaError(
                f"{self.name} has a video stream without frames: {why}; record, convert or download it again"
                + ("" if self.damaged else ", or extract its sound (ffmpeg -i in -vn out.wav) and give that")
            )
        if (exact or self.damaged) and shown < 0.9 * wanted:
            raise MediaError(
                f"{self.name} is damaged: only {self.end:.1f} of its {self.length:.1f} seconds could be decoded; "
                f"download it again, or cut it to the part that plays (ffmpeg -i in -t {self.end:.0f} out.mp4)"
            )


class _ToArray:
    """Decoded frame -> (H, W, 3) uint8, upright and at most `max_pixels`, in one pass of the scaler."""

    def __init__(self, max_pixels: int | None) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self.max_pixels, self.scaler, self.how = max_pixels, VideoReformatter(), Interpolation.BICUBIC

    def __call__(self, frame: Any) -> np.ndarray:
        height, width = fit(frame.height, frame.width, self.max_pixels)
        small = self.scaler.reformat(frame, width=width, height=height, format="rgb24", interpolation=self.how)
        picture = small.to_ndarray()
        turns = round(getattr(frame, "rotation", 0) / 90) % 4  # telephones store upright video lying down
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def fit(height: int, width: int, max_pixels: int | None) -> tuple[int, int]:
    """The largest size of the same proportions with at most `max_pixels`; never larger than it is."""
    if max_pixels is None or height * width <= max_pixels:
        return height, width
    scale = math.sqrt(max_pixels / (height * width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def _sound(name: str, index: int, origin: float, sample_rate: int, progress: Progress) -> np.ndarray:
    """(N,) float32 mono, in time with the pictures: a track that starts late is led in by silence."""
    sound = _Sound(name, index, origin, sample_rate, progress)
    samples, filled = np.empty(0, np.float32), 0
    for block in sound.blocks():
        if filled == 0:  # what the file claims; grown below where it says too little
            samples = np.empty(max(len(block), int((1.01 * sound.length + 1) * sample_rate)), np.float32)
        if filled + len(block) > len(samples):
            samples.resize(filled + max(len(block), filled // 8, sample_rate), refcheck=False)
        samples[filled : filled + len(block)] = block
        filled += len(block)
    sound.check(filled / sample_rate)
    samples.resize(filled, refcheck=False)  # in place: an hour of sound is 230 MB, and should not be held twice
    return samples


@dataclass
class _Sound:
    """The samples of one sound track, decoded as they are asked for. `length`, `exact`, `damaged`: as for pictures."""

    name: str
    index: int
    origin: float
    sample_rate: int
    progress: Progress
    length: float = 0.0
    exact: bool = False
    damaged: int = 0

    def blocks(self) -> Iterator[np.ndarray]:
        """Stretches of samples, float32 mono, in order and without a gap."""
        import av

        with _open(self.name) as container:
            stream = container.streams[self.index]
            if stream.codec_context is None:
                raise MediaError(
                    f"{self.name} holds sound that no installed decoder reads; convert it (ffmpeg -c:a aac)"
                )
            self.length, self.exact = _length(container, stream, self.origin)
            self.progress("sound", 0.0, self.length)  # who refuses long files can do so before anything is decoded
            decoder = _Decoder(container, stream)
            filled, skip, first, resampler = 0, 0, True, None

            def take(blocks: list[Any]) -> Iterator[np.ndarray]:
                nonlocal filled, skip
                for block in blocks:
                    values = block.to_ndarray()[0]
                    if skip:
                        cut = min(skip, len(values))
                        values, skip = values[cut:], skip - cut
                    filled += len(values)
                    yield values

            for frame in decoder.frames():
                if first:
                    first = False
                    late = round((frame.time - self.origin) * self.sample_rate) if frame.time is not None else 0
                    if late > 0:
                        filled = late
                        yield np.zeros(late, np.float32)
                    skip = max(-late, 0)
                if resampler is None:
                    resampler = av.AudioResampler(format="flt", layout="mono", rate=self.sample_rate)
                try:
                    resampled = resampler.resample(frame)
                except ValueError:  # rate or layout changed on the way: finish this part, go on with a new resampler
                    yield from take(resampler.resample(None))
                    resampler = av.AudioResampler(format="flt", layout="mono", rate=self.sample_rate)
                    resampled = resampler.resample(frame)
                yield from take(resampled)
                heard = filled / self.sample_rate
                total = max(self.length, heard) if self.length else 0.0  # the length may be unknown, or wrong
                self.progress("sound", heard, total)
            if resampler is not None:
                yield from take(resampler.resample(None))
            self.damaged = decoder.damaged

    def check(self, seconds: float) -> None:
        """Raise `MediaError` where far less could be decoded than the track claims."""
        if (self.exact or self.damaged) and seconds < 0.9 * self.length - 1:
            raise MediaError(
                f"the sound of {self.name} is damaged: only {seconds:.1f} of its {self.length:.1f} seconds could be "
                "decoded; download or convert the file again, or leave its sound out"
            )
