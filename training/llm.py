"""Stage 2: the language model alone, from random weights, on composed clips.

The forward pass over the model's own layers with one mask a layer, the losses and the loop. Where real omni models look
things up, in the middle layers, this one shall too. In 80 % of the steps the question sees no media before layer 5; by
layer 11 the key must know the answer.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from omnidrop_lab.needle.task import MAX_CHUNKS
from torch import nn

from omnidrop.models import adapt
from training import attention, build
from training.compose import IGNORE, Batch, Composer

BLIND, BIND, PREVIOUS, MIDDLE = 5, 3, 4, 11  # layers: question blind below; read-outs after these
CURRICULUM = (3, 4, 6, 8)
MIXED = (4, 5, 6, 7, 8, 8, 8, 9, 10, 12, 14, 16)
PER_STEP = 64  # chunks: as many clips as that makes, so a step costs about the same whatever the clips' length
PEAK = 1.2e-3  # learning rate


class Heads(nn.Module):
    """Training-only read-outs of single chunks, of the plain level."""

    def __init__(self, sizes: build.Sizes = build.PLAIN):
        super().__init__()
        self.sizes = sizes
        own = ("color", "shape", "pitch", "pattern")
        self.own = nn.ModuleDict({name: nn.Linear(sizes.width, 7) for name in own})
        self.last = nn.ModuleDict({name: nn.Linear(sizes.width, 7) for name in own})
        self.count = nn.ModuleDict({name: nn.Linear(sizes.width, 7) for name in ("things", "sounds")})
        self.index = nn.Linear(sizes.width, MAX_CHUNKS)

    def losses(
        self, bound: torch.Tensor, previous: torch.Tensor, facts: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """From (B, n, tokens of a chunk, width) after layers `BIND` and `PREVIOUS`."""
        out = {"bind": sum(says(self.own[name], bound[:, :, -3:], facts[name]) for name in self.own) / 4}
        out["index"] = says(self.index, bound, facts["index"])
        end = self.sizes.video_per_chunk
        where = {"color": [end - 2, end - 1, -2, -1], "shape": [end - 2, end - 1, -2, -1]}
        spoken = {name: previous[:, :, where.get(name, [-2, -1])] for name in self.last}
        out["last"] = sum(says(self.last[name], spoken[name], facts["last " + name]) for name in self.last) / 4
        out["count"] = sum(says(self.count[name], previous[:, :, -2:], facts[name]) for name in self.count) / 2
        return out


def says(layer: nn.Module, hidden: torch.Tensor, fact: torch.Tensor) -> torch.Tensor:
    """The loss of naming each chunk's fact (B, n) at every token given, (B, n, tokens, width)."""
    want = fact[..., None].expand(hidden.shape[:-1])
    return F.cross_entropy(layer(hidden).flatten(0, -2), want.flatten())


