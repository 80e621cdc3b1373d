"""FLOPs and bytes of a prompt by formula, from sizes and counts; no tensors, no timing.

Counted are matrix products and convolutions, 2 FLOPs per multiply-add, and the unmasked half of causal attention. Not
counted: norms, activations, embeddings, rotary tables, interpolation of positions, the router of a mixture (below 1 %).

The decoder's formulas are those of `budget.DecoderShape`, the encoders' those of `core.encoder_flops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omnidrop.core.budget import DecoderShape
from omnidrop.core.encoder_flops import AudioShape, VisionShape
from omnidrop.errors import ModelError
from omnidrop.models import Adapter

STAGES = ("vision_encoder", "audio_encoder", "decoder", "head")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The parts of a thinker."""

    decoder: DecoderShape
    vision: VisionShape
    audio: AudioShape | None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a call of the model that determine its costs."""

    rows: Sequence[int]  # tokens of each row of the batch, without padding
    grids: Sequence[tuple[int, int, int]] = ()  # (T, h, w) in patches, of every video and image
    recordings: Sequence[int] = ()  # mel frames
    encoded: Sequence[Sequence[bool] | None] = ()  # per grid which of its tokens are encoded, see `VisionShape.flops`


def shapes(adapter: Adapter) -> Shapes:
    """The sizes of a thinker's parts. Raises `ModelError` for a family whose encoders are not counted."""
    vision, audio = adapter.vision, adapter.audio
    if vision is None or vision.shape is None or (audio is not None and audio.shape is None):
        name = type(adapter.thinker).__name__
        raise ModelError(f"the FLOPs of a {name} are not counted: take Qwen2.5-Omni, Qwen3-Omni or a Qwen-VL model")
    return Shapes(decoder=adapter.decoder.shape, vision=vision.shape, audio=audio.shape if audio else None)


def flops(
    of: Shapes,
    sizes: Sizes,
    kept: Sequence[Sequence[int]] | None = None,
    *,
    last_logits: bool = False,
    last_layer: bool = False,
) -> dict[str, int]:
    """FLOPs of a prompt's first step, by stage.

    kept[l][b]: tokens of row b that enter decoder layer l; None: all. `last_logits`, `last_layer`: as in
    `omnidrop.lean`, the head (the last layer but for its keys and values) computes the newest position only.
    """
    decoder = of.decoder
    input_count = [list(sizes.rows)] * decoder.layers if kept is None else kept
    layers = sum(decoder.prefill_flops(counts) for counts in zip(*input_count, strict=True))
    if last_layer:
        last = decoder.layers - 1
        layers += sum(_newest_flops(decoder, n) - decoder.layer_flops(n, last) for n in input_count[-1])
    rows = len(sizes.rows) if last_logits else sum(input_count[-1])
    return {
        "vision_encoder": of.vision.flops(sizes.grids, sizes.encoded),
        "audio_encoder": of.audio.flops(sizes.recordings) if of.audio else 0,
        "decoder": layers,
        "head": decoder.head_flops(rows),
    }


def _newest_flops(decoder: DecoderShape, tokens: int) -> int:
    """The last layer, when it computes keys and values of all tokens, and everything else of the newest one."""
    last = decoder.layers - 1
    layer = decoder.layer(last)
    if layer.recurrence is not None:  # its state needs all of them
        return decoder.layer_flops(tokens, last)
    keys_and_values = layer.projections * layer.kv_heads * layer.head_dim
    return decoder.step_flops(tokens, last) + 2 * tokens * decoder.hidden * keys_and_values


def attention_flops(decoder: DecoderShape, rows: Sequence[int]) -> int:
    """The part of the unpruned decoder's FLOPs that grows with the square of the length."""
    layers = [layer for layer in map(decoder.layer, range(decoder.layers)) if layer.recurrence is None]
    return sum(4 * decoder.heads * layer.head_dim * layer.pairs(n) for layer in layers for n in rows)


def bytes_of(
    of: Shapes,
    sizes: Sizes,
    kept: Sequence[Sequence[int]] | None = None,
    *,
    last_logits: bool = False,
    mlp_rows: int | None = None,
    encoder_rows: int | None = None,
) -> dict[str, int]:
    """The tensors of a prompt's first step that are large and grow with its length, in bytes.

    "kv": keys and values of all layers, which stay (as do `DecoderShape.state_bytes`, whatever the length). "logits":
    what the head gives. "mlp", "vision_mlp": activations of one layer's MLP (two projections and their product, as the
    stock models make them) of all positions of the widest layer, and of all patches. `kept`, `last_logits` as in
    `flops`; `mlp_rows`, `encoder_rows`: so many rows at once.
    """
    decoder, vision = of.decoder, of.vision
    input_count = [list(sizes.rows)] * decoder.layers if kept is None else kept
    widest, patches = max(map(sum, input_count)), _patches(vision, sizes)
    size = decoder.bytes_per_value
    return {
        "kv": sum(decoder.kv_bytes(counts) for counts in zip(*input_count, strict=True)),
        "logits": size * decoder.vocabulary * (len(sizes.rows) if last_logits else sum(input_count[-1])),
        "mlp": size * decoder.mlp * min(widest, mlp_rows or widest),
        "vision_mlp": size * vision.mlp * min(patches, encoder_rows or patches),
    }


def _patches(vision: VisionShape, sizes: Sizes) -> int:
    grids = zip(sizes.grids, sizes.encoded or [None] * len(sizes.grids), strict=True)
    return sum(t * h * w if made is None else sum(made) * vision.merge**2 for (t, h, w), made in grids)


def over(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float | None]:
    """one / other by name, and of the sums as "total"; None where the divisor is 0."""
    found = {name: one[name] / other[name] if other[name] else None for name in one}
    whole = sum(other.values())
    return {**found, "total": sum(one.values()) / whole if whole else None}
