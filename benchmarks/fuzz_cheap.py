"""Traces and feature tensors with anything in them: 100,000 cases, each a right result or one of the library's errors.

    python benchmarks/fuzz_cheap.py --out benchmarks/results/fuzz_cheap.json

A trace is a good one, changed: values, types, lengths, nesting, bytes. It must load, and then be counted and arranged
for a report, or be refused in one line. A tensor case is a method on one small sample whose features, attention and
states hold nan, inf, huge numbers or only zeros: the survivors must be as many as planned, in range and ascending.
Cases follow from the seed alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from omnidrop import OmnidropError, Trace, methods
from omnidrop.core.budget import DecoderShape, TokenCounts
from omnidrop.core.tokens import TokenLayout
from omnidrop.core.trace import Record
from omnidrop.methods.base import InputView, LayerView, Merged
from omnidrop.reports.views import views

SHAPE = DecoderShape(
    layers=6, hidden=16, heads=4, kv_heads=2, head_dim=4, mlp=48, vocabulary=99, bytes_per_value=2
)  # fmt: skip
ODD = (None, True, False, 0, -1, 1, 2, 3, 4, 99, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-300, 1e300, math.nan,
       math.inf, -math.inf, "", "x", "1", "\x00", "\ud800", "</script>", "\u202e", [], {}, [[]], [None], {"a": []},
       [1.5], [True])  # fmt: skip
NUMBERS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 6e4, 1e-38, 0.0, -0.0, 1e30)


# traces --------------------------------------------------------------------------------------------------------------


def good(rng: random.Random) -> dict[str, Any]:
    """A right trace of one or two rows."""
    rows = rng.choice((1, 1, 2))
    length = rng.randint(4, 24)
    modality = torch.zeros(rows, length, dtype=torch.long)
    modality[:, 1 : length // 2] = 2
    modality[:, length // 2 : length - 2] = 1
    media, seen = modality > 0, modality == 2
    place = torch.arange(length).expand(rows, length)
    kept, alive = [], torch.ones(rows, length, dtype=torch.bool)
    for _ in range(SHAPE.layers):
        kept.append([alive[b].nonzero()[:, 0] for b in range(rows)])
        alive = alive & (~media | (torch.tensor([[rng.random() < 0.8 for _ in range(length)] for _ in range(rows)])))
    layout = TokenLayout(
        modality=modality, chunk=torch.where(media, 0, -1), second=torch.where(media, place / 25, math.nan),
        query=~media, valid=torch.ones_like(media), item=torch.where(media, 0, -1),
        frame=torch.where(seen, (place - 1) // 2, -1),
    )  # fmt: skip
    scores = [[torch.rand(int(media[b, row].sum())) for b, row in enumerate(layer)] for layer in kept]
    record = Record(
        layout=layout, kept=kept, scores=scores if rng.random() < 0.5 else [], prunable=(1, 2), shape=SHAPE,
        method={"name": "OmniDrop", "keep": 0.3},
    )  # fmt: skip
    document = json.loads(json.dumps(Trace(record).to_json()))
    if rng.random() < 0.2:
        document["history"] = [copy.deepcopy(document)]
    return document


@cache
def good_ones() -> list[str]:
    """A few hundred right traces, made once."""
    return [json.dumps(good(random.Random(number))) for number in range(200)]


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    todo = [document]
    while todo:
        part = todo.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
        for key in keys:
            yield part, key
            todo.append(part[key])


def changed(document: dict[str, Any], rng: random.Random) -> None:
    """One change of one place. A place is as likely high up as it is among the many numbers below."""
    part: Any = document
    key = rng.choice(list(part))
    while isinstance(part[key], (dict, list)) and part[key] and rng.random() < 0.75:
        part = part[key]
        key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
    kind = rng.randrange(8)
    if kind < 3:
        part[key] = copy.deepcopy(rng.choice(ODD))
    elif kind == 3:
        del part[key]
    elif kind == 4 and isinstance(part, list):
        part.insert(key, copy.deepcopy(part[key]))
    elif kind == 5 and isinstance(part, list):
        rng.shuffle(part)
    elif kind == 6 and isinstance(part[key], (int, float)) and not isinstance(part[key], bool):
        part[key] = part[key] + rng.choice((1, -1, 0.5, 1000))
    else:
        other, name = rng.choice(list(places(document)))
        part[key] = copy.deepcopy(other[name])


def broken(text: bytes, rng: random.Random) -> bytes:
    """The file's bytes, changed."""
    at, kind = rng.randrange(len(text)), rng.randrange(6)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if kind == 2:
        return text[:at] + rng.choice((b"[", b"{", b"9" * 5000, b'"', b"[" * 5000, b"NaN", b"\xef\xbb\xbf")) + text[at:]
    if kind == 3:
        end = min(at + rng.randrange(200), len(text))
        return text[:at] + text[end:]
    if kind == 4:
        return rng.randbytes(rng.randrange(200))
    return rng.choice((b"[" * 10**5, b'{"a":' * 10**5, b"", b"null", b"{}", b'{"format":"omnidrop.trace","version":1}'))


