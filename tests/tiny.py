"""Tiny random omni models, built from config: the tests' models. Nothing is downloaded and nothing of omnidrop is used.

With the stock initialisation a tiny model attends almost uniformly, so every importance score ties to six digits and a
test of "which tokens remain" would test rounding. Here weights are drawn with unit gain and sharpened queries and keys,
so scores differ by far more than float32 noise. `prompts.py` builds the inputs.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import torch
from torch import nn
from transformers import (
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniConfig, Qwen2_5OmniThinkerConfig
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeThinkerConfig,
)


class Ids(IntEnum):
    """The special tokens, at the top of the tiny vocabulary; ordinary text uses ids 1..199."""

    PAD = 0
    IM_START = 240
    IM_END = 241
    VISION_START = 242
    VISION_END = 243
    AUDIO_START = 244
    AUDIO_END = 245
    AUDIO = 246
    IMAGE = 247
    VIDEO = 248
    USER = 249
    SYSTEM = 250
    ASSISTANT = 251
    NEWLINE = 252
    TTS_START = 253
    TTS_END = 254
    TTS_PAD = 255


VOCAB = 256
HIDDEN = 64
MEL_BINS = 8
PATCH = 4  # pixels a side; a patch is 2 frames * 3 channels * PATCH * PATCH numbers
PATCH_DIM = 3 * 2 * PATCH * PATCH


def _media_ids(suffix: str) -> dict[str, int]:
    return {
        f"audio_token_{suffix}": int(Ids.AUDIO),
        f"image_token_{suffix}": int(Ids.IMAGE),
        f"video_token_{suffix}": int(Ids.VIDEO),
        "audio_start_token_id": int(Ids.AUDIO_START),
        "audio_end_token_id": int(Ids.AUDIO_END),
        # Read by get_rope_index, but no field of the config class: checkpoints carry it as an extra key.
        "vision_start_token_id": int(Ids.VISION_START),
        "vision_end_token_id": int(Ids.VISION_END),
    }


def _rope(section: list[int], **extra: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, **extra}


def _qwen2_5_thinker_config(layers: int, max_positions: int = 8192) -> Qwen2_5OmniThinkerConfig:
    return Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=max_positions,
            rope_parameters=_rope([2, 3, 3]), tie_word_embeddings=False,
        ),
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=PATCH, window_size=4 * PATCH,
            out_hidden_size=HIDDEN, fullatt_block_indexes=[1],
        ),
        audio_config=dict(
            num_mel_bins=MEL_BINS, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32,
            n_window=40, output_dim=HIDDEN,
        ),
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        user_token_id=int(Ids.USER),
        **_media_ids("index"),
    )  # fmt: skip


def _qwen3_thinker_config(layers: int, max_positions: int = 8192) -> Qwen3OmniMoeThinkerConfig:
    return Qwen3OmniMoeThinkerConfig(
        text_config=dict(
            vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=max_positions,
            rope_parameters=_rope([4, 2, 2], mrope_interleaved=True),
            moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1],
        ),
        vision_config=dict(
            depth=3, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=PATCH, out_hidden_size=HIDDEN,
            num_position_embeddings=64, deepstack_visual_indexes=[0, 1],
        ),
        audio_config=dict(
            num_mel_bins=MEL_BINS, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32,
            n_window=50, n_window_infer=200, conv_chunksize=500, downsample_hidden_size=8, output_dim=HIDDEN,
        ),
        position_id_per_seconds=13,
        seconds_per_chunk=2,
        user_token_id=int(Ids.USER),
        **_media_ids("id"),
    )  # fmt: skip


def _qwen2_5_full_config(layers: int) -> Qwen2_5OmniConfig:
    return Qwen2_5OmniConfig(
        thinker_config=_qwen2_5_thinker_config(layers).to_dict(),
        talker_config=dict(
            vocab_size=72, embedding_size=HIDDEN, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=8192,
            rope_parameters=_rope([2, 3, 3]), tts_text_start_token_id=int(Ids.TTS_START),
            tts_text_end_token_id=int(Ids.TTS_END), tts_text_pad_token_id=int(Ids.TTS_PAD),
            tts_codec_pad_token_id=64, tts_codec_start_token_id=65, tts_codec_end_token_id=66,
            tts_codec_mask_token_id=67, position_id_per_seconds=25, seconds_per_chunk=2, **_media_ids("index"),
        ),
        token2wav_config=dict(
            dit_config=dict(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16, emb_dim=16, num_embeds=73,
                mel_dim=8, enc_channels=[16, 16, 16, 16, 48], enc_dim=8, enc_emb_dim=8, enc_attention_channels=8,
                enc_se_channels=8, look_ahead_layers=[0], look_backward_layers=[0], repeats=2,
            ),
            bigvgan_config=dict(
                mel_dim=8, upsample_initial_channel=16, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]],
                upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4],
            ),
        ),
    )  # fmt: skip


def _qwen3_full_config(layers: int) -> Qwen3OmniMoeConfig:
    thinker = _qwen3_thinker_config(layers)
    return Qwen3OmniMoeConfig(
        thinker_config=thinker.to_dict(),
        talker_config=dict(
            text_config=dict(
                # generate() suppresses the last 1024 ids, so the codebook must lie below vocab_size - 1024.
                vocab_size=1100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, head_dim=16, max_position_embeddings=8192, moe_intermediate_size=16,
                num_experts=4, num_experts_per_tok=2, shared_expert_intermediate_size=16,
                rope_parameters=_rope([4, 2, 2], mrope_interleaved=True),
            ),
            code_predictor_config=dict(
                vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, head_dim=16, num_code_groups=4, max_position_embeddings=8192,
            ),
            num_code_groups=4, thinker_hidden_size=HIDDEN, accept_hidden_layer=layers // 2, codec_eos_token_id=1000,
            codec_nothink_id=1001, codec_think_bos_id=1002, codec_think_eos_id=1003, codec_pad_id=1004,
            codec_bos_id=1005, speaker_id={"ethan": 1006}, position_id_per_seconds=13, spatial_merge_size=2,
            # The talker computes positions of the thinker's prompt with the thinker's audio settings.
            seconds_per_chunk=2, audio_config=thinker.audio_config, **_media_ids("id"),
        ),
        code2wav_config=dict(
            codebook_size=76, hidden_size=32, num_attention_heads=2, num_key_value_heads=2, sliding_window=16,
            intermediate_size=48, num_hidden_layers=1, num_quantizers=4, upsample_rates=(2, 2), upsampling_ratios=(2,),
            decoder_dim=32,
        ),
        im_start_token_id=int(Ids.IM_START), im_end_token_id=int(Ids.IM_END), tts_bos_token_id=int(Ids.TTS_START),
        tts_eos_token_id=int(Ids.TTS_END), tts_pad_token_id=int(Ids.TTS_PAD), system_token_id=int(Ids.SYSTEM),
        user_token_id=int(Ids.USER), assistant_token_id=int(Ids.ASSISTANT),
    )  # fmt: skip


@torch.no_grad()
def _sharpen(thinker: nn.Module, seed: int) -> None:
    """Draw the thinker's weights with unit gain: peaked attention, residuals of order one, well separated logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std)

    for name, parameter in thinker.named_parameters():
        leaf = name.rsplit(".", 2)[-2:]
        if "norm" in leaf[0] or "ln_" in leaf[0]:
            normal(parameter, 0.1)
            if leaf[1] == "weight":  # Qwen3 normalises queries and keys: their gain is the norms'
                parameter += 1.8 if leaf[0] in {"q_norm", "k_norm"} else 1.0
        elif parameter.ndim == 1:
            normal(parameter, 0.1)
        elif "embed_tokens" in name or "pos_embed" in name or "audio_bos_eos" in name:
            normal(parameter, 0.6)
        elif leaf[0] == "lm_head":
            normal(parameter, 2.5 / math.sqrt(HIDDEN))
            # Media and template tokens must not be generated: with use_cache=False they would look like media.
            parameter[int(Ids.IM_START) :] = 0.0
            parameter[int(Ids.PAD)] = 0.0
        else:
            fan_in = parameter.shape[-1] if leaf[0] == "experts" else parameter[0].numel()
            owner = leaf[1] if leaf[0] == "experts" else leaf[0]
            gain = {"q_proj": 1.6, "k_proj": 1.6, "q": 1.6, "k": 1.6, "o_proj": 2.0, "down_proj": 1.5}.get(owner, 0.9)
            normal(parameter, gain / math.sqrt(fan_in))