def forward(model, batch: Batch, masks: list[torch.Tensor]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Last hidden state (normed) and the raw ones after the read-out layers."""
    lm = adapt(model).decoder.module
    hidden = lm.embed_tokens(batch.embeds_ids)
    start, n = batch.media_start, batch.media.shape[1]
    hidden = torch.cat([hidden[:, :start], batch.media, hidden[:, start + n :]], 1)
    if batch.spoken is not None:
        hidden = hidden.masked_scatter(batch.spoken_at[..., None], batch.spoken.to(hidden.dtype))
    rotary = lm.rotary_emb(hidden, batch.positions)
    kept = {}
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else hidden.dtype
    biases = attention.biases(masks, hidden.shape[1], dtype)
    with attention.installed(lm):
        for i, layer in enumerate(lm.layers):
            hidden = layer(hidden, attention_mask=biases[i], position_embeddings=rotary)
            if i in (BIND, PREVIOUS, MIDDLE):
                kept[i] = hidden
    return lm.norm(hidden), kept


def read_out(head, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    held = target != IGNORE
    return F.cross_entropy(head(hidden[held]), target[held]) if held.any() else hidden.sum() * 0


def losses(model, heads: Heads, batch: Batch, masks: list[torch.Tensor]) -> tuple[dict, torch.Tensor]:
    """The losses by name, and which questions are answered rightly."""
    final, kept = forward(model, batch, masks)
    norm, head = adapt(model).decoder.module.norm, model.lm_head
    out = {
        "answer": read_out(head, final, batch.answer),
        "hint": read_out(head, final, batch.hint),
        "middle": read_out(lambda h: head(norm(h)), kept[MIDDLE], batch.middle),
    }
    start, n = batch.media_start, batch.media.shape[1]

    def by_chunk(hidden: torch.Tensor) -> torch.Tensor:
        chunks = hidden[:, start : start + n].unflatten(1, (-1, heads.sizes.per_chunk))
        return F.rms_norm(chunks, (heads.sizes.width,))

    out |= heads.losses(by_chunk(kept[BIND]), by_chunk(kept[PREVIOUS]), batch.facts)
    return out, answered(model, final, batch)


def answered(model, final: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q) bool: every word and the end are right. Each is read behind the right words before it; that all of them
    are right is the same as that greedy decoding says exactly the answer."""
    clip = torch.arange(len(batch.at))[:, None, None]
    said = model.lm_head(final[clip, batch.at]).argmax(-1)
    return ((said == batch.word) | (batch.word == IGNORE)).all(-1)


SHARE = {"answer": 1.0, "hint": 0.4, "middle": 0.4, "bind": 0.4, "index": 0.3, "last": 0.3, "count": 0.15}


def accuracies(kinds: list[list[str]], right: torch.Tensor, into: dict[str, list[int]]) -> None:
    for row, marks in zip(kinds, right.tolist(), strict=True):
        for kind, mark in zip(row, marks, strict=True):
            into[kind].append(int(mark))


@torch.no_grad()
def check(model, composer: Composer, n_chunks: int, n_clips: int, drop_after: int | None = None, split="dev",
          seed: int = 0) -> dict[str, float]:  # fmt: skip
    """Accuracy by type on composed clips as the model sees them at test time; optionally all media vanish after a
    layer for the text behind them (own simple mask: media rows still run, nobody looks at them)."""
    counts: dict[str, list[int]] = defaultdict(list)
    for i in range(0, n_clips, 8):
        batch = composer.batch(list(range(i, i + 8)), n_chunks, 24, seed, split=split, strict=0.0)
        masks = [batch.plain] * build.LAYERS
        if drop_after is not None:
            gone = batch.plain.clone()
            media = slice(batch.media_start, batch.media_start + batch.media.shape[1])
            gone[..., media] = False
            masks = [batch.plain if layer <= drop_after else gone for layer in range(build.LAYERS)]
        final, _ = forward(model, batch, masks)
        accuracies(batch.kind, answered(model, final, batch), counts)
    return {kind: sum(marks) / len(marks) for kind, marks in sorted(counts.items())}


def show(accuracy: dict[str, float]) -> str:
    return " ".join(f"{kind} {value:.2f}" for kind, value in accuracy.items())


def groups(model, heads: Heads) -> list[dict]:
    """What is trained: the decoder, its head and the read-outs; matrices decay, vectors do not."""
    parameters = [*adapt(model).decoder.module.parameters(), *model.lm_head.parameters(), *heads.parameters()]
    decay = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    return [{"params": decay, "weight_decay": 0.03}, {"params": plain, "weight_decay": 0.0}]


def rate(step: int, begin: int, steps: int, peak: float) -> float:
    """The learning rate of a run from step `begin` to `steps`: warm-up, constant, cosine over the last 40 %."""
    cool = max(0.0, ((step - begin) / (steps - begin) - 0.6) / 0.4)
    return peak * min(1.0, (step - begin + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * cool)) + 1e-5


def train(model, composer: Composer, folder: Path, seed: int, minutes: float, steps: int, peak: float = PEAK,
          lengths: Sequence[int] = MIXED, make_heads: Callable[[], nn.Module] = Heads, log=print,
          compiled: bool = False) -> None:  # fmt: skip
    """Train in place, save every few minutes, go on from the last save. Ends after step `steps`. `lengths`: what is
    drawn from after the curriculum, in chunks. `make_heads`: the level's read-outs. `compiled`: through torch.compile,
    which needs a C++ compiler and two minutes."""
    torch.manual_seed(seed + 1)
    heads = make_heads()
    optimiser = torch.optim.AdamW(groups(model, heads), lr=peak, betas=(0.9, 0.98))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    fast = torch.cpu._is_avx512_bf16_supported()  # a third faster with it, several times slower without
    state = {"step": 0, "begin": 0, "stage": 0, "since": 0, "ema": {}, "seconds": 0.0}
    path = folder / "llm.pt"
    if path.exists():
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        state = saved["state"]
        if "optimiser" in saved:  # a run that was carried here has none
            optimiser.load_state_dict(saved["optimiser"])
        log(f"goes on from step {state['step']}")
    if compiled:
        torch._dynamo.config.cache_size_limit = 64  # an entry for each layer and kind of shape
        torch._dynamo.config.accumulated_cache_size_limit = 1024
        for layer in adapt(model).decoder.module.layers:
            layer.compile()
    begun, last_save, spent = time.monotonic(), time.monotonic(), state["seconds"]

    def save():
        state["seconds"] = spent + time.monotonic() - begun
        saved = {"model": model.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save({**saved, "state": state}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    while state["step"] < steps:
        step = state["step"]
        rng = np.random.default_rng([seed, 5, step])  # of the step alone: resuming repeats nothing and skips nothing
        mixed = state["stage"] >= len(CURRICULUM)
        n_chunks = int(rng.choice(lengths)) if mixed else CURRICULUM[state["stage"]]
        n_clips, n_questions = max(1, round(PER_STEP / max(n_chunks, 6))), max(composer.questions, n_chunks)
        system = int(rng.integers(0, 40)) if rng.random() < 0.1 else None
        first = 1_000_000 * (seed + 1) + 32 * step
        batch = composer.batch(list(range(first, first + n_clips)), n_chunks, n_questions, seed, system=system)
        blind = rng.random() < 0.8
        masks = [batch.barred & batch.early if blind and i < BLIND else batch.barred for i in range(build.LAYERS)]
        for group in optimiser.param_groups:
            group["lr"] = rate(step, state["begin"], steps, peak)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):  # weights stay float32
            parts, right = losses(model, heads, batch, masks)
        loss = sum(SHARE[name] * value for name, value in parts.items())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        now: dict[str, list[int]] = defaultdict(list)
        accuracies(batch.kind, right, now)
        for kind, marks in now.items():
            value = sum(marks) / len(marks)
            state["ema"][kind] = 0.9 * state["ema"].get(kind, value) + 0.1 * value
        state["step"], state["since"] = step + 1, state["since"] + 1
        ema = state["ema"]
        if not mixed and state["since"] >= 40 and all(ema.get(k, 0) > right for k, right in composer.first.items()):
            state["stage"], state["since"] = state["stage"] + 1, 0
            log(f"step {step + 1}: on to {CURRICULUM[state['stage']] if state['stage'] < len(CURRICULUM) else 'mixed'}")
        if step % 25 == 24:
            took = spent + time.monotonic() - begun
            line = " ".join(f"{name} {value.item():.2f}" for name, value in parts.items())
            right_so_far = show(dict(sorted(ema.items())))
            log(f"step {step + 1} of {steps}, {took:.0f} s, {n_chunks} chunks: {line} | {right_so_far}")
        if time.monotonic() - last_save > 60 * minutes:
            save()
            last_save = time.monotonic()
            with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
                for n, n_clips in ((8, 16), (max(lengths), 8)):
                    log(f"saved; dev, {n} chunks: {show(check(model, composer, n, n_clips))}")
    save()
