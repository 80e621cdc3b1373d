"""A step that prunes prompts: the decoder's layers one after another, with fewer rows from stage to stage.

A loop over vLLM's own layers; between stages the same `Prefill` as in transformers decides what goes on, one request at
a time. The other requests of the step (decoding, text, unpruned) go through all layers whole. Steps that prune nothing
take the engine's own, compiled path.

Shapes: T tokens of the step, D width of the model, K tokens that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnidrop.core.tokens import Modality, TokenLayout
from omnidrop.engine.prefill import AttentionInputs, Prefill
from omnidrop.methods import Method
from omnidrop.methods.base import InputView, LayerView, Merged

from . import compat
from .pruner import Pruner
from .step import StepRow


@dataclass(frozen=True, kw_only=True)
class Broadcast(Method):
    """A method whose choices all tensor-parallel ranks take from the first: rounding may differ between devices."""

    method: Method

    @property
    def prunable(self) -> tuple[Modality, ...]:
        return self.method.prunable

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return self.method.saliency

    def at_input(self, view: InputView) -> Tensor | Merged | None:
        return self._share(self.method.at_input(view))

    def plan(self, budget: Any) -> list[int]:
        return self.method.plan(budget)

    def at_layer(self, view: LayerView, k: int) -> Tensor | Merged:
        shared = self._share(self.method.at_layer(view, k))
        assert shared is not None
        return shared

    @staticmethod
    def _share(chosen: Tensor | Merged | None) -> Tensor | Merged | None:
        if chosen is None:
            return None
        group = compat.get_tp_group()
        if isinstance(chosen, Merged):
            return Merged(group.broadcast(chosen.kept), group.broadcast(chosen.features.contiguous()))
        return group.broadcast(chosen)


def run(decoder: Any, pruner: Pruner, positions: Tensor, embeds: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
    """The decoder over a step that cuts prompts: (T', D) final hidden states, zero where a token was dropped.

    `decoder` is vLLM's text model; positions (3, T'), embeds (T', D) with T' >= T (padding is left alone); `added`[l]
    (T', D) is added to the output of layer l (DeepStack).
    """
    step = pruner.step
    assert step is not None
    # What a client sends may become nan or infinite. It stays inside its request, but no choice may be made of it.
    embeds = embeds.nan_to_num(0.0, 0.0, 0.0)
    flat = _bounds([row.scheduled for row in step.rows])
    prompts = {number: _Prompt(pruner, row, flat[number], embeds) for number, row in enumerate(step.rows) if row.fresh}
    place = _among(flat, {number: prompt.entered for number, prompt in prompts.items()}, embeds.device)
    hidden, residual = embeds[place], None
    for number, prompt in prompts.items():
        if prompt.merged is not None:
            first = int(step.stage(0).starts[number])
            hidden[first : first + prompt.left] = prompt.merged
    starts, stage, where = pruner.planner.starts, 0, positions[..., place]
    for index, layer in enumerate(decoder.layers):
        loses = any(prompt.prefill.drops_after(index) for prompt in prompts.values())
        attention = layer.self_attn.attn
        attention.tap = [] if loses else None
        hidden, residual = layer(where, hidden, residual)
        tapped, attention.tap = attention.tap, None
        if index < len(added):
            hidden = hidden + added[index][place]
        if loses:
            bounds, survivors = step.stage(stage).starts.tolist(), {}
            for number, prompt in prompts.items():
                rows = slice(bounds[number], bounds[number + 1])
                states, projected = (hidden[rows], residual[rows]), [part[rows] for part in tapped[0]]
                left = prompt.leave(index, stage + 1, states, projected, attention.impl.scale)
                survivors[number] = rows.start + left
            kept = _among(bounds, survivors, place.device)
            place, where, hidden, residual = place[kept], where[..., kept], hidden[kept], residual[kept]
        elif index + 1 < len(decoder.layers):
            for prompt in prompts.values():
                prompt.prefill.leave(index, None)
        stage += index + 1 in starts
    hidden, _ = decoder.norm(hidden, residual)
    whole = hidden.new_zeros(embeds.shape)
    whole[place] = hidden
    if pruner.watch is not None:
        for prompt in prompts.values():
            pruner.watch(prompt.row.request, prompt.prefill)
    return whole


class _Prompt:
    """One request whose prompt is being cut, with what it generated before a preemption, if anything."""

    def __init__(self, pruner: Pruner, row: StepRow, first: int, embeds: Tensor) -> None:
        plan = row.plan
        assert plan is not None and plan.layout is not None
        self.row, self.pruner = row, pruner
        self.tail = row.scheduled - plan.length  # tokens after the prompt
        method = plan.method if compat.get_tensor_model_parallel_world_size() == 1 else Broadcast(method=plan.method)
        self.prefill = Prefill(
            method=method,
            layout=plan.layout,
            prompt_hashes=[plan.prompt_hash],
            shape=pruner.planner.shape,
            device=embeds.device,
            audio_window=pruner.planner.adapter.prompt.audio_window,
        )
        prompt = embeds[None, first : first + plan.length]
        columns = self.prefill.enter(prompt, self._saliency(plan.layout, first))
        assert self.prefill.drops, "the plan drops, the method does not"
        self.left = columns.shape[1]
        self._check(0)
        merged = self.prefill.merge(prompt)
        self.merged = None if merged is prompt else merged[0, columns[0]]  # (K, D) of what enters, after merging
        after = torch.arange(first + plan.length, first + row.scheduled, device=embeds.device)
        self.entered = torch.cat([first + columns[0], after])

    def _saliency(self, layout: TokenLayout, first: int) -> dict[Modality, Tensor]:
        found = self.pruner.saliency
        if Modality.AUDIO not in self.prefill.method.saliency or found is None:
            return {}
        audio = (layout.modality[0] == Modality.AUDIO).nonzero()[:, 0]
        return {Modality.AUDIO: found[first + audio.to(found.device)].nan_to_num(0.0, 0.0, 0.0)}

    def leave(self, index: int, stage: int, states: Sequence[Tensor], tapped: Sequence[Tensor], scale: float) -> Tensor:
        """Drop between layer `index` and `stage`, which begins after it: which of this request's rows go on.

        `states`: the rows' hidden states and residuals (K, D), which leave the layer as their sum; `tapped`: their
        queries and keys in it.
        """
        left, device = self.left, states[0].device
        if not self.prefill.drops_after(index):
            self.prefill.leave(index, None)
            return torch.arange(left + self.tail, device=device)
        width = self.pruner.planner.shape.head_dim
        queries, keys = (part[:left].view(1, left, -1, width) for part in tapped)
        attended = AttentionInputs(
            hidden=(states[0][:left] + states[1][:left])[None],
            queries=queries,
            keys=keys,
            rotary=None,
            scale=scale,
            join=compat.join_heads(),
        )
        columns = self.prefill.leave(index, attended)
        assert columns is not None
        self.left = columns.shape[1]
        self._check(stage)
        return torch.cat([columns[0], torch.arange(left, left + self.tail, device=device)])

    def _check(self, stage: int) -> None:
        assert self.row.plan is not None
        if self.left != self.row.plan.held(stage):
            raise AssertionError(f"stage {stage} keeps {self.left} tokens, planned were {self.row.plan.held(stage)}")


def _bounds(lengths: Sequence[int]) -> list[int]:
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return bounds


def _among(bounds: Sequence[int], chosen: Mapping[int, Tensor], device: torch.device) -> Tensor:
    """All rows of the requests (bounds[i] to bounds[i + 1]), but of those in `chosen` only these rows; ascending."""
    parts, done = [], 0
    for number, rows in sorted(chosen.items()):
        parts += [torch.arange(done, bounds[number], device=device), rows]
        done = bounds[number + 1]
    return torch.cat([*parts, torch.arange(done, bounds[-1], device=device)])