def _build(cls: type, config: Any, seed: int, attn_implementation: str, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls._from_config(config, attn_implementation=attn_implementation)
    thinker = getattr(model, "thinker", model)
    _sharpen(thinker, seed)
    for part in {model, thinker}:
        part.generation_config.pad_token_id = int(Ids.PAD)
        part.generation_config.eos_token_id = int(Ids.IM_END)  # its logit is always 0 (see _sharpen): never greedy
        part.generation_config.bos_token_id = None
    return model.to(dtype).eval()


def qwen2_5_thinker(
    layers: int = 8, seed: int = 0, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32,
    max_positions: int = 8192,
) -> Qwen2_5OmniThinkerForConditionalGeneration:  # fmt: skip
    config = _qwen2_5_thinker_config(layers, max_positions)
    return _build(Qwen2_5OmniThinkerForConditionalGeneration, config, seed, attn_implementation, dtype)


def qwen3_thinker(
    layers: int = 6, seed: int = 0, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32,
    max_positions: int = 8192,
) -> Qwen3OmniMoeThinkerForConditionalGeneration:  # fmt: skip
    config = _qwen3_thinker_config(layers, max_positions)
    return _build(Qwen3OmniMoeThinkerForConditionalGeneration, config, seed, attn_implementation, dtype)


def qwen2_5_full(
    layers: int = 4, seed: int = 0, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32
) -> Qwen2_5OmniForConditionalGeneration:
    model = _build(Qwen2_5OmniForConditionalGeneration, _qwen2_5_full_config(layers), seed, attn_implementation, dtype)
    generator = torch.Generator().manual_seed(seed)
    model.speaker_map["Chelsie"] = {
        "bos_token": int(Ids.TTS_START),
        "cond": torch.randn(1, 8, generator=generator),
        "ref_mel": torch.randn(1, 40, 8, generator=generator),
    }
    return model


def qwen3_full(
    layers: int = 4, seed: int = 0, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32
) -> Qwen3OmniMoeForConditionalGeneration:
    return _build(Qwen3OmniMoeForConditionalGeneration, _qwen3_full_config(layers), seed, attn_implementation, dtype)


# Keyword arguments of generate() that make a full model speak in a moment.
SPEECH = {
    "qwen2_5": dict(
        speaker="Chelsie", thinker_max_new_tokens=4, talker_max_new_tokens=4, talker_do_sample=False,
        talker_top_k=None, talker_top_p=None, talker_temperature=None,
        talker_eos_token_id=[64, 66], token2wav_num_steps=3,
    ),
    "qwen3": dict(
        speaker="Ethan", thinker_max_new_tokens=4, thinker_eos_token_id=int(Ids.IM_END), talker_max_new_tokens=4,
        talker_do_sample=False, talker_top_k=None, talker_top_p=None, talker_temperature=None,
        talker_repetition_penalty=1.0,
    ),
}  # fmt: skip


def speech_inputs(inputs: dict[str, Any], family: str) -> dict[str, Any]:
    """Inputs for the full models' generate(), which sorts keywords into thinker and talker with two gaps upstream:

    Qwen2.5 hands unprefixed pixel values to its talker too, which refuses them; Qwen3 does not tell its talker about
    audio in video, so the talker's positions fail.
    """
    out = {f"thinker_{name}" if name.startswith("pixel_values") else name: value for name, value in inputs.items()}
    if family == "qwen3" and "use_audio_in_video" in inputs:
        out["talker_use_audio_in_video"] = inputs["use_audio_in_video"]
    return out


THINKERS = {"qwen2_5": qwen2_5_thinker, "qwen3": qwen3_thinker}
FULL = {"qwen2_5": qwen2_5_full, "qwen3": qwen3_full}
