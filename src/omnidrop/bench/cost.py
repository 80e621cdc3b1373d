"""FLOPs and bytes of a prompt, by formula: host arithmetic on sizes and counts; no tensors, no clock.

What it is: what the arithmetic of each stage needs. What it is not: a model of time. Counted are matrix products and
convolutions, 2 for each multiply-add, and of causal attention the half that is not masked; norms, activations,
embeddings, rotary tables, the interpolation of positions and a mixture's router (below 1 %) are not.

The decoder's own formulas are `budget.DecoderShape`'s, as everywhere in this library. Words: a patch is what the vision
encoder sees, a token what the decoder gets; a frame is a mel frame, or what the audio encoder makes of some of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..budget import DecoderShape

STAGES = ("vision_encoder", "audio_encoder", "decoder", "head")


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """The sizes of a vision encoder."""

    layers: int
    width: int
    mlp: int  # multiply-adds of the MLP per patch / width: 3 * intermediate size (gated), or 2 * it
    patch: int  # numbers of a patch
    merge: int  # patches a side of a token
    output: int  # width of a token
    mergers: int  # how often patches become tokens: once, and once more for each DeepStack layer
    window: int | None  # patches a side of an attention window; None: every layer sees the whole picture
    whole: int  # layers that see the whole picture

    def flops(self, grids: Sequence[tuple[int, int, int]]) -> int:
        """Of videos and images of (T, h, w) patches; no picture sees another."""
        total = 0
        for t, h, w in grids:
            patches = t * h * w
            pairs = self.whole * t * (h * w) ** 2 + (self.layers - self.whole) * t * self._window_pairs(h, w)
            merged = self.merge**2 * self.width
            total += 2 * patches * self.patch * self.width
            total += 2 * self.layers * patches * self.width * (4 * self.width + self.mlp)
            total += 4 * self.width * pairs  # q k^T and p v
            total += 2 * self.mergers * patches // self.merge**2 * merged * (merged + self.output)
        return total

    def _window_pairs(self, h: int, w: int) -> int:
        """Sum over a picture's windows of patches squared; those at the right and lower edge are smaller."""
        if self.window is None:
            return (h * w) ** 2
        rows, columns = (_pieces(size, self.window) for size in (h, w))
        return sum((a * b) ** 2 * m * n for a, m in rows.items() for b, n in columns.items())


