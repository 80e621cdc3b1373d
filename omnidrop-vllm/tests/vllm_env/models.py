"""Tiny random omni models on disk, and prompts in the words of vLLM and of transformers alike.

What these are: thinkers of the sizes of `tests/tiny.py`, drawn with its gains (scores differ by more than rounding),
but with heads of 32, which is the least that vLLM's CPU attention computes, and with processor files, since vLLM
prepares its media itself. What they are not: able to answer. The tokenizer is the shipped tiny model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig

from omnidrop import loading, prompt
from omnidrop.media import SAMPLE_RATE, Media

HIDDEN, HEADS, KV_HEADS = 128, 4, 2  # heads of 32
MEL_BINS = 64
MERGED = 28  # pixels a side that make one token
HEIGHT, WIDTH = 2 * MERGED, 3 * MERGED  # of every picture: 6 tokens, and no square
SIZE = {"shortest_edge": HEIGHT * WIDTH, "longest_edge": HEIGHT * WIDTH}
# For the engine's `mm_processor_kwargs`: the processor classes take a saved size for images only, and videos at no less
# than 128 tokens a picture.
MM_KWARGS = {"size": SIZE}


@cache
def _tokenizer() -> Any:
    return Qwen2_5OmniProcessor.from_pretrained(loading.TINY).tokenizer


def processor(family: str) -> Any:
    """The real processor class of `family`, at the real rates: 100 mel frames a second."""
    vision = {"size": SIZE, "patch_size": MERGED // 2, "temporal_patch_size": 2, "merge_size": 2}
    made = {"qwen2_5": Qwen2_5OmniProcessor, "qwen3": Qwen3OmniMoeProcessor}[family](
        image_processor=Qwen2VLImageProcessor(**vision),
        video_processor=Qwen2VLVideoProcessor(**vision),
        feature_extractor=WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=30),
        tokenizer=_tokenizer(),
        chat_template=(loading.TINY / "chat_template.jinja").read_text(),
    )
    return made


def _ids(suffix: str) -> dict[str, int]:
    word = _tokenizer().convert_tokens_to_ids
    return {
        f"audio_token_{suffix}": word("<|AUDIO|>"),
        f"image_token_{suffix}": word("<|IMAGE|>"),
        f"video_token_{suffix}": word("<|VIDEO|>"),
        "audio_start_token_id": word("<|audio_bos|>"),
        "audio_end_token_id": word("<|audio_eos|>"),
        "vision_start_token_id": word("<|vision_bos|>"),
        "vision_end_token_id": word("<|vision_eos|>"),
        "user_token_id": word("user"),
        "pad_token_id": _tokenizer().pad_token_id,
        "eos_token_id": _tokenizer().eos_token_id,
    }


def _text(layers: int) -> dict[str, Any]:
    return dict(
        vocab_size=len(_tokenizer()), hidden_size=HIDDEN, intermediate_size=192, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=8192,
        tie_word_embeddings=False,
    )  # fmt: skip


def _rope(**extra: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4], **extra}


def _qwen2_5(layers: int) -> Qwen2_5OmniThinkerForConditionalGeneration:
    config = Qwen2_5OmniThinkerConfig(
        text_config=_text(layers) | {"rope_parameters": _rope()},
        vision_config=dict(
            depth=2, hidden_size=64, intermediate_size=96, num_heads=2, window_size=2 * MERGED,
            out_hidden_size=HIDDEN, fullatt_block_indexes=[1],
        ),
        audio_config=dict(
            num_mel_bins=MEL_BINS, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=96, d_model=64,
            n_window=100, output_dim=HIDDEN,
        ),
        position_id_per_seconds=25, seconds_per_chunk=2, **_ids("index"),
    )  # fmt: skip
    return Qwen2_5OmniThinkerForConditionalGeneration(config)


def _qwen3(layers: int) -> Qwen3OmniMoeThinkerForConditionalGeneration:
    config = Qwen3OmniMoeThinkerConfig(
        text_config=_text(layers) | dict(
            head_dim=HIDDEN // HEADS, rope_parameters=_rope(mrope_interleaved=True), moe_intermediate_size=64,
            num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1],
        ),
        vision_config=dict(
            depth=3, hidden_size=64, intermediate_size=96, num_heads=2, patch_size=MERGED // 2,
            out_hidden_size=HIDDEN, num_position_embeddings=64, deepstack_visual_indexes=[0, 1],
        ),
        audio_config=dict(
            num_mel_bins=MEL_BINS, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=96, d_model=64,
            n_window=50, n_window_infer=200, conv_chunksize=500, downsample_hidden_size=8, output_dim=HIDDEN,
        ),
        position_id_per_seconds=13, seconds_per_chunk=2, **_ids("id"),
    )  # fmt: skip
    return Qwen3OmniMoeThinkerForConditionalGeneration(config)


LAYERS = {"qwen2_5": 8, "qwen3": 6}


@torch.no_grad()
def thinker(family: str, layers: int | None = None, seed: int = 0) -> Any:
    """The random thinker in float32; greedy decoding never says a special token, the end included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = {"qwen2_5": _qwen2_5, "qwen3": _qwen3}[family](layers or LAYERS[family])
    tiny._sharpen(model, seed)
    model.lm_head.weight[sorted(_tokenizer().all_special_ids)] = 0.0
    model.lm_head.weight[: _tokenizer().unk_token_id + 1] = 0.0
    model.generation_config.eos_token_id = _tokenizer().eos_token_id
    model.generation_config.pad_token_id = _tokenizer().pad_token_id
    return model.eval()


