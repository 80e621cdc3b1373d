"""Prefill of an `Axis` with hidden tokens instead of cut ones, so that they may be looked at, or come back.

A simulation for the search. Every token that entered stays in the sequence; in a layer that does not work on it, its
key is masked for all others and its state stays as it was. It is not faster; only what is counted is less.

A token costs a layer if that layer works on it, and the trace is told just that. The key of a waiting token, projected
to score it, is not counted. For `Axis(masked=True)` the answers are those of the runtime's `Tuned`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from omnidrop.core import score, select
from omnidrop.core.select import diversity, quota
from omnidrop.core.tokens import Modality
from omnidrop.engine.prefill import Prefill
from omnidrop.models import adapt
from omnidrop.models.base import split_heads

from .axes import Axis, smooth_in_time


@contextmanager
def masked(model: Any) -> Iterator[None]:
    """Inside, a prefill under `Axis(masked=True)` is simulated. Any other prefill is left alone."""
    simulation, enter = _Simulation(model), Prefill.enter

    def watched(prefill: Prefill, *args: Any) -> Tensor | None:
        columns = enter(prefill, *args)
        simulation.begin(prefill)
        return columns

    Prefill.enter = watched
    try:
        yield
    finally:
        Prefill.enter = enter
        for handle in simulation.handles:
            handle.remove()


class _Simulation:
    def __init__(self, model: Any) -> None:
        self.adapter = adapt(model)
        self.rows: list[_Row] = []
        self.seen: dict[str, Tensor] = {}
        self.handles: list[Any] = []
        for index, layer in enumerate(self.adapter.decoder.layers):
            self.handles.append(layer.register_forward_pre_hook(self.before, with_kwargs=True))
            self.handles.append(layer.register_forward_hook(partial(self.after, index), with_kwargs=True))
            for name in ("q_proj", "k_proj", "v_proj"):
                module = getattr(layer.self_attn, name)
                self.handles.append(module.register_forward_hook(partial(self.note, name)))

    def begin(self, prefill: Prefill) -> None:
        method = prefill.method
        self.prefill, self.rows = prefill, []
        if isinstance(method, Axis) and method.masked:
            self.rows = [_Row(self, method, b) for b in range(len(prefill.rows))]
            self.kept = [[row.positions() for row in self.rows]]

    def note(self, name: str, module: Any, args: Any, output: Tensor) -> None:
        self.seen[name] = output

    def before(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not self.rows:
            return None
        cos, sin = kwargs["position_embeddings"]
        self.seen |= {
            "cos": self.adapter.decoder.join_axes(cos),
            "sin": self.adapter.decoder.join_axes(sin),
            "state": args[0],
        }
        width = args[0].shape[1]
        visible = torch.stack([row.visible(width) for row in self.rows])
        past = torch.ones(width, width, dtype=torch.bool).tril()
        mask = past & visible[:, None, :] | torch.eye(width, dtype=torch.bool)  # who waits sees itself: no empty row
        return args, {**kwargs, "attention_mask": mask[:, None]}

    def after(self, index: int, module: Any, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        if not self.rows:
            return None
        width = output.shape[1]
        visible = torch.stack([row.visible(width) for row in self.rows])
        output = torch.where(visible[..., None], output, self.seen["state"])
        if index + 1 < self.prefill.layers:
            for row in self.rows:
                row.step(index, module.self_attn.scaling)
            self.kept.append([row.positions() for row in self.rows])
        else:
            self.prefill.kept.positions[:] = self.kept
            self.rows = []
        return output


class _Row:
    """One prompt: n tokens entered, `on` of them are worked on by the layer at hand. Media tokens by place, 0..n-1."""

    def __init__(self, simulation: _Simulation, method: Axis, b: int) -> None:
        self.simulation, self.method, self.b = simulation, method, b
        prefill = simulation.prefill
        self.row = prefill.rows[b]
        where = self.row.positions[self.row.media]
        self.kind, self.chunk = (prefill.facts[name][b][where] for name in ("modality", "chunk"))
        self.chunks = prefill.max_chunks[b] + 1
        self.budget = prefill._budget(b, len(where))
        self.counts = method.wanted(self.budget)
        self.on = torch.ones(len(where), dtype=torch.bool)
        self.history = torch.zeros(len(where))
        self.spent, self.started = 0, False

    def positions(self) -> Tensor:
        """Of the prompt: what the layer at hand works on."""
        return self.row.positions[self._places()]

    def _places(self) -> Tensor:
        return torch.cat([self.row.text, self.row.media[self.on]]).sort().values

    def visible(self, width: int) -> Tensor:
        mask = torch.zeros(width, dtype=torch.bool)
        mask[width - len(self.row.positions) + self._places()] = True
        return mask

    # who goes on ------------------------------------------------------------------------------------------------------

    def step(self, layer: int, scale: float) -> None:
        """Choose what the layer after `layer` works on."""
        method, now = self.method, int(self.on.sum())
        self.spent += now
        back = round(method.back * self.budget.layers)
        if method.rest < 1 and layer + 1 < back:
            if layer == 0:
                self.on = self._spread(self.counts[1])
            return
        if method.rest < 1 and layer + 1 == back:
            self.on[:] = True
        worth = self._worth(scale)
        n = self.counts[layer + 1]
        if method.sharp is not None:
            n = self._sharp_count(method.sharp, layer, now, worth)
        among = torch.arange(len(self.on)) if method.recover else self.on.nonzero()[:, 0]
        kept = among[select.keep_highest(worth[among], len(among) - n)]
        self.on = torch.zeros_like(self.on)
        self.on[kept] = True

    def _sharp_count(self, sharp: float, layer: int, now: int, worth: Tensor) -> int:
        held = torch.bincount(self.chunk[self.on], weights=worth[self.on])
        self.started = self.started or bool(held.max() / held.sum() >= sharp)
        room = self.method.keep * self.budget.layers * self.budget.total - self.spent
        return self.method.from_here(layer, self.spent, now, self.budget) if self.started or room < 2 * now else now

    def _spread(self, n: int) -> Tensor:
        """The n that differ most, as at the input: those that work while the others wait."""
        states = self._rows("state")[self.row.media]
        window, sizes = diversity.windows(self.kind, self.chunk, self.chunks)
        on = torch.zeros_like(self.on)
        on[diversity.within(states, window, sizes, quota.split(n, sizes))] = True
        return on

    # what it is worth -------------------------------------------------------------------------------------------------

    def _rows(self, name: str) -> Tensor:
        tensor = self.simulation.seen[name][self.b]
        return tensor[len(tensor) - len(self.row.positions) :]

    def _attention(self, rows: Tensor, scale: float) -> Tensor:
        """(H, n) from `rows` (places in the row) to all that may be chosen; 0 for the others."""
        places = torch.arange(len(self.row.positions)) if self.method.recover else self._places()
        cos, sin = self._rows("cos"), self._rows("sin")
        width = cos.shape[-1]
        queries = score.rotate(split_heads(self._rows("q_proj")[rows], width), cos[rows], sin[rows])
        keys = score.rotate(split_heads(self._rows("k_proj")[places], width), cos[places], sin[places])
        found = score.head_attention(queries, keys, torch.searchsorted(places, rows), scale=scale)
        full = torch.zeros(len(found), len(self.row.positions))
        full[:, places] = found
        return full[:, self.row.media]

    def _worth(self, scale: float) -> Tensor:
        heads, rank = self._attention(self.row.asks, scale), self.method.rank
        if rank == "value":
            values = split_heads(self._rows("v_proj")[self.row.media], self._rows("cos").shape[-1]).norm(dim=-1)
            return (heads * values.repeat_interleave(len(heads) // len(values), 0)).mean(0)
        if rank == "heads":
            return heads[heads.sum(1).topk(len(heads) // 2).indices].mean(0)
        worth = heads.mean(0)
        if rank == "closing":
            others = self.row.text[self.row.text > self.row.media[-1]]
            blind = others[~torch.isin(others, self.row.asks)]
            return worth - self._attention(blind if len(blind) else self.row.asks[:1], scale).mean(0)
        if rank == "received":
            rows = self.row.media[self.on]
            later = torch.arange(len(rows), 0, -1)  # rows that see the token, itself included
            worth = worth.clone()
            worth[self.on] -= self._attention(rows, scale).mean(0)[self.on] * len(rows) / later
            return worth
        if rank == "spectral":
            heard = (self.kind == Modality.AUDIO) & self.on
            worth = worth.clone()
            worth[heard] = smooth_in_time(worth[heard])
        if rank == "mean":  # over all layers so far: the sum ranks alike
            self.history += worth
            return self.history.clone()
        if rank == "recent":
            self.history = 0.5 * self.history + 0.5 * worth
            return self.history.clone()
        return worth
