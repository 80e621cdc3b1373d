"""Variants in turns on one prompt: medians and spread of every stage, peak memory, beside the counted FLOPs and bytes.

What it is: `compare`, one model and one prompt in, plain numbers out. What it is not: it chooses neither and prints
nothing. The one idea: variants take turns, round after round, each round beginning with another one, so that what
drifts (heat, other work of the machine) falls on all of them.

The ideal is the stock model's measured time, stage by stage, times the share of its FLOPs that a variant still needs.
`over_ideal` is measured / ideal, round by round: above 1 is overhead, below 1 is time saved beyond the arithmetic.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ..errors import OmnidropError
from ..memory import Memory
from ..models import Adapter, adapt
from . import cost
from .stages import Stages, Tokens
from .variants import STOCK, Variant

Progress = Callable[[str], None]
OUT_OF_MEMORY = "out of memory"
PREFILL = ("input_stage", "decoder")  # what pruning moves between: its choice at the input, and the layers


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one `generate` took."""

    seconds: dict[str, float]  # stages, "other", "first_token", "token", "answer"
    peak_bytes: int | None
    peak_kind: str
    kv_bytes: int  # of the cache after the answer, counted from its tensors
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
) -> list[dict[str, Any]]:
    """One plain record a variant, in their order. A variant that fails has "error" and no numbers; the others go on."""
    adapter = adapt(model)
    runs: dict[str, list[Run]] = {variant.text: [] for variant in variants}
    errors: dict[str, str] = {}
    for turn in range(-warmup, repeats):
        first = turn % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            if variant.text in errors:
                continue
            progress(f"{'warm-up' if turn < 0 else f'round {turn + 1} of {repeats}'}: {variant.text}")
            found = _attempt(adapter, inputs, variant, new_tokens)
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


def _attempt(adapter: Adapter, inputs: Mapping[str, Any], variant: Variant, new_tokens: int) -> Run | str:
    """A run, or why there is none."""
    try:
        return one(adapter, inputs, variant, new_tokens)
    except OmnidropError as error:
        return str(error)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    gc.collect()  # here, where the error and the tensors that its frames held are gone
    if adapter.thinker.device.type == "cuda":
        torch.cuda.empty_cache()
    return OUT_OF_MEMORY


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    words = str(error)  # of PyTorch's CPU allocator
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in words


def one(adapter: Adapter, inputs: Mapping[str, Any], variant: Variant, new_tokens: int) -> Run:
    """Generate `new_tokens` greedily under a variant, and measure it."""
    device = adapter.thinker.device
    memory, tokens, stages = Memory(device), Tokens(), Stages(adapter)
    with variant.applied(adapter.thinker) as applied, stages, torch.inference_mode():
        memory.start()
        _wait(device)
        start = time.perf_counter()
        out = adapter.thinker.generate(
            **inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,  # an answer's length must not depend on what it says
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            streamer=tokens,
            return_dict_in_generate=True,
        )
        _wait(device)
        end = time.perf_counter()
        peak = memory.above()
        seconds = dict(stages.seconds)
        layers = out.past_key_values.layers
        kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    trace, saved = applied.trace, applied.lean
    shapes, brought = cost.shapes(adapter.config, adapter.shape), sizes(inputs)
    if trace is not None:
        seconds |= {name: spent for name, spent in trace.seconds.items() if name not in seconds}
    first = tokens.times[1] - start
    measured = sum(spent for name, spent in seconds.items() if name != "selection")  # selection lies in the others
    seconds |= {"other": first - measured, "first_token": first, "answer": end - start}
    if len(tokens.times) > 2:
        seconds["token"] = (tokens.times[-1] - tokens.times[1]) / (len(tokens.times) - 2)
    return Run(
        seconds=seconds,
        peak_bytes=peak,
        peak_kind="allocated on the GPU" if memory.cuda else "resident memory of the process",
        kv_bytes=kv_bytes,
        prompt_kv_bytes=cost.bytes_of(shapes, brought)["kv"] if trace is None else trace.kv_bytes.pruned,
        flops=cost.flops(
            shapes,
            brought,
            None if trace is None else [[len(row) for row in layer] for layer in trace.kept],
            last_logits=saved is not None and saved.last_logits,
            last_layer=saved is not None and saved.last_layer,
        ),
        kept=None
        if trace is None
        else {"method": trace.method, "keep": trace.keep, "budgets": trace.budgets, "counts": trace.counts},
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sizes(inputs: Mapping[str, Any]) -> cost.Sizes:
    """The sizes that a prompt's costs follow from, of a processor's output."""
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if inputs.get(name) is not None]
    heard = inputs.get("feature_attention_mask")
    return cost.Sizes(
        rows=inputs["attention_mask"].sum(1).tolist(),
        grids=[tuple(grid) for each in grids for grid in each.tolist()],
        recordings=[] if heard is None else heard.sum(1).tolist(),
    )


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

    "first_token" is their sum, and what stock spends outside of these stages.
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
    """Seconds of a stage; the decoder's with those of the input stage, which exists for its sake alone."""
    return sum(seconds.get(part, 0.0) for part in (PREFILL if name == "decoder" else (name,)))


def selection_share(seconds: Mapping[str, float]) -> dict[str, float] | None:
    """What method code and the cutting of tensors take of the decoder's prefill and of the first token; None without
    pruning."""
    if "input_stage" not in seconds:
        return None
    spent = seconds["input_stage"] + seconds.get("selection", 0.0)
    return {"of_prefill": spent / prefill_or(seconds, "decoder"), "of_first_token": spent / seconds["first_token"]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of the rounds, and all of them."""
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": list(values)}