def trace_case(rng: random.Random, file: Path) -> str:
    """Load a changed trace and do with it what a report does first."""
    document = json.loads(rng.choice(good_ones()))
    try:
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            changed(document, rng)
        text = json.dumps(document).encode("utf-8", "surrogatepass")
    except (TypeError, IndexError, ValueError, RecursionError):  # a change that cannot be made or written
        return "no case"
    file.write_bytes(broken(text, rng) if rng.random() < 0.3 and text else text)
    try:
        trace = Trace.load(file)
        assert 0 <= trace.keep <= 1 and len(trace.counts) == len(trace.kept) and trace.flops.full >= trace.flops.pruned
        assert trace.budgets and trace.seconds is not None and views([trace])
        assert trace.scores is None or len(trace.scores) == len(trace.kept)
        trace.to_json()
    except OmnidropError as error:
        assert "\n" not in str(error), "a message of several lines"
        return "refused"
    return "right"


# tensors -------------------------------------------------------------------------------------------------------------


def methods_of(rng: random.Random) -> Any:
    """A method with a target, and settings at their edges."""
    name = rng.choice([each for each in methods.METHODS if each != "cutoff"])
    options: dict[str, Any] = {
        "keep": rng.choice((0.05, 0.2, 0.3, 0.5, 0.7, 0.9)),
        "budget": rng.choice(("layers", "input", "kv")),
    }
    if name == "random":
        options["where"] = rng.choice(("input", "layers"))
    if name == "fastv":
        options["layer"] = 1
    if name == "dycoke":
        options["audio_keep"] = 0.3
    if name == "dash":
        options["min_segment"] = rng.choice((1, 3, 30, 2**63 - 1))
    return methods.METHODS[name](**options)


