"""Long clips: what reading in segments costs in quality and memory, and what an hour would cost a real model; as JSON.

    python benchmarks/long.py quality --model DIR --split dev --chunks 64 --clips 12 > benchmarks/results/long_dev.json
    python benchmarks/long.py memory --minutes 1 4 16 60 > benchmarks/results/long_memory.json
    python benchmarks/long.py cost > benchmarks/results/long_cost.json

`quality`: needle clips, one prompt against segments, with and without a limit on what the caches hold, and other rules
for who leaves a full cache. Only answers of one word. `memory`: each length in a process of its own, a clip written to
disk and read from there. `cost`: arithmetic from the real models' sizes, nothing is run. Progress on standard error.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import omnidrop_lab
import torch
from omnidrop_lab.kit.stats import Bootstrap
from omnidrop_lab.needle import ask, bench, clip, files, render
from torch import Tensor

import omnidrop
from omnidrop import loading, media, prompt
from omnidrop.core.budget import DecoderShape, TokenCounts, counts_of
from omnidrop.engine.hooks import temporary_attribute
from omnidrop.engine.upstream import cache_of
from omnidrop.memory import Memory
from omnidrop.methods import parse
from omnidrop.models import adapt
from omnidrop.provenance import model_checksum, source_checksum
from omnidrop.streaming import SEGMENT, held, prefill, stream

TYPES = ("video", "audio", "joint", "order", "list", "count", "none")
ALL_TOKENS = "omnidrop:keep=1"


# quality ------------------------------------------------------------------------------------------------------------


def at_random(scores: Sequence[Tensor], entries: Sequence[Tensor], hold: int, *, seed: int) -> list[Tensor]:
    """The control: each layer keeps entries by chance; a position has one draw, so that no entry is favoured by age."""
    length = max(int(positions.max()) for positions in entries) + 1
    luck = torch.rand(length, generator=torch.Generator().manual_seed(seed))
    return held.by_layer([luck[positions] for positions in entries], entries, hold)


def newest(scores: Sequence[Tensor], entries: Sequence[Tensor], hold: int) -> list[Tensor]:
    """The other control: a sliding window over the clip."""
    return held.by_layer([positions.float() for positions in entries], entries, hold)


def together(
    scores: Sequence[Tensor], entries: Sequence[Tensor], hold: int, *, from_depth: float, over_time: float = 0.0
) -> list[Tensor]:
    """One ranking for all layers: the mean score over those from a relative depth on; 0 where a token is not there.

    `over_time`: that share of the places goes to the best of each of 16 equal stretches of the clip so far.
    """
    known, start = torch.cat(list(entries)).unique(), int(from_depth * len(scores))
    total = torch.zeros(len(known))
    for worth, positions in zip(scores[start:], entries[start:], strict=True):
        total[torch.searchsorted(known, positions)] += worth
    part = (known - known[0]) * 16 // (known[-1] - known[0] + 1)
    chosen = []
    for positions in entries:
        where = torch.searchsorted(known, positions)
        worth = total[where].clone()
        for stretch in range(16):
            there = (part[where] == stretch).nonzero()[:, 0]
            worth[there[worth[there].argsort(descending=True)[: int(over_time * hold / 16)]]] += 1e3
        chosen += held.by_layer([worth], [positions], hold)
    return chosen


RULES: dict[str, Callable[..., list[Tensor]]] = {
    "by layer": held.by_layer,
    "deeper half": partial(together, from_depth=0.5),
    "all layers": partial(together, from_depth=0.0),
    "half over time": partial(together, from_depth=0.5, over_time=0.5),
    "newest": newest,
    "random": partial(at_random, seed=0),
}


def cases(
    reads: Sequence[str],
    keeps: Sequence[float],
    holds: Sequence[int],
    rules: Sequence[str],
    seconds: Sequence[float],
    scales: Sequence[float],
) -> list[dict]:
    """Every way to read a clip: one prompt or segments, a method, a limit, a rule."""
    methods = [f"tuned:keep={keep:g}" if keep < 1 else ALL_TOKENS for keep in keeps]
    found: list[dict[str, Any]] = []
    if "one prompt" in reads:
        found.append({"read": "one prompt", "method": None})
        found += [
            {"read": "one prompt", "method": f"{name}:keep={keep:g}"}
            for keep in keeps
            for name in ("omnidrop", "tuned")
            if keep < 1
        ]
    for length in seconds if "segments" in reads else ():
        found += [{"read": "segments", "seconds": length, "method": method} for method in methods]
        found += [{"read": "segments", "seconds": length, "method": ALL_TOKENS, "time_scale": s} for s in scales]
        found += [
            {"read": "segments", "seconds": length, "method": method, "hold": hold, "rule": rule}
            for method in methods
            for hold in holds
            for rule in rules
        ]
    return found


def pieces(whole: media.Media, seconds: float) -> Iterator[tuple[float, media.Media]]:
    """A clip in memory as `media.segments` gives a file: (start, stretch)."""
    assert whole.frames is not None and whole.times is not None and whole.waveform is not None and whole.fps is not None
    pictures, samples = round(seconds * whole.fps), round(seconds * whole.sample_rate)
    for i, first in enumerate(range(0, len(whole.frames), pictures)):
        seen = slice(first, first + pictures)
        heard = whole.waveform[i * samples : (i + 1) * samples]
        yield (
            i * seconds,
            media.Media(
                whole.path, "video", whole.frames[seen], whole.times[seen], whole.fps, heard, whole.sample_rate, seconds
            ),
        )


def asked_of(segments: list[tuple[float, Any]], behind: Tensor, media_ids: Tensor) -> list[tuple[float, Any]]:
    """The segments of one clip with another question: `behind` (Q,) are the ids behind the media."""
    changed = []
    for start, inputs in segments:
        ids = inputs["input_ids"][0]
        ids = torch.cat([ids[: _end(ids, media_ids)], behind])[None]
        changed.append((start, {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    return changed


def _end(ids: Tensor, media_ids: Tensor) -> int:
    return int(torch.isin(ids, media_ids).nonzero()[-1]) + 1


def remembering(encoder: Any) -> Callable[..., Any]:
    """The encoder's forward, run once for each input: all questions and cases about a clip share its encodings."""
    run, known = encoder.forward, dict[tuple, Any]()

    def forward(values: Tensor, *args: Any, **kwargs: Any) -> Any:
        key = (tuple(values.shape), float(values.double().sum()), float(values.double().square().sum()))
        if key not in known:
            known[key] = run(values, *args, **kwargs)
        return copy.copy(known[key])  # the model writes into it

    return forward


