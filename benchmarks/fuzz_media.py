"""Mutated media files and WAV heads through the reader: only the library's own errors, in bounded time and memory.

    python benchmarks/fuzz_media.py --files 5000 --wav 20000 --out benchmarks/results/fuzz_media.json

Every case is made from the seed and its number, so that one can be made again (`--first N --files 1 --keep FOLDER`).
Cases run in child processes of bounded address space: one that dies or hangs is counted, named, and the run goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import selectors
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

LIMITS = {"seconds": 3600.0, "memory": 512 << 20, "pixels": 16_000_000, "patience": 10.0}
ADDRESS_SPACE = 4 << 30  # bytes of a child, PyTorch-free; FFmpeg's threads reserve much of it
HANG = 60.0  # seconds without a result after which a child is ended
BATCH = 250  # cases of one child
SIZE, PICTURES, SECONDS = (64, 64), 8, 1.0  # of the files that are mutated

# name -> (codec of the pictures or None, codec of the sound or None, options of the container)
KINDS: dict[str, tuple[str | None, str | None, dict[str, str]]] = {
    "a.mp4": ("mpeg4", "aac", {}),
    "front.mp4": ("libx264", "aac", {"movflags": "faststart"}),
    "frag.mp4": ("libx264", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    "a.mov": ("mjpeg", "pcm_s16le", {}),
    "a.mkv": ("libx264", "aac", {}),
    "a.webm": ("libvpx", "libopus", {}),
    "a.avi": ("mpeg4", "libmp3lame", {}),
    "a.flv": ("flv1", "aac", {}),
    "a.ts": ("libx264", "aac", {}),
    "a.mpg": ("mpeg2video", "mp2", {}),
    "a.wmv": ("msmpeg4", "libmp3lame", {}),
    "a.nut": ("mpeg4", "mp2", {}),
    "a.mxf": ("mpeg2video", "pcm_s16le", {}),
    "a.h264": ("libx264", None, {}),
    "a.hevc": ("libx265", None, {}),
    "a.ivf": ("libvpx", None, {}),
    "a.mjpeg": ("mjpeg", None, {}),
    "a.m2v": ("mpeg2video", None, {}),
    "a.gif": ("gif", None, {}),
    "a.apng": ("apng", None, {"plays": "0"}),
    "a.ogg": (None, "libopus", {}),
    "flac.ogg": (None, "flac", {}),
    "a.m4a": (None, "aac", {}),
    "a.mp3": (None, "libmp3lame", {}),
    "a.aac": (None, "aac", {}),
    "a.ac3": (None, "ac3", {}),
    "a.flac": (None, "flac", {}),
    "a.wav": (None, "pcm_s16le", {}),
    "float.wav": (None, "pcm_f32le", {}),
    "a.w64": (None, "pcm_s16le", {}),
    "a.aiff": (None, "pcm_s16be", {}),
    "a.au": (None, "pcm_s16be", {}),
    "a.caf": (None, "pcm_s16le", {}),
    "a.wv": (None, "wavpack", {}),
    "a.tta": (None, "tta", {}),
}


def write(path: Path, video: str | None, audio: str | None, options: dict[str, str]) -> None:
    """A second of moving noise and of a tone."""
    import av

    random = np.random.default_rng(0)
    rate = 25 if video == "mpeg2video" else PICTURES
    with av.open(str(path), "w", options=options) as out:
        streams: list[Any] = []
        if video is not None:
            picture = out.add_stream(video, rate=rate)
            picture.width, picture.height = SIZE
            picture.pix_fmt = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}.get(video, "yuv420p")
            streams.append(picture)
        if audio is not None:
            sound = out.add_stream(audio, rate=48_000)
            sound.codec_context.layout = "mono"
            streams.append(sound)
        if video is not None:
            for number in range(round(rate * SECONDS)):
                pixels = random.integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, rate)
                out.mux(picture.encode(frame))
            out.mux(picture.encode())
        if audio is not None:
            wave = (0.5 * np.sin(np.arange(round(48_000 * SECONDS)) / 20)).astype(np.float32)
            resampler = av.AudioResampler(sound.codec_context.format.name, "mono", 48_000)
            for start in range(0, len(wave), 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
                for each in resampler.resample(frame):
                    out.mux(sound.encode(each))
            out.mux(sound.encode())


def sources(folder: Path) -> dict[str, bytes]:
    """The whole files, by name. Images that this Pillow cannot write are left out."""
    from PIL import Image

    found = {}
    for name, (video, audio, options) in KINDS.items():
        write(folder / name, video, audio, options)
        found[name] = (folder / name).read_bytes()
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (32, 48, 4), np.uint8)
    pictures = [Image.fromarray(np.roll(pixels, 5 * i, 1)) for i in range(3)]
    for suffix in ("png", "jpg", "webp", "bmp", "tif", "avif", "jp2", "ppm"):
        mode = "RGBA" if suffix in ("png", "webp") else "RGB"
        for several in (False, True) if suffix in ("png", "webp", "tif") else (False,):
            name = f"{'several' if several else 'image'}.{suffix}"
            more = {"save_all": True, "append_images": [p.convert(mode) for p in pictures[1:]]} if several else {}
            try:
                pictures[0].convert(mode).save(folder / name, **more)
                found[name] = (folder / name).read_bytes()
            except (OSError, ValueError, KeyError) as error:
                print(f"{name} cannot be written here: {error}", file=sys.stderr)
    return found


EXTREMES = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x01", b"\xff" * 8, bytes(16)]


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """One to eight changes: bits, bytes, extreme numbers, cuts, repeats, swaps; half of them within the head."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        if len(data) < 16:
            break
        end = min(len(data), 512) if random.random() < 0.5 else len(data)
        at, length = int(random.integers(0, end)), int(random.integers(1, 65))
        match int(random.integers(0, 8)):
            case 0:
                data[at] ^= 1 << int(random.integers(0, 8))
            case 1:
                data[at] = int(random.integers(0, 256))
            case 2:
                extreme = EXTREMES[int(random.integers(0, len(EXTREMES)))]
                data[at : at + len(extreme)] = extreme
            case 3:
                data[at : at + length] = random.bytes(length)
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                other = int(random.integers(0, len(data)))
                data[at : at + length], data[other : other + length] = (
                    data[other : other + length],
                    data[at : at + length],
                )
            case 7 if random.random() < 0.3:
                del data[int(random.integers(16, len(data))) :]
    return bytes(data)