def poisoned(shape: tuple[int, ...], rng: random.Random, *, positive: bool = False) -> torch.Tensor:
    """Random numbers, and in some places (or all) odd ones."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    values = torch.rand(shape, generator=generator) if positive else torch.randn(shape, generator=generator)
    kind = rng.randrange(5)
    if kind == 1:
        values[torch.rand(shape, generator=generator) < rng.choice((0.01, 0.1, 0.5))] = rng.choice(NUMBERS)
    elif kind == 2 and shape[0]:
        values[rng.randrange(shape[0])] = rng.choice(NUMBERS)
    elif kind == 3:
        values.fill_(rng.choice(NUMBERS))
    elif kind == 4:
        for number in NUMBERS:
            values[torch.rand(shape, generator=generator) < 0.05] = number
    return values.to(rng.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16)))


def sample(rng: random.Random) -> InputView:
    """One prompt's tokens: a video, a recording, or both, 2 grids or 50 audio tokens a chunk."""
    frames, patches, sounds = rng.randint(1, 6), rng.randint(1, 9), rng.randint(1, 40)
    which = rng.randrange(4)
    frames, sounds = (0, sounds) if which == 0 else (frames, 0) if which == 1 else (frames, sounds)
    seen, width = frames * patches, 8
    n = seen + sounds
    frame = torch.arange(seen) // patches
    runs = [(1, 0, sounds, 0)] * (sounds > 0) + [(2, 0, seen, frames)] * (seen > 0)
    chunk = torch.cat([frame // 2, torch.arange(sounds) // 20])
    return InputView(
        modality=torch.tensor([2] * seen + [1] * sounds), item=torch.zeros(n, dtype=torch.long),
        frame=torch.cat([frame, torch.full((sounds,), -1)]), chunk=chunk, features=poisoned((n, width), rng),
        question=poisoned((3, width), rng), prompt_hash=rng.randrange(2**31), runs=runs,
        budget=TokenCounts(layers=SHAPE.layers, total=n, input_count=n, text=9, shape=SHAPE),
        max_chunk=int(chunk.max()),
        saliency=poisoned((n,), rng, positive=True).float(),
    )  # fmt: skip


def check(chosen: Any, n: int, wanted: int, width: int) -> int:
    """Whether the survivors are `wanted` of n, ascending; how many there are."""
    kept, features = chosen if isinstance(chosen, Merged) else (chosen, None)
    assert kept.dtype == torch.long and len(kept) == wanted, f"{len(kept)} of {wanted}"
    assert not len(kept) or (int(kept[0]) >= 0 and int(kept[-1]) < n and bool((kept.diff() > 0).all())), "places"
    assert features is None or features.shape == (wanted, width), "features"
    return len(kept)


def tensor_case(rng: random.Random, file: Path) -> str:
    """A method on one sample, through its input stage and every layer that drops."""
    try:
        method, view = methods_of(rng), sample(rng)
        total, width = view.budget.total, view.features.shape[1]
        wanted = method.input_count(view.runs, view.budget)
        chosen = method.at_input(view)
        n = total if chosen is None else check(chosen, total, wanted, width)
        kept = torch.arange(total) if chosen is None else chosen.kept if isinstance(chosen, Merged) else chosen
        facts = {name: getattr(view, name)[kept] for name in ("modality", "item", "frame", "chunk")}
        budget = TokenCounts(layers=SHAPE.layers, total=total, input_count=n, text=9, shape=SHAPE)
        for layer, k in enumerate(method.plan(budget)):
            if not k:
                continue
            states, asked = poisoned((n, width), rng), poisoned((3, width), rng)
            attention = poisoned((SHAPE.heads, n), rng, positive=True).float()
            stage = LayerView(
                layer=layer, layers=SHAPE.layers, prompt_hash=view.prompt_hash, max_chunk=view.max_chunk,
                fact=facts.__getitem__,
                head_attention=lambda attention=attention: attention, hidden=lambda states=states: states,
                question_hidden=lambda asked=asked: asked,
            )  # fmt: skip
            chosen = method.at_layer(stage, k)
            kept = chosen.kept if isinstance(chosen, Merged) else chosen
            n = check(chosen, n, n - k, width)
            facts = {name: fact[kept] for name, fact in facts.items()}
    except OmnidropError:
        return "refused"
    return "right"


KINDS: dict[str, Callable[[random.Random, Path], str]] = {"traces": trace_case, "tensors": tensor_case}


def run(kind: str, cases: int, seed: int) -> dict[str, Any]:
    """So many cases of a kind: outcomes, and every exception that is none of the library's."""
    outcomes: Counter[str] = Counter()
    raw: list[dict[str, Any]] = []
    began, slowest = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(cases):
            start = time.perf_counter()
            try:
                outcomes[KINDS[kind](random.Random(f"{seed} {kind} {number}"), Path(folder) / "case.json")] += 1
            except Exception as error:
                outcomes["raw"] += 1
                raw.append({"case": number, "error": f"{type(error).__name__}: {str(error)[:200]}"})
            slowest = max(slowest, time.perf_counter() - start)
    return {
        "cases": cases, "outcomes": dict(outcomes), "raw": raw[:20],
        "seconds": round(time.perf_counter() - began, 1), "slowest_case_seconds": round(slowest, 3),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=50_000)
    parser.add_argument("--tensors", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {kind: run(kind, getattr(options, kind), options.seed) for kind in KINDS}
    document = {
        "format": "omnidrop.fuzz", "version": 1, "seed": options.seed, "torch": torch.__version__,
        "cases": sum(each["cases"] for each in found.values()), "kinds": found,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }  # fmt: skip
    text = json.dumps(document, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return int(any(each["outcomes"].get("raw") for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
