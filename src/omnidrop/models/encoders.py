"""The encoder ports of a model family: modules, what their last attention shows, and tokens from sizes.

Shapes: T frames or patches of an encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import score
from ..core.encoder_flops import AudioShape, VisionShape
from ..core.tokens import RECORDING, TWO_GRIDS, Modality
from .decoder import Port


class Encoder(Port, ABC):
    """An encoder of media. `sizes` below are those of the items of one call, as the encoder itself is given them."""

    name: ClassVar[str]  # of its time in `Trace.seconds`
    modalities: ClassVar[tuple[Modality, ...]]  # the last one encoded first
    input_parameter: ClassVar[str]  # the parameters of its forward that hold patches or frames,
    sizes_parameter: ClassVar[str]  # and the sizes
    unused_parameters: ClassVar[tuple[str, ...]] = ()  # others that make no difference
    attention_parameters: ClassVar[tuple[str, ...]] = ("cu_seqlens",)  # of its attention: bounds of windows (W + 1,)
    item_dim: ClassVar[int | None]  # the dimension of the input along which items lie; None: they do not
    attention_attributes: ClassVar[tuple[str, ...]] = ("scaling", "head_dim", "config")  # of its attention, as read
    lean: ClassVar[frozenset[str]] = frozenset({"windows", "patches", "rows"})  # the switches of `lean` that fit it

    @property
    @abstractmethod
    def module(self) -> Any: ...

    @property
    @abstractmethod
    def attention(self) -> Any:
        """The self-attention of its last layer."""

    @property
    @abstractmethod
    def projections(self) -> Mapping[str, nn.Module]:
        """The modules whose outputs `queries_keys` needs, by names of the port's choice."""

    def sizes_of(self, call: Callable[[str], Any], thinker: Callable[[str], Any]) -> Tensor:
        """The sizes of the items of one call; `call` gives an argument of the encoder by name, `thinker` of the thinker
        (None where it does not run).
        """
        return call(self.sizes_parameter)

    @abstractmethod
    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys (heads, T, width), positions applied, of a pass.

        `given`: the outputs of `projections`, and as "windows" and "rotary" what the attention got as the first and
        second of `attention_parameters`.
        """

    @abstractmethod
    def item_rows(self, sizes: Tensor) -> list[int]:
        """Rows of each item in the encoder's input, along `item_dim`."""

    @abstractmethod
    def item_tokens(self, sizes: Tensor) -> list[int]:
        """Tokens of each item."""

    @abstractmethod
    def item_frames(self, sizes: Tensor) -> list[int]:
        """Frames or patches of each item in the encoder's layers; their sum is T."""

    @abstractmethod
    def spans(self, sizes: Tensor, span: str | None) -> list[int] | None:
        """Lengths, with sum T, of the stretches of a soft-max over `span` (`Method.spans`).

        None: its own windows, as its attention is given them. An attention that is given none needs lengths here.
        """

    def received(self, passes: Sequence[Mapping[str, Any]], sizes: Tensor, span: str | None) -> Tensor | None:
        """(T,) float32: the attention that each of a call's T frames or patches received, where its passes tell it.

        None: it is computed from `queries_keys`, over `spans`. Normalised as `core.score.attention_received` does.
        """
        return None

    @abstractmethod
    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        """(T,) attention received by frames or patches -> (tokens,), as the encoder pools them into tokens."""


class AudioEncoder(Encoder):
    """`sizes`: mel frames of each recording, (recordings,).

    `packed`: whether the encoder takes the mel frames of all recordings behind one another, (bins, frames), and
    `feature_lens`; otherwise rows of features (rows, bins, frames), each of which is encoded for itself.
    """

    name = "audio_encoder"
    packed: ClassVar[bool] = True
    modalities = (Modality.AUDIO,)
    input_parameter, sizes_parameter = "input_features", "feature_lens"
    unused_parameters = ("aftercnn_lens",)
    item_dim: ClassVar[int | None] = 1

    @property
    def shape(self) -> AudioShape | None:
        """The sizes that its FLOPs follow from; None: they are not counted."""
        return None

    @property
    def module(self) -> Any:
        return self.backbone.audio_tower

    @property
    def attention(self) -> Any:
        return self.module.layers[-1].self_attn

    @property
    def projections(self) -> Mapping[str, nn.Module]:
        return {"queries": self.attention.q_proj, "keys": self.attention.k_proj}

    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        width = self.attention.head_dim
        return split_heads(given["queries"], width), split_heads(given["keys"], width)

    def item_rows(self, sizes: Tensor) -> list[int]:
        return as_long(sizes).tolist()

    def item_tokens(self, sizes: Tensor) -> list[int]:
        return self.token_counts(sizes)

    def item_frames(self, sizes: Tensor) -> list[int]:
        return self.frame_counts(sizes)

    def spans(self, sizes: Tensor, span: str | None) -> list[int] | None:
        return self.frame_counts(sizes) if span == RECORDING else None

    @staticmethod
    @abstractmethod
    def mel_window(audio: Any) -> int:
        """Mel frames of a full attention window; `audio`: the encoder, or its config."""

    @abstractmethod
    def token_counts(self, mel_frames: Tensor) -> list[int]:
        """Tokens of each recording."""

    def frame_counts(self, mel_frames: Tensor) -> list[int]:
        """Frames of each recording in the encoder's layers, before it pools them."""
        return self.token_counts(mel_frames)

    @property
    def window_tokens(self) -> int:
        """Tokens of a full attention window."""
        return self.token_counts(torch.tensor([self.mel_window(self.config.audio_config)]))[0]


