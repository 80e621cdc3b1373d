"""Nemotron 3 Nano Omni (30B-A3B): images, video and sound; Mamba2, mixtures of experts, and a few layers of attention.

Class: transformers `NemotronH_Omni_Reasoning_V3`. Each layer is one thing: Mamba2, attention, experts or an MLP. There
are no positions of any kind: what comes before what, the Mamba2 layers alone know.

Dropping is as in Qwen3.5: a token's row is left out, it stays in the states of the Mamba2 layers that it passed, and it
leaves after layers of attention alone, at equal budget.

Videos are marked by the images' placeholder; which of the two a call of the model means, its arguments tell. Images and
videos do not stand in one prompt: the model refuses that itself. Its own pruning of videos (EVS, `video_pruning_rate`)
would take tokens out of the prompt before any layer sees them; inside `prune` it is off, and a log line says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.budget import LayerShape
from ..core.tokens import TWO_GRIDS, Vocabulary
from ..errors import ModelError
from .base import Adapter, AudioEncoder, Decoder, VisionEncoder, as_long, split_heads
from .decoder import FULL, LINEAR
from .gemma4 import RunsPrompt
from .qwen3_5 import STATE_BYTES, Qwen35
from .side_inputs import counted, left_out

QUERIES = 64  # rows of encoder attention that are computed at once


class NemotronDecoder(Decoder):
    """Queries and keys are plain projections, which nothing turns."""

    side_inputs = MappingProxyType({"position_ids": counted})
    layer_side_inputs = MappingProxyType({"position_ids": left_out})
    position_axes = 1
    layer_parts = ()
    plain_keys = False

    @property
    def module(self) -> Any:
        return self.thinker.language_model.model

    @property
    def head(self) -> nn.Module:
        return self.thinker.language_model.lm_head

    @property
    def norm(self) -> nn.Module:
        return self.module.norm_f

    def attention(self, layer: int) -> Any:
        return self.layers[layer].mixer

    def query_module(self, layer: int) -> nn.Module:
        return self.attention(layer).q_proj

    def key_module(self, layer: int) -> nn.Module:
        return self.attention(layer).k_proj

    def layer_shape(self, layer: int) -> LayerShape:
        text, kind = self.thinker.config.text_config, self.kinds[layer]
        shape = partial(LayerShape, head_dim=text.head_dim, kv_heads=text.num_key_value_heads, mlp=0)
        if kind == FULL:
            return shape()
        if kind == LINEAR:
            return shape(recurrence=self._mamba(), state_bytes=self._state_bytes())
        return shape(recurrence=self._experts() if kind == "moe" else 2 * text.hidden_size * text.intermediate_size)

    @property
    def _widths(self) -> tuple[int, int]:
        """Of all heads' values; of these and what all groups write and read states by, which are convolved."""
        text = self.thinker.config.text_config
        values = text.mamba_num_heads * text.mamba_head_dim
        return values, values + 2 * text.n_groups * text.ssm_state_size

    def _mamba(self) -> int:
        """Projections, convolution, and the scan in chunks, as transformers computes it: whole squares, head by head.

        Without what carries states from chunk to chunk, which does not grow with a token's share of it.
        """
        text, (values, convolved) = self.thinker.config.text_config, self._widths
        projections = text.hidden_size * (values + convolved + text.mamba_num_heads + values)
        inside = text.chunk_size * (text.ssm_state_size + text.mamba_head_dim)
        scan = text.mamba_num_heads * (inside + 2 * text.ssm_state_size * text.mamba_head_dim)
        return projections + text.conv_kernel * convolved + scan

    def _state_bytes(self) -> int:
        text, (values, convolved) = self.thinker.config.text_config, self._widths
        return text.conv_kernel * convolved * self.module.dtype.itemsize + STATE_BYTES * values * text.ssm_state_size

    def _experts(self) -> int:
        """The experts that a token visits, the shared one, the router, and the projections around where there are."""
        text = self.thinker.config.text_config
        width = text.moe_latent_size or text.hidden_size
        around = 0 if text.moe_latent_size is None else 2 * text.hidden_size * width
        shared = 2 * text.hidden_size * text.moe_shared_expert_intermediate_size
        routed = 2 * width * text.num_experts_per_tok * text.moe_intermediate_size
        return routed + shared + around + text.hidden_size * text.n_routed_experts


