"""Qwen3.5 (0.8B to 27B) and its mixtures of experts: videos and images, no sound; three of four layers are recurrent.

Class: transformers `Qwen3_5ForConditionalGeneration`, `Qwen3_5MoeForConditionalGeneration`. Prompts, processor and
vision encoder are Qwen3-VL's, without DeepStack.

A recurrent layer (Gated DeltaNet) has a state in place of keys and values. Dropping a token there is leaving its row
out: convolution and recurrence run over the survivors. A token that was in layer l stays in that layer's state, in the
prompt and in all decoding, and is absent from the layers behind the drop. There is no attention to rank by, so tokens
leave after layers with full attention alone, at equal budget (`DecoderShape.folded`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from ..core.budget import LayerShape
from .base import Adapter, Decoder
from .decoder import LINEAR
from .qwen3_omni_moe import Qwen3Vision
from .qwen3_vl import Qwen3VL, Qwen3VLPrompt

CHUNK = 64  # tokens that the recurrence of a prompt handles at once
STATE_BYTES = 4  # of a number of the recurrent state, which is float32 whatever the model is


class Qwen35Decoder(Decoder):
    """Queries and keys are normed and turned in their first quarter; `q_proj` also gives a gate for the output."""

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_norm

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_norm

    def layer_shape(self, layer: int) -> LayerShape:
        text = self.thinker.config.text_config
        recurrence, state = (self._recurrence(), self._state_bytes()) if self.kinds[layer] == LINEAR else (None, 0)
        return LayerShape(
            head_dim=text.head_dim,
            kv_heads=text.num_key_value_heads,
            mlp=self.mlp_width(),
            gated=True,
            recurrence=recurrence,
            state_bytes=state,
        )

    @property
    def _widths(self) -> tuple[int, int]:
        """All key heads, all value heads."""
        text = self.thinker.config.text_config
        return (
            text.linear_num_key_heads * text.linear_key_head_dim,
            text.linear_num_value_heads * text.linear_value_head_dim,
        )

    def _recurrence(self) -> int:
        """Projections, convolution and the delta rule in chunks, whose triangular systems count as half squares."""
        text, (keys, values) = self.thinker.config.text_config, self._widths
        heads, key, value = text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim
        projections = text.hidden_size * (2 * keys + 2 * values + 2 * heads + values)
        convolution = text.linear_conv_kernel_dim * (2 * keys + values)
        inside = CHUNK * (2 * key + value) + CHUNK * (key + value) // 2
        return projections + convolution + heads * (inside + 3 * key * value)

    def _state_bytes(self) -> int:
        text, (keys, values) = self.thinker.config.text_config, self._widths
        convolved = text.linear_conv_kernel_dim * (2 * keys + values) * self.module.dtype.itemsize
        return convolved + STATE_BYTES * values * text.linear_key_head_dim


class Qwen35MoeDecoder(Qwen35Decoder):
    """Experts in every layer, one of which every token visits."""

    def mlp_width(self) -> int:
        text = self.thinker.config.text_config
        return 3 * (text.num_experts_per_tok * text.moe_intermediate_size + text.shared_expert_intermediate_size)


class Qwen35Vision(Qwen3Vision):
    """Without DeepStack. Parts of a video cannot be left out before it yet."""

    shortens = False

    @property
    def mergers(self) -> Sequence[nn.Module]:
        return [self.module.merger]


class Qwen35(Adapter):
    thinkers = ("Qwen3_5ForConditionalGeneration",)
    model_types = ("qwen3_5",)
    processor = "Qwen3VLProcessor"
    thinker_parameters = Qwen3VL.thinker_parameters
    rope_parameters = Qwen3VL.rope_parameters
    decoder_class: ClassVar[type[Decoder]] = Qwen35Decoder
    vision_class, prompt_class = Qwen35Vision, Qwen3VLPrompt
    unstreamed = "a token cannot be removed from the state of its recurrent layers when newer segments come"


class Qwen35Moe(Qwen35):
    thinkers = ("Qwen3_5MoeForConditionalGeneration",)
    model_types = ("qwen3_5_moe",)
    decoder_class = Qwen35MoeDecoder
