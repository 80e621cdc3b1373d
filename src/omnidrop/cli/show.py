"""Numbers as text: the table of kept tokens per layer, and pruned beside unpruned."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ..core.units import operations, seconds, size
from .tables import columns, table

KINDS = ("audio", "video", "image")
MOST_ROWS = 16


def kept(trace: Any) -> str:
    """Tokens in the prompt and entering each decoder layer, by modality; layers with equal counts share a row."""
    layout = [trace.layout.count(row) for row in range(trace.layout.shape[0])]
    first = {kind: sum(row[kind] for row in layout) for kind in KINDS}
    shown = [kind for kind in KINDS if first[kind]]
    if not shown:
        return "no audio, video or images in the prompt: nothing to prune"
    groups = _groups(trace.counts)
    if len(groups) > MOST_ROWS:  # first and last always, the others evenly
        picked = sorted({round(i * (len(groups) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)})
        groups = [groups[i] for i in picked]
    rows = [("prompt", first)] + [(a if a == b else f"{a}-{b}", counts) for a, b, counts in groups]
    total = sum(first[kind] for kind in shown)
    cells = [["layer", *shown, "kept"]]
    shares = []
    for label, counts in rows:
        shares.append(sum(counts[kind] for kind in shown) / total)
        cells.append([label, *(str(counts[kind]) for kind in shown), f"{100 * shares[-1]:.0f} %"])
    lines = table(cells).splitlines()
    room = min(40, columns() - max(map(len, lines)) - 3)
    if room >= 8:
        mark = "█" if prints("█") else "#"
        lines[1:] = [
            f"{line.ljust(len(lines[0]))}  {mark * round(room * s)}" for line, s in zip(lines[1:], shares, strict=True)
        ]
    return "\n".join(lines)


def _groups(counts: Sequence[dict[str, int]]) -> list[tuple[str, str, dict[str, int]]]:
    """(first layer, last layer, counts) of each run of layers that the same number of tokens enters."""
    result: list[tuple[str, str, dict[str, int]]] = []
    for layer, here in enumerate(counts):
        if result and result[-1][2] == here:
            result[-1] = (result[-1][0], str(layer), here)
        else:
            result.append((str(layer), str(layer), here))
    return result


def prints(text: str) -> bool:
    """Whether standard output has these signs."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def summary(pruned: Any, asked: float | None) -> str:
    """Keep, time, memory and cache of a run, one line each; of one without pruning, what there is."""
    from ..core.trace_view import speech

    trace = pruned.trace
    rows = [
        [
            "first token",
            f"{seconds(pruned.first_token_seconds)} (encoders and prefill), whole answer {seconds(pruned.seconds)}",
        ],
        ["peak memory", f"{size(pruned.peak_memory_bytes)} ({pruned.peak_memory_kind})"],
    ]
    if trace is None:
        rows += [["KV cache", f"{size(pruned.kv_bytes)} with the answer"]]
        return table(rows, left=2)
    wanted = f"asked for {asked:g}; " if asked is not None else ""
    kv, flops = trace.kv_bytes, trace.flops
    keep = f"{trace.keep:.3f} of the media tokens, mean of the layers ({wanted}{trace.input_keep:.3f} enter layer 0)"
    cache = f"{size(kv.pruned)} for the prompt instead of {size(kv.full)} ({100 * kv.ratio:.0f} %)"
    work = f"{operations(flops.pruned)} for the prompt instead of {operations(flops.full)} ({100 * flops.ratio:.0f} %)"
    made = trace.encoded
    rows = [
        ["keep", keep],
        *([["encoder", f"makes {made.pruned} of {made.full} video tokens"]] if made.pruned < made.full else []),
        *([["images", images]] if (images := unaffected(trace)) else []),
        *(["asked by", f"{said}, never dropped"] for said in speech(trace.layout)),
        *rows,
        ["KV cache", f"{cache}; {size(pruned.kv_bytes)} with the answer"],
        ["decoder FLOPs", work],
    ]
    return table(rows, left=2)


def unaffected(trace: Any) -> str:
    """What a user of --keep should know about images that the method keeps whole; "" where there are none."""
    images = trace.layout.count(0)["image"]
    if not images or trace.method.get("images") == "prune":
        return ""
    only = not any(trace.layout.count(0)[kind] for kind in ("audio", "video"))
    hint = " (--method omnidrop:images=prune counts and drops them too)" if "images" in trace.method else ""
    begin = "nothing was dropped" if only else "keep counts audio and video alone"
    return f"{begin}, and all {images} tokens of images are kept{hint}"


def compared(full: Any, pruned: Any) -> str:
    """Unpruned beside pruned, with ratios."""

    def ratio(one: float | None, other: float | None) -> str:
        return f"{other / one:.2f}" if one and other is not None else ""

    flops = pruned.trace.flops
    memory_name = "peak memory" + (" (GPU)" if full.peak_memory_kind.startswith("GPU") else " (RAM)")
    rows = [
        ["", "all tokens", "pruned", "ratio"],
        ["first token", seconds(full.first_token_seconds), seconds(pruned.first_token_seconds),
         ratio(full.first_token_seconds, pruned.first_token_seconds)],
        ["whole answer", seconds(full.seconds), seconds(pruned.seconds), ratio(full.seconds, pruned.seconds)],
        ["KV cache, with answer", size(full.kv_bytes), size(pruned.kv_bytes), ratio(full.kv_bytes, pruned.kv_bytes)],
        ["decoder FLOPs, prompt", operations(flops.full), operations(flops.pruned), ratio(flops.full, flops.pruned)],
        [memory_name, size(full.peak_memory_bytes), size(pruned.peak_memory_bytes),
         ratio(full.peak_memory_bytes, pruned.peak_memory_bytes)],
    ]  # fmt: skip
    return table(rows)
