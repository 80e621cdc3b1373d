"""An hour of a synthetic camera as a live stream: what is held, how soon an answer comes, and whether it is right.

    python benchmarks/live.py rules --split dev --blocks 15 > benchmarks/results/live_rules_dev.json
    python benchmarks/live.py hour --split test --blocks 75 --holds 280 > benchmarks/results/live_hour.json

A block is 48 s of a camera that does not move: 24 chunks, of which 8, at drawn places, are those of a needle clip with
its objects and sounds, and the others are empty but for noise. At the end of a block questions about its needles are
asked over what is held of the block (`ask(since=...)`, `horizon=48`), so that the evidence is up to 48 s old, and
offline over all of the same 48 s (`Conversation`). Each value of a colour, shape, pitch or pattern occurs once in a
block.

`rules`: the rules of `core.select.holding` at several limits, on the same encoded units. `hour`: one stream through
`Live`, questions at the end of 20 drawn blocks. Accuracy in %, with 95 % intervals by resampling blocks. Progress on
standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import omnidrop_lab
import torch
from omnidrop_lab.kit.stats import Bootstrap
from omnidrop_lab.needle import ask, clip, questions, task

import omnidrop
from omnidrop import loading, media
from omnidrop.core.select.holding import RULES
from omnidrop.livestream.holding import Holding
from omnidrop.methods import Method, parse
from omnidrop.provenance import made, model_checksum, source_checksum, versions

CHUNKS, NEEDLES = 24, 8  # longer blocks the tiny model does not read well even offline
SECONDS = float(CHUNKS * task.SECONDS_PER_CHUNK)
TYPES = ("video", "audio", "joint", "order", "none")
NEW_TOKENS = 2  # a word and the end


def block(split: str, index: int) -> tuple[media.Media, list[task.Question]]:
    """48 s of the camera, and questions about the needles in it."""
    needle = clip(split, index, NEEDLES)
    draw = np.random.default_rng([task.SPLITS[split], index, 20261129])
    places = sorted(draw.choice(CHUNKS, NEEDLES, replace=False).tolist())
    camera = needle.chunks[0]
    empty = replace(camera, thing=None, sound=None)
    chunks = [empty] * CHUNKS
    for place, chunk in zip(places, needle.chunks, strict=True):
        grey = tuple(each for each in camera.grey if chunk.thing is None or each[1] != chunk.thing.cell)
        chunks[place] = replace(chunk, scene=camera.scene, grey=grey)
    asked = [q for seed in range(2) for q in questions(needle, TYPES, seed=seed)]
    return ask.in_memory(replace(needle, chunks=tuple(chunks)), 84), asked


def at(whole: media.Media, start: float) -> list[omnidrop.livestream.Piece]:
    """A block from second `start` of the stream on, in pieces of 2 s."""
    assert whole.frames is not None and whole.times is not None and whole.waveform is not None
    return [
        omnidrop.livestream.Piece(
            frames=whole.frames[4 * i : 4 * i + 4],
            times=(start + whole.times[4 * i : 4 * i + 4]).tolist(),
            sound=whole.waveform[2 * i * whole.sample_rate : 2 * (i + 1) * whole.sample_rate],
        )
        for i in range(CHUNKS)
    ]


def offline(model: Any, processor: Any, method: Method, whole: media.Media, asked: list[task.Question]) -> list[bool]:
    """Whether the answers over all of a block are right."""
    encoded = omnidrop.EncodedMedia()
    right = []
    for question in asked:
        chat = omnidrop.Conversation(model, processor, method, encoded=encoded)
        chat.add(whole)
        right.append(chat.ask(question.text, max_new_tokens=NEW_TOKENS) == question.answer)
    return right


def rules(options: argparse.Namespace, model: Any, processor: Any) -> dict[str, Any]:
    method = parse(options.method)
    stream = omnidrop.live(model, processor, method, max_tokens=1 << 20, rule="newest")
    arms = {
        f"{rule}, {hold} tokens": Holding(
            stream._adapter,
            max_bytes=1 << 40,
            max_tokens=hold,
            rule=rule,
            recent=options.recent,
            guide=0.0,
            horizon=SECONDS,
        )
        for hold in options.holds
        for rule in RULES
    }
    right: dict[str, list[list[bool]]] = {name: [] for name in ("offline", *arms)}
    everything = stream._holding
    began = time.perf_counter()
    for number in range(options.blocks):
        if time.perf_counter() - began > 60 * options.within:
            break
        whole, asked = block(options.split, options.first + number)
        start = number * SECONDS
        for piece in at(whole, start):
            stream.push(piece.frames, piece.times, piece.sound, wait=True)
        stream.settle()
        for unit in [unit for unit in everything.units if unit.start >= start]:
            for holding in arms.values():
                holding.add(unit)
        right["offline"].append(offline(model, processor, method, whole, asked))
        for name, holding in arms.items():
            stream._holding = holding
            answers = [stream.ask(q.text, since=start, max_new_tokens=NEW_TOKENS).text for q in asked]
            right[name].append([a == q.answer for a, q in zip(answers, asked, strict=True)])
        stream._holding = everything
        everything.clear()
        said = {name: sum(map(sum, rows)) for name, rows in right.items()}
        print(f"{number + 1} of {options.blocks}: {said}", file=sys.stderr, flush=True)
    stream.close()
    return {"blocks": len(right["offline"]), "recent": options.recent, "arms": accuracies(right)}


def hour(options: argparse.Namespace, model: Any, processor: Any) -> dict[str, Any]:
    method = parse(options.method)
    drawn = np.random.default_rng(20261129).permutation(options.blocks)[: options.times].tolist()
    right: dict[str, list[list[bool]]] = {"live": [], "offline": []}
    bytes_held: list[int] = []
    latency: list[float] = []
    began = time.perf_counter()
    with omnidrop.live(
        model,
        processor,
        method,
        max_tokens=options.holds[0],
        rule=options.rule,
        recent=options.recent,
        horizon=SECONDS,
    ) as stream:
        for number in range(options.blocks):
            if time.perf_counter() - began > 60 * options.within:
                break
            whole, asked = block(options.split, options.first + number)
            start = number * SECONDS
            for piece in at(whole, start):
                stream.push(piece.frames, piece.times, piece.sound, wait=True)
                bytes_held.append(stream.status().held_bytes)
            stream.settle()
            if number in drawn:
                answers = [stream.ask(q.text, since=start, max_new_tokens=NEW_TOKENS) for q in asked]
                right["live"].append([a.text == q.answer for a, q in zip(answers, asked, strict=True)])
                right["offline"].append(offline(model, processor, method, whole, asked))
                latency += [answer.first_token for answer in answers]
            print(f"{number + 1} of {options.blocks}: {stream.status()}", file=sys.stderr, flush=True)
        status, most = stream.status(), stream.most_bytes
    tail = bytes_held[len(bytes_held) // 10 :]
    return {
        "rule": options.rule,
        "recent": options.recent,
        "blocks": len(right["offline"]),
        "minutes": status.seconds / 60,
        "questions": sum(map(len, right["live"])),
        "held bytes": {"least after a tenth": min(tail), "most": max(tail), "most with the unit that came": most},
        "held seconds at the end": status.held_seconds,
        "skipped seconds": status.skipped_seconds,
        "first token, seconds": {
            "median": statistics.median(latency),
            "most": max(latency),
            "median of the first third": statistics.median(latency[: len(latency) // 3]),
            "median of the last third": statistics.median(latency[-(len(latency) // 3) :]),
        },
        "wall seconds": time.perf_counter() - began,
        "arms": accuracies(right),
    }


def accuracies(right: dict[str, list[list[bool]]]) -> dict[str, Any]:
    """Per arm the accuracy, and its difference to offline on the same questions."""
    weight = np.array([len(row) for row in right["offline"]], float)
    sums = {name: np.array([sum(row) for row in rows], float) for name, rows in right.items()}
    bootstrap = Bootstrap.make(len(weight))

    def percent(interval: Any) -> dict[str, float]:
        return {
            key: round(100 * float(value), 1) for key, value in zip(("value", "low", "high"), interval, strict=True)
        }

    return {
        name: {
            "accuracy": percent(bootstrap.mean(each, weight)),
            "minus offline": None
            if name == "offline"
            else percent(bootstrap.difference(each, sums["offline"], weight)),
        }
        for name, each in sums.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rules", "hour"))
    parser.add_argument("--split", default="dev")
    parser.add_argument("--first", type=int, default=0, help="number of the first needle clip")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--within", type=float, default=600.0, help="minutes after which no further block begins")
    parser.add_argument("--times", type=int, default=20, help="of `hour`: blocks at whose end is asked")
    parser.add_argument("--holds", type=int, nargs="+", default=[280, 420], help="tokens; a unit has 28")
    parser.add_argument("--rule", default="novel")
    parser.add_argument("--recent", type=float, default=0.25)
    parser.add_argument("--method", default="omnidrop:keep=0.3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = loading.load(device="cpu")
    found = {"rules": rules, "hour": hour}[options.what](options, model, processor)
    json.dump(
        {
            "setup": made("", model)
            | {"command": " ".join(["python", *sys.argv]), "versions": versions()}
            | {"model": model_checksum(loading.TINY), "code": source_checksum(omnidrop, omnidrop_lab)},
            "split": options.split,
            "method": options.method,
            "tokens held at most": options.holds,
            **found,
        },
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
