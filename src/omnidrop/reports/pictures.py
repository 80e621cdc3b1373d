"""Pictures and sound as text in a page: small, bounded in number, matched to a trace's tokens."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from ..media import Media
from .sound import MOST_SECONDS, mp3
from .views import Track

MOST_PICTURES = 64  # of one video; a longer one shows so many, evenly over its length
MOST_PIXELS = 384 * 216  # of an embedded picture
COLUMNS, BANDS = 1200, 64  # of a spectrogram at most; a column is at least 20 ms
WINDOW = 1024  # samples of one transform: 64 ms at 16 kHz
RANGE_DB = 60.0  # below the loudest moment
SLACK = 0.5  # seconds by which the last token may begin behind the end: lengths of files are rounded


@dataclass(kw_only=True)
class Album:
    """What a page embeds of its media: every picture and sound once, however many prompts show it."""

    pictures: list[str] = field(default_factory=list)  # addresses
    sounds: list[str] = field(default_factory=list)  # spectrograms
    audio: list[str] = field(default_factory=list)  # MP3 files, base64
    seconds: float = MOST_SECONDS  # of sound that may still be embedded
    _places: dict[tuple[str | int, ...], int] = field(default_factory=dict)  # what is there already, and where
    _audio: dict[int, int | None] = field(default_factory=dict)  # the same of sound; None: not embedded

    def frames(self, media: Media, track: Track) -> list[tuple[int, int]]:
        """Which temporal grids of a video (or image) are shown: (grid, place in `pictures`) of each.

        A grid holds two pictures; the first is shown.
        """
        assert media.frames is not None and media.times is not None
        grids = len(track.times)
        shown = np.unique(np.linspace(0, grids - 1, min(grids, MOST_PICTURES)).round().astype(int))
        result = []
        for grid in shown.tolist():
            number = int(np.abs(media.times - track.times[grid]).argmin())
            key = ("picture", id(media), number)
            if key not in self._places:
                self._places[key] = len(self.pictures)
                self.pictures.append(picture(media.frames[number]))
            result.append((grid, self._places[key]))
        return result

    def sound(self, media: Media) -> int:
        """The place in `sounds`."""
        assert media.waveform is not None
        key = ("sound", id(media))
        if key not in self._places:
            self._places[key] = len(self.sounds)
            self.sounds.append(spectrogram(media.waveform, media.sample_rate))
        return self._places[key]

    def audible(self, media: Media) -> int | None:
        """The place in `audio`; None where the recording is too long for what is left, or cannot be encoded."""
        assert media.waveform is not None
        if id(media) not in self._audio:
            length = len(media.waveform) / media.sample_rate
            file = mp3(media.waveform, media.sample_rate) if length <= self.seconds else None
            self._audio[id(media)] = None if file is None else len(self.audio)
            if file is not None:
                self.seconds -= length
                self.audio.append(base64.b64encode(file).decode())
        return self._audio[id(media)]


def match(tracks: Sequence[Track], media: Sequence[Media]) -> dict[tuple[str, int], Media]:
    """(kind, item) of each track -> what it was made from. Raises `InputError` where the two do not belong together.

    `prompt.build` puts the clips in order: the n-th video is the n-th video of the trace, and so on. Either all sound
    was used or none.
    """
    sources = {
        "video": [clip for clip in media if clip.kind == "video"],
        "image": [clip for clip in media if clip.kind == "image"],
        "audio": [clip for clip in media if clip.waveform is not None],
    }
    found: dict[tuple[str, int], Media] = {}
    for kind, clips in sources.items():
        mine = [track for track in tracks if track.kind == kind]
        if len(mine) != len(clips) and (mine or kind != "audio"):
            raise InputError(
                f"the trace has {len(mine)} {kind} inputs, the media given have {len(clips)}: give the files of this "
                "prompt, all of them, in their order"
            )
        for track, clip in zip(mine, clips, strict=False):
            length = seconds_of(kind, clip)
            if track.second[-1] > length + SLACK:
                raise InputError(
                    f"the trace goes on to second {track.second[-1]:.1f} of {clip.path}, which is {length:.1f} s long: "
                    "give the files of this prompt"
                )
            found[kind, track.item] = clip
    return found


def seconds_of(kind: str, clip: Media) -> float:
    """How long the clip's sound (of "audio") or picture lasts."""
    return len(clip.waveform) / clip.sample_rate if kind == "audio" and clip.waveform is not None else clip.seconds


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the `tokens` that a picture of this size became.

    The processors scale a picture to whole patches and keep its proportions as well as those allow; so among the ways
    to write `tokens` as a product it is the one whose proportions are nearest.
    """
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] * width / height)))


def picture(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 -> a JPEG of at most `MOST_PIXELS`."""
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = math.sqrt(MOST_PIXELS / (image.width * image.height))
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return _address(image, "JPEG", quality=80)


def spectrogram(waveform: np.ndarray, sample_rate: int) -> str:
    """(N,) sound -> a picture of its power over time and pitch: 0 Hz to half the rate, low notes at the bottom."""
    from matplotlib import colormaps
    from PIL import Image

    columns = max(1, min(COLUMNS, math.ceil(len(waveform) / sample_rate * 50)))
    width = len(waveform) / columns
    each = max(1, math.ceil(width / (WINDOW / 2)))  # transforms of a column: nothing between them is left out
    starts = (np.arange(columns * each) * (width / each)).astype(int)
    padded = np.pad(waveform, (WINDOW // 2, WINDOW))
    window = np.hanning(WINDOW).astype(np.float32)
    edges = _mel_edges(sample_rate)
    power = np.empty((len(starts), len(edges) - 1), np.float32)
    for first in range(0, len(starts), 2048):
        part = padded[starts[first : first + 2048, None] + np.arange(WINDOW)] * window
        bins = np.abs(np.fft.rfft(part)) ** 2
        power[first : first + 2048] = np.add.reduceat(bins, edges[:-1], axis=1) / np.diff(edges)
    level = 10 * np.log10(power.reshape(columns, each, -1).mean(1) + 1e-10)
    shade = np.clip((level - level.max()) / RANGE_DB + 1, 0, 1)
    image = Image.fromarray((255 * shade.T[::-1]).round().astype(np.uint8), mode="L").convert("P")
    image.putpalette((255 * colormaps["viridis"](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes())
    return _address(image, "PNG", optimize=True)


def _mel_edges(sample_rate: int) -> np.ndarray:
    """Borders, in bins of the transform, of at most `BANDS` bands of equal width in mel, each at least one bin."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, BANDS + 1) / 2595) - 1)
    return np.unique((hertz / sample_rate * WINDOW).round().astype(int))


def _address(image: Any, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