def quality(args: argparse.Namespace) -> dict[str, Any]:
    model, processor = loading.load(args.model)
    config = bench.Config(model="", split=args.split, chunks=args.chunks, types=tuple(args.types), draws=args.draws)
    plan = cases(args.reads, args.keeps, args.holds, args.rules, args.seconds, args.time_scales)
    words = adapt(model).prompt.vocabulary
    media_ids = torch.tensor([words.audio, words.video])
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for index in range(args.first, args.first + args.clips):
        if index > args.first and time.perf_counter() - began > 60 * args.within:
            break
        made, questions = clip(args.split, index, args.chunks), bench.ask_about(config, index)
        whole = ask.in_memory(made, config.size)
        batches = ask.prepare(model, processor, made, questions, size=config.size, words=True, batch=4)
        asked = [each for batch in batches for each in batch.asked]
        built = {
            seconds: [(at, prompt.build(processor, part, "what ?")) for at, part in pieces(whole, seconds)]
            for seconds in args.seconds
        }
        first = next(pieces(whole, min(args.seconds)))[1]
        behind = {}
        for each in asked:
            ids = prompt.build(processor, first, each.text)["input_ids"][0]
            behind[each.text] = ids[_end(ids, media_ids) :]
        for number, case in enumerate(plan):
            if case["read"] == "one prompt":
                method = parse(case["method"]) if case["method"] else None
                with omnidrop.lean(model):
                    answers = [answer for batch in batches for answer in ask.measure(model, batch, method)]
                for each, answer in zip(asked, answers, strict=True):
                    found = {"right": each.right(answer), "keep": answer.budgets["layers"]}
                    rows.append({"case": number, "clip": index, "type": each.question.type, **found})
        with ExitStack() as stack:
            for encoder in (adapt(model).vision.module, adapt(model).audio.module):
                stack.enter_context(temporary_attribute(encoder, "forward", remembering(encoder), "benchmarks.long"))
            for number, case in enumerate(plan):
                if case["read"] == "segments":
                    for each in asked:
                        parts = asked_of(built[case["seconds"]], behind[each.text], media_ids)
                        found = streamed(model, parts, case, each.token)
                        rows.append({"case": number, "clip": index, "type": each.question.type, **found})
        right = [sum(row["right"] for row in rows if row["case"] == number) for number in range(len(plan))]
        print(f"clip {index}: {time.perf_counter() - began:.0f} s, right so far {right}", file=sys.stderr, flush=True)
    return {
        "format": "omnidrop.long_quality",
        "version": 1,
        "model": model_checksum(args.model or loading.TINY),
        "split": args.split,
        "chunks": args.chunks,
        "clips": sorted({row["clip"] for row in rows}),
        "types": list(args.types),
        "code": source_checksum(omnidrop, omnidrop_lab),
        "units": {
            "right": "share of answers that are right, with the 95 % interval of a bootstrap over clips",
            "difference": "right minus that of the first result, paired over clips",
            "keep": "mean over layers of the share of audio and video tokens that entered",
            "held": "audio and video tokens in a layer's cache at the end, mean over layers; most_held: fullest layer",
            "seconds": "length of a segment",
        },
        "results": [_summary(case, number, rows) for number, case in enumerate(plan)],
    }


