"""The untrained tiny model: config, tokenizer and processor of the real Qwen2.5-Omni classes, in miniature.

The one place that knows the sizes. In the plain level 84 x 84 pixels at 2 fps and 20 mel frames a second make 18 video
+ 10 audio tokens a chunk of 2 s, in the cluttered one 112 x 112 pixels make 32 + 10. Both encoders' attention windows
end where chunks end: features of a chunk are computed once and composed to clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omnidrop_lab.needle.clutter.scene import MOTIONS, PLACES
from omnidrop_lab.needle.task import ATTRIBUTES, NONE, NUMBERS, TIMES

from omnidrop._torchvision import ensure_importable

ensure_importable()  # before the first import of anything from transformers' model files

MEL_PER_SECOND = 20
POSITIONS_PER_SECOND = MEL_PER_SECOND // 4  # the audio encoder halves twice
AUDIO_PER_CHUNK = 10
LAYERS = 16
MAX_SECONDS = 300  # the processor pads all sound to this length; 6,000 mel frames of 64 bins are cheap
SYSTEM = "you are a helpful assistant ."

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_bos|>", "<|vision_eos|>",
    "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>", "<unk>",
)  # fmt: skip
WORDS = (
    "system", "user", "assistant", "you", "are", "a", "helpful", ".", "?", ",", "what", "which", "is", "when", "first",
    "or", "during", "comes", "after", "how", "many", "the", "one", "things", "sounds", "in", "of", "and",
    *ATTRIBUTES, *(word for words in ATTRIBUTES.values() for word in words), NONE, *NUMBERS, *TIMES,
    "spell", "list",  # new words go to the end, so that older states keep their ids (`extend.py`)
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """The model of one level."""

    level: str
    pixels: int  # of a picture, a multiple of 28: a token covers 28 x 28
    words: tuple[str, ...]
    width: int  # of the language model
    heads: int
    vision: tuple[int, int]  # width and depth
    audio: tuple[int, int]

    @property
    def patches(self) -> int:
        """Along one side of a picture."""
        return self.pixels // 14

    @property
    def video_per_chunk(self) -> int:
        """Tokens of the two temporal grids."""
        return 2 * (self.patches // 2) ** 2

    @property
    def per_chunk(self) -> int:
        return self.video_per_chunk + AUDIO_PER_CHUNK


PLAIN = Sizes("plain", 84, WORDS, 128, 4, (64, 2), (64, 2))
CLUTTER = Sizes("clutter", 112, (*WORDS, "motion", "place", *MOTIONS, *PLACES), 128, 4, (96, 3), (96, 3))
SIZES = {each.level: each for each in (PLAIN, CLUTTER)}

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}<|im_start|>system
SYSTEM<|im_end|>
{% endif -%}
{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}<|vision_bos|><|IMAGE|><|vision_eos|>
{%- elif part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}<|audio_bos|><|AUDIO|><|audio_eos|>
{%- elif part['type'] == 'video' or 'video' in part -%}<|vision_bos|><|VIDEO|><|vision_eos|>
{%- elif 'text' in part -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
""".replace("SYSTEM", SYSTEM)


