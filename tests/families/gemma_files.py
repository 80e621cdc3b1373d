"""Gemma's own processors, with a tokenizer of words and sizes that suit the tiny models."""

from __future__ import annotations

from typing import Any

import gemma
import numpy as np
import torch

SPECIAL = {
    "<pad>": gemma.Ids.PAD, "<eos>": gemma.Ids.END, "<|audio|>": gemma.Ids.AUDIO, "<|image|>": gemma.Ids.IMAGE,
    "<|video|>": gemma.Ids.VIDEO, "<|image>": gemma.Ids.BOI, "<image|>": gemma.Ids.EOI, "<|audio>": gemma.Ids.BOA,
    "<audio|>": gemma.Ids.EOA,
}  # fmt: skip
TEMPLATE = """\
{%- for message in messages -%}{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}
{%- else -%}<|{{ part['type'] }}|>
{% endif -%}
{%- endfor -%}
{%- endif -%}<eos>
{% endfor -%}
{%- if add_generation_prompt -%}model
{% endif -%}
"""
WORDS = ["<unk>", "what", "is", "heard", "and", "seen", ":", "user", "model", "?", *"0123456789"]


def tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {int(index): name for name, index in SPECIAL.items()} | dict(enumerate(WORDS))
    backend = Tokenizer(models.WordLevel({names.get(i, f"word{i}"): i for i in range(gemma.VOCAB)}, unk_token="<unk>"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), digits])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left",
        extra_special_tokens={
            "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
            "boa_token": "<|audio>", "eoa_token": "<audio|>",
        },
    )  # fmt: skip


def processor(unified: bool) -> Any:
    import transformers

    name = "Gemma4Unified" if unified else "Gemma4"

    def part(which: str, **settings: Any) -> Any:
        return getattr(transformers, name + which)(**settings)

    pictures = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    sound = {"feature_size": 20, "audio_samples_per_token": 20} if unified else {"feature_size": gemma.MEL}
    rate = 500 if unified else 16000
    return part(
        "Processor", image_processor=part("ImageProcessor", **pictures),
        video_processor=part("VideoProcessor", num_frames=4, **pictures), tokenizer=tokenizer(),
        feature_extractor=part("AudioFeatureExtractor", sampling_rate=rate, **sound), chat_template=TEMPLATE,
    )  # fmt: skip


def inputs(unified: bool, text: str, seed: int = 0) -> dict[str, Any]:
    """What the processor returns for two videos of 8 and 6 pictures, an image, and 1.3 s of sound."""
    from transformers.video_utils import VideoMetadata

    generator = np.random.default_rng(seed)
    videos = [torch.from_numpy(generator.integers(0, 255, (n, 3, 40, 72), dtype=np.uint8)) for n in (8, 6)]
    known = [VideoMetadata(total_num_frames=len(video), fps=2.0, duration=len(video) / 2) for video in videos]
    picture = torch.from_numpy(generator.integers(0, 255, (3, 50, 30), dtype=np.uint8))
    made = processor(unified)
    sound = generator.standard_normal(int(1.3 * made.feature_extractor.sampling_rate)).astype(np.float32)
    return dict(
        made(
            text=[text], images=[[picture]], videos=videos, audio=[sound], videos_kwargs={"video_metadata": known},
            return_tensors="pt",
        )
    )  # fmt: skip