def streamed(model: Any, parts: list[tuple[float, Any]], case: dict[str, Any], token: int) -> dict[str, Any]:
    """One question about one clip in segments."""
    read = prefill(
        model,
        parts,
        method=parse(case["method"]),
        hold=case.get("hold"),
        time_scale=case.get("time_scale", 1.0),
        rule=RULES[case.get("rule", "by layer")],
    )
    return {
        "right": int(read.generate(max_new_tokens=1, do_sample=False)[0, -1]) == token,
        "keep": read.trace.keep,
        "held": sum(map(len, read.held)) / len(read.held),
        "most_held": max(map(len, read.held)),
        "most_while_read": max(read.most),
    }


def _summary(case: dict[str, Any], number: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    clips = sorted({row["clip"] for row in rows})
    boot = Bootstrap.make(len(clips))

    def table(which: int) -> tuple[np.ndarray, np.ndarray]:
        mine = [row for row in rows if row["case"] == which]
        right = [sum(row["right"] for row in mine if row["clip"] == index) for index in clips]
        return np.array(right, float), np.array([sum(row["clip"] == index for row in mine) for index in clips], float)

    right, asked = table(number)
    full, _ = table(0)
    mine = [row for row in rows if row["case"] == number]
    types = sorted({row["type"] for row in mine}, key=TYPES.index)
    return {
        **case,
        "questions": len(mine),
        "right": _interval(boot.mean(right, asked)),
        "difference": _interval(boot.difference(right, full, asked)),
        "by_type": {
            kind: round(float(np.mean([row["right"] for row in mine if row["type"] == kind])), 4) for kind in types
        },
        **{
            name: round(float(np.mean([row[name] for row in mine])), 4)
            for name in ("keep", "held", "most_held", "most_while_read")
            if name in mine[0]
        },
    }


def _interval(found: Any) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in found._asdict().items()}


# memory -------------------------------------------------------------------------------------------------------------

