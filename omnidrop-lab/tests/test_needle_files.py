"""Written clips decode to the right pictures and sound, and an independent reader of the files finds the truth.

The reader knows nothing of the generator; it is slow and obvious: hue and outline of the saturated
pixels, the strongest frequency, and the loudness in time.
"""

import colorsys

import numpy as np
import pytest
from omnidrop_lab.needle import clip, files, render

pytest.importorskip("av")

pytestmark = pytest.mark.slow

HUE = {"red": 0, "yellow": 57, "green": 124, "cyan": 185, "blue": 234, "pink": 306}
HZ = {"bass": 160, "baritone": 254, "tenor": 402, "alto": 637, "mezzo": 1010, "soprano": 1600}


def read_thing(pictures):
    """(colour, shape, cell) of the saturated area in one chunk's pictures, or None."""
    picture = pictures.astype(float).mean(0)
    mask = picture.max(-1) - picture.min(-1) > 90
    if mask.sum() < 0.004 * mask.size:
        return None
    red, green, blue = picture[mask].mean(0) / 255
    hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
    color = min(HUE, key=lambda name: min(abs(hue - HUE[name]), 360 - abs(hue - HUE[name])))
    y, x = np.nonzero(mask)
    third = mask.shape[0] / 3
    cell = int((y.min() + y.max() + 1) / 2 // third * 3 + (x.min() + x.max() + 1) / 2 // third)
    box = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
    height, width = box.shape
    middle = box[height * 2 // 5 : height * 3 // 5 + 1, width * 2 // 5 : width * 3 // 5 + 1].mean()
    top, bottom = box[: height // 3].mean(), box[-(height // 3) :].mean()
    if width > 1.8 * height:
        shape = "bar"
    elif middle < 0.4:
        shape = "ring"
    elif bottom - top > 0.3:
        shape = "triangle"
    elif box.mean() < 0.65:
        shape = "cross"
    else:
        shape = "square" if box.mean() > 0.9 else "circle"
    return color, shape, cell


def loudness(sound, low, high, n=40):
    """Energy between two frequencies in `n` equal stretches."""
    spectrum = np.fft.rfft(sound)
    hz = np.fft.rfftfreq(len(sound), 1 / 16000)
    spectrum[(hz < low) | (hz > high)] = 0
    return np.square(np.fft.irfft(spectrum, len(sound))).reshape(n, -1).mean(1)


def peak(sound):
    spectrum = abs(np.fft.rfft(sound * np.hanning(len(sound)), 4 * len(sound)))
    hz = np.fft.rfftfreq(4 * len(sound), 1 / 16000)
    spectrum[hz < 100] = 0
    return hz[spectrum.argmax()], spectrum.max() / np.median(spectrum)


def read_sound(sound):
    """(pitch, pattern) of the tone in one chunk's samples, or None."""
    hz, clear = peak(sound)
    if clear < 60:
        return None
    pitch = min(HZ, key=lambda name: abs(np.log(hz / HZ[name])))
    f = HZ[pitch]
    energy = loudness(sound, 0.8 * f, 1.25 * f)
    on = energy > 0.25 * energy.max()
    begins = int((on[1:] & ~on[:-1]).sum())
    harmonic = loudness(sound, 1.8 * f, 2.2 * f).sum() / energy.sum()
    if harmonic > 0.1:
        return pitch, "buzzing"
    if begins >= 5:
        return pitch, "pulsed"
    if begins == 2:
        return pitch, "double"
    if energy[28:36].mean() < 0.02 * energy[4:8].mean():
        return pitch, "fading"
    early, late = peak(sound[4000:12000])[0], peak(sound[20000:28000])[0]
    return pitch, "rising" if late > 1.06 * early else "steady"


@pytest.mark.parametrize(("n_chunks", "size"), [(16, 84), (5, 448)])
def test_an_independent_reader_finds_the_truth(tmp_path, n_chunks, size):
    for index in range(4 if size == 84 else 1):
        made = clip("dev", index, n_chunks)
        pictures, sound = files.read(files.write(made, tmp_path / "clip.mp4", size))
        assert pictures.shape == (4 * n_chunks, size, size, 3) and sound.shape == (32000 * n_chunks,)
        for i, chunk in enumerate(made.chunks):
            thing, heard = chunk.thing, chunk.sound
            found = [read_thing(pictures[4 * i + j : 4 * i + j + 1]) for j in range(4)]  # in each of its pictures
            assert found == [None if thing is None else (thing.color, thing.shape, thing.cell)] * 4
            assert read_sound(sound[32000 * i : 32000 * (i + 1)]) == (heard and (heard.pitch, heard.pattern))


def test_files_keep_time_and_content(tmp_path):
    made = clip("dev", 7, 6)
    pictures, sound = files.read(files.write(made, tmp_path / "clip.mp4"))
    drawn, played = render.frames(made), render.waveform(made)
    assert abs(pictures.astype(int) - drawn).mean() < 4
    assert np.corrcoef(sound, played)[0, 1] > 0.99  # at lag 0: the encoder's priming samples are not heard
    assert np.array_equal(render.frames(made), drawn) and np.array_equal(render.waveform(made), played)


def test_the_same_clip_gives_the_same_bytes(tmp_path):
    made = clip("dev", 8, 4)
    one, two = (files.write(made, tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert one == two


def test_silent_video_has_no_sound_track(tmp_path):
    made = clip("dev", 9, 2)
    path = files.write_arrays(tmp_path / "silent.mp4", render.frames(made), None)
    pictures, sound = files.read(path)
    assert len(pictures) == 8 and sound is None


def test_video_is_redundant_in_time():
    """Pictures of a chunk differ by grain alone, and neighbours of one shot share their background."""
    made = clip("dev", 10, 12)
    drawn = render.frames(made).astype(int)
    for i in range(made.n_chunks):
        assert abs(drawn[4 * i] - drawn[4 * i + 3]).mean() < 4
    same = [i for i in range(1, 12) if made.chunks[i].scene == made.chunks[i - 1].scene]
    assert len(same) >= 4
    for i in same:
        assert np.median(abs(drawn[4 * i] - drawn[4 * i - 1])) < 5
