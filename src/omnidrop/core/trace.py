"""The record of a prefill: which positions entered each decoder layer, and what follows from it. JSON in and out.

`Trace` is what `with omnidrop.prune(...) as trace` returns. It always shows the latest prefill, and keeps the newest of
the earlier ones in `history`. A record is copied to the host as soon as its prefill has run: it holds no GPU memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, SettingError
from . import origin, trace_file, trace_view
from .budget import TOTAL, DecoderShape, FirstToken
from .origin import Origin
from .tokens import Modality, TokenLayout

HISTORY = 16  # earlier prefills that a trace keeps: about 1 MB of host memory each at 11,000 tokens and keep 0.3


class Cost(NamedTuple):
    """One quantity with pruning, and beside it the same quantity had nothing been dropped."""

    pruned: int
    full: int

    @property
    def ratio(self) -> float:
        """pruned / full; 1.0 where there is nothing to prune."""
        return self.pruned / self.full if self.full else 1.0

    def __repr__(self) -> str:
        return f"Cost(pruned={self.pruned}, full={self.full}, ratio={self.ratio:.3f})"


@dataclass(kw_only=True)
class Record:
    """The record of one prefill, as the engine writes it."""

    layout: TokenLayout
    kept: list[list[Tensor]]  # [layer][row], original positions entering the layer
    encoded: list[Tensor] = field(default_factory=list)  # [row], positions of the video tokens that were encoded, on
    # the host; empty: all of all rows
    scores: list[list[Tensor]] = field(default_factory=list)  # [layer][row], S of the prunable ones, if recorded
    evicted: bool = False  # earlier layers forgot what the last one dropped
    prunable: tuple[int, ...]  # modalities that count as "tokens that may be dropped"
    shape: DecoderShape
    first: list[FirstToken] = field(default_factory=list)  # [row]; empty: not known, see `TokenCounts.first`
    method: dict[str, Any]
    extrapolated: list[str] = field(default_factory=list)  # [row], see `Trace.extrapolated`
    origin: Origin | None = None  # question, answer, files and model, if `Trace.describe` was told
    timers: dict[str, Any] = field(default_factory=dict)  # stage -> something with .seconds
    copies: list[Any] = field(default_factory=list)  # CUDA events of copies that may not have arrived

    @property
    def droppable(self) -> Tensor:
        """(B, L) bool: the tokens that the method may drop."""
        return self.layout.droppable([Modality(kind) for kind in self.prunable])

    def leave_device(self) -> None:
        """Put CPU tensors, without gradients, in place of all others. On CUDA nothing waits: `wait` before reading."""
        moved: dict[int, Tensor] = {}  # layers without a drop share one tensor: move it once
        devices: dict[torch.device, None] = {}

        def to_cpu(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                if tensor.is_cuda:
                    devices[tensor.device] = None
                moved[id(tensor)] = tensor.detach().to("cpu", non_blocking=tensor.is_cuda)
            return moved[id(tensor)]

        self.kept = [[to_cpu(row) for row in layer] for layer in self.kept]
        self.scores = [[to_cpu(row) for row in layer] for layer in self.scores]
        for device in devices:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(device))
            self.copies.append(copied)

    def wait(self) -> None:
        """Until every tensor's values are here."""
        while self.copies:
            self.copies.pop().synchronize()


