"""A folder as `load` reads it for each Qwen-VL family: a tiny model, a tokenizer of words, the family's processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import vl

from omnidrop import loading
from omnidrop.processors import port_of

SPECIAL = {
    "<|endoftext|>": tiny.Ids.PAD, "<|im_start|>": tiny.Ids.IM_START, "<|im_end|>": tiny.Ids.IM_END,
    "<|vision_start|>": tiny.Ids.VISION_START, "<|vision_end|>": tiny.Ids.VISION_END,
    "<|image_pad|>": tiny.Ids.IMAGE, "<|video_pad|>": tiny.Ids.VIDEO,
}  # fmt: skip
WORDS = ("<unk>", "<", ">", ".", *"0123456789", "seconds", "user", "assistant", "what", "is", "the", "color", "?")
TEMPLATE = """\
{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def tokenizer() -> Any:
    """Words are tokens; special tokens have the names of the published tokenizers and the ids of the tiny models."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {int(index): name for name, index in SPECIAL.items()} | dict(enumerate(WORDS, 1))
    vocabulary = {names.get(i, f"word{i}"): i for i in range(tiny.VOCAB)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    digits = pre_tokenizers.Digits(individual_digits=True)  # as the published tokenizers split numbers
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), digits])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>",
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def processor(family: str) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    patches = {"patch_size": tiny.PATCH, "merge_size": 2, "temporal_patch_size": 2}
    one = {"shortest_edge": 12 * 64, "longest_edge": 12 * 64}  # pixels of a picture: 12 tokens
    whole = {"shortest_edge": 64, "longest_edge": 400 * 64}  # of a video, for Qwen3-VL
    first = family == "qwen2_5_vl"
    made, video = (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor) if first else (Qwen3VLProcessor, Qwen3VLVideoProcessor)
    return made(
        image_processor=Qwen2VLImageProcessor(size=one, **patches),
        video_processor=video(size=one if first else whole, cap_pixels_per_frame=False, **patches),
        tokenizer=tokenizer(),
        chat_template=TEMPLATE,
    )


def load(family: str, folder: Path) -> tuple[Any, Any]:
    """Model and processor. transformers reads Qwen3.5's tokenizer files as its own byte-level kind, whatever they say:
    those of words are put back."""
    model, made = loading.load(folder, dtype="float32", device="cpu")
    if family in vl.HYBRIDS:
        made.tokenizer = tokenizer()
        type(port_of(made)).adopt(made, model.config)
    return model, made


def save(family: str, folder: Path) -> Path:
    vl.BUILD[family]().save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return folder