def wav_head(random: np.random.Generator) -> bytes:
    """A WAV file of 2 kB, each field of its head right, extreme or random."""

    def field(right: int, bits: int) -> int:
        choice = random.random()
        if choice < 0.5:
            return right
        extremes = [0, 1, 2, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
        return int(random.integers(0, 1 << bits)) if choice < 0.75 else extremes[int(random.integers(0, 6))]

    data = random.bytes(2000)
    kind, channels, rate = field(int(random.choice([1, 3, 6, 7, 0xFFFE, 17])), 16), field(1, 16), field(16_000, 32)
    width = field(int(random.choice([8, 16, 24, 32, 64])), 16)
    head = struct.pack("<HHIIHH", kind, channels, rate, field(32_000, 32), field(2, 16), width)
    size = field(len(data), 32)
    return (
        b"RIFF" + struct.pack("<I", field(36 + len(data), 32)) + b"WAVEfmt " + struct.pack("<I", field(16, 32)) + head
    ) + (b"data" + struct.pack("<I", size) + data)


def outcome(path: Path) -> str:
    """What reading gives, both ways: "read", one of the library's errors, or "foreign: ..."."""
    from omnidrop import media
    from omnidrop.errors import OmnidropError

    limits = media.Limits(**LIMITS)  # type: ignore[arg-type]
    try:
        clip = media.read(path, max_frames=6, limits=limits)
        if clip.kind != "image":
            for _ in media.segments(path, 2.0, fps=1.0, limits=limits):
                pass
        return "read"
    except OmnidropError as error:
        return type(error).__name__
    except BaseException as error:
        return f"foreign: {type(error).__name__}: {error}"[:300]


def child(options: argparse.Namespace) -> None:
    """Run a stretch of cases; a line of JSON each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    whole = {path.name: path.read_bytes() for path in sorted(Path(options.sources).iterdir())}
    names = list(whole)
    for number in range(options.first, options.first + options.files):
        random = np.random.default_rng([options.seed, number, options.kind == "wav"])
        name = names[number % len(names)] if options.kind == "files" else "head.wav"
        path = Path(options.keep or options.work) / f"{number}.{name}"
        path.write_bytes(mutated(whole[name], random) if options.kind == "files" else wav_head(random))
        start = time.perf_counter()
        result = outcome(path)
        line = {"number": number, "name": name, "outcome": result, "seconds": time.perf_counter() - start}
        line["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(line), flush=True)
        if not options.keep:
            path.unlink()


def batch(command: list[str]) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of one child, and how it went wrong."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while waiting.select(HANG):
            line = process.stdout.readline()
            if not line:
                status = process.wait()
                return lines, None if status == 0 else f"died with status {status}"
            lines.append(json.loads(line))
    process.kill()
    process.wait()
    return lines, f"gave no result in {HANG:g} s"


def run(kind: str, count: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All cases of one kind, and their counts."""
    lines: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    at, end = options.first, options.first + count
    start = time.perf_counter()
    while at < end:
        size = min(BATCH, end - at)
        command = [sys.executable, __file__, "--child", "--kind", kind, "--first", str(at), "--files", str(size)]
        command += ["--seed", str(options.seed), "--sources", str(folder / "sources"), "--work", str(folder / "work")]
        done, wrong = batch([*command, *(["--keep", options.keep] if options.keep else [])])
        lines += done
        at += len(done)
        if wrong is not None:
            failures.append({"number": at, "outcome": wrong})
            at += 1
        print(f"{kind}: {at - options.first} of {count}", file=sys.stderr)
    failures += [line for line in lines if line["outcome"].startswith("foreign")]
    by_name: dict[str, Counter] = {}
    for line in lines:
        by_name.setdefault(line["name"], Counter())[line["outcome"].partition(":")[0]] += 1
    return {
        "cases": count,
        "outcomes": dict(Counter(line["outcome"].partition(":")[0] for line in lines)),
        "failures": failures,
        "slowest_seconds": max((line["seconds"] for line in lines), default=0.0),
        "peak_bytes": max((line["peak"] for line in lines), default=0),
        "seconds": time.perf_counter() - start,
        "by_name": {name: dict(counts) for name, counts in sorted(by_name.items())},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--wav", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    parser.add_argument("--keep", help="leave the files of the cases in this folder")
    for name in ("--kind", "--sources", "--work"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    import av
    from PIL import __version__ as pillow

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("sources", "work"):
            (folder / name).mkdir()
        made = sources(folder / "sources")
        for path in (folder / "sources").iterdir():
            if path.name not in made:
                path.unlink()
        document = {
            "format": "omnidrop.fuzz_media",
            "command": "python benchmarks/fuzz_media.py "
            f"--files {options.files} --wav {options.wav} --first {options.first} --seed {options.seed}",
            "av": av.__version__,
            "pillow": pillow,
            "limits": LIMITS,
            "address_space": ADDRESS_SPACE,
            "files": run("files", options.files, options, folder),
            "wav": run("wav", options.wav, options, folder),
        }
    text = json.dumps(document, indent=1) + "\n"
    if options.out:
        Path(options.out).write_text(text)
    print(text)
    return 1 if document["files"]["failures"] or document["wav"]["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
