"""The oracle: OmniDrop as one plain loop over the decoder layers, slow and obvious, in eager float32 PyTorch.

It shares no code with src/ and reads PAPER.md's equations literally: batch 1, no padding, every ranking a Python sort,
on top of the models written out in `eager.py`. It takes explicit drop rates p_l, so that a wrong schedule in src/
cannot hide. `dropped_equals_masked` is a second, different reference: nothing is removed, the dropped tokens are only
hidden as keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from eager import Decoder, Embedded, embed, parts, rms_norm
from prompts import AUDIO, IMAGE, TEXT, VIDEO, Prompt

Tensor = torch.Tensor


def sigmoid_schedule(layers: int, p_init: float, p_final: float, t_mid: float = 0.5, beta: float = 20.0) -> list[float]:
    """PAPER.md section 3, eq. 3: one p_l per layer; the last layer drops nothing."""
    rates = []
    for layer in range(layers - 1):
        sigma = 1.0 / (1.0 + math.exp(-beta * (layer / (layers - 2) - t_mid)))
        rates.append(p_init + (p_final - p_init) * sigma)
    return [*rates, 0.0]


@dataclass
class Plan:
    """What to drop: explicit rates, nothing solved."""

    p: Sequence[float]
    tds_start: int = 0
    lambda_div: float = 0.2
    normalize: bool = False
    query: str = "after_media"
    audio_keep: float = 0.7
    video_keep: float = 0.4
    images: str = "keep"
    evict: bool = False
    counts: Sequence[int] | None = None  # k_l given outright (for a solved schedule, whose p_l is not ours to know)


@dataclass
class Run:
    kept: list[Tensor]  # per layer: original positions that enter it, sorted
    prefill_logits: Tensor  # (survivors of the last layer, V)
    logits: Tensor  # (1 + steps, V): last prompt row, then one per decode step
    tokens: list[int]  # greedy, one per row of `logits`
    kv_lengths: list[int]  # prompt entries per layer after the prefill (and after eviction)
    states: list[Tensor]  # L + 1 full-length hidden states; dropped positions keep the last state they had
    margin: float  # smallest relative gap at any decision: below ~1e-5 a disagreement may be rounding
    scores: list[Tensor] = field(default_factory=list)


# ---- the decisions, written out


class _Margin:
    """The smallest relative gap met between the last token dropped and the first kept."""

    def __init__(self) -> None:
        self.value = math.inf

    def see(self, ordered: Sequence[float], cut: int) -> None:
        if 0 < cut < len(ordered):
            scale = max(abs(ordered[0]), abs(ordered[-1]), 1e-30)
            self.value = min(self.value, (ordered[cut] - ordered[cut - 1]) / scale)


def _lowest(scores: dict[int, float], count: int, margin: _Margin) -> list[int]:
    """The positions of the `count` lowest scores; a tie drops the lower index first."""
    order = sorted(scores, key=lambda position: (scores[position], position))
    margin.see([scores[position] for position in order], count)
    return order[:count]


def _input_stage(prompt: Prompt, embedded: Embedded, plan: Plan, margin: _Margin) -> set[int]:
    """Stage 0: what never enters layer 0."""
    dropped: set[int] = set()
    audio = torch.where(prompt.modality == AUDIO)[0].tolist()
    # The encoder sees the audios one after another, which is also their order in the prompt.
    saliency = dict(zip(audio, embedded.saliency.tolist(), strict=True))
    for item in sorted({int(prompt.item[i]) for i in audio}):
        own = {i: saliency[i] for i in audio if prompt.item[i] == item}
        keep = max(1, math.floor(plan.audio_keep * len(own) + 0.5 + 1e-9))
        dropped.update(_lowest(own, len(own) - keep, margin))

    share = 1.0 - (4.0 * plan.video_keep - 1.0) / 3.0
    video = torch.where(prompt.modality == VIDEO)[0].tolist()
    for item in sorted({int(prompt.item[i]) for i in video}):
        grids: dict[int, list[int]] = {}
        for i in video:
            if prompt.item[i] == item:
                grids.setdefault(int(prompt.frame[i]), []).append(i)
        for grid, here in grids.items():
            partner = {0: None, 1: grid - 1, 2: grid - 2, 3: grid - 1}[grid % 4]
            if partner is None:
                continue
            similar = {}
            for i, j in zip(here, grids[partner], strict=True):
                a, b = embedded.hidden[i].float(), embedded.hidden[j].float()
                similar[i] = float(a @ b / (a.norm() * b.norm()))
            most = {i: -cosine for i, cosine in similar.items()}  # most similar goes first
            dropped.update(_lowest(most, math.floor(share * len(here) + 1e-9), margin))
    return dropped


def _query_rows(prompt: Prompt, mode: str) -> list[int]:
    media = torch.where(prompt.modality != TEXT)[0]
    last = int(media[-1])
    everything = range(prompt.length)
    if mode == "after_media":
        rows = [i for i in everything if i > last and prompt.modality[i] == TEXT]
    elif mode == "question":
        rows = [i for i in everything if i > last and prompt.question[i]]
    else:
        rows = []
    return rows or [prompt.length - 1]


def _layer_drops(
    prompt: Prompt, importance: dict[int, float], count: int, diverse: bool, plan: Plan, margin: _Margin
) -> list[int]:
    """Stages 2 and 3: which `count` of the scored positions leave after this layer."""
    if not diverse:
        return _lowest(importance, count, margin)
    candidates = _lowest(importance, min(2 * count, len(importance)), margin)
    best = min(importance, key=lambda position: (-importance[position], position))
    top = sorted(importance.values())
    margin.see([-value for value in reversed(top)], 1)
    highest = int(prompt.chunk.max())
    scale = importance[best] if plan.normalize else 1.0
    total = {}
    for i in candidates:
        distance = abs(int(prompt.chunk[best]) - int(prompt.chunk[i])) / highest if highest > 0 else 0.0
        total[i] = importance[i] / scale + plan.lambda_div * distance
    return _lowest(total, count, margin)


def _next_position(embedded: Embedded) -> float:
    """generate() counts on from the last token's position, which need not be the highest: when a clip's sound ends
    before its picture, Qwen2.5 lets the text after it start at the sound's end."""
    return float(embedded.positions[:, -1].max()) + 1.0