def tokenizer(sizes: Sizes = PLAIN):
    """Words are tokens; unknown ones are <unk>; case and newlines do not matter."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *dict.fromkeys(sizes.words)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
            "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
        },
    )  # fmt: skip


def _pixels(sizes: Sizes) -> dict[str, int]:
    return {"shortest_edge": sizes.pixels**2, "longest_edge": sizes.pixels**2}


def processor(sizes: Sizes = PLAIN):
    from transformers import Qwen2_5OmniProcessor, Qwen2VLImageProcessor, WhisperFeatureExtractor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    size = _pixels(sizes)
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=14, temporal_patch_size=2, merge_size=2),
        video_processor=Qwen2VLVideoProcessor(
            size=size, patch_size=14, temporal_patch_size=2, merge_size=2, cap_pixels_per_frame=False
        ),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=64, hop_length=16_000 // MEL_PER_SECOND, n_fft=1600, chunk_length=MAX_SECONDS
        ),
        tokenizer=tokenizer(sizes),
        chat_template=CHAT_TEMPLATE,
    )


def config(sizes: Sizes = PLAIN):
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig

    words = tokenizer(sizes)
    ids = words.convert_tokens_to_ids
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "num_mel_bins": 64, "encoder_layers": sizes.audio[1], "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * sizes.audio[0], "d_model": sizes.audio[0], "n_window": MEL_PER_SECOND,
            "max_source_positions": 64, "output_dim": sizes.width,
        },
        vision_config={
            "depth": sizes.vision[1], "hidden_size": sizes.vision[0], "num_heads": 2,
            "intermediate_size": 2 * sizes.vision[0], "out_hidden_size": sizes.width, "window_size": 112,
            "fullatt_block_indexes": [sizes.vision[1] - 1],
        },
        text_config={
            "vocab_size": len(words), "hidden_size": sizes.width, "intermediate_size": 2 * sizes.width,
            "num_hidden_layers": LAYERS, "num_attention_heads": sizes.heads, "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]},
            "tie_word_embeddings": False, "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id,
        },
        audio_token_index=ids("<|AUDIO|>"), image_token_index=ids("<|IMAGE|>"), video_token_index=ids("<|VIDEO|>"),
        audio_start_token_id=ids("<|audio_bos|>"), audio_end_token_id=ids("<|audio_eos|>"),
        vision_start_token_id=ids("<|vision_bos|>"),  # read by get_rope_index, yet no field of the class
        vision_end_token_id=ids("<|vision_eos|>"),
        user_token_id=ids("user"), pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
        position_id_per_seconds=POSITIONS_PER_SECOND, seconds_per_chunk=2,
    )  # fmt: skip


def model(seed: int, sizes: Sizes = PLAIN):
    """Random weights at the scales of the recipe: embeddings .5, matrices .09, output projections smaller."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    from omnidrop.models import adapt

    torch.manual_seed(seed)
    out = Qwen2_5OmniThinkerForConditionalGeneration(config(sizes))
    with torch.no_grad():
        for name, weight in adapt(out).decoder.module.named_parameters():
            if "embed_tokens" in name:
                weight.normal_(0, 0.5)
            elif weight.ndim == 2:
                weight.normal_(0, 0.09 / (2 * LAYERS) ** 0.5 if "o_proj" in name or "down_proj" in name else 0.09)
        out.lm_head.weight.normal_(0, 0.05)
    words = tokenizer(sizes)
    out.generation_config.eos_token_id = words.eos_token_id
    out.generation_config.pad_token_id = words.pad_token_id
    return out


def save(trained, folder: str | Path, sizes: Sizes = PLAIN) -> None:
    """An ordinary `save_pretrained` folder: bf16 weights, config, processor."""
    import copy

    import torch

    copy.deepcopy(trained).to(torch.bfloat16).save_pretrained(folder)
    processor(sizes).save_pretrained(folder)
    for file in Path(folder).iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read


def process(front, texts: list[str], videos: list, sounds: list, sizes: Sizes = PLAIN):
    """The real processor on decoded clips, one clip a text. A helper, because its class's defaults win over the saved
    settings (size, positions), and 5.23 asks which video a sound belongs to while 5.16 does not know the word."""
    import inspect

    size = _pixels(sizes)
    timing = {"seconds_per_chunk": 2.0, "position_id_per_seconds": POSITIONS_PER_SECOND}
    video = {"size": size, "do_sample_frames": False}
    common = {"sampling_rate": 16_000, "padding": True, "return_tensors": "pt"}
    if "audio_from_video_indices" in inspect.signature(type(front).__mro__[1].__call__).parameters:
        common |= {"load_audio_from_video": True, "audio_from_video_indices": list(range(len(videos))), **timing}
    else:
        video |= {"use_audio_in_video": True, **timing}
    out = front(text=texts, videos=videos, audio=sounds, videos_kwargs=video, **common)
    out.pop("mm_token_type_ids", None)
    return out