@dataclass(frozen=True, kw_only=True)
class AudioShape:
    """The sizes of an audio encoder: convolutions over pieces of sound, layers, a projection."""

    layers: int
    width: int
    mlp: int  # 2 * intermediate size
    bins: int  # mel bins
    output: int  # width of a token
    piece: int  # mel frames that are convolved together
    window: int  # pieces that attend to each other
    channels: int | None  # of three 2-D convolutions of stride 2; None: two 1-D ones, the second of stride 2

    def flops(self, recordings: Sequence[int]) -> int:
        """Of recordings of so many mel frames, in one call."""
        pieces = [size for frames in recordings for size in _pieces(frames, self.piece).elements()]
        if not pieces:
            return 0
        total = len(pieces) * self._convolutions(max(pieces))  # shorter ones are filled up to the longest
        for frames in recordings:
            sizes = [self._after(size) for size in _pieces(frames, self.piece).elements()]
            count = sum(sizes)
            longest = self.window * self._after(max(pieces))
            pairs = sum(size**2 * n for size, n in _pieces(count, longest).items())
            total += 2 * self.layers * count * self.width * (4 * self.width + self.mlp)
            total += 4 * self.layers * self.width * pairs
            if self.channels is None:
                total += 2 * (count // 2) * self.width * self.output  # after averaging pairs
            else:
                total += 2 * count * self.width * (self.width + self.output)
        return total

    def _after(self, frames: int) -> int:
        """Frames that the convolutions leave of a piece."""
        for _ in range(1 if self.channels is None else 3):
            frames = (frames + 1) // 2
        return frames

    def _convolutions(self, frames: int) -> int:
        half = (frames + 1) // 2
        if self.channels is None:
            return 2 * 3 * (self.bins * frames + self.width * half) * self.width
        total, inside, bins = 0, 1, self.bins
        for _ in range(3):
            frames, bins = (frames + 1) // 2, (bins + 1) // 2
            total += 2 * 9 * inside * self.channels * frames * bins
            inside = self.channels
        return total + 2 * frames * self.channels * bins * self.width


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The three parts of a thinker."""

    decoder: DecoderShape
    vision: VisionShape
    audio: AudioShape


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a call of the model brings: the sizes that its costs follow from."""

    rows: Sequence[int]  # tokens of each row of the batch, without padding
    grids: Sequence[tuple[int, int, int]] = ()  # (T, h, w) in patches, of every video and image
    recordings: Sequence[int] = ()  # mel frames


def shapes(config: Any, decoder: DecoderShape) -> Shapes:
    """The sizes of a thinker, from its configuration (any object with its fields)."""
    vision, audio = config.vision_config, config.audio_config
    gated = hasattr(vision, "fullatt_block_indexes")
    whole = [i for i in vision.fullatt_block_indexes if i < vision.depth] if gated else range(vision.depth)
    piece = 2 * audio.n_window
    return Shapes(
        decoder=decoder,
        vision=VisionShape(
            layers=vision.depth,
            width=vision.hidden_size,
            mlp=(3 if gated else 2) * vision.intermediate_size,
            patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge=vision.spatial_merge_size,
            output=vision.out_hidden_size,
            mergers=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
            window=_window(vision) if gated else None,
            whole=len(whole),
        ),
        audio=AudioShape(
            layers=audio.encoder_layers,
            width=audio.d_model,
            mlp=2 * audio.encoder_ffn_dim,
            bins=audio.num_mel_bins,
            output=audio.output_dim,
            piece=piece,
            window=getattr(audio, "n_window_infer", piece) // piece,
            channels=getattr(audio, "downsample_hidden_size", None),
        ),
    )


def _window(vision: Any) -> int:
    """Patches a side of a window, which holds whole tokens."""
    return vision.window_size // vision.patch_size // vision.spatial_merge_size * vision.spatial_merge_size


def _pieces(size: int, piece: int) -> Counter[int]:
    """How many pieces of which length `size` is cut into."""
    return Counter({piece: size // piece, size % piece: 1}) - Counter({0: 1})


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
    entering = [list(sizes.rows)] * decoder.layers if kept is None else kept
    layers = [sum(map(decoder.layer_flops, rows)) for rows in entering]
    if last_layer:
        layers[-1] = sum(_step_flops(decoder, n) for n in entering[-1])
    rows = len(sizes.rows) if last_logits else sum(entering[-1])
    return {
        "vision_encoder": of.vision.flops(sizes.grids),
        "audio_encoder": of.audio.flops(sizes.recordings),
        "decoder": sum(layers),
        "head": 2 * rows * decoder.hidden * decoder.vocabulary,
    }


def _step_flops(decoder: DecoderShape, tokens: int) -> int:
    """A layer that computes keys and values of all tokens, and everything else of the newest."""
    heads, groups = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    one = 2 * decoder.hidden * (2 * heads + decoder.mlp) + 4 * heads * tokens
    return one + 2 * tokens * decoder.hidden * 2 * groups


def attention_flops(decoder: DecoderShape, rows: Sequence[int]) -> int:
    """The part of the unpruned decoder's FLOPs that grows with the square of the length."""
    return sum(decoder.layers * 2 * decoder.heads * decoder.head_dim * n * (n + 1) for n in rows)


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

    "kv": keys and values of all layers, which stay. "logits": what the head gives. "mlp", "vision_mlp": activations of
    one layer's MLP (two projections and their product, as the stock models make them) of all positions of the widest
    layer, and of all patches. `kept`, `last_logits` as in `flops`; `mlp_rows`, `encoder_rows`: so many rows at once.
    """
    decoder, vision = of.decoder, of.vision
    entering = [list(sizes.rows)] * decoder.layers if kept is None else kept
    widest, patches = max(map(sum, entering)), sum(t * h * w for t, h, w in sizes.grids)
    size = decoder.bytes_per_value
    return {
        "kv": decoder.kv_entry_bytes() * sum(map(sum, entering)),
        "logits": size * decoder.vocabulary * (len(sizes.rows) if last_logits else sum(entering[-1])),
        "mlp": size * decoder.mlp * min(widest, mlp_rows or widest),
        "vision_mlp": size * vision.mlp * min(patches, encoder_rows or patches),
    }


def over(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float | None]:
    """one / other by name, and of the sums as "total"; None where there is nothing to divide by."""
    found = {name: one[name] / other[name] if other[name] else None for name in one}
    whole = sum(other.values())
    return {**found, "total": sum(one.values()) / whole if whole else None}