QUESTION = "what color is the circle ?"
LIMITS: dict[str, tuple[str, int | None]] = {
    "one prompt": ("tuned:keep=0.1", None),
    "segments": ("tuned:keep=0.1", None),
    "segments and hold": ("tuned:keep=0.1", 1024),
}
# glibc gives freed blocks back at once, so that resident memory is what is in use and not what once was
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
ONE_PROMPT_MINUTES = 16  # beyond, one prompt takes too long here: its attention grows with the square


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Each length in a process of its own: what one run leaves behind must not help the next."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in args.minutes:
            path = Path(folder) / f"{minutes:g}.mp4"
            print(f"writing {minutes:g} minutes", file=sys.stderr, flush=True)
            write(path, minutes)
            for limit in args.limits:
                if limit == "one prompt" and minutes > ONE_PROMPT_MINUTES:
                    continue
                print(f"reading {minutes:g} minutes, {limit}", file=sys.stderr, flush=True)
                command = [sys.executable, __file__, "one", str(path), limit]
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ALLOCATOR}
                )
                results.append({"minutes": minutes, **json.loads(done.stdout)})
    return {
        "format": "omnidrop.long_memory",
        "version": 1,
        "model": model_checksum(loading.TINY),
        "threads": torch.get_num_threads(),
        "units": {
            "peak_mib": "resident memory of the process above that before the clip is opened, MiB; weights are below",
            "kv_mib": "keys and values that the cache holds at the end, MiB",
            "most_in_a_layer": "audio and video tokens in the fullest layer's cache while a segment ran",
            "seconds": "wall time, reading the file and the answer included; on a shared, busy machine no measure",
        },
        "segment_seconds": SEGMENT,
        "allocator": ALLOCATOR,
        "results": results,
    }


def write(path: Path, minutes: float) -> None:
    """Needle clips of a minute, one after another, as one file."""
    made = [clip("dev", index, 30) for index in range(round(minutes))]
    pictures = np.concatenate([render.frames(each, 84) for each in made])
    files.write_arrays(path, pictures, np.concatenate([render.waveform(each) for each in made]))


def one(args: argparse.Namespace) -> dict[str, Any]:
    """One clip in this process."""
    torch.set_num_threads(1)
    model, processor = loading.load()
    method, hold = LIMITS[args.limit]
    demo = loading.TINY.parent / "demo.mp4"
    stream(model, processor, demo, QUESTION, method=parse(method), hold=hold)  # warm: libraries, allocator
    taken = Memory(model.device)
    taken.start()
    began = time.perf_counter()
    with omnidrop.lean(model):
        if args.limit == "one prompt":
            inputs = prompt.build(processor, media.read(args.path, max_frames=10**6), QUESTION)
            with omnidrop.prune(model, parse(method)) as trace:
                out = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
            tokens, most = trace.layout.count(0), None
            kv = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache_of(out).layers)
        else:
            read = stream(model, processor, args.path, QUESTION, method=parse(method), hold=hold)
            read.generate(max_new_tokens=4, do_sample=False)
            tokens, most, kv = read.trace.layout.count(0), max(read.most), read.kv_bytes
    peak = taken.peak()
    return {
        "limit": args.limit,
        "method": method,
        "hold": hold,
        "tokens": tokens,
        "peak_mib": None if peak is None else round(peak / 2**20, 1),
        "kv_mib": round(kv / 2**20, 2),
        "most_in_a_layer": most,
        "seconds": round(time.perf_counter() - began, 1),
    }


# cost ---------------------------------------------------------------------------------------------------------------

# Qwen2.5-Omni's decoders; video of 128 tokens-a-picture pixels at 2 pictures a second, with sound
SHAPES = {
    "qwen2.5-omni-7b": DecoderShape(
        layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, mlp=3 * 18944, vocabulary=152064, bytes_per_value=2
    ),
    "qwen2.5-omni-3b": DecoderShape(
        layers=36, hidden=2048, heads=16, kv_heads=2, head_dim=128, mlp=3 * 11008, vocabulary=151936, bytes_per_value=2
    ),
}
VIDEO, AUDIO, BEHIND, BEFORE = 144, 25, 40, 16  # tokens a second; text behind and before the clip


