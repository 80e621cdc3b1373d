"""Files made with PyAV come back as the pictures, times and sound that went in; what cannot be read says so clearly."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import omnidrop
from omnidrop import loading, media, prompt
from omnidrop.errors import InputError, MediaError, ModelError, SettingError
from omnidrop.media.pictures import ToArray

pytestmark = pytest.mark.slow

av = pytest.importorskip("av")

RATE = 25  # pictures a second of most files here


def shade(second: float) -> int:
    """The grey level that a picture at this second has: time can be read off a decoded picture."""
    return 20 + round(10 * second)


def tone(seconds: float, rate: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(
    path: Path,
    seconds: float = 4.0,
    *,
    rate: int = RATE,
    size: tuple[int, int] = (64, 48),
    sound: float | None = None,
    codec: str = "mpeg4",
    audio_codec: str = "aac",
    gop: int = 10,
    pictures: bool = True,
    audio_rate: int = 44_100,
    layout: str = "stereo",
) -> Path:
    """A video whose grey level rises with time, with or without a 440 Hz tone, or that tone alone."""
    with av.open(str(path), "w") as out:
        video = audio = None
        if pictures:
            video = out.add_stream(codec, rate=rate)
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            video.codec_context.gop_size = gop
        if sound is not None:
            audio = out.add_stream(audio_codec, rate=audio_rate)
            audio.codec_context.layout = layout
        if video is not None:
            for i in range(round(seconds * rate)):
                grey = np.full((size[1], size[0], 3), shade(i / rate), np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, rate)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        if audio is not None:
            wave = np.repeat(tone(sound, audio_rate)[None], 2 if layout == "stereo" else 1, 0)
            wanted = audio.codec_context.format.name
            packed = not wanted.endswith("p")
            for start in range(0, wave.shape[1], 1024):
                block = wave[:, start : start + 1024]
                if wanted.startswith(("s16", "s32")):
                    kind = np.int16 if wanted.startswith("s16") else np.int32
                    block = (block * np.iinfo(kind).max).astype(kind)
                block = np.ascontiguousarray(block.T.reshape(1, -1) if packed else block)
                frame = av.AudioFrame.from_ndarray(block, format=wanted, layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = audio_rate, start, Fraction(1, audio_rate)
                out.mux(audio.encode(frame))
            out.mux(audio.encode())
    return path


def grey_levels(clip: media.Media) -> np.ndarray:
    return clip.frames.mean(axis=(1, 2, 3))


def expected_levels(clip: media.Media) -> np.ndarray:
    return np.array([shade(t) for t in clip.times])


# reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm"])
@pytest.mark.parametrize("sound", [True, False])
def test_video_with_and_without_sound(tmp_path: Path, name: str, sound: bool) -> None:
    webm = name.endswith("webm")
    path = write(
        tmp_path / name,
        4.0,
        sound=4.0 if sound else None,
        codec="libvpx" if webm else "mpeg4",
        audio_codec="libopus" if webm else "aac",
        audio_rate=48_000 if webm else 44_100,
    )
    clip = media.read(path)
    assert clip.kind == "video" and clip.frames.dtype == np.uint8 and clip.frames.shape == (8, 48, 64, 3)
    assert clip.fps == 2.0 and abs(clip.seconds - 4.0) < 0.05
    np.testing.assert_allclose(clip.times, np.arange(8) / 2, atol=0.041)  # at most one picture of 25 a second early
    assert np.abs(grey_levels(clip) - expected_levels(clip)).max() < 4
    if not sound:
        assert clip.waveform is None
        return
    assert clip.waveform.dtype == np.float32 and abs(len(clip.waveform) - 64_000) < 2_000
    spectrum = np.abs(np.fft.rfft(clip.waveform[8_000:56_000]))
    assert abs(spectrum.argmax() * 16_000 / 48_000 - 440) < 1


def test_audio_file(tmp_path: Path) -> None:
    path = write(tmp_path / "tone.wav", pictures=False, sound=3.0, audio_codec="pcm_s16le", layout="mono")
    clip = media.read(path)
    assert (clip.kind, clip.frames, clip.times, clip.fps) == ("audio", None, None, None)
    assert abs(clip.seconds - 3.0) < 0.01 and len(clip.waveform) == round(clip.seconds * 16_000)
    expected = tone(3.0)
    same = min(len(expected), len(clip.waveform))
    assert np.abs(clip.waveform[200 : same - 200] - expected[200 : same - 200]).max() < 0.02


def test_image_file(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    clip = media.read(tmp_path / "a.png")
    assert (clip.kind, clip.seconds, clip.waveform) == ("image", 0.0, None)
    np.testing.assert_array_equal(clip.frames[0], picture)


def test_image_stands_upright_and_transparency_is_dropped(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (50, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    assert media.read(tmp_path / "a.jpg").frames.shape == (1, 50, 30, 3)
    Image.new("RGBA", (50, 30)).save(tmp_path / "b.png")
    assert media.read(tmp_path / "b.png").frames.shape == (1, 30, 50, 3)


def test_odd_number_of_pictures_stays_and_the_last_is_partial(tmp_path: Path) -> None:
    clip = media.read(write(tmp_path / "a.mp4", 3.4), fps=2)
    assert len(clip.frames) == 7 and clip.fps == 2.0  # 0, 0.5, ..., 3.0


def test_a_video_slower_than_fps_is_not_stretched(tmp_path: Path) -> None:
    clip = media.read(write(tmp_path / "a.mp4", 6.0, rate=1), fps=2)
    assert len(clip.frames) == 6 and clip.fps == 1.0
    np.testing.assert_allclose(clip.times, np.arange(6), atol=1e-6)


@pytest.mark.parametrize("gop", [5, 1000], ids=["many key frames", "one key frame"])
def test_thinning_keeps_the_whole_length_and_true_times(tmp_path: Path, gop: int) -> None:
    """8 pictures of 40 s lie 5 s apart: far enough to seek, and with a single key frame seeking must not be wrong."""
    clip = media.read(write(tmp_path / "a.mp4", 20.0, rate=10, gop=gop, size=(32, 32)), max_frames=4)
    assert len(clip.frames) == 4 and clip.fps == pytest.approx(0.2)
    np.testing.assert_allclose(clip.times, [0, 5, 10, 15], atol=0.11)
    assert np.abs(grey_levels(clip) - expected_levels(clip)).max() < 4


def test_thinning_to_an_odd_number_gives_an_even_one(tmp_path: Path) -> None:
    assert len(media.read(write(tmp_path / "a.mp4", 8.0), max_frames=5).frames) == 4


def test_only_wanted_pictures_are_converted_and_they_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    convert = ToArray.__call__
    monkeypatch.setattr(ToArray, "__call__", lambda self, frame: calls.append(1) or convert(self, frame))
    clip = media.read(write(tmp_path / "a.mp4", 8.0, size=(320, 240)), max_frames=4, max_pixels=1_000)
    height, width = clip.frames.shape[1:3]
    assert len(calls) == 4 and height * width <= 1_000 and abs(width / height - 4 / 3) < 0.05


@pytest.mark.parametrize(
    "size, limit, expected",
    [((100, 100), None, (100, 100)), ((100, 100), 10_000, (100, 100)), ((720, 1280), 128 * 28 * 28, (237, 422))],
)
def test_fit(size: tuple[int, int], limit: int | None, expected: tuple[int, int]) -> None:
    assert media.fit(*size, limit) == expected


def test_late_sound_is_led_in_by_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", 4.0, sound=2.0, audio_codec="pcm_s16le")
    with av.open(str(path)) as source, av.open(str(tmp_path / "late.mkv"), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                packet.pts += round(1.5 / packet.time_base)
                packet.dts = packet.pts
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    clip = media.read(tmp_path / "late.mkv")
    assert abs(len(clip.waveform) / 16_000 - 3.5) < 0.05
    assert np.abs(clip.waveform[: 16_000 + 7_000]).max() < 1e-3 < 0.3 < np.abs(clip.waveform[26_000:]).max()


def test_a_bare_stream_without_times(tmp_path: Path) -> None:
    clip = media.read(write(tmp_path / "a.h264", 6.0, codec="libx264"))
    assert clip.fps == 2.0 and len(clip.frames) == 12 and abs(clip.seconds - 6.0) < 0.1
    assert np.abs(grey_levels(clip) - expected_levels(clip)).max() < 4


def test_video_stands_upright(tmp_path: Path) -> None:
    """A telephone's file says "turn me": here by 90 degrees clockwise, so that the white left side comes to the top."""
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        video = out.add_stream("mpeg4", rate=5)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:, :32] = 255
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 5)
            out.mux(video.encode(frame))
        out.mux(video.encode())
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    clip = media.read(tmp_path / "turned.mp4")
    assert clip.frames.shape[1:3] == (64, 48)
    assert clip.frames[0, :28].mean() > 240 and clip.frames[0, -28:].mean() < 15


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    mp3 = write(tmp_path / "a.mp3", pictures=False, sound=2.0, audio_codec="libmp3lame")
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "cover.png")
    with (
        av.open(str(mp3)) as source,
        av.open(str(tmp_path / "cover.png")) as cover,
        av.open(str(tmp_path / "b.mp3"), "w") as out,
    ):
        sound = out.add_stream_from_template(source.streams.audio[0])
        picture = out.add_stream_from_template(cover.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic
        for container, stream in ((cover, picture), (source, sound)):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    assert media.read(tmp_path / "b.mp3").kind == "audio"


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    media.read(write(tmp_path / "a.mp4", 4.0, sound=4.0), progress=lambda *step: told.append(step))
    assert {what for what, _, _ in told} == {"pictures", "sound"}
    assert all(0 <= done <= total + 0.2 for _, done, total in told)


# what cannot be read -------------------------------------------------------------------------------------------------


def refused(text: str, *arguments: object, **options: object) -> None:
    with pytest.raises(MediaError, match=re.escape(text)) as caught:
        media.read(*arguments, **options)  # type: ignore[arg-type]
    assert ";" in str(caught.value), "an error says what to do next"


def test_missing_folder_empty_and_text_files(tmp_path: Path) -> None:
    refused("does not exist; check the path", tmp_path / "no.mp4")
    refused("is a folder", tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    refused("is empty (0 bytes)", tmp_path / "empty.mp4")
    (tmp_path / "a.txt").write_text("words and more words\n" * 50)
    refused("a.txt is", tmp_path / "a.txt")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5_000))
    refused("is no video, audio or image file that FFmpeg knows", tmp_path / "noise.mp4")