class Trace:
    """The latest prefill inside a `with omnidrop.prune(...)`; read after (or between) calls of the model.

    Attributes of interest: `kept`, `keep`, `input_keep`, `budgets`, `counts`, `encoded`, `flops`, `total`,
    `kv_bytes`, `seconds`, `layout`, `asked`, `remarks`, `extrapolated`, `origin`, `history`. `summary()` is a table,
    `to_frame()` a row for each token. Reading any of them before a prompt with text ran raises `InputError`.
    """

    def __init__(
        self, record: Record | None = None, history: list[Trace] | None = None, *, limit: int = HISTORY
    ) -> None:
        self._record = record
        self._limit = limit
        self.history: list[Trace] = history if history is not None else []

    def __repr__(self) -> str:
        return "Trace(empty: no prompt has run yet)" if self._record is None else trace_view.line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<p>{self!r}</p>" if self._record is None else trace_view.html(self)

    def summary(self) -> str:
        """Tables of at most 80 columns: tokens that enter each layer, measured shares and costs, and `remarks`."""
        return trace_view.summary(self)

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with one row for each token of the prompt, padding left out, in order of position.

        Columns: row (of the batch), position, modality (categorical: text, audio, video, image), item, frame, chunk,
        second, query (as in `TokenLayout`), prunable (whether the method may drop it), layers (how many decoder layers
        it entered; 0: dropped at the input). Numbers per layer are `pandas.DataFrame(trace.counts)`. Raises
        `OmnidropError` where pandas is not installed.
        """
        return trace_view.frame(self)

    def add(self, record: Record) -> None:
        """Make `record` the latest prefill; the one shown until now goes to `history`, which holds the newest alone."""
        if self._record is not None:
            self.history.append(Trace(self._record))
        del self.history[: max(len(self.history) - self._limit, 0)]
        record.leave_device()
        self._record = record
        for name in ("kept", "scores", "counts", "droppable", "seconds"):
            self.__dict__.pop(name, None)

    @property
    def record(self) -> Record:
        """The raw record; `Record.wait` before reading the values of its tensors."""
        if self._record is None:
            raise InputError(
                "the trace is empty: run the model on a prompt inside `with omnidrop.prune(...) as trace` first"
            )
        return self._record

    @property
    def layout(self) -> TokenLayout:
        """Modality, chunk, second and query flag of every position of the prompt."""
        return self.record.layout

    @property
    def method(self) -> dict[str, Any]:
        """Name and settings of the method."""
        return self.record.method

    @property
    def extrapolated(self) -> list[str]:
        """Per row, where the target left what the method's paper defines: the settings used and the paper's. Or ""."""
        return self.record.extrapolated

    @property
    def remarks(self) -> list[str]:
        """What a reader of the numbers should know, in sentences: images that are kept, targets beyond the paper."""
        return trace_view.remarks(self)

    @property
    def origin(self) -> Origin | None:
        """Question, answer, files, model, versions and date; None until `describe` is called."""
        return self.record.origin

    def describe(
        self,
        *,
        question: str | Sequence[str] | None = None,
        answer: str | Sequence[str] | None = None,
        files: Sequence[str | Path] | Sequence[Sequence[str | Path]] | None = None,
        model: str | None = None,
    ) -> None:
        """Note what the prompt was: `save` writes it, and a report shows it. Versions and date are added.

        `question` and `answer` are a text, or one for each of the B rows; `files` the paths in the prompt's order, or
        one list for each row (names and checksums are kept); `model` a path or hub id.
        Raises `InputError` for an empty trace and for lists of another length.
        """
        rows = self.layout.shape[0]
        self.record.origin = origin.describe(rows, question=question, answer=answer, files=files, model=model)

    @cached_property
    def kept(self) -> list[list[Tensor]]:
        """`kept[l][b]`: positions (text included) that ENTER decoder layer l in row b, ascending, on the CPU.

        It ends with the last layer that has keys and values of its own (Gemma 4 has others behind it).
        """
        self.record.wait()
        return self.record.kept

    @cached_property
    def scores(self) -> list[list[Tensor]] | None:
        """`scores[l][b]`: S of eq. 5 in layer l of those tokens of `kept[l][b]` that may be dropped, in their order.

        (n,) float32 on the CPU: mean attention from the rows that ask, nan in a layer without attention. None unless
        `prune(..., scores=True)` recorded it, and where nothing was dropped. Inside `omnidrop.lean` only the newest row
        asks in the last layer.
        """
        self.record.wait()
        return [[row.float() for row in layer] for layer in self.record.scores] or None

    @cached_property
    def counts(self) -> list[dict[str, int]]:
        """Per layer: number of tokens of each modality that enter it, over all rows (the paper's fig. 4)."""
        result = []
        for layer in self.kept:
            tally = torch.zeros(len(Modality), dtype=torch.long)
            for row, positions in enumerate(layer):
                tally += torch.bincount(self.layout.modality[row, positions], minlength=len(Modality))
            result.append({kind.name.lower(): int(tally[kind]) for kind in Modality})
        return result

    @cached_property
    def droppable(self) -> list[int]:
        """Of each layer, how many of the tokens that enter it could have been dropped, over all rows."""
        able = self.record.droppable
        return [sum(int(able[row, positions].sum()) for row, positions in enumerate(layer)) for layer in self.kept]

    @property
    def asked(self) -> list[str]:
        """Per row, who asked: "7 tokens of text", "75 tokens of audio 1", or both."""
        return [trace_view.asked(self.layout, row) for row in range(self.layout.shape[0])]

    @property
    def keep(self) -> float:
        """R, measured: mean over layers of the share of audio and video tokens that enter the layer (eq. 6)."""
        total = int(self.record.droppable.sum())
        return sum(self.droppable) / (len(self.droppable) * total) if total else 1.0

    @property
    def input_keep(self) -> float:
        """r_0, measured: the share of audio and video tokens that enters the first decoder layer."""
        total = int(self.record.droppable.sum())
        return self.droppable[0] / total if total else 1.0

    @property
    def encoded(self) -> Cost:
        """Video tokens of all rows that the vision encoder made, and how many there are (`Method.at_pixels`)."""
        full = int(((self.layout.modality == Modality.VIDEO) & self.layout.valid).sum())
        return Cost(sum(map(len, self.record.encoded)) if self.record.encoded else full, full)

    @property
    def flops(self) -> Cost:
        """Floating-point operations of the decoder layers in this prefill: 2 per multiply-add; no encoders, no head."""
        shape, rows = self.record.shape, list(zip(*self.record.kept, strict=True))
        pruned = sum(shape.prefill_flops([len(layer) for layer in row]) for row in rows)
        full = sum(shape.prefill_flops([int(n)] * shape.layers) for n in self.layout.valid.sum(1))
        return Cost(pruned, full)

    @property
    def total(self) -> Cost | None:
        """Floating-point operations of the whole first token, encoders and head included, beside the stock model's.

        Encoders as they ran (`encoded`), each row as it were alone; the head as `budget.FirstToken` says. None where
        what the encoders cost is not known (docs/encoder.md). `lean` is not counted: it lowers what really runs.
        """
        shape, rows, pruned, full = self.record.shape, list(zip(*self.record.kept, strict=True)), 0, 0
        for first, row, n in zip(self.record.first, rows, self.layout.valid.sum(1).tolist(), strict=False):
            pruned += first.flops(shape, [len(layer) for layer in row])
            full += replace(first, encoders=first.whole).flops(shape, [n] * shape.layers)
        return Cost(pruned, full) if self.record.first else None

    @property
    def kv_bytes(self) -> Cost:
        """Bytes of keys and values that the prompt leaves in the cache, over all layers and rows (padding apart)."""
        shape, kept = self.record.shape, self.record.kept
        held = [kept[-1]] * len(kept) if self.record.evicted else kept
        pruned = sum(shape.kv_bytes([len(layer) for layer in row]) for row in zip(*held, strict=True))
        full = sum(shape.kv_bytes([int(n)] * shape.layers) for n in self.layout.valid.sum(1))
        return Cost(pruned, full)

    @property
    def budgets(self) -> dict[str, float]:
        """The shares that `keep` may count, measured (`omnidrop.budget` defines them); "total" where it is known."""
        found = {
            "layers": self.keep,
            "input": self.input_keep,
            "flops": self.flops.ratio,
            "kv": self.kv_bytes.ratio,
        }
        return found if (total := self.total) is None else {**found, TOTAL: total.ratio}

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Wall seconds of the stages that ran: pixel_stage (choosing what is encoded), vision_encoder, audio_encoder,
        input_stage, decoder, head.

        `selection` is the part of `decoder` between its layers: scoring, choosing, and cutting the tensors.
        """
        return {stage: timer.seconds for stage, timer in self.record.timers.items() if timer.seconds is not None}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain lists and numbers; the derived numbers too, so that a file reads by itself."""
        record = self.record
        return {
            "format": trace_file.FORMAT,
            "version": trace_file.VERSION,
            "method": record.method,
            "extrapolated": record.extrapolated,
            "keep": self.keep,
            "input_keep": self.input_keep,
            "budgets": self.budgets,
            "counts": self.counts,
            "flops": self.flops._asdict(),
            "kv_bytes": self.kv_bytes._asdict(),
            "seconds": self.seconds,
            "prunable": list(record.prunable),
            "shape": record.shape.to_json(),
            "kept": [[row.tolist() for row in layer] for layer in self.kept],
            "evicted": record.evicted,
            "layout": record.layout.to_json(),
            "history": [earlier.to_json() for earlier in self.history],
            **({"encoded": [row.tolist() for row in record.encoded]} if record.encoded else {}),
            **({"first_token": [row.to_json() for row in record.first]} if record.first else {}),
            **({"scores": _short(self.scores)} if self.scores else {}),
            **({"origin": record.origin.to_json()} if record.origin else {}),
        }

    def save(self, path: str | Path) -> None:
        """Write the trace as one JSON document. Raises `FileError` where `path` cannot be written."""
        trace_file.write(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path, *, max_bytes: int = trace_file.MAX_BYTES) -> Trace:
        """Read what `save` wrote, and check the whole of it (`trace.schema.json`).

        Raises `FileError` where `path` cannot be read, `InputError` for another format, a damaged file, and one of
        more than `max_bytes`.
        """
        document = trace_file.read(path, max_bytes)
        try:
            return cls.from_json(document)
        except InputError as error:
            raise type(error)(f"{path} is {error}") from error

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Trace:
        """Inverse of `to_json`. Raises `InputError`."""
        trace_file.check(document)
        return cls._from_checked(document)

    @classmethod
    def _from_checked(cls, document: dict[str, Any]) -> Trace:
        record = Record(
            layout=TokenLayout.from_json(document["layout"]),
            kept=[[torch.tensor(row, dtype=torch.long) for row in layer] for layer in document["kept"]],
            encoded=[torch.tensor(row, dtype=torch.long) for row in document.get("encoded", [])],
            scores=[[_numbers(row) for row in layer] for layer in document.get("scores", [])],
            evicted=document["evicted"],
            prunable=tuple(document["prunable"]),
            shape=DecoderShape.from_json(document["shape"]),
            first=[FirstToken(**row) for row in document.get("first_token", [])],
            method=document["method"],
            extrapolated=document.get("extrapolated", []),
            origin=Origin.from_json(document["origin"]) if "origin" in document else None,
            timers={stage: _Measured(seconds) for stage, seconds in document["seconds"].items()},
        )
        return cls(record, [cls._from_checked(earlier) for earlier in document["history"]])


def check_history(limit: object) -> None:
    """Raise `SettingError` for anything but a whole number, 0 or more."""
    if type(limit) is not int or limit < 0:
        raise SettingError(
            f"history is {limit!r}; it must be a whole number, 0 or more: how many earlier prompts to keep"
        )


def _short(scores: list[list[Tensor]]) -> list[list[list[float | None]]]:
    """Four digits: scores are looked at, and there are as many as tokens times layers; None for what is no number."""
    return [
        [[float(f"{value:.4g}") if math.isfinite(value) else None for value in row.tolist()] for row in layer]
        for layer in scores
    ]


def _numbers(row: list[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in row], dtype=torch.float32)


class _Measured(NamedTuple):
    """A timer read from a file."""

    seconds: float