def save(folder: Path, family: str, layers: int | None = None, seed: int = 0) -> Path:
    """The thinker as a folder that vLLM serves and `omnidrop.load` reads; start vLLM on it with `MM_KWARGS`."""
    from omnidrop_vllm.export import serve_copy

    alone = folder / "thinker"
    thinker(family, layers, seed).save_pretrained(alone)
    processor(family).save_pretrained(alone)
    return serve_copy(alone, folder / "served")


# Prompts


@dataclass(frozen=True)
class Prompt:
    """One prompt for both: `vllm` goes into `LLM.generate`, `inputs` into the transformers model (batch of one)."""

    name: str
    vllm: dict[str, Any]
    inputs: dict[str, Any] = field(repr=False)

    @property
    def length(self) -> int:
        """Tokens, media placeholders expanded."""
        return self.inputs["input_ids"].shape[1]


def video(seconds: float, *, sound: float | None = None, fps: float = 2.0, seed: int = 0) -> Media:
    """Random pictures that change slowly, and random sound of `sound` seconds (None: silent)."""
    rng = np.random.default_rng([seed, 1])
    count = round(seconds * fps)
    coarse = rng.uniform(0, 255, (count // 2 + 2, HEIGHT // 14, WIDTH // 14, 3)).repeat(14, 1).repeat(14, 2)
    at = np.arange(count) / 2
    share = (at % 1)[:, None, None, None]
    frames = coarse[at.astype(int)] * (1 - share) + coarse[at.astype(int) + 1] * share
    frames = np.clip(frames + rng.normal(0, 8, frames.shape), 0, 255).astype(np.uint8)
    heard = None if sound is None else recording(sound, seed=seed).waveform
    return Media(f"video{seed}", "video", frames, np.arange(count) / fps, fps, heard, SAMPLE_RATE, seconds)


def recording(seconds: float, *, seed: int = 0) -> Media:
    """Random tones."""
    rng = np.random.default_rng([seed, 2])
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = rng.uniform(100, 4000, int(seconds * 4) + 1)[(t * 4).astype(int)]
    wave = 0.3 * np.sin(2 * np.pi * tones * t) + rng.normal(0, 0.02, len(t))
    return Media(f"recording{seed}", "audio", None, None, None, wave.astype(np.float32), SAMPLE_RATE, seconds)


def image(*, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Media:
    """A random picture."""
    rng = np.random.default_rng([seed, 3])
    picture = rng.uniform(0, 255, (height // 14, width // 14, 3)).repeat(14, 0).repeat(14, 1)
    picture = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    return Media(f"image{seed}", "image", picture[None], np.zeros(1), None, None, SAMPLE_RATE, 0.0)


def ask(
    front: Any, media: Media | Sequence[Media], question: str, *, name: str = "", system: str | None = None
) -> Prompt:
    """The same prompt twice. `front`: the processor. As in `prompt.build`, sound is woven in if all videos have it."""
    clips = [media] if isinstance(media, Media) else list(media)
    content, data, weave = _content(clips)
    talk = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if system is not None:
        talk.insert(0, {"role": "system", "content": system})
    inputs = dict(prompt.build(front, clips, question, system=system))
    return _both(front, name, talk, clips, data, weave, inputs)


def dialogue(front: Any, turns: Sequence[tuple[Sequence[Media], str, str | None]]) -> Prompt:
    """The same for turns of clips, question ("": a recording asks) and answer (None: not yet)."""
    clips = [clip for media, _, _ in turns for clip in media]
    content, data, weave = _content(clips)
    talk: list[dict[str, Any]] = []
    for media, question, answer in turns:
        mine, content = content[: len(media)], content[len(media) :]
        talk.append({"role": "user", "content": [*mine, *([{"type": "text", "text": question}] if question else [])]})
        if answer is not None:
            talk.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    processed = [(prompt.process(front, list(media)) if media else None, *said) for media, *said in turns]
    return _both(front, "", talk, clips, data, weave, dict(prompt.dialogue(front, processed)))


def _both(
    front: Any, name: str, talk: list[Any], clips: list[Media], data: dict[str, list], weave: bool, inputs: dict
) -> Prompt:
    text = front.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    request: dict[str, Any] = {"prompt_token_ids": front.tokenizer(text, add_special_tokens=False)["input_ids"]}
    if clips:
        request["multi_modal_data"] = {kind: items for kind, items in data.items() if items}
        request["mm_processor_kwargs"] = {"use_audio_in_video": True} if weave else {}
    if videos := [
        clip for clip in clips if clip.kind == "video"
    ]:  # unsaid, Qwen2.5's processor takes 2 pictures a second for granted and Qwen3's 1
        (fps,) = {clip.fps for clip in videos}
        request["mm_processor_kwargs"] |= {"fps": fps, "second_per_grid_ts": [2 / fps] * len(videos)}
    return Prompt(name, request, inputs)


def _content(clips: Sequence[Media]) -> tuple[list[dict[str, str]], dict[str, list], bool]:
    """Of the chat template, the data by kind, and whether sound is woven in."""
    videos = [clip for clip in clips if clip.kind == "video"]
    weave = bool(videos) and all(clip.waveform is not None for clip in videos)
    content, data = list[dict[str, str]](), dict[str, list]({"image": [], "audio": [], "video": []})
    for clip in clips:
        content.append({"type": clip.kind})
        if clip.kind == "audio":
            data["audio"].append((clip.waveform, clip.sample_rate))
        else:
            data[clip.kind].append(clip.frames[0] if clip.kind == "image" else clip.frames)
            if clip.kind == "video" and weave:  # its sound is listed among the recordings, in the order of the prompt
                data["audio"].append((clip.waveform, clip.sample_rate))
    return content, data, weave


MIXES: dict[str, Callable[[int], list[Media]]] = {
    "text": lambda seed: [],
    "image": lambda seed: [image(seed=seed)],
    "audio": lambda seed: [recording(3.3, seed=seed)],
    "silent video": lambda seed: [video(6, seed=seed)],
    "video with sound": lambda seed: [video(8, sound=8, seed=seed)],
    "four pictures a second": lambda seed: [video(4, sound=4, fps=4.0, seed=seed)],
    "one picture a second": lambda seed: [video(8, sound=8, fps=1.0, seed=seed)],
    "silent, four pictures a second": lambda seed: [video(4, fps=4.0, seed=seed)],
    "sound shorter": lambda seed: [video(8, sound=4.7, seed=seed)],
    "sound longer": lambda seed: [video(5, sound=7.9, seed=seed)],
    "two videos with sound": lambda seed: [video(4, sound=4, seed=seed), video(6, sound=6, seed=seed + 100)],
    "image and audio": lambda seed: [image(seed=seed), recording(2, seed=seed)],
    "video and image": lambda seed: [video(4, seed=seed), image(seed=seed)],
    "two silent videos": lambda seed: [video(4, seed=seed), video(3, seed=seed + 100)],
}


def mix(front: Any, name: str, seed: int = 0) -> Prompt:
    """One prompt of `MIXES`. No two share a clip: vLLM's cache knows a video, sound woven in, by its pictures alone."""
    words = ["what color is the circle ?", "when is the soprano one ?", "how many things ?", "list the shape ?"]
    clips = MIXES[name](1000 * seed + list(MIXES).index(name))
    return ask(front, clips, words[seed % len(words)], name=f"{name} {seed}")
