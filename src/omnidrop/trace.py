"""What happened in a prefill: plain data, JSON in and out, with the costs derived from it.

What it is: which positions entered each decoder layer, what was asked, how long the stages took. What it is not: it
neither decides anything nor draws anything.

`Trace` is what `with omnidrop.prune(...) as trace` hands out: it always shows the latest prefill, and keeps the earlier
ones in `history`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .budget import DecoderShape
from .errors import InputError
from .tokens import Modality, TokenLayout

VERSION = 1


class Cost(NamedTuple):
    """One quantity with pruning, and beside it the same quantity had nothing been dropped."""

    pruned: int
    full: int

    @property
    def ratio(self) -> float:
        """pruned / full; 1.0 where there is nothing to prune."""
        return self.pruned / self.full if self.full else 1.0


@dataclass(kw_only=True)
class Record:
    """The record of one pruned prefill, as the runtime writes it."""

    layout: TokenLayout
    kept: list[list[Tensor]]  # [layer][row], original positions entering the layer, on any device until read
    scores: list[list[Tensor]] = field(default_factory=list)  # [layer][row], S of the prunable ones, if recorded
    evicted: bool = False  # earlier layers forgot what the last one dropped
    prunable: tuple[int, ...]  # modalities that count as "tokens that may be dropped"
    shape: DecoderShape
    method: dict[str, Any]
    timers: dict[str, Any] = field(default_factory=dict)  # stage -> something with .seconds


class Trace:
    """The latest prefill inside a `with omnidrop.prune(...)`; read after (or between) calls of the model.

    Attributes of interest: `kept`, `keep`, `input_keep`, `budgets`, `counts`, `flops`, `kv_bytes`, `seconds`, `layout`,
    `history`.
    Reading any of them before a prompt with text ran raises `InputError`.
    """

    def __init__(self, record: Record | None = None, history: list[Trace] | None = None) -> None:
        self._record = record
        self.history: list[Trace] = history if history is not None else []

    def add(self, record: Record) -> None:
        """Make `record` the latest prefill; the one shown until now goes to `history`."""
        if self._record is not None:
            self.history.append(Trace(self._record))
        self._record = record
        for name in ("kept", "scores", "counts", "seconds"):
            self.__dict__.pop(name, None)

    @property
    def record(self) -> Record:
        """The raw record."""
        if self._record is None:
            raise InputError(
                "the trace is empty: run the model on a prompt inside `with omnidrop.prune(...) as trace` first"
            )
        return self._record

    @property
    def layout(self) -> TokenLayout:
        """Who is where in the prompt."""
        return self.record.layout

    @property
    def method(self) -> dict[str, Any]:
        """Name and settings of the method."""
        return self.record.method

    @cached_property
    def kept(self) -> list[list[Tensor]]:
        """`kept[l][b]`: positions (text included) that ENTER decoder layer l in row b, ascending, on the CPU."""
        moved: dict[int, Tensor] = {}  # layers without a drop share one tensor: move it once

        def to_cpu(tensor: Tensor) -> Tensor:
            return moved.setdefault(id(tensor), tensor.detach().cpu())

        return [[to_cpu(row) for row in layer] for layer in self.record.kept]

    @cached_property
    def scores(self) -> list[list[Tensor]] | None:
        """`scores[l][b]`: S of eq. 5 in layer l of those tokens of `kept[l][b]` that may be dropped, in their order.

        (n,) float32 on the CPU: mean attention from the rows that ask. None unless `prune(..., scores=True)` recorded
        it, and where nothing was dropped. Inside `omnidrop.lean` only the newest row asks in the last layer.
        """
        return [[row.detach().float().cpu() for row in layer] for layer in self.record.scores] or None

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

    def _prunable_total(self) -> int:
        kinds = torch.tensor(self.record.prunable)
        return int((torch.isin(self.layout.modality, kinds) & self.layout.valid).sum())

    def _prunable_in(self, layer: int) -> int:
        return sum(self.counts[layer][Modality(kind).name.lower()] for kind in self.record.prunable)

    @property
    def keep(self) -> float:
        """R, measured: mean over layers of the share of audio and video tokens that enter the layer (eq. 6)."""
        total = self._prunable_total()
        return sum(map(self._prunable_in, range(len(self.counts)))) / (len(self.counts) * total) if total else 1.0

    @property
    def input_keep(self) -> float:
        """r_0, measured: the share of audio and video tokens that enters the first decoder layer."""
        total = self._prunable_total()
        return self._prunable_in(0) / total if total else 1.0

    @property
    def flops(self) -> Cost:
        """Floating-point operations of the decoder layers in this prefill: 2 per multiply-add; no encoders, no head."""
        shape = self.record.shape
        pruned = sum(shape.layer_flops(len(row)) for layer in self.record.kept for row in layer)
        full = sum(shape.layers * shape.layer_flops(int(n)) for n in self.layout.valid.sum(1))
        return Cost(pruned, full)

    @property
    def kv_bytes(self) -> Cost:
        """Bytes of keys and values that the prompt leaves in the cache, over all layers and rows (padding apart)."""
        shape = self.record.shape
        kept = self.record.kept
        entries = sum(len(row) for layer in kept for row in (kept[-1] if self.record.evicted else layer))
        return Cost(
            entries * shape.kv_entry_bytes(), int(self.layout.valid.sum()) * shape.layers * shape.kv_entry_bytes()
        )

    @property
    def budgets(self) -> dict[str, float]:
        """The four shares that the literature calls retention, all measured (`omnidrop.budget` defines them)."""
        return {
            "layers": self.keep,
            "input": self.input_keep,
            "flops": self.flops.ratio,
            "kv": self.kv_bytes.ratio,
        }

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Wall seconds of the stages that ran: vision_encoder, audio_encoder, input_stage, decoder, head.

        `selection` is the part of `decoder` between its layers: scoring, choosing, and cutting the tensors.
        """
        return {stage: timer.seconds for stage, timer in self.record.timers.items() if timer.seconds is not None}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain lists and numbers; the derived numbers too, so that a file reads by itself."""
        record = self.record
        return {
            "format": "omnidrop.trace",
            "version": VERSION,
            "method": record.method,
            "keep": self.keep,
            "input_keep": self.input_keep,
            "budgets": self.budgets,
            "counts": self.counts,
            "flops": self.flops._asdict(),
            "kv_bytes": self.kv_bytes._asdict(),
            "seconds": self.seconds,
            "prunable": list(record.prunable),
            "shape": asdict(record.shape),
            "kept": [[row.tolist() for row in layer] for layer in self.kept],
            "evicted": record.evicted,
            "layout": record.layout.to_json(),
            "history": [earlier.to_json() for earlier in self.history],
        } | ({"scores": _short(self.scores)} if self.scores else {})

    def save(self, path: str | Path) -> None:
        """Write the trace as one JSON document."""
        Path(path).write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote. Raises `InputError` for another format or version."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not a trace: {error}") from error
        return cls.from_json(document)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Trace:
        """Inverse of `to_json`."""
        if document.get("format") != "omnidrop.trace" or document.get("version") != VERSION:
            raise InputError(
                f"not a trace of version {VERSION}: "
                f"format {document.get('format')!r}, version {document.get('version')!r}"
            )
        record = Record(
            layout=TokenLayout.from_json(document["layout"]),
            kept=[[torch.tensor(row, dtype=torch.long) for row in layer] for layer in document["kept"]],
            scores=[[torch.tensor(row) for row in layer] for layer in document.get("scores", [])],
            evicted=document["evicted"],
            prunable=tuple(document["prunable"]),
            shape=DecoderShape(**document["shape"]),
            method=document["method"],
            timers={stage: _Measured(seconds) for stage, seconds in document["seconds"].items()},
        )
        return cls(record, [cls.from_json(earlier) for earlier in document["history"]])


def _short(scores: list[list[Tensor]]) -> list[list[list[float]]]:
    """Four digits: scores are looked at, and there are as many as tokens times layers."""
    return [[[float(f"{value:.4g}") for value in row.tolist()] for row in layer] for layer in scores]


class _Measured(NamedTuple):
    """A timer read from a file."""

    seconds: float
