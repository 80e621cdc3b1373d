"""Stage 1: both encoders alone, on single chunks, by what each of their output tokens says.

Linear probes on every token (a video token names what is in its cell or quarter, an audio token the pitch and pattern
of its chunk), trained with the encoders and thrown away. Afterwards the outputs are scaled to rms .7, so that they meet
word embeddings at eye level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from omnidrop.models import adapt
from training import build
from training.chunks import EMPTY, Chunks


def video_features(model, pixels: torch.Tensor) -> torch.Tensor:
    """(N, patches of a chunk, 1176) -> (N, video tokens of a chunk, width)"""
    side = int((pixels.shape[1] // 2) ** 0.5)
    grid = torch.tensor([[2, side, side]]).repeat(len(pixels), 1)
    # one batched call: attention stays inside each temporal grid, as in the model's own forward
    out = adapt(model).vision.module(pixels.flatten(0, 1).float(), grid_thw=grid).pooler_output
    return out.reshape(len(pixels), pixels.shape[1] // 4, -1)


def audio_features(model, mel: torch.Tensor) -> torch.Tensor:
    """(N, 64, 40) -> (N, 10, width)"""
    lengths = torch.full((len(mel),), mel.shape[2])
    out = adapt(model).audio.module(mel.float().transpose(0, 1).flatten(1), feature_lens=lengths).last_hidden_state
    return out.reshape(len(mel), build.AUDIO_PER_CHUNK, -1)


Hearing = Callable[[Any, int], tuple[torch.Tensor, float]]


def train(model, data: Chunks, steps: int, seed: int, batch: int = 64, hearing: Hearing | None = None,
          log=print) -> dict[str, float]:  # fmt: skip
    """Train in place; returns token accuracies on the last eighth of the data, which is held out. `hearing`: a further
    loss of the model and a step, and the accuracy that it stands for, of a level with spoken questions."""
    torch.manual_seed(seed)
    width = adapt(model).decoder.module.config.hidden_size
    probes = nn.ModuleDict({name: nn.Linear(width, 7) for name in data.targets})
    towers = [adapt(model).vision.module, adapt(model).audio.module]
    for tower in towers:  # the class's .02 is for wide models
        for weight in tower.parameters():
            if weight.ndim >= 2:
                nn.init.normal_(weight, 0, (weight[0].numel()) ** -0.5)
    parameters = [p for tower in towers for p in tower.parameters()] + list(probes.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    n_train = len(data.labels) * 7 // 8
    generator = torch.Generator().manual_seed(seed)

    def losses(rows):
        video, audio = video_features(model, data.pixels[rows]), audio_features(model, data.mel[rows])
        rare = torch.tensor([1.0] * 6 + [0.15])  # most cells are empty
        out = {}
        for name, want in data.targets.items():
            seen = name not in ("pitch", "pattern")
            out[name] = (probes[name](video if seen else audio), want[rows], rare if seen else None)
        size = sum((f.pow(2).mean().sqrt() - 1).pow(2) for f in (video, audio))  # keep the scale near one
        return out, size

    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 30) * min(1.0, 2.0 * (1 - step / steps) + 0.02)
        rows = torch.randint(n_train, (batch,), generator=generator)
        out, size = losses(rows)
        loss = sum(F.cross_entropy(a.flatten(0, 1), b.flatten(), weight=w) for a, b, w in out.values()) + 0.1 * size
        if hearing is not None:
            heard, _ = hearing(model, step)
            loss = loss + heard
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 50 == 49:
            log(f"encoders step {step + 1} of {steps}: loss {loss.item():.3f}")
    with torch.no_grad():
        out, _ = losses(torch.arange(n_train, min(n_train + 512, len(data.labels))))
        accuracy = {}
        for name, (logits, want, _) in out.items():
            held = want != EMPTY
            accuracy[name] = (logits.argmax(-1) == want)[held].float().mean().item()
            if not held.all():
                accuracy[name + " empty"] = (logits.argmax(-1) == want)[~held].float().mean().item()
        if hearing is not None:
            accuracy["spoken words"] = hearing(model, steps)[1]
        rows = torch.arange(min(512, len(data.labels)))
        for features, last in (
            (video_features(model, data.pixels[rows]), adapt(model).vision.module.merger.mlp[-1]),
            (audio_features(model, data.mel[rows]), adapt(model).audio.module.proj),
        ):
            scale = 0.7 / features.pow(2).mean().sqrt()
            last.weight.mul_(scale)
            last.bias.mul_(scale)
    return accuracy


@torch.no_grad()
def features(model, data: Chunks, batch: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """All chunks through the encoders: (N, video tokens, width) and (N, 10, width), float16."""
    parts = range(0, len(data.labels), batch)
    video = torch.cat([video_features(model, data.pixels[i : i + batch]).half() for i in parts])
    audio = torch.cat([audio_features(model, data.mel[i : i + batch]).half() for i in parts])
    return video, audio
