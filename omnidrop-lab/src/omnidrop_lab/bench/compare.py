"""Variants in alternation on one prompt: median and spread of every stage, peak memory, counted FLOPs and bytes.

Variants alternate round by round, and each round begins with another one, so that drift (temperature, other load of the
machine) affects all of them alike.

The ideal is the stock model's measured time of each stage, times the share of its FLOPs that a variant still needs.
`over_ideal` is measured / ideal, round by round: above 1 is overhead, below 1 is time saved beyond the arithmetic.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType
from typing import Any

import torch

from omnidrop.core.tokens import Modality
from omnidrop.core.trace import Trace
from omnidrop.engine.upstream import cache_bytes, cache_of, names_of
from omnidrop.errors import OmnidropError
from omnidrop.measure import generate
from omnidrop.models import Adapter, adapt

from ..kit.fewer import Fewer, shares
from ..kit.stages import Stages
from ..kit.stats import spread
from . import cost
from .variants import STOCK, Variant

Progress = Callable[[str], None]
OUT_OF_MEMORY = "out of memory"
PREFILL = ("input_stage", "decoder")  # selection at the input, and the layers


@dataclass(frozen=True, kw_only=True)
class Run:
    """Time, memory, FLOPs and cache size of one `generate`."""

    seconds: dict[str, float]  # stages, "other", "first_token", "token", "answer"
    peak_bytes: int | None
    peak_kind: str
    kv_bytes: int  # of the cache after the answer, states of recurrent layers included, from its tensors
    prompt_kv_bytes: int  # of the prompt, by formula
    flops: dict[str, int]
    kept: dict[str, Any] | None  # what the trace says; None without pruning


def compare(
    model: Any,
    inputs: Mapping[str, Any],
    variants: Sequence[Variant],
    *,
    new_tokens: int,
    repeats: int,
    warmup: int = 1,
    progress: Progress = lambda text: None,
    own: Mapping[str, Mapping[str, Any] | str] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """A plain record per variant, in their order. A variant that fails has "error" and no numbers; others go on.

    `own`: the inputs of variants whose prompt is another (`Variant.fewer`), by their text; or why there are none.
    """
    adapter = adapt(model)
    runs: dict[str, list[Run]] = {variant.text: [] for variant in variants}
    errors = {text: reason for text, reason in own.items() if isinstance(reason, str)}
    for turn in range(-warmup, repeats):
        first = turn % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            if variant.text in errors:
                continue
            progress(f"{'warm-up' if turn < 0 else f'round {turn + 1} of {repeats}'}: {variant.text}")
            mine = own.get(variant.text, inputs)
            assert not isinstance(mine, str)
            found = _attempt(adapter, mine, variant, new_tokens)
            if isinstance(found, Run) and variant.fewer is not None:
                found = replace(found, kept=_left(adapter, variant.fewer, mine, inputs, found.kept))
            if isinstance(found, str):
                errors[variant.text] = found
            elif turn >= 0:
                runs[variant.text].append(found)
    stock = runs.get(STOCK) if STOCK not in errors else None
    return [
        {"variant": variant.text, "error": errors.get(variant.text)}
        | ({} if variant.text in errors else _summary(runs[variant.text], stock))
        for variant in variants
    ]


def _left(
    adapter: Adapter, fewer: Fewer, small: Mapping[str, Any], whole: Mapping[str, Any], pruned: dict[str, Any] | None
) -> dict[str, Any]:
    """`Run.kept` of a smaller clip: what is left of the whole one, the mean over the rows of a batch.

    `pruned`: what a method kept of the smaller one.
    """
    rows = shares(adapter.thinker, small, whole)
    left = {word: sum(row[word] for row in rows) / len(rows) for word in rows[0]}
    return {"fewer": {"name": fewer.kind, "keep": fewer.keep, "budgets": left}, **(pruned or {})}


def _attempt(adapter: Adapter, inputs: Mapping[str, Any], variant: Variant, new_tokens: int) -> Run | str:
    """A run, or the message of its error."""
    try:
        return one(adapter, inputs, variant, new_tokens)
    except OmnidropError as error:
        return str(error)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    gc.collect()  # after the `except`: the error no longer holds its tensors
    if adapter.thinker.device.type == "cuda":
        torch.cuda.empty_cache()
    return OUT_OF_MEMORY


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    words = str(error)  # of PyTorch's CPU allocator
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in words


def one(adapter: Adapter, inputs: Mapping[str, Any], variant: Variant, new_tokens: int) -> Run:
    """Generate `new_tokens` greedily under a variant, and measure it."""
    stages = Stages(adapter)
    with variant.applied(adapter.thinker) as applied, stages:
        # the same number of tokens whatever the model says
        done = generate(adapter.thinker, inputs, new_tokens, min_new_tokens=new_tokens, pad_token_id=0)
        seconds = dict(stages.seconds)
        kv_bytes = cache_bytes(cache_of(done.output))
    trace, saved = applied.trace, applied.lean
    shapes, brought = cost.shapes(adapter), sizes(inputs)
    if trace is not None:
        seconds |= {name: spent for name, spent in trace.seconds.items() if name not in seconds}
    first, times = done.first_token_seconds, done.token_times
    measured = sum(spent for name, spent in seconds.items() if name != "selection")  # selection is part of the others
    seconds |= {"other": first - measured, "first_token": first, "answer": done.seconds}
    if len(times) > 1:
        seconds["token"] = (times[-1] - times[0]) / (len(times) - 1)
    return Run(
        seconds=seconds,
        peak_bytes=done.peak_bytes_above_start,
        peak_kind="allocated on the GPU" if adapter.thinker.device.type == "cuda" else "resident memory of the process",
        kv_bytes=kv_bytes,
        prompt_kv_bytes=cost.bytes_of(shapes, brought)["kv"] if trace is None else trace.kv_bytes.pruned,
        flops=cost.flops(
            shapes,
            brought if trace is None else replace(brought, encoded=encoded(trace, len(brought.grids))),
            None if trace is None else [[len(row) for row in layer] for layer in trace.kept],
            last_logits=names_of(adapter).newest_logits or (saved is not None and saved.last_logits),
            last_layer=saved is not None and saved.last_layer,
        ),
        kept=None
        if trace is None
        else {"method": trace.method, "keep": trace.keep, "budgets": trace.budgets, "counts": trace.counts},
    )


def sizes(inputs: Mapping[str, Any]) -> cost.Sizes:
    """The sizes that determine a prompt's costs, from a processor's output."""
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if inputs.get(name) is not None]
    heard = inputs.get("feature_attention_mask")
    return cost.Sizes(
        rows=inputs["attention_mask"].sum(1).tolist(),
        grids=[tuple(grid) for each in grids for grid in each.tolist()],
        recordings=[] if heard is None else heard.sum(1).tolist(),
    )


def encoded(trace: Trace, grids: int) -> list[list[bool] | None]:
    """`cost.Sizes.encoded` of a prompt with so many grids, of which the videos come last; empty where all was."""
    layout, found = trace.layout, list[list[bool] | None]()
    for row, made in enumerate(trace.record.encoded):
        video = layout.modality[row] == Modality.VIDEO
        for item in layout.item[row][video].unique().tolist():
            places = (video & (layout.item[row] == item)).nonzero()[:, 0]
            found.append(torch.isin(places, made).tolist())
    return [*[None] * (grids - len(found)), *found] if found else []


def _summary(runs: Sequence[Run], stock: Sequence[Run] | None) -> dict[str, Any]:
    flops = runs[0].flops
    seconds = {name: spread([run.seconds[name] for run in runs]) for name in runs[0].seconds}
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    middle = {name: value["median"] for name, value in seconds.items()}
    ideals = [ideal_seconds(run.seconds, run.flops, flops) for run in stock or ()]
    return {
        "seconds": seconds,
        "peak_bytes_above_weights_and_inputs": spread(peaks) if peaks else None,
        "peak_kind": runs[0].peak_kind,
        "kv_bytes": runs[0].kv_bytes,
        "prompt_kv_bytes": runs[0].prompt_kv_bytes,
        "flops": flops | {"total": sum(flops.values())},
        "flops_over_stock": cost.over(flops, stock[0].flops) if stock else None,
        "flops_per_second": {name: flops[name] / middle[name] for name in flops if middle.get(name)},
        "ideal_seconds": {name: median(ideal[name] for ideal in ideals) for name in ideals[0]} if ideals else None,
        "over_ideal": over_ideal([run.seconds for run in runs], ideals) if ideals else None,
        "selection_share": selection_share(middle),
        "pruned": runs[0].kept,
    }


def ideal_seconds(
    stock: Mapping[str, float], stock_flops: Mapping[str, int], flops: Mapping[str, int]
) -> dict[str, float]:
    """Stock's seconds of a round x the share of its FLOPs, by stage.

    "first_token" is their sum plus the time that stock spends outside of these stages.
    """
    counted = [name for name in flops if name in stock and stock_flops[name]]
    found = {name: stock[name] * flops[name] / stock_flops[name] for name in counted}
    rest = stock["first_token"] - sum(stock[name] for name in counted)
    return {**found, "first_token": sum(found.values()) + rest}


def over_ideal(rounds: Sequence[Mapping[str, float]], ideals: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """measured / ideal by stage, the median of the rounds: each round is compared with stock's in the same round."""
    return {
        name: median(prefill_or(seconds, name) / ideal[name] for seconds, ideal in zip(rounds, ideals, strict=True))
        for name in ideals[0]
    }


def prefill_or(seconds: Mapping[str, float], name: str) -> float:
    """Seconds of a stage; the decoder's with those of the input stage, which only serves the decoder."""
    return sum(seconds.get(part, 0.0) for part in (PREFILL if name == "decoder" else (name,)))


def selection_share(seconds: Mapping[str, float]) -> dict[str, float] | None:
    """Share of selection and tensor slicing in the decoder's prefill and in the first token; None without pruning."""
    if "input_stage" not in seconds:
        return None
    spent = seconds["input_stage"] + seconds.get("selection", 0.0)
    return {"of_prefill": spent / prefill_or(seconds, "decoder"), "of_first_token": spent / seconds["first_token"]}
