"""Numbers as text: the table of kept tokens per layer, and pruned beside unpruned. It measures nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from ..reports.units import seconds, size

KINDS = ("audio", "video", "image")
MOST_ROWS = 16


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns under each other, the first `left` of them flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


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
    room = min(40, shutil.get_terminal_size((80, 24)).columns - max(map(len, lines)) - 3)
    if room >= 8:
        mark = "█" if _prints("█") else "#"
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


def _prints(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def summary(pruned: Any, asked: float | None) -> str:
    """Keep, time, memory and cache of a pruned run, one line each."""
    trace = pruned.trace
    wanted = f"asked for {asked:g}; " if asked is not None else ""
    kv, flops = trace.kv_bytes, trace.flops
    rows = [
        [
            "keep",
            f"{trace.keep:.3f} of the media tokens, mean of the layers ({wanted}{trace.input_keep:.3f} enter layer 0)",
        ],
        [
            "first token",
            f"{seconds(pruned.first_token_seconds)} (encoders and prefill), whole answer {seconds(pruned.seconds)}",
        ],
        ["peak memory", f"{size(pruned.peak_memory_bytes)} ({pruned.peak_memory_kind})"],
        ["KV cache", f"{size(kv.pruned)} for the prompt instead of {size(kv.full)} ({100 * kv.ratio:.0f} %)"],
        ["decoder FLOPs", f"{flops.pruned:.2e} instead of {flops.full:.2e} ({100 * flops.ratio:.0f} %)"],
    ]
    return table(rows, left=2)


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
        ["KV cache", size(full.kv_bytes), size(pruned.kv_bytes), ratio(full.kv_bytes, pruned.kv_bytes)],
        ["decoder FLOPs", f"{flops.full:.2e}", f"{flops.pruned:.2e}", ratio(flops.full, flops.pruned)],
        [memory_name, size(full.peak_memory_bytes), size(pruned.peak_memory_bytes),
         ratio(full.peak_memory_bytes, pruned.peak_memory_bytes)],
    ]  # fmt: skip
    return table(rows)
