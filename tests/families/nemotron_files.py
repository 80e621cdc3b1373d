"""Nemotron's own processor, with a tokenizer of words and sizes that suit the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nemotron
import tiny

SPECIAL = {
    "<pad>": tiny.Ids.PAD, "<|im_start|>": tiny.Ids.IM_START, "<|im_end|>": tiny.Ids.IM_END,
    "<img>": tiny.Ids.VISION_START, "</img>": tiny.Ids.VISION_END, "<image>": tiny.Ids.IMAGE,
    "<so_start>": tiny.Ids.AUDIO_START, "<so_end>": tiny.Ids.AUDIO_END, "<so_embedding>": tiny.Ids.AUDIO,
}  # fmt: skip
WORDS = (
    "<unk>", ".", ":", *"0123456789", "Frame", "frame", "sampled", "at", "seconds", "and", "user", "assistant", "what",
    "is", "seen", "heard", "?",
)  # fmt: skip
TEMPLATE = """\
{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<image>
{% elif part['type'] == 'video' -%}<video>
{% elif part['type'] == 'audio' -%}<so_embedding>
{% else -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def tokenizer() -> Any:
    """Words are tokens; as in the published one there is none for videos."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {int(index): name for name, index in SPECIAL.items()} | dict(enumerate(WORDS, 1))
    vocabulary = {names.get(i, f"word{i}"): i for i in range(tiny.VOCAB)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), digits])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def processor() -> Any:
    import transformers
    from transformers import ParakeetFeatureExtractor

    name = nemotron.CLASS
    half = [0.5, 0.5, 0.5]
    return getattr(transformers, f"{name}Processor")(
        image_processor=getattr(transformers, f"{name}ImageProcessor")(
            patch_size=nemotron.PATCH, min_num_patches=16, max_num_patches=40, image_mean=half, image_std=half
        ),
        video_processor=getattr(transformers, f"{name}VideoProcessor")(
            patch_size=nemotron.PATCH, video_target_num_patches=24, norm_mean=half, norm_std=half
        ),
        tokenizer=tokenizer(),
        feature_extractor=ParakeetFeatureExtractor(feature_size=nemotron.MEL),
        chat_template=TEMPLATE,
    )


def save(folder: Path) -> Path:
    nemotron.build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
