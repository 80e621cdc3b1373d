"""What lies around the model: seconds from a file to the inputs of `generate`, stage by stage, as JSON.

    python -m benchmarks.reading > benchmarks/results/reading.json

Two files of 60 s, 1280 x 720, 30 pictures a second, H.264 and AAC, made with ffmpeg (it must be installed): `x264` as
libx264 writes by default (a key frame every 250 pictures at most, three B-frames in a row), `camera` as phones do (a
key frame a second, no B-frames). The pictures move and are noisy, and the crop sways as a hand-held camera does.

Ways, in turns, each round beginning with another one; 2 pictures a second, processor of Qwen2.5-Omni (tiny tokenizer;
sizes of pictures and of mel spectra as published), pictures of 9 x 16 tokens:

  omnidrop      `omnidrop.media.read`, then `omnidrop.build`
  before        the same, but every picture is decoded, and the encoders' inputs are copied twice
  transformers  `transformers.video_utils.load_video(backend="pyav")`, then the processor. It reads no sound of such a
                file without torchcodec, so it is given ours, and sound is not part of `shared_total`.

Stages: `scan` (packets, before decoding), `decode`, `convert` (to small RGB pictures), `sound`, `resize` and `patch`
(the video processor), `mel` (the feature extractor), `other` (tokens, template, copies). In transformers' way `decode`
holds the conversion to RGB. A stage inside another is counted once, as itself. `cpu`: seconds of all threads.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from omnidrop._torchvision import ensure_importable

ensure_importable()
import transformers  # noqa: E402
from omnidrop_lab.kit.stats import spread  # noqa: E402
from transformers.video_utils import load_video  # noqa: E402

import omnidrop  # noqa: E402
from omnidrop import prompt  # noqa: E402
from omnidrop.media import decoder, pictures, reading  # noqa: E402
from omnidrop.media.plan import Plan  # noqa: E402
from omnidrop.provenance import made, versions  # noqa: E402

QUESTION = "what color is the circle ?"
TOKEN = 28  # pixels a side
SOURCE = (
    "testsrc2=s=1600x900:r=30[a];mandelbrot=s=400x225:r=30,scale=1600:900[b];[a][b]blend=all_mode=average,"
    "noise=alls=4:allf=t,crop=1280:720:x='160+120*sin(t)':y='90+70*cos(0.7*t)',format=yuv420p[v];"
    "sine=f=300:r=44100[s];anoisesrc=a=0.05:r=44100[n];[s][n]amix[o]"
)
FILES = {"x264": [], "camera": ["-preset", "veryfast", "-g", "30", "-bf", "0"]}


def command(options: list[str], seconds: float) -> list[str]:
    """What makes a file, but for its name."""
    words = ["ffmpeg", "-v", "error", "-filter_complex", SOURCE, "-map", "[v]", "-map", "[o]", "-t", f"{seconds:g}"]
    return [*words, "-c:v", "libx264", *options, "-c:a", "aac", "-ac", "2"]


def published(processor: Any) -> Any:
    """The tiny model's processor with the sizes of Qwen2.5-Omni's."""
    processor.video_processor.size = {"shortest_edge": 128 * TOKEN**2, "longest_edge": 768 * TOKEN**2}
    processor.feature_extractor = transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=300)
    processor.position_id_per_seconds = 25.0
    return processor


class Stages:
    """Seconds by stage. What runs inside another stage is not counted there."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.inside = [0.0]

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        self.inside.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] += took - self.inside.pop()
            self.inside[-1] += took

    def watch(self, owner: Any, attribute: str, name: str) -> Any:
        """A patch: calls of a function are a stage."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return function(*args, **kwargs)

        return patch.object(owner, attribute, timed)


def ours(path: str, processor: Any) -> dict[str, Any]:
    return omnidrop.build(processor, omnidrop.media.read(path), QUESTION)


def before(path: str, processor: Any) -> dict[str, Any]:
    joined = prompt._joined

    def copied(name: str, tensors: Any) -> Any:
        return joined(name, tensors).clone() if len(tensors) == 1 else joined(name, tensors)

    with patch.object(Plan, "of", lambda *_: None), patch.object(prompt, "_joined", copied):
        return ours(path, processor)


def theirs(path: str, processor: Any, sound: Any, stages: Stages) -> dict[str, Any]:
    with stages.of("decode"):
        frames, _ = load_video(path, fps=2, backend="pyav")
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    most = (9 * 16 + 0.5) * TOKEN**2  # exactly 9 x 16 tokens may fall short by rounding
    size = {"shortest_edge": 128 * TOKEN**2, "longest_edge": int(most)}
    video = {"size": size, "do_sample_frames": False, "fps": 2.0, "cap_pixels_per_frame": False}
    return processor(
        text=[text], videos=[frames], audio=[sound], sampling_rate=16_000, return_tensors="pt", videos_kwargs=video,
        position_id_per_seconds=25.0, seconds_per_chunk=2.0, load_audio_from_video=True, audio_from_video_indices=[0],
    )  # fmt: skip


def measured(run: Callable[[Stages], Any], processor: Any) -> tuple[dict[str, float], Any]:
    stages, video = Stages(), type(processor.video_processor)
    watched = [
        (reading, "survey", "scan"), (reading, "_shown", "decode"), (pictures.ToArray, "__call__", "convert"),
        (reading, "_heard", "sound"), (video, "resize", "resize"), (video, "rescale_and_normalize", "patch"),
        (video, "patchify", "patch"), (type(processor.feature_extractor), "__call__", "mel"),
    ]  # fmt: skip
    with ExitStack() as patches:
        for owner, attribute, name in watched:
            patches.enter_context(stages.watch(owner, attribute, name))
        cpu = time.process_time()
        with stages.of("other"):
            result = run(stages)
        cpu = time.process_time() - cpu
    total = sum(stages.seconds.values())
    sums = {"total": total, "shared_total": total - stages.seconds["sound"], "cpu": cpu}
    return dict(stages.seconds) | sums, result


def frames_decoded(path: str) -> int:
    """How many pictures the decoder gives for one `read`."""
    decode, count = decoder.Decoder._decode, 0

    def counted(self: Any, packet: Any) -> list[Any]:
        nonlocal count
        frames = decode(self, packet)
        count += len(frames) if self.stream.type == "video" else 0
        return frames

    with patch.object(decoder.Decoder, "_decode", counted):
        omnidrop.media.read(path)
    return count


def compare(path: str, processor: Any, rounds: int) -> dict[str, Any]:
    sound = omnidrop.media.read(path).waveform
    ways: dict[str, Callable[[Stages], Any]] = {
        "omnidrop": lambda stages: ours(path, processor),
        "before": lambda stages: before(path, processor),
        "transformers": lambda stages: theirs(path, processor, sound, stages),
    }
    names, times = list(ways), {name: [] for name in ways}  # type: ignore[var-annotated]
    made_inputs: dict[str, Any] = {name: measured(ways[name], processor)[1] for name in names}  # and a warm-up
    for key, value in made_inputs["omnidrop"].items():
        assert key == "use_audio_in_video" or torch.equal(value, made_inputs["before"][key]), key
    grids = {name: made_inputs[name]["video_grid_thw"].tolist() for name in names}
    assert grids["omnidrop"] == grids["transformers"], grids
    del made_inputs
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(measured(ways[name], processor)[0])
            print(path, number, name, {k: round(v, 3) for k, v in times[name][-1].items()}, file=sys.stderr)
    stages = {
        name: {stage: spread([each.get(stage, 0.0) for each in runs]) for stage in runs[0]}
        for name, runs in times.items()
    }
    ratios = {
        f"{name} / omnidrop": {
            stage: spread([a[stage] / b[stage] for a, b in zip(times[name], times["omnidrop"], strict=True)])
            for stage in ("total", "shared_total", "cpu")
        }
        for name in ("before", "transformers")
    }
    with patch.object(Plan, "of", lambda *_: None):
        every = frames_decoded(path)
    return {
        "grid": grids["omnidrop"][0], "frames": {"omnidrop": frames_decoded(path), "before": every},
        "seconds": stages, "ratios": ratios,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the files")
    parser.add_argument("--folder", help="keep the files here, and take those that are there")
    options = parser.parse_args()
    _, processor = omnidrop.load()
    processor = published(processor)
    results = {}
    with ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        for name, words in FILES.items():
            path = folder / f"{name}.mp4"
            making = command(words, options.seconds)
            if not path.exists():
                subprocess.run([*making, str(path)], check=True)
            results[name] = {"file": " ".join(making), **compare(str(path), processor, options.rounds)}
    setup = made("", None) | {
        "command": " ".join(["python -m benchmarks.reading", *sys.argv[1:]]),
        "versions": versions(), "rounds": options.rounds, "seconds": options.seconds,
    }  # fmt: skip
    print(json.dumps({"format": "omnidrop.reading", "setup": setup, "files": results}, indent=1))


if __name__ == "__main__":
    main()