class VisionEncoder(Encoder):
    """`sizes`: time, height and width in patches of each video or image, (items, 3)."""

    name = "vision_encoder"
    modalities = (Modality.VIDEO, Modality.IMAGE)
    input_parameter, sizes_parameter = "hidden_states", "grid_thw"
    item_dim: ClassVar[int | None] = 0
    attention_parameters: ClassVar[tuple[str, ...]] = ("cu_seqlens", "position_embeddings")
    shortens: ClassVar[bool] = False  # whether parts of a video can be left out of it (`engine/short_encoder.py`):
    # `patch_embed` first, then `blocks`, given bounds of windows and a rotary table by the names above, then `mergers`

    @property
    def shape(self) -> VisionShape | None:
        """The sizes that its FLOPs follow from; None: they are not counted."""
        return None

    @property
    def module(self) -> Any:
        return self.backbone.visual

    @property
    def attention(self) -> Any:
        return self.module.blocks[-1].attn

    @property
    def patches_per_token(self) -> int:
        return self.config.vision_config.spatial_merge_size**2

    @property
    def mergers(self) -> Sequence[nn.Module]:
        """What makes tokens of patches: of the last block's output, and of earlier ones' where there are more."""
        return [self.module.merger]

    def order(self, sizes: Tensor) -> Tensor | None:
        """(tokens,) long: which token is held at each place between the encoder's first and last block; None: as in
        its output.
        """
        return None

    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        width = self.attention.head_dim
        cos, sin = (table.float() for table in self.rotary(given["rotary"]))
        queries, keys = (split_heads(x, width).float() for x in self.unrotated(given))
        return score.rotate(queries, cos, sin), score.rotate(keys, cos, sin)

    def unrotated(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys (T, heads * width) before rotary."""
        return given["queries"], given["keys"]

    def rotary(self, given: Any) -> tuple[Tensor, Tensor]:
        """What the attention gets as `position_embeddings` -> cosines and sines (T, width)."""
        cos, sin = given
        return cos, sin

    def item_rows(self, sizes: Tensor) -> list[int]:
        return as_long(sizes).prod(1).tolist()

    def item_tokens(self, sizes: Tensor) -> list[int]:
        return [rows // self.patches_per_token for rows in self.item_rows(sizes)]

    def item_frames(self, sizes: Tensor) -> list[int]:
        return self.item_rows(sizes)

    def spans(self, sizes: Tensor, span: str | None) -> list[int] | None:
        return grid_pairs(sizes) if span == TWO_GRIDS else None

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        """In the order of the encoder's output; a token merges neighbouring patches."""
        pooled, order = received.reshape(-1, self.patches_per_token).mean(1), self.order(sizes)
        return pooled if order is None else torch.empty_like(pooled).index_copy_(0, order.to(pooled.device), pooled)


class JointProjection(VisionEncoder):
    """Attention with one projection for queries, keys and values."""

    @property
    def projections(self) -> dict[str, nn.Module]:
        return {"joint": self.attention.qkv}

    def unrotated(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        queries, keys, _ = given["joint"].chunk(3, dim=-1)
        return queries, keys


def vision_shape(
    vision: Any, *, projections: int, mergers: int = 1, window: int | None = None, whole: int | None = None
) -> VisionShape:
    """`VisionEncoder.shape` of Qwen's encoders, from their config, the projections of an MLP, and further fields."""
    return VisionShape(
        layers=vision.depth,
        width=vision.hidden_size,
        mlp=projections * vision.intermediate_size,
        patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merge=vision.spatial_merge_size,
        output=vision.out_hidden_size,
        mergers=mergers,
        window=window,
        whole=vision.depth if whole is None else whole,
    )


def audio_shape(audio: Any, *, window: int = 1, channels: int | None = None) -> AudioShape:
    """`AudioEncoder.shape` of Qwen's encoders, from their config and further fields."""
    return AudioShape(
        layers=audio.encoder_layers,
        width=audio.d_model,
        mlp=2 * audio.encoder_ffn_dim,
        bins=audio.num_mel_bins,
        output=audio.output_dim,
        piece=2 * audio.n_window,
        window=window,
        channels=channels,
    )


def grid_pairs(grid: Tensor) -> list[int]:
    """Patches in every two temporal grids of the items, (items, 3) of time, height, width; an odd last one is alone."""
    return [min(2, t - first) * h * w for t, h, w in as_long(grid).tolist() for first in range(0, t, 2)]


def split_heads(projected: Tensor, width: int) -> Tensor:
    """(L, heads * width), or (L, heads, width) of any width -> (heads, L, width)."""
    if projected.dim() == 2:
        projected = projected.reshape(projected.shape[0], -1, width)
    return projected.transpose(0, 1)


def as_long(lengths: Tensor) -> Tensor:
    """Lengths on the CPU, as the counting arithmetic wants them."""
    return torch.as_tensor(lengths).cpu().long()
