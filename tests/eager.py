"""The models written out, for the oracle: embeddings, positions, and the decoder layer in eager float32 PyTorch.

Batch 1, no padding, keys and values as Python lists. The model lends its weights, its encoders, its MLP modules and
`get_rope_index`; attention, rotary embedding, norms and the audio encoder's attention are computed here.
Nothing of omnidrop, nothing about what to drop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from prompts import AUDIO, IMAGE, VIDEO, Prompt

Tensor = torch.Tensor


@dataclass
class Parts:
    thinker: Any
    layers: Any
    norm: Any
    lm_head: Any
    embed: Any
    audio_tower: Any
    text_config: Any
    qwen3: bool


def parts(model: Any) -> Parts:
    """The modules, in transformers 5.16 (thinker.model is the decoder) and 5.23 (thinker.model.language_model is)."""
    thinker = getattr(model, "thinker", model)
    inner = thinker.model if hasattr(thinker.model, "language_model") else thinker
    text = getattr(inner, "language_model", None) or thinker.model
    return Parts(
        thinker, text.layers, text.norm, thinker.lm_head, text.embed_tokens, inner.audio_tower,
        thinker.config.text_config, "Qwen3" in type(thinker).__name__,
    )  # fmt: skip


# ---- inputs: embeddings, positions, DeepStack features, audio saliency


@dataclass
class Embedded:
    hidden: Tensor  # (L, D)
    positions: Tensor  # (3, L)
    deepstack: list[Tensor]  # per early layer (L, D), zero outside pictures
    saliency: Tensor  # (number of audio tokens of the row,), in prompt order


def _audio_saliency(part: Parts, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Audio embeddings, and per token the attention it receives in the last encoder layer inside its own window."""
    seen: dict[str, Tensor] = {}
    attention = part.audio_tower.layers[-1].self_attn

    def remember(_module: Any, args: tuple, kwargs: dict) -> None:
        seen["hidden"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        seen["windows"] = kwargs["cu_seqlens"] if "cu_seqlens" in kwargs else args[1]

    handle = attention.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        embeddings = part.thinker.get_audio_features(
            prompt.inputs["input_features"], feature_attention_mask=prompt.inputs["feature_attention_mask"]
        ).last_hidden_state
    finally:
        handle.remove()

    heads = attention.num_heads
    frames = seen["hidden"].shape[0]
    q = attention.q_proj(seen["hidden"]).view(frames, heads, -1)
    k = attention.k_proj(seen["hidden"]).view(frames, heads, -1)
    received = torch.zeros(frames)
    bounds = seen["windows"].tolist()
    for start, stop in pairwise(bounds):
        for head in range(heads):
            logits = q[start:stop, head] @ k[start:stop, head].T / math.sqrt(q.shape[-1])
            received[start:stop] += torch.softmax(logits.float(), -1).sum(0) / heads
    if part.qwen3:
        return embeddings, received
    # Qwen2.5 averages pairs of frames after its last layer, item by item; an odd last frame is left out.
    pooled, offset = [], 0
    for mel_frames in prompt.inputs["feature_attention_mask"].sum(-1).tolist():
        length = (mel_frames - 1) // 2 + 1
        for first in range(0, length - 1, 2):
            pooled.append((received[offset + first] + received[offset + first + 1]) / 2)
        offset += length
    return embeddings, torch.stack(pooled)


def _cat(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else torch.cat(list(features))


@torch.no_grad()
def embed(model: Any, prompt: Prompt) -> Embedded:
    part, inputs = parts(model), prompt.inputs
    hidden = part.embed(inputs["input_ids"][0]).clone()
    features: dict[int, Any] = {}
    saliency = torch.zeros(0)
    if "input_features" in inputs:
        audio, saliency = _audio_saliency(part, prompt)
        hidden[prompt.modality == AUDIO] = audio
    if "pixel_values_videos" in inputs:
        features[VIDEO] = part.thinker.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    if "pixel_values" in inputs:
        features[IMAGE] = part.thinker.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    deepstack: list[Tensor] = []
    for modality, output in features.items():
        hidden[prompt.modality == modality] = _cat(output.pooler_output)
        for level, feature in enumerate(getattr(output, "deepstack_features", None) or []):
            if level == len(deepstack):
                deepstack.append(torch.zeros_like(hidden))
            deepstack[level][prompt.modality == modality] = _cat(feature)
    lengths = inputs["feature_attention_mask"].sum(-1) if "feature_attention_mask" in inputs else None
    positions, _ = part.thinker.get_rope_index(
        inputs["input_ids"], inputs.get("image_grid_thw"), inputs.get("video_grid_thw"), inputs["attention_mask"],
        bool(inputs.get("use_audio_in_video", False)), lengths, inputs.get("video_second_per_grid"),
    )  # fmt: skip
    return Embedded(hidden, positions[:, 0].float(), deepstack, saliency)


# ---- the decoder layer, written out


def rms_norm(module: Any, x: Tensor) -> Tensor:
    return module.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + module.variance_epsilon))