class Parakeet(AudioEncoder):
    """Mel frames / 8 by convolution; attention over the whole recording by contents and relative positions.

    `sizes`: mel frames of each recording as the model counts its tokens: one more than the mask shows.
    """

    sizes_parameter = "attention_mask"
    item_dim = None
    packed = False
    attention_parameters = ("attention_mask",)
    attention_attributes = ("scaling", "head_dim", "bias_u", "bias_v", "relative_k_proj")
    lean = frozenset()

    @property
    def projections(self) -> Mapping[str, nn.Module]:
        return {**super().projections, "positions": self.attention.relative_k_proj}

    @staticmethod
    def mel_window(audio: Any) -> int:
        return 1  # every frame sees the whole recording: there are no windows to cut at

    @property
    def window_tokens(self) -> int:
        return 0

    def sizes_of(self, call: Callable[[str], Any], thinker: Callable[[str], Any]) -> Tensor:
        mask, features = call("attention_mask"), call("input_features")
        return torch.full(features.shape[:1], features.shape[1]) if mask is None else mask.sum(-1) + 1

    def token_counts(self, mel_frames: Tensor) -> list[int]:
        audio, frames = self.config.audio_config, as_long(mel_frames)
        kernel, stride = audio.subsampling_conv_kernel_size, audio.subsampling_conv_stride
        for _ in range(int(math.log2(audio.subsampling_factor))):
            frames = (frames + (kernel - 1) // 2 * 2 - kernel) // stride + 1
        return frames.tolist()

    def received(self, passes: Sequence[Mapping[str, Any]], sizes: Tensor, span: str | None) -> Tensor:
        """Sums over the frames that are no padding, means over heads."""
        counts = self.token_counts(sizes)
        return torch.cat([row[:n] for given in passes for row, n in zip(self._received(given), counts, strict=True)])

    def _received(self, given: Mapping[str, Any]) -> Tensor:
        """(recordings, T): what each frame, padding included, receives from those that are none.

        Relative keys stand for distances query - key of T - 1 down to 1 - T.
        """
        attention = self.attention
        queries, keys, turns = (
            given[name].float().unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for name in ("queries", "keys", "positions")
        )  # (N, H, T or 2 T - 1, width)
        by_content, by_place = (queries + bias.float()[:, None] for bias in (attention.bias_u, attention.bias_v))
        frames, mask = queries.shape[2], given["windows"]
        place = torch.arange(frames, device=queries.device)
        real = place.new_ones(len(queries), frames).bool() if mask is None else mask[:, 0].diagonal(dim1=-2, dim2=-1)
        total = queries.new_zeros(len(queries), frames)
        for rows in place.split(QUERIES):
            distance = (frames - 1 - rows[:, None] + place).expand(*queries.shape[:2], -1, -1)
            logits = by_content[:, :, rows] @ keys.transpose(-1, -2)
            logits += (by_place[:, :, rows] @ turns.transpose(-1, -2)).gather(-1, distance)
            logits = (logits * attention.scaling).masked_fill(~real[:, None, None], torch.finfo(logits.dtype).min)
            total += (logits.softmax(-1) * real[:, None, rows, None]).sum(2).mean(1)
        return total

    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        raise AssertionError("`received` computes the attention, which is not by contents alone")

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        return received


class Radio(VisionEncoder):
    """Full attention inside an image, or inside two frames of a video that are encoded as one; a few tokens of the
    encoder's own come first. Positions are added to patches before the first layer.

    `sizes`: 1, height and width in patches of each image, or of each two frames.
    """

    input_parameter, sizes_parameter = "pixel_values", "image_grid_hw"
    item_dim = None
    attention_parameters = ("cu_seqlens",)
    lean = frozenset()

    @property
    def module(self) -> Any:
        return self.thinker.vision_model

    @property
    def attention(self) -> Any:
        return self.module.encoder.layer[-1].attention

    @property
    def projections(self) -> Mapping[str, nn.Module]:
        return {"queries": self.attention.q_proj, "keys": self.attention.k_proj}

    @property
    def side(self) -> int:
        """Patches of a token, from left to right."""
        return int(1 / self.config.downsample_ratio)

    @property
    def patches_per_token(self) -> int:
        return self.side**2

    def sizes_of(self, call: Callable[[str], Any], thinker: Callable[[str], Any]) -> Tensor:
        pixels, grids = call("pixel_values"), call("image_grid_hw")
        if grids is None:
            height, width = (side // self.config.vision_config.patch_size for side in pixels.shape[-2:])
            grids = torch.tensor([[height, width]] * len(pixels))
        return nn.functional.pad(grids, (1, 0), value=1)

    def item_frames(self, sizes: Tensor) -> list[int]:
        return [self.config.vision_config.num_summary_tokens + patches for patches in self.item_rows(sizes)]

    def spans(self, sizes: Tensor, span: str | None) -> list[int]:
        if span == TWO_GRIDS:
            raise ModelError(
                "this method ranks video by attention over two grids at once, and Nemotron's encoder is given those of "
                "all videos without telling where one ends: use a method that ranks otherwise (`omnidrop methods` "
                "lists them)"
            )
        return self.item_frames(sizes)

    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Of all items, one after another."""
        width = self.attention.head_dim
        return split_heads(given["queries"].flatten(0, 1), width), split_heads(given["keys"].flatten(0, 1), width)

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        """Patches lie row by row."""
        parts = zip(received.split(self.item_frames(sizes)), as_long(sizes).tolist(), strict=True)
        squares = (
            part[-height * width :].view(height // self.side, self.side, width // self.side, self.side)
            for part, (_, height, width) in parts
        )
        return torch.cat([each.mean((1, 3)).flatten() for each in squares])


class NemotronPrompt(RunsPrompt):
    """A run of a video is two frames, behind their times as text. They count as one second: two pictures at 2 fps."""

    token_fields = ("image_token_id", "audio_token_id")
    audio_rate = 12.5

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """With one placeholder for images and videos; `vocabulary_of` tells which."""
        return replace(super().vocabulary, video=self.config.image_token_id, closed=True)

    def vocabulary_of(self, argument: Callable[[str], Any]) -> Vocabulary:
        ahead = argument("mm_encoder_outputs") or {}
        videos = argument("pixel_values_videos") is not None or ahead.get("video") is not None
        return replace(self.vocabulary, image=None) if videos else replace(self.vocabulary, video=None)

    def frames_per_video(self, argument: Callable[[str], Any]) -> list[int] | None:
        """Pairs of frames, that is."""
        pixels = argument("pixel_values_videos")
        if pixels is None:
            return None
        if pixels.dim() == 4:  # the frames of one video
            return [-(-len(pixels) // self.config.video_temporal_patch_size)]
        return [pixels.shape[1]] * len(pixels)

    def recordings(self, argument: Callable[[str], Any]) -> list[int] | None:
        mask = argument("input_features_mask")
        return None if mask is None or self.audio is None else self.audio.token_counts(mask.sum(-1) + 1)


class NemotronHOmni(Adapter):
    thinkers = ("NemotronH_Omni_Reasoning_V3",)
    model_types = ("nemotron_h_omni",)
    processor = "NemotronH_Omni_Reasoning_V3Processor"
    since = "5.24"
    own_pruning = "video_pruning_rate"
    unstreamed = Qwen35.unstreamed
    thinker_parameters = ("pixel_values_videos", "input_features_mask", "mm_encoder_outputs")
    decoder_class, audio_class, vision_class = NemotronDecoder, Parakeet, Radio
    prompt_class = NemotronPrompt
