"""Qwen2.5-Omni (3B, 7B): thinker, and the full model with its talker.

Class: transformers `Qwen2_5OmniThinkerForConditionalGeneration`, `Qwen2_5OmniForConditionalGeneration`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import score
from ..core.encoder_flops import AudioShape, VisionShape
from ..errors import ModelError
from .base import OMNI_PARAMETERS, OMNI_ROPE_PARAMETERS, Adapter, AudioEncoder, Decoder, VisionEncoder, as_long
from .encoders import audio_shape, vision_shape


class Qwen25Decoder(Decoder):
    """Projections with bias, no norms of queries and keys."""

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_proj

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_proj

    def join_axes(self, table: Tensor) -> Tensor:
        """In transformers 5.16 layers get (3, B, L, width), and attention takes time, height, width by sections."""
        if table.dim() == 3:
            return table
        if table.dim() != 4 or table.shape[0] != 3:
            raise ModelError(
                f"decoder layers were given a rotary table of shape {tuple(table.shape)}; known are (B, L, width) and "
                "(3, B, L, width): install a transformers release that `omnidrop doctor` lists as tested"
            )
        sections = self.thinker.config.text_config.rope_parameters["mrope_section"] * 2
        return torch.cat([part[i % 3] for i, part in enumerate(table.split(sections, dim=-1))], dim=-1)


class Qwen25Audio(AudioEncoder):
    """Mel frames / 2 by convolution, attention in windows, / 2 by average pooling; 25 tokens a second."""

    @property
    def shape(self) -> AudioShape:
        return audio_shape(self.config.audio_config)

    @staticmethod
    def mel_window(audio: Any) -> int:
        return 2 * audio.n_window

    def token_counts(self, mel_frames: Tensor) -> list[int]:
        return (((as_long(mel_frames) - 1) // 2 + 1) // 2).tolist()

    def frame_counts(self, mel_frames: Tensor) -> list[int]:
        return ((as_long(mel_frames) - 1) // 2 + 1).tolist()

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        return score.pool_pairs(received, self.frame_counts(sizes))


class Qwen25Vision(VisionEncoder):
    """Attention in windows inside a frame; patches lie in the order of the windows."""

    shortens = True

    @property
    def shape(self) -> VisionShape:
        vision = self.config.vision_config
        whole = sum(layer < vision.depth for layer in vision.fullatt_block_indexes)
        window = self.window_tokens * vision.spatial_merge_size
        return vision_shape(vision, projections=3, window=window, whole=whole)

    @property
    def window_tokens(self) -> int:
        """Tokens of a window's side."""
        vision = self.config.vision_config
        return vision.window_size // vision.spatial_merge_size // vision.patch_size

    @property
    def projections(self) -> dict[str, nn.Module]:
        return {"queries": self.attention.q, "keys": self.attention.k}

    def rotary(self, given: Any) -> tuple[Tensor, Tensor]:
        """transformers 5.16 gives the angles (T, width / 2), later ones their cosines and sines."""
        if not isinstance(given, Tensor):
            return super().rotary(given)
        angles = given.repeat(1, 2)
        return angles.cos(), angles.sin()

    def order(self, sizes: Tensor) -> Tensor:
        """Inside the encoder tokens are in the order of its windows; its output is in the order of the picture."""
        return window_order(sizes, merge=self.config.vision_config.spatial_merge_size, window=self.window_tokens)


class Qwen25Omni(Adapter):
    thinkers = ("Qwen2_5OmniThinkerForConditionalGeneration",)
    wholes = ("Qwen2_5OmniForConditionalGeneration",)
    model_types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    processor = "Qwen2_5OmniProcessor"
    thinker_parameters = OMNI_PARAMETERS
    rope_parameters = OMNI_ROPE_PARAMETERS
    decoder_class, audio_class, vision_class = Qwen25Decoder, Qwen25Audio, Qwen25Vision


def window_order(grid: Tensor, *, merge: int, window: int) -> Tensor:
    """In which order Qwen2.5-Omni's vision encoder holds its merged tokens: window by window, row by row inside.

    grid (items, 3): time, height, width in patches; `merge` patches a token's side, `window` tokens a window's side.
    Returns (tokens,) long: place i holds token order[i].
    """
    orders, first = [], 0
    for t, h, w in as_long(grid).tolist():
        rows, columns = h // merge, w // merge
        frame, row, column = torch.meshgrid(
            torch.arange(t), torch.arange(rows), torch.arange(columns), indexing="ij"
        )  # fmt: skip
        across = -(-columns // window)
        number = (frame * -(-rows // window) + row // window) * across + column // window
        orders.append(first + torch.argsort(number.flatten(), stable=True))
        first += t * rows * columns
    return torch.cat(orders)