def cost(args: argparse.Namespace) -> dict[str, Any]:
    """What reading a clip of so many minutes takes, from counts alone."""
    results = []
    for name, shape in SHAPES.items():
        for minutes in args.minutes:
            for method in (None, "tuned:keep=0.3", "tuned:keep=0.1"):
                for hold in (None, 8192):
                    for segment in (None, SEGMENT):
                        if segment is not None or (hold is None and method in (None, "tuned:keep=0.1")):
                            results.append(
                                {"model": name, "minutes": minutes, **_cost(shape, 60 * minutes, method, hold, segment)}
                            )
    return {
        "format": "omnidrop.long_cost",
        "version": 1,
        "measured": False,
        "assumes": {
            "video_tokens_per_second": VIDEO,
            "audio_tokens_per_second": AUDIO,
            "text_tokens": [BEFORE, BEHIND],
            "cache": "bf16",
        },
        "units": {
            "decoder_pflop": "1e15 operations of the decoder layers, 2 a multiply-add; no encoders, no head",
            "kv_gb": "keys and values at their most, text and the segment that is running included, 1e9 bytes",
            "kv_gb_at_the_end": "the same when the answer begins",
            "text_share": "share of the decoder's operations that the text behind each segment takes",
        },
        "results": results,
    }


def _cost(shape: DecoderShape, seconds: float, method: str | None, hold: int | None, segment: float | None) -> dict:
    chosen, length = parse(method) if method else None, segment or seconds
    pieces_ = round(seconds / length)
    total = round(length * (VIDEO + AUDIO))
    input_count = [total] * shape.layers
    if chosen is not None:
        budget = TokenCounts(layers=shape.layers, total=total, input_count=total, text=BEHIND, shape=shape)
        first = chosen.input_count([], budget)
        input_count = counts_of(chosen.plan(replace(budget, input_count=first)), first)
    held_, most = [0] * shape.layers, 0
    flops = text = 0
    for _ in range(pieces_):
        now = 0
        for layer, n in enumerate(input_count):
            past = BEFORE + held_[layer]
            flops += _rows(shape, n + BEHIND, past)
            text += _rows(shape, BEHIND, past + n)
            now += past + n + BEHIND
            held_[layer] = held_[layer] + n if hold is None else min(held_[layer] + n, hold)
        most = max(most, now)
    end = sum(BEFORE + n + BEHIND for n in held_)
    return {
        "read": "one prompt" if segment is None else f"segments of {segment:g} s",
        "method": method,
        "hold": hold,
        "media_tokens": total * pieces_,
        "decoder_pflop": round(flops / 1e15, 4),
        "text_share": round(text / flops, 4),
        "kv_gb": round(most * shape.kv_entry_bytes() / 1e9, 3),
        "kv_gb_at_the_end": round(end * shape.kv_entry_bytes() / 1e9, 3),
    }


def _rows(shape: DecoderShape, rows: int, past: int) -> int:
    """One layer over `rows` new tokens on `past` stored ones: the whole causal sequence less what was there."""
    return shape.layer_flops(past + rows) - shape.layer_flops(past)


# the command --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("quality")
    asked.add_argument("--model", help="folder of a saved model (default: the shipped tiny one)")
    asked.add_argument("--split", default="dev", choices=("dev", "test"))
    asked.add_argument("--chunks", type=int, default=64)
    asked.add_argument("--first", type=int, default=0, help="number of the first clip")
    asked.add_argument("--clips", type=int, default=12)
    asked.add_argument("--draws", type=int, default=2)
    asked.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    asked.add_argument("--reads", nargs="+", default=["one prompt", "segments"], choices=["one prompt", "segments"])
    asked.add_argument("--keeps", type=float, nargs="+", default=[1.0, 0.3, 0.2, 0.1])
    asked.add_argument("--holds", type=int, nargs="*", default=[512, 256, 128])
    asked.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    asked.add_argument("--seconds", type=float, nargs="+", default=[16.0])
    asked.add_argument("--within", type=float, default=1e9, help="begin no further clip after so many minutes")
    asked.add_argument("--time-scales", type=float, nargs="*", default=[0.5, 0.36])
    taken = commands.add_parser("memory")
    taken.add_argument("--minutes", type=float, nargs="+", default=[1, 4, 16, 60])
    taken.add_argument("--limits", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    single = commands.add_parser("one")
    single.add_argument("path")
    single.add_argument("limit", choices=list(LIMITS))
    counted = commands.add_parser("cost")
    counted.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60])
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = {"quality": quality, "memory": memory, "one": one, "cost": cost}[args.command]
    print(json.dumps(run(args)))


if __name__ == "__main__":
    main()