# ---- the two references


@torch.no_grad()
def run(model: Any, prompt: Prompt, plan: Plan | None, steps: int = 16, forced: Sequence[int] = ()) -> Run:
    """Prefill with `plan` (None: nothing is dropped), then `steps` decode steps."""
    part = parts(model)
    embedded = embed(model, prompt)
    decoder, margin = Decoder(part), _Margin()
    here = list(range(prompt.length))
    scored = {TEXT: False, AUDIO: True, VIDEO: True, IMAGE: plan is not None and plan.images == "prune"}
    if plan is not None and bool((prompt.modality != TEXT).any()):
        gone = _input_stage(prompt, embedded, plan, margin)
        here = [i for i in here if i not in gone]
    else:
        plan = None
    queries = _query_rows(prompt, plan.query) if plan is not None else []
    full = embedded.hidden.clone()
    kept, states, scores = [], [full.clone()], []
    for index in range(len(part.layers)):
        kept.append(torch.tensor(here))
        causal = torch.ones(len(here), len(here), dtype=torch.bool).tril()
        out, probabilities = decoder.forward(index, full[here], embedded.positions[:, here], causal)
        full[here] = out
        states.append(full.clone())
        if plan is not None:
            rows = [here.index(q) for q in queries]
            importance = probabilities[:, rows].float().mean(0).mean(0)
            own = {i: float(importance[at]) for at, i in enumerate(here) if scored[int(prompt.modality[i])]}
            scores.append(importance)
            count = math.floor(plan.p[index] * len(own) + 1e-9) if plan.counts is None else plan.counts[index]
            diverse = index >= plan.tds_start and plan.lambda_div > 0
            leaving = set(_layer_drops(prompt, own, count, diverse, plan, margin)) if count else set()
            here = [i for i in here if i not in leaving]
        # The layer's output loses the tokens; DeepStack is added to that output, so only to those that remain.
        if index < len(embedded.deepstack):
            full[here] = full[here] + embedded.deepstack[index][here]
    states[-1] = rms_norm(part.norm, full)
    prefill_logits = part.lm_head(states[-1][kept[-1]])
    if plan is not None and plan.evict:
        for index in range(len(part.layers)):
            place = {int(position): at for at, position in enumerate(kept[index])}
            stay = [place[int(position)] for position in kept[-1]]
            decoder.keys[index] = [decoder.keys[index][at] for at in stay]
            decoder.values[index] = [decoder.values[index][at] for at in stay]
    lengths = [len(keys) for keys in decoder.keys]
    position = _next_position(embedded)
    logits, tokens = decoder.generate(prefill_logits[-1], position, steps, forced)
    return Run(kept, prefill_logits, logits, tokens, lengths, states, margin.value, scores)


@torch.no_grad()
def dropped_equals_masked(
    model: Any, prompt: Prompt, kept: Sequence[Tensor], steps: int = 16, forced: Sequence[int] = ()
) -> Run:
    """Full length everywhere; layer l only hides, as keys, the positions that are not in `kept[l]`."""
    part = parts(model)
    embedded = embed(model, prompt)
    decoder = Decoder(part)
    length = prompt.length
    visible = []
    for positions in kept:
        mask = torch.zeros(length, dtype=torch.bool)
        mask[positions] = True
        visible.append(mask)
    x = embedded.hidden
    for index in range(len(part.layers)):
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & visible[index]
        # A hidden row still needs one key, or its softmax is 0/0; nobody reads its output.
        allowed = allowed | torch.eye(length, dtype=torch.bool) & ~visible[index][:, None]
        x, _ = decoder.forward(index, x, embedded.positions, allowed)
        if index < len(embedded.deepstack):
            x = x + embedded.deepstack[index]
    prefill_logits = part.lm_head(rms_norm(part.norm, x))[kept[-1]]
    position = _next_position(embedded)
    logits, tokens = decoder.generate(prefill_logits[-1], position, steps, forced, visible)
    return Run(list(kept), prefill_logits, logits, tokens, [length] * len(kept), [], math.inf)