def _rotary(part: Parts, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin (N, width); which of the three axes turns a frequency is Qwen2.5's blocks or Qwen3's interleaving."""
    rope = part.text_config.rope_parameters
    section, half = rope["mrope_section"], width // 2
    axis = []
    for i in range(half):
        if part.qwen3:
            axis.append(1 if i % 3 == 1 and i < 3 * section[1] else 2 if i % 3 == 2 and i < 3 * section[2] else 0)
        else:
            axis.append(0 if i < section[0] else 1 if i < section[0] + section[1] else 2)
    frequency = torch.tensor([rope["rope_theta"] ** (-2 * i / width) for i in range(half)])
    angle = positions[axis].T * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (N, H, d)."""
    half = x.shape[-1] // 2
    rotated = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + rotated * sin[:, None]


class Decoder:
    """The layers with, per layer, Python lists of keys and values. `forward` runs one layer on (N, D)."""

    def __init__(self, part: Parts) -> None:
        self.part = part
        self.keys: list[list[Tensor]] = [[] for _ in part.layers]
        self.values: list[list[Tensor]] = [[] for _ in part.layers]

    def forward(self, index: int, x: Tensor, positions: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Output (N, D) and attention probabilities (H, N, keys); `allowed` (N, keys) includes the new ones."""
        layer = self.part.layers[index]
        attention = layer.self_attn
        width = attention.head_dim
        normed = rms_norm(layer.input_layernorm, x)
        q = attention.q_proj(normed).view(len(x), -1, width)
        k = attention.k_proj(normed).view(len(x), -1, width)
        v = attention.v_proj(normed).view(len(x), -1, width)
        if self.part.qwen3:
            q, k = rms_norm(attention.q_norm, q), rms_norm(attention.k_norm, k)
        cos, sin = _rotary(self.part, positions, width)
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        self.keys[index].extend(k)
        self.values[index].extend(v)
        keys, values = torch.stack(self.keys[index]), torch.stack(self.values[index])
        group = q.shape[1] // keys.shape[1]
        probabilities, heads = [], []
        for head in range(q.shape[1]):
            logits = q[:, head] @ keys[:, head // group].T / math.sqrt(width)
            logits = logits.masked_fill(~allowed, -math.inf)
            weight = torch.exp(logits - logits.max(-1, keepdim=True).values)
            weight = weight / weight.sum(-1, keepdim=True)
            probabilities.append(weight)
            heads.append(weight @ values[:, head // group])
        x = x + attention.o_proj(torch.cat(heads, -1))
        x = x + layer.mlp(rms_norm(layer.post_attention_layernorm, x)[None])[0]
        return x, torch.stack(probabilities)

    def decode(self, token: int, position: float, allowed: Sequence[Tensor] | None = None) -> Tensor:
        """One token through all layers; `allowed[l]` (prompt,) hides prompt keys. Returns logits (V,)."""
        x = self.part.embed(torch.tensor([token]))
        positions = torch.full((3, 1), position)
        for index in range(len(self.keys)):
            mask = torch.ones(1, len(self.keys[index]) + 1, dtype=torch.bool)
            if allowed is not None:
                mask[0, : len(allowed[index])] = allowed[index]
            x, _ = self.forward(index, x, positions, mask)
        return self.part.lm_head(rms_norm(self.part.norm, x))[0]

    def generate(
        self, logits: Tensor, position: float, steps: int, forced: Sequence[int], allowed: Any = None
    ) -> tuple[Tensor, list[int]]:
        """Greedy steps; the first tokens fed can be forced (a second turn's text)."""
        rows, tokens = [logits], [int(logits.argmax())]
        for step in range(steps):
            token = forced[step] if step < len(forced) else tokens[-1]
            rows.append(self.decode(token, position + step, allowed))
            tokens.append(int(rows[-1].argmax()))
        return torch.stack(rows), tokens