def test_subtitles_hold_neither_pictures_nor_sound(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n\n")
    refused("is a text file", tmp_path / "a.srt")
    with av.open(str(tmp_path / "a.srt")) as source, av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.subtitles[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    refused("holds neither pictures nor sound", tmp_path / "a.mkv")


def test_damaged_image(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2_000])
    refused("is an image that cannot be decoded", tmp_path / "cut.png")


def test_video_without_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        video = out.add_stream("mpeg4", rate=RATE)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=16_000)
        audio.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        out.mux(audio.encode(frame))
    refused("has a video stream without frames", tmp_path / "a.mkv")


def test_cut_off_video(tmp_path: Path) -> None:
    """With its index at the front a cut file opens, and says it were whole."""
    path = write(tmp_path / "a.mp4", 8.0, size=(320, 240))
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    refused("seconds could be decoded", tmp_path / "cut.mp4")


def test_sound_demanded_or_refused(tmp_path: Path) -> None:
    from PIL import Image

    refused("has no sound track, and sound was demanded", write(tmp_path / "a.mp4", 1.0), sound=True)
    wav = write(tmp_path / "a.wav", pictures=False, sound=1.0, audio_codec="pcm_s16le")
    refused("is sound alone, and sound was to be left out", wav, sound=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    refused("is an image, and sound was demanded", tmp_path / "a.png", sound=True)
    assert media.read(write(tmp_path / "b.mp4", 1.0, sound=1.0), sound=False).waveform is None


def test_empty_sound(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
    refused("is empty: not one sample could be decoded", tmp_path / "a.wav")


@pytest.mark.parametrize("options", [{"fps": 0}, {"max_frames": 0}, {"max_pixels": 0}, {"sample_rate": 0}], ids=str)
def test_options_out_of_range(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        media.read(tmp_path / "not opened.mp4", **options)


# from clips to inputs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> tuple[object, object]:
    return loading.load()


@pytest.fixture(scope="module")
def demo() -> media.Media:
    return media.read(loading.TINY.parent / "demo.mp4")


QUESTION = "what color is the circle ?"
SECONDS = 16  # of the shipped clip


def tokens(processor: object, inputs: dict) -> dict[str, int]:
    ids = inputs["input_ids"]
    words = {kind: getattr(processor, f"{kind}_token") for kind in ("audio", "video", "image")}
    return {k: int((ids == processor.tokenizer.convert_tokens_to_ids(word)).sum()) for k, word in words.items()}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # numpy 2 and transformers' processor
def test_one_clip_gives_what_the_processor_itself_gives(tiny: tuple, demo: media.Media) -> None:
    """The prompt is put together clip by clip; for one clip the processor can do it all, and must agree."""
    _, processor = tiny
    ours = prompt.build(processor, demo, QUESTION)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    size = {"shortest_edge": 84 * 84, "longest_edge": 84 * 84}
    timing = {"position_id_per_seconds": 5, "seconds_per_chunk": 2.0}
    video = {"size": size, "do_sample_frames": False, "fps": 2.0}
    options: dict = {"sampling_rate": 16_000, "return_tensors": "pt"}
    if hasattr(type(processor), "load_audio_from_video"):
        options |= timing | {"load_audio_from_video": True, "audio_from_video_indices": [0], "videos_kwargs": video}
    else:
        options["videos_kwargs"] = video | timing | {"use_audio_in_video": True}
    theirs = processor(text=[text], videos=[demo.frames], audio=[demo.waveform], **options)
    for name in ours:
        if name != "use_audio_in_video":
            assert torch.equal(torch.as_tensor(theirs[name]).to(ours[name].dtype), ours[name]), name
    assert ours["use_audio_in_video"] is True
    assert set(ours) <= {*theirs, "use_audio_in_video"}


def test_pictures_are_not_sampled_again_and_times_follow_the_real_rate(tiny: tuple, demo: media.Media) -> None:
    model, processor = tiny
    thinned = replace(demo, frames=demo.frames[::4], times=demo.times[::4], fps=0.5)
    inputs = prompt.build(processor, [thinned, demo], QUESTION)
    assert inputs["video_grid_thw"].tolist() == [[4, 6, 6], [16, 6, 6]]
    assert inputs["video_second_per_grid"].tolist() == [4.0, 1.0]
    seconds = omnidrop.layout(model, inputs).second[0]
    item = omnidrop.layout(model, inputs).item[0]
    video = omnidrop.layout(model, inputs).modality[0] == omnidrop.Modality.VIDEO
    assert seconds[video & (item == 0)].max() == 12.0 and seconds[video & (item == 1)].max() == 15.0


def test_odd_pictures_are_filled_up_by_the_processor(tiny: tuple, demo: media.Media) -> None:
    inputs = prompt.build(tiny[1], replace(demo, frames=demo.frames[:7], waveform=None), QUESTION)
    assert inputs["video_grid_thw"].tolist() == [[4, 6, 6]] and "use_audio_in_video" not in inputs


@pytest.mark.parametrize("seconds", [31, 310])
def test_long_sound_is_not_cut(tiny: tuple, demo: media.Media, seconds: int) -> None:
    """WhisperFeatureExtractor cuts at its window (300 s here, 30 s by default) unless told otherwise."""
    model, processor = tiny
    sound = replace(demo, kind="audio", frames=None, waveform=tone(seconds), seconds=float(seconds))
    window = processor.feature_extractor.n_samples
    inputs = prompt.build(processor, sound, QUESTION)
    assert inputs["feature_attention_mask"].sum() == seconds * 20  # mel frames of the tiny model
    assert tokens(processor, inputs)["audio"] == seconds * 5
    if seconds == 31:
        try:
            processor.feature_extractor.n_samples = 30 * 16_000
            inputs = prompt.build(processor, [sound, demo], QUESTION)
        finally:
            processor.feature_extractor.n_samples = window
        assert inputs["feature_attention_mask"].sum(1).tolist() == [31 * 20, SECONDS * 20]
        assert model.generate(**inputs, max_new_tokens=1, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 1


def test_any_mix_of_clips_runs(tiny: tuple, demo: media.Media) -> None:
    model, processor = tiny
    image = replace(demo, kind="image", frames=demo.frames[:1], waveform=None)
    blip = replace(demo, kind="audio", frames=None, waveform=np.zeros(1, np.float32))
    silent = replace(demo, waveform=None)
    for clips, flag in (([image], False), ([blip], False), ([blip, demo, image, demo], True), ([silent, demo], False)):
        inputs = prompt.build(processor, clips, QUESTION)
        assert inputs.get("use_audio_in_video", False) is flag
        videos = [c for c in clips if c.kind == "video"]
        heard = sum(max(SECONDS * 5 if c.frames is not None else 1, 1) for c in clips if c.waveform is not None)
        images = sum(c.kind == "image" for c in clips)
        assert tokens(processor, inputs) == {"audio": heard, "video": len(videos) * SECONDS * 9, "image": images * 9}
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert out.shape[1] > inputs["input_ids"].shape[1]


def test_use_audio_false_leaves_the_sound_out(tiny: tuple, demo: media.Media) -> None:
    inputs = prompt.build(tiny[1], demo, QUESTION, use_audio=False)
    assert "input_features" not in inputs and "use_audio_in_video" not in inputs
    with pytest.raises(MediaError, match="is sound alone"):
        prompt.build(tiny[1], replace(demo, kind="audio", frames=None), QUESTION, use_audio=False)


def test_system_text_comes_first(tiny: tuple, demo: media.Media) -> None:
    processor = tiny[1]
    words = processor.tokenizer.decode(prompt.build(processor, demo, "when ?", system="you are red .")["input_ids"][0])
    assert "you are red" in words and "helpful" not in words


def test_clips_are_processed_once_for_several_questions(tiny: tuple, demo: media.Media) -> None:
    clips = [demo, replace(demo, kind="audio", frames=None)]
    processed = prompt.process(tiny[1], clips, system="be brief")
    for question in (QUESTION, "what ?"):
        ours, whole = processed.ask(tiny[1], question), prompt.build(tiny[1], clips, question, system="be brief")
        assert ours.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value, name


def test_pixel_values_are_not_copied(tiny: tuple, demo: media.Media) -> None:
    clips = prompt.process(tiny[1], demo)
    for question in (QUESTION, "name the animal ?"):
        inputs = clips.ask(tiny[1], question)
        for name in ("pixel_values_videos", "input_features"):
            assert inputs[name].data_ptr() == clips.tensors[name].data_ptr(), name


def test_prompts_are_padded_on_the_left(tiny: tuple, demo: media.Media) -> None:
    processor = tiny[1]
    short = replace(demo, frames=demo.frames[:4], waveform=demo.waveform[: 2 * demo.sample_rate])
    one, other = (prompt.build(processor, clip, QUESTION) for clip in (demo, short))
    batch = prompt.collate(processor, [one, other])
    gap = one["input_ids"].shape[1] - other["input_ids"].shape[1]
    assert gap > 0 and batch["input_ids"].shape == one["input_ids"].squeeze(0).expand(2, -1).shape
    assert (batch["input_ids"][1, :gap] == processor.tokenizer.pad_token_id).all()
    assert torch.equal(batch["input_ids"][1, gap:], other["input_ids"][0])
    assert batch["attention_mask"].sum(1).tolist() == [one["input_ids"].shape[1], other["input_ids"].shape[1]]
    mask = batch["feature_attention_mask"]
    assert mask.shape[0] == 2 and int(mask[1].sum()) == int(other["feature_attention_mask"].sum())
    assert torch.equal(batch["pixel_values_videos"][-len(other["pixel_values_videos"]) :], other["pixel_values_videos"])


def test_a_placeholder_in_the_question_is_refused(tiny: tuple, demo: media.Media) -> None:
    with pytest.raises(InputError, match="the question or the system text must not contain"):
        prompt.build(tiny[1], demo, f"what is {tiny[1].video_token} ?")


def test_wrong_sample_rate_is_refused(tiny: tuple, demo: media.Media) -> None:
    with pytest.raises(MediaError, match="read at 8000 Hz, the model hears 16000 Hz"):
        prompt.build(tiny[1], replace(demo, sample_rate=8_000), QUESTION)


def test_small_limit_lowers_the_processors_minimum(tiny: tuple, tmp_path: Path) -> None:
    """The families' processors enlarge small pictures to 128 tokens; a limit below that is a wish for fewer."""
    processor = tiny[1]
    saved = processor.video_processor.size
    try:
        processor.video_processor.size = {"shortest_edge": 3_136, "longest_edge": 12_845_056}  # of the real checkpoints
        clip = media.read(write(tmp_path / "a.mp4", 1.0, size=(1280, 720)))
        paper = prompt.build(processor, clip, QUESTION)
        assert paper["video_grid_thw"].tolist() == [[1, 18, 32]]  # 144 tokens: 288 a chunk of 2 s, the paper's number
        small = media.read(tmp_path / "a.mp4", max_pixels=28 * 28 * 32)
        assert prompt.build(processor, small, QUESTION, max_pixels=28 * 28 * 32)["video_grid_thw"].prod() // 4 <= 40
    finally:
        processor.video_processor.size = saved


# loading -------------------------------------------------------------------------------------------------------------


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        loading.load(tmp_path / "none")
    with pytest.raises(ModelError, match="no model at"):
        loading.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"of type 'llama'; supported: qwen2_5_omni, "):
        loading.load(tmp_path)
    with pytest.raises(SettingError, match="dtype is 'int7'; choose float32"):
        loading.load(dtype="int7")


def full_checkpoint(folder: Path) -> Path:
    """The tiny thinker inside a checkpoint of the full model, with the names of the published ones."""
    import json

    from safetensors.torch import load_file, save_file

    folder.mkdir()
    weights = load_file(loading.TINY / "model.safetensors")
    save_file(
        {f"thinker.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    thinker = json.loads((loading.TINY / "config.json").read_text())
    config = {"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "thinker_config": thinker}
    (folder / "config.json").write_text(json.dumps(config))
    for file in loading.TINY.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_the_thinker_of_a_full_checkpoint(tiny: tuple, tmp_path: Path) -> None:
    model, processor = loading.load(full_checkpoint(tmp_path / "full"), dtype="float32", device="cpu")
    expected = tiny[0].state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor.cpu(), expected[name].cpu()) for name, tensor in model.state_dict().items())
    assert processor.position_id_per_seconds == 5


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = full_checkpoint(tmp_path / "full")
    weights = load_file(folder / "model.safetensors")
    weights.pop("thinker.lm_head.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*lm_head.weight"):
        loading.load(folder)


def test_the_other_family(tmp_path: Path, demo: media.Media) -> None:
    """Qwen3-Omni: other classes, other timing, sound merged token by token; from a folder, as a user would."""
    from transformers import Qwen2VLImageProcessor, Qwen3OmniMoeProcessor, WhisperFeatureExtractor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    model, processor = _qwen3(tmp_path / "qwen3", Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3OmniMoeProcessor,
                              WhisperFeatureExtractor)  # fmt: skip
    inputs = prompt.build(processor, [demo, replace(demo, kind="audio", frames=None)], QUESTION)
    assert tokens(processor, inputs)["video"] == 16 * 9
    assert tokens(processor, inputs)["audio"] == 2 * 13 * SECONDS
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.5)) as trace:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert trace.layout.count(0)["audio"] == 2 * 13 * SECONDS and abs(trace.keep - 0.5) < 0.05


def _qwen3(folder: Path, image: type, video: type, whole: type, ears: type) -> tuple:
    import tiny as models  # tests/tiny.py

    factor = {"patch_size": models.PATCH, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 3 * 3 * 64, "longest_edge": 3 * 3 * 64}
    tokenizer = loading.load()[1].tokenizer
    words = {
        "<|VIDEO|>": models.Ids.VIDEO,
        "<|AUDIO|>": models.Ids.AUDIO,
        "<|IMAGE|>": models.Ids.IMAGE,
        "<|vision_bos|>": models.Ids.VISION_START,
        "<|vision_eos|>": models.Ids.VISION_END,
        "<|audio_bos|>": models.Ids.AUDIO_START,
        "<|audio_eos|>": models.Ids.AUDIO_END,
    }
    processor = whole(
        image_processor=image(size=size, **factor),
        video_processor=video(size=size, cap_pixels_per_frame=False, **factor),
        feature_extractor=ears(feature_size=models.MEL_BINS),
        tokenizer=tokenizer,
        chat_template=loading.load()[1].chat_template,
    )
    model = models.qwen3_thinker()
    for word, index in words.items():  # the tiny tokenizer's ids, in the tiny model's config
        own = tokenizer.convert_tokens_to_ids(word)
        for name, value in vars(model.config).items():
            if value == int(index) and name.endswith(("_token_id", "_token_index")):
                setattr(model.config, name, own)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return loading.load(folder, dtype="float32", device="cpu")


def test_importing_media_imports_no_decoder() -> None:
    code = "import sys, omnidrop.media; assert not {'av', 'PIL', 'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0
