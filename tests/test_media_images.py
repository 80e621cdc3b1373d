"""Images, still and moving, whole and in their colours: transparency, depth, tiles, pages, mirrors."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import clips
import numpy as np
import pytest

from omnidrop import media
from omnidrop.errors import MediaError

Image = pytest.importorskip("PIL.Image")
FIELDS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)  # red green / blue white


def fields(height: int = 48, width: int = 64) -> np.ndarray:
    """(height, width, 3): four fields of different colours."""
    return FIELDS.repeat(height // 2, 0).repeat(width // 2, 1)


def corners(picture: np.ndarray) -> np.ndarray:
    """(2, 2, 3): the colours in the middle of the four fields, black or full."""
    height, width = picture.shape[:2]
    return (picture[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2] > 128).astype(np.uint8) * 255


KINDS = [("png", mode) for mode in ("RGBA", "LA", "P", "RGB with a key", "1 with a key")]


@pytest.mark.parametrize(("suffix", "mode"), [*KINDS, ("webp", "RGBA"), ("tif", "RGBA"), ("tif", "LA"), ("gif", "P")])
def test_transparent_is_white(tmp_path: Path, suffix: str, mode: str) -> None:
    """A black box on a transparent ground stays to be seen."""
    clear = np.zeros((40, 60, 4), np.uint8)
    clear[10:30, 20:50, 3] = 255
    expected = np.where(clear[..., 3:] == 255, 0, 255).astype(np.uint8).repeat(3, 2)
    if mode == "RGB with a key":
        Image.fromarray(expected).save(tmp_path / "a.png", transparency=(255, 255, 255))
    elif mode == "1 with a key":
        Image.fromarray(expected[..., 0]).convert("1").save(tmp_path / "a.png", transparency=255)
    elif suffix == "gif":
        image = Image.fromarray((clear[..., 3] == 0).astype(np.uint8), "P")
        image.putpalette([0] * 768)
        image.save(tmp_path / "a.gif", transparency=1)
    else:
        image = Image.fromarray(clear)
        image = image.quantize(4) if mode == "P" else image.convert(mode)
        image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(media.read(tmp_path / f"a.{suffix}").frames[0], expected)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.abs(media.read(tmp_path / "a.png").frames[0, 0, 0].astype(int) - (255, 127, 127)).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    levels = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (16, 1))
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    picture = media.read(tmp_path / f"a.{suffix}").frames[0]
    assert np.array_equal(picture[..., 0], np.tile(np.arange(256), (16, 1)))
    assert np.array_equal(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_real_numbers_are_scaled(tmp_path: Path, full: float) -> None:
    Image.fromarray(np.tile(np.linspace(0, full, 256).astype(np.float32), (16, 1))).save(tmp_path / "a.tif")
    picture = media.read(tmp_path / "a.tif").frames[0]
    assert np.array_equal(picture[..., 0], np.tile(np.arange(256), (16, 1)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0, 1e9])
def test_levels_without_a_meaning_are_refused(tmp_path: Path, wrong: float) -> None:
    levels = np.full((8, 8), 0.5, np.float32)
    levels[3, 3] = wrong
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(MediaError, match=r"has levels from .* to .*; save it"):
        media.read(tmp_path / "a.tif")


@pytest.mark.parametrize("size", [(160, 120), (600, 400)])
def test_a_picture_with_others_behind_it_is_the_first(tmp_path: Path, size: tuple[int, int]) -> None:
    """Telephones put a preview, a depth or gain map behind the picture; it may have the same size."""
    first = Image.fromarray(fields(400, 600))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", size)])
    clip = media.read(tmp_path / "a.jpg")
    assert clip.kind == "image" and clip.frames.shape == (1, 400, 600, 3)
    assert np.array_equal(corners(clip.frames[0]), FIELDS)


def test_other_bytes_behind_a_jpeg_are_no_video(tmp_path: Path) -> None:
    """A preview without a directory, and a moving picture's video."""
    Image.fromarray(fields(400, 600)).save(tmp_path / "a.jpg")
    Image.new("RGB", (60, 40)).save(tmp_path / "small.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    behind = [(tmp_path / "small.jpg").read_bytes(), b"\0\0\0\x18ftypmp42" + bytes(2000), b"\xff\xd8"]
    for number, more in enumerate(behind):
        (tmp_path / f"{number}.jpg").write_bytes(whole + more)
        clip = media.read(tmp_path / f"{number}.jpg")
        assert clip.kind == "image" and clip.frames.shape == (1, 400, 600, 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_the_first_page_is_read_and_the_others_are_said(tmp_path: Path, compression: str) -> None:
    first = Image.fromarray(fields(200, 300))
    more = [Image.new("RGB", (80, 60)), Image.new("RGB", (300, 200))]
    first.save(tmp_path / "a.tif", save_all=True, append_images=more, compression=compression)
    clip = media.read(tmp_path / "a.tif")
    assert clip.kind == "image" and clip.frames.shape == (1, 200, 300, 3)
    assert np.array_equal(corners(clip.frames[0]), FIELDS)
    assert clip.notes == (f"{tmp_path / 'a.tif'} holds 3 pages, and the first alone was read",)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_animations_are_videos(tmp_path: Path, suffix: str) -> None:
    """Three pictures of 0.5, 1 and 0.5 s; transparent ones on white."""
    from PIL import features

    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    shown = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=[500, 1000, 500])
    clip = media.read(path, fps=2)
    assert (clip.kind, clip.waveform, clip.seconds) == ("video", None, 2.0)
    assert clip.frames.shape == (4, 48, 64, 3) and clip.times.tolist() == [0.0, 0.5, 0.5, 1.5]
    found = (clip.frames[:, 24, 32] > 128).tolist()
    assert found == [[True, False, False], [False, True, False], [False, True, False], [False, False, True]]
    parts = list(media.segments(path, 1.0, fps=2))
    assert np.array_equal(np.concatenate([part.frames for part in parts]), clip.frames)
    assert media.read(path, fps=2, max_pixels=500).frames[0].size <= 3 * 500


def test_a_cut_animation_says_how_many_seconds_could_be_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shown = [Image.fromarray(random.integers(0, 255, (48, 64, 3), np.uint8)) for _ in range(8)]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        shown[0].save(path, save_all=True, append_images=shown[1:], duration=500)
        data = path.read_bytes()
        path.write_bytes(data[: round(0.6 * len(data))])
        with pytest.raises(MediaError, match=r"could be decoded|cannot be decoded"):
            media.read(path)


def test_heic_is_whole(tmp_path: Path) -> None:
    """Telephones store one picture as many tiles."""
    pillow_heif = pytest.importorskip("pillow_heif")
    image = pillow_heif.from_pillow(Image.fromarray(fields(1024, 1024)))
    image.save(tmp_path / "a.heic", quality=60, tile_size=512)
    clip = media.read(tmp_path / "a.heic")
    assert clip.kind == "image" and clip.frames.shape == (1, 1024, 1024, 3)
    assert np.array_equal(corners(clip.frames[0]), FIELDS)
    with pytest.raises(MediaError, match=r"pixels in a picture, and the limit is 1000; .*Limits\(pixels=1048576\)"):
        media.read(tmp_path / "a.heic", limits=media.Limits(pixels=1000))


def test_heic_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    with pytest.raises(MediaError, match=r"needs pillow-heif; pip install 'omnidrop\[heif\]'"):
        media.read(tmp_path / "a.heic")


def test_avif_is_read(tmp_path: Path) -> None:
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    Image.fromarray(fields()).save(tmp_path / "a.avif")
    assert np.array_equal(corners(media.read(tmp_path / "a.avif").frames[0]), FIELDS)


# the eight ways to hold a picture: (x, y) -> (a x + c y, b x + d y), as the display matrix of a track says it
WAYS = [
    (1, 0, 0, 1),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (-1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, 1, -1, 0),
    (0, -1, 1, 0),
    (0, -1, -1, 0),
]


@pytest.mark.parametrize(("a", "b", "c", "d"), WAYS)
def test_every_display_matrix_stands_upright(tmp_path: Path, a: int, b: int, c: int, d: int) -> None:
    path = clips.write(tmp_path / "a.mp4", [(number / 5, fields()) for number in range(5)], rate=5)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    picture = media.read(path).frames[0]
    expected = np.zeros_like(FIELDS)
    for y in range(2):
        for x in range(2):
            right, down = 2 * x - 1, 2 * y - 1  # from the middle
            expected[(b * right + d * down + 1) // 2, (a * right + c * down + 1) // 2] = FIELDS[y, x]
    assert picture.shape[:2] == ((64, 48) if b else (48, 64))
    assert np.array_equal(corners(picture), expected)
