"""Where a model keeps what pruning needs: its decoder layers, encoders, token ids and sizes.

An adapter is read-only knowledge about one model class; it knows no method and registers no hook. A new model adds one
file with one subclass of `Adapter` and one line in `models/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import DecoderShape
from ..errors import InputError
from ..tokens import MediaSizes, Vocabulary


class Adapter(ABC):
    """Knowledge about one loaded model. `thinker` is the module that reads `input_ids` and gives logits."""

    def __init__(self, thinker: nn.Module) -> None:
        self.thinker: Any = thinker

    # where things are ----------------------------------------------------------------------------------------------

    @property
    def backbone(self) -> Any:
        """What holds decoder and encoders: `thinker.model` in transformers 5.23, the thinker itself in 5.16."""
        model = self.thinker.model
        return model if hasattr(model, "language_model") else self.thinker

    @property
    def decoder(self) -> Any:
        """The text model: embeddings in, hidden states out."""
        return getattr(self.backbone, "language_model", None) or self.backbone.model

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder layers, first to last."""
        return self.decoder.layers

    @property
    def head(self) -> nn.Module:
        """Hidden states to logits."""
        return self.thinker.lm_head

    @property
    def vision_encoder(self) -> nn.Module:
        return self.backbone.visual

    @property
    def audio_encoder(self) -> Any:
        return self.backbone.audio_tower

    @property
    def audio_attention(self) -> Any:
        """Self-attention of the last audio-encoder layer; called with `cu_seqlens`, has `q_proj`, `k_proj`."""
        return self.audio_encoder.layers[-1].self_attn

    @property
    def vision_attention(self) -> Any:
        """Self-attention of the last vision-encoder layer; called with `cu_seqlens` and `position_embeddings`."""
        return self.vision_encoder.blocks[-1].attn  # type: ignore[union-attr, index]

    @property
    @abstractmethod
    def vision_projections(self) -> Mapping[str, nn.Module]:
        """The modules whose outputs `vision_queries_keys` needs, by a name of the adapter's choice."""

    @abstractmethod
    def query_module(self, layer: int) -> nn.Module:
        """Module that gives layer l's queries just before rotary: (B, L, heads * width) or (B, L, heads, width)."""

    @abstractmethod
    def key_module(self, layer: int) -> nn.Module:
        """The same for keys."""

    def join_axes(self, table: Tensor) -> Tensor:
        """The rotary table (cosines or sines) a layer was given -> (B, L, width), its three axes joined."""
        return table

    # what things mean ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        return self.thinker.config

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Token ids by which the prompt marks media and turns."""
        config = self.config
        end_of_turn: set[int] = set()
        for holder in (self.thinker.generation_config, config, config.text_config):
            ids = getattr(holder, "eos_token_id", None)
            end_of_turn |= set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        closings = [getattr(config, name, None) for name in ("audio_end_token_id", "vision_end_token_id")]
        return Vocabulary(
            audio=config.audio_token_id,
            video=config.video_token_id,
            image=config.image_token_id,
            vision_start=getattr(config, "vision_start_token_id", None),
            audio_start=getattr(config, "audio_start_token_id", None),
            closings=frozenset(token for token in closings if token is not None),
            end_of_turn=frozenset(end_of_turn),
        )

    @abstractmethod
    def audio_token_counts(self, mel_frames: Tensor) -> list[int]:
        """Tokens of each recording, from the number of mel frames of each."""

    @abstractmethod
    def pool_saliency(self, frames: Tensor, mel_frames: Tensor) -> Tensor:
        """(encoder frames,) saliency -> (audio tokens,), as the encoder itself pools its frames."""

    def vision_queries_keys(self, projected: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The outputs of `vision_projections` -> queries and keys (patches, heads * width) before rotary."""
        return projected["queries"], projected["keys"]

    def vision_rotary(self, given: Any) -> tuple[Tensor, Tensor]:
        """What the vision attention gets as `position_embeddings` -> cosines and sines (patches, width)."""
        cos, sin = given
        return cos, sin

    def pool_vision(self, patches: Tensor, grid: Tensor) -> Tensor:
        """(patches,) saliency -> (tokens,) in the order of the encoder's output; a token merges neighbouring patches.

        grid (items, 3): time, height, width in patches.
        """
        return patches.reshape(-1, self.config.vision_config.spatial_merge_size**2).mean(1)

    @property
    def shape(self) -> DecoderShape:
        """Sizes that FLOPs and cache bytes follow from."""
        text = self.config.text_config
        return DecoderShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            mlp=self.mlp_width(),
            vocabulary=text.vocab_size,
            bytes_per_value=self.decoder.dtype.itemsize,
        )

    def mlp_width(self) -> int:
        """3 * intermediate size (gate, up, down)."""
        return 3 * self.config.text_config.intermediate_size

    def sizes(
        self,
        *,
        image_grid: Tensor | None,
        video_grid: Tensor | None,
        mel_frames: Tensor | None,
        seconds_per_grid: Sequence[float] | Tensor | None,
    ) -> MediaSizes:
        """Grids (items, 3) of time, height, width in patches, and mel frames per recording -> sizes in tokens."""
        merge = self.config.vision_config.spatial_merge_size**2

        def grids(grid: Tensor | None) -> list[tuple[int, int]]:
            return [] if grid is None else [(t, h * w // merge) for t, h, w in grid.tolist()]

        video, images = grids(video_grid), grids(image_grid)
        seconds = [1.0] * len(video) if seconds_per_grid is None else [float(s) for s in seconds_per_grid]
        if video and len(seconds) != len(video):
            if len(seconds) % len(video):
                raise InputError(f"video_second_per_grid has {len(seconds)} entries for {len(video)} videos")
            seconds = seconds[:: len(seconds) // len(video)]  # repeated for beams; the grids were not
        return MediaSizes(
            video_frames=[t for t, _ in video],
            video_tokens_per_frame=[n for _, n in video],
            video_seconds_per_frame=seconds[: len(video)],
            image_tokens=[t * n for t, n in images],
            audio_tokens=[] if mel_frames is None else self.audio_token_counts(mel_frames),
            audio_tokens_per_second=float(self.config.position_id_per_seconds),
        )

    def sizes_of(self, inputs: Mapping[str, Any]) -> MediaSizes:
        """`sizes` from a processor's output."""
        mask = inputs.get("feature_attention_mask")
        return self.sizes(
            image_grid=inputs.get("image_grid_thw"),
            video_grid=inputs.get("video_grid_thw"),
            mel_frames=inputs.get("audio_feature_lengths") if mask is None else mask.sum(-1),
            seconds_per_grid=inputs.get("video_second_per_grid"),
        )


def split_heads(projected: Tensor, width: int) -> Tensor:
    """(L, heads * width) or (L, heads, width) -> (heads, L, width)."""
    return projected.reshape(projected.shape[0], -1, width).transpose(0, 1)


def as_long(lengths: Tensor) -> Tensor:
    """Lengths on the CPU, as the counting arithmetic wants them."""
    return torch.as_tensor(lengths).cpu().long()
