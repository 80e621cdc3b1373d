"""A trace as text, as HTML for notebooks, and as a data frame. `Trace` has a method for each.

All of it is read from the trace's public attributes: nothing here is stored or computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OmnidropError
from .tokens import Modality, TokenLayout
from .units import operations, percent, size

if TYPE_CHECKING:
    from .trace import Trace

MOST_ROWS = 16  # of the table of layers, as in commands
WIDTH = 80  # columns of a terminal
KINDS = tuple(kind.name.lower() for kind in Modality)
UNITS = {  # what `keep` counts, by `budget`
    "layers": "of the media tokens, mean over the layers",
    "input": "of the media tokens at the input",
    "flops": "of the decoder's FLOPs",
    "kv": "of the KV cache",
    "total": "of the first token's FLOPs, encoders included",
}


def line(trace: Trace) -> str:
    """The trace in one line: its `repr`."""
    total, images = int(trace.record.droppable.sum()), kept_images(trace.layout, trace.record.prunable)
    parts = ["nothing to prune"]
    if total:
        parts = [
            f"keep={trace.keep:.3f} of {total} media tokens in {len(trace.counts)} layers",
            f"KV cache {percent(trace.kv_bytes.ratio)}",
            f"FLOPs {percent(trace.flops.ratio)}",
        ]
    if speech(trace.layout):
        parts.append("asked in speech")
    if images:
        parts.append(f"{images} image tokens kept by default")
    if trace.history:
        parts.append(f"{len(trace.history)} earlier prompts")
    return f"Trace({_name(trace)}: {', '.join(parts)})"


def summary(trace: Trace) -> str:
    """The trace as tables of at most `WIDTH` columns: what was kept in which layer, shares, costs and remarks."""
    rows = layers(trace)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    pairs = [f"{name:8}  {text}" for name, text in figures(trace)]
    return "\n".join([*lines, "", *pairs, *(fill(remark, WIDTH) for remark in remarks(trace))])


def html(trace: Trace) -> str:
    """The same as two HTML tables, for notebooks."""
    header, *rows = layers(trace)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    pairs = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in figures(trace))
    notes = "".join(f"<p>{escape(remark)}</p>" for remark in remarks(trace))
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table><table>{pairs}</table>{notes}"


def frame(trace: Trace) -> Any:
    """A `pandas.DataFrame` with one row for each token of the prompt; see `Trace.to_frame`."""
    layout = trace.layout  # an empty trace is refused first
    try:
        import pandas
    except ImportError as error:
        raise OmnidropError("to_frame() needs pandas, which is not installed; pip install pandas") from error
    entered = torch.zeros(layout.shape, dtype=torch.long)
    for layer in trace.kept:
        for row, positions in enumerate(layer):
            entered[row, positions] += 1
    rows, positions = layout.valid.nonzero(as_tuple=True)
    kinds = layout.modality[rows, positions]
    columns = {"row": rows, "position": positions}
    columns |= {name: getattr(layout, name)[rows, positions] for name in ("item", "frame", "chunk", "second", "query")}
    table = pandas.DataFrame({name: column.numpy() for name, column in columns.items()})
    names = pandas.Categorical.from_codes(kinds.numpy(), categories=list(KINDS))
    table.insert(2, "modality", names)
    table["prunable"] = trace.record.droppable[rows, positions].numpy()
    table["layers"] = entered[rows, positions].numpy()
    return table


def layers(trace: Trace) -> list[list[str]]:
    """A header and one row for each run of decoder layers that the same number of tokens enters, over all rows.

    At most `MOST_ROWS` of these, spread evenly, the first and the last among them; `Trace.counts` has every layer.
    """
    whole = {kind: sum(trace.layout.count(row)[kind] for row in range(trace.layout.shape[0])) for kind in KINDS}
    shown = [kind for kind in KINDS if kind != "text" and whole[kind]]
    groups: list[tuple[int, int, dict[str, int], int]] = []
    for layer, (counts, droppable) in enumerate(zip(trace.counts, trace.droppable, strict=True)):
        first = groups.pop()[0] if groups and groups[-1][2] == counts else layer
        groups.append((first, layer, counts, droppable))
    if len(groups) > MOST_ROWS:
        step = (len(groups) - 1) / (MOST_ROWS - 1)
        groups = [groups[round(i * step)] for i in range(MOST_ROWS)]
    total = int(trace.record.droppable.sum())
    labels = [("prompt", whole, total)]
    labels += [(f"{a}" if a == b else f"{a}-{b}", counts, droppable) for a, b, counts, droppable in groups]
    table = [["layer", "text", *shown, "kept"]]
    for label, counts, droppable in labels:
        share = percent(droppable / total) if total else "-"
        table.append([label, *(str(counts[kind]) for kind in ("text", *shown)), share])
    return table


def figures(trace: Trace) -> list[tuple[str, str]]:
    """Names and values of what holds for the whole prompt."""
    kv, flops = trace.kv_bytes, trace.flops
    asked, word = trace.method.get("keep"), trace.method.get("budget", "layers")
    word = word if word in trace.budgets else "layers"
    target = f", asked for {asked:g}" if isinstance(asked, float | int) else ""
    shares = [
        ("keep", f"{trace.budgets[word]:.3f} {UNITS[word]}{target}"),
        ("input", f"{trace.input_keep:.3f} of the media tokens enter layer 0"),
    ]
    made = trace.encoded
    shares += [("encoder", f"{made.pruned} of {made.full} video tokens were encoded ({percent(made.ratio)})")] * (
        made.pruned < made.full
    )
    costs = [
        ("KV cache", f"{size(kv.pruned)} instead of {size(kv.full)} ({percent(kv.ratio)})"),
        ("decoder", f"{operations(flops.pruned)} instead of {operations(flops.full)} ({percent(flops.ratio)})"),
    ]
    if (total := trace.total) is not None:
        text = f"{operations(total.pruned)} instead of {operations(total.full)} ({percent(total.ratio)})"
        costs.append(("in all", f"{text}, encoders and head included"))
    return [("method", _name(trace)), *(shares if trace.record.droppable.any() else []), *costs]


def remarks(trace: Trace) -> list[str]:
    """What a reader of the numbers should know, in sentences."""
    found = []
    if images := kept_images(trace.layout, trace.record.prunable):
        found.append(images_remark(images, trace.method))
    found += [speech_remark(said) for said in speech(trace.layout)]
    if not trace.record.droppable.any():
        found.append("The prompt holds no token that this method may drop: it ran unpruned.")
    beyond = dict.fromkeys(remark for remark in trace.extrapolated if remark)  # rows may say the same
    return found + [f"Outside of the method's paper: {remark}." for remark in beyond]


def asked(layout: TokenLayout, row: int) -> str:
    """Who asked in one row: tokens of recordings, and of text."""
    rows = layout.query[row] & layout.valid[row]
    kinds, items = layout.modality[row][rows], layout.item[row][rows]
    spoken = [f"{int((items == n).sum())} tokens of audio {n}" for n in items.unique().tolist() if n >= 0]
    texts = int((kinds == Modality.TEXT).sum())
    return " and ".join([*spoken, *([f"{texts} tokens of text"] if texts else [])])


def speech(layout: TokenLayout) -> list[str]:
    """`asked` of the rows in which a recording asks; the same words once."""
    rows = (layout.query & layout.among([Modality.AUDIO])).any(1).nonzero()[:, 0].tolist()
    return list(dict.fromkeys(asked(layout, row) for row in rows))


def speech_remark(said: str) -> str:
    """What a recording that asks means for the numbers. `said`: as of `asked`."""
    return f"Asked by {said}. A recording that asks is never dropped and does not count in keep."


def kept_images(layout: TokenLayout, prunable: Sequence[int]) -> int:
    """Image tokens of the prompt that the method may not drop, since `prunable` does not name them."""
    return 0 if Modality.IMAGE in prunable else int(layout.among([Modality.IMAGE]).sum())


def images_remark(tokens: int, method: Mapping[str, Any]) -> str:
    """That images stay whole, and the setting that changes it. `method`: name and settings, as in a trace."""
    how = "set images='prune' to drop them like frames of a video"
    if "images" not in method:
        how = f"{method.get('name', 'this method')} has no setting for them, OmniDrop(images='prune') drops them"
    return f"All {tokens} image tokens are kept by default and do not count in keep; {how}."


def _name(trace: Trace) -> str:
    return str(trace.method.get("name", "unnamed method"))
