"""Sound alone: how many words of a transcript are right at which keep, and what 5 minutes of sound cost, as JSON.

    python benchmarks/audio_families.py words --clips 16 > benchmarks/results/sound_words.json
    python benchmarks/audio_families.py words --sound-alone > benchmarks/results/sound_alone_words.json
    python benchmarks/audio_families.py flops > benchmarks/results/audio_families_flops.json

words  The shipped tiny model (of Qwen2.5-Omni's architecture) transcribes clips of the needle benchmark's development
       split, 16 s each. It gets pictures and sound, and only tokens of sound are dropped; and with `--sound-alone` no
       pictures, which it was not trained for. No model of sound alone ships with the project.
flops  Decoder layers and encoder for 5 minutes of sound in the published sizes, by formula, stock and at keep 0.3; and
       the same formula against PyTorch's counter on a small model of each family. A multiply-add is 2 operations; the
       head is counted on its own. Attention of the decoder is counted as the whole square, as the counter does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from omnidrop._torchvision import ensure_importable

ensure_importable()
import transformers  # noqa: E402

import omnidrop  # noqa: E402
from omnidrop.core.tokens import Modality  # noqa: E402
from omnidrop.methods import tuned  # noqa: E402
from omnidrop.methods.tuned import Tuned  # noqa: E402
from omnidrop.models import adapt  # noqa: E402
from omnidrop.provenance import made, versions  # noqa: E402

KEEPS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.05)


# words ---------------------------------------------------------------------------------------------------------------


def words(clips: int, pictures: bool) -> dict[str, Any]:
    """Words right in %, by method and keep, over all `transcribe` questions of `clips` clips.

    `pictures`: the model also gets them, whole, and only sound is dropped.
    """
    from omnidrop_lab.needle import ask, task

    model, processor = omnidrop.load()
    right: dict[str, list[float]] = {}
    if not pictures:
        clip_of = ask.in_memory
        ask.in_memory = lambda clip, size: replace(clip_of(clip, size), kind="audio", frames=None, times=None, fps=None)
    tuned.SAFE = 0.0  # what it guards is measured here
    methods: dict[str, Any] = {"all tokens": None}
    for keep in KEEPS:
        methods[f"tuned, transcribe, {keep}"] = dropping_sound(Tuned)(keep=keep, task="transcribe")
        methods[f"tuned, answer, {keep}"] = dropping_sound(Tuned)(keep=keep, task="answer")
        methods[f"uniform, {keep}"] = dropping_sound(omnidrop.methods.Uniform)(keep=keep)
    tokens: list[int] = []
    for index in range(clips):
        clip = task.clip("dev", index)
        asked = [each for each in task.questions(clip, ("transcribe",)) if each.type == "transcribe"]
        for batch in ask.prepare(model, processor, clip, asked, size=84, words=True, batch=8):
            tokens.append(batch.layout.count(0)["audio"])
            for name, method in methods.items():
                answers = ask.measure(model, batch, method)
                right.setdefault(name, []).extend(
                    each.words_right(answer) for each, answer in zip(batch.asked, answers, strict=True)
                )
    return {
        "clips": clips,
        "pictures": pictures,
        "questions": len(right["all tokens"]),
        "audio_tokens": sum(tokens) / len(tokens),
        "words_right_percent": {name: round(100 * sum(values) / len(values), 1) for name, values in right.items()},
    }


def dropping_sound(kind: type[Any]) -> type[Any]:
    """The method, of whose tokens sound alone may be dropped."""
    return type(kind.__name__, (kind,), {"prunable": property(lambda self: (Modality.AUDIO,))})


# flops ---------------------------------------------------------------------------------------------------------------

SECONDS = 300
TEXT = 40  # tokens of template and question
# The decoders as in the checkpoints' config.json or the defaults of transformers' configurations, which are theirs.
DECODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Qwen2-Audio 7B": (
        "qwen2_audio",
        dict(
            model_type="qwen2", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, vocab_size=156032,
        ),
    ),
    "Voxtral Mini 3B": ("voxtral", {}),
    "Audio Flamingo 3 7B": (
        "audioflamingo3",
        dict(
            model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
            num_attention_heads=28, num_key_value_heads=4, vocab_size=151672,
        ),
    ),
    "Qwen3-ASR 1.7B": ("qwen3_asr", {}),
}  # fmt: skip
SMALL: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=256,
)  # fmt: skip
TYPES = {"qwen2_audio": "qwen2", "audioflamingo3": "qwen2", "voxtral": "llama", "qwen3_asr": "qwen3"}


def model_of(kind: str, text: Mapping[str, Any], audio: Mapping[str, Any], device: str) -> Any:
    """A model of that family with random weights, or ("meta") none. The counter does not see sdpa on a CPU."""
    family = omnidrop.models.MODEL_TYPES[kind]
    cls = getattr(transformers, family.thinkers[0])
    parts = {"text_config": dict(text), "audio_config": {"model_type": f"{kind}_encoder", **audio}}
    config = cls.config_class(
        **{name: part for name, part in parts.items() if part}, audio_token_id=255 if text else 24
    )
    with torch.device(device):
        return cls._from_config(config, attn_implementation="eager").eval()


def decoder_flops(shape: Any, tokens: Sequence[int]) -> int:
    """All decoder layers; tokens[l] enter layer l. The square of attention is counted whole."""
    heads, groups = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return sum(2 * n * shape.hidden * (2 * heads + 2 * groups + shape.mlp) + 2 * 2 * heads * n * n for n in tokens)


def encoder_flops(audio: Any, rows: int) -> int:
    """Whisper's encoder on rows of 30 s: two convolutions of 3 mel frames, then layers of full attention."""
    frames, width, wide = audio.max_source_positions, audio.hidden_size, audio.intermediate_size
    convolved = 2 * 3 * (2 * frames * audio.num_mel_bins * width + frames * width * width)
    layer = 2 * frames * (4 * width * width + 2 * width * wide) + 2 * 2 * frames * frames * width
    return rows * (convolved + audio.num_hidden_layers * layer)


def flops() -> dict[str, Any]:
    return {"seconds": SECONDS, "text": TEXT, "published": published(), "counter": counted()}


def published() -> dict[str, Any]:
    found = {}
    for name, (kind, text) in DECODERS.items():
        adapter = adapt(model_of(kind, text, {}, "meta"))
        shape = adapter.decoder.shape
        media = round(SECONDS * adapter.prompt.tokens_per_second)
        counts = omnidrop.core.budget.TokenCounts(
            layers=shape.layers, total=media, input_count=media, text=TEXT, shape=shape
        )
        method = omnidrop.OmniDrop.tuned(keep=0.3, task="transcribe")
        entering = method.input_count([(1, 0, media, 0)], counts)
        stock, pruned = (decoder_flops(shape, [n + TEXT] * shape.layers) for n in (media, entering))
        whisper = kind != "qwen3_asr"
        encoder = encoder_flops(adapter.config.audio_config, SECONDS // 30) if whisper else None
        found[name] = {
            "tokens": media,
            "kept": entering,
            "decoder_tflop": [round(stock / 1e12, 2), round(pruned / 1e12, 2)],
            "encoder_tflop": None if encoder is None else round(encoder / 1e12, 2),
            "head_of_all_positions_tflop": round(2 * (media + TEXT) * shape.hidden * shape.vocabulary / 1e12, 2),
            "pruned_over_stock": None if encoder is None else round((pruned + encoder) / (stock + encoder), 3),
        }
    return found


def counted() -> dict[str, Any]:
    """Operations of a small decoder and encoder by PyTorch's counter, and by the formulas above.

    Equal at keep 1.0; below, the counter also sees the scores that decide what goes on.
    """
    found = {}
    for kind, text_type in TYPES.items():
        audio = dict(num_mel_bins=8)
        whisper = kind != "qwen3_asr"
        if whisper:
            audio |= dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                          max_source_positions=100)  # fmt: skip
        else:
            audio |= dict(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, output_dim=64,
                          downsample_hidden_size=8)  # fmt: skip
        model = model_of(kind, {"model_type": text_type, **SMALL}, audio, "cpu")
        adapter = adapt(model)
        rows, mel = (2, 200) if whisper else (1, 800)
        tokens = sum(adapter.audio.token_counts(torch.tensor([mel] * rows)))
        ids = torch.tensor([[1, 2, *[255] * tokens, *range(3, 11)]])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["input_features"] = torch.randn(rows, 8, mel)
        mask = {"qwen2_audio": "feature_attention_mask", "voxtral": None}.get(kind, "input_features_mask")
        if mask:
            inputs[mask] = torch.ones(rows, mel, dtype=torch.long)
        results = {}
        for keep in (1.0, 0.3):
            pruning = omnidrop.prune(model, omnidrop.OmniDrop(keep=keep))
            with FlopCounterMode(display=False) as counter, torch.no_grad(), pruning as trace:
                model(**inputs)
            counts = counter.get_flop_counts()
            by_module = {name: sum(parts.values()) for name, parts in counts.items()}
            inside = [name for name in by_module if name.split(".")[-2:-1] == ["layers"] and "language" in name]
            layers = sum(by_module[name] for name in inside)
            entered = [len(row[0]) for row in trace.kept]
            results[str(keep)] = {"counter": layers, "formula": decoder_flops(adapter.decoder.shape, entered)}
            if whisper:
                tower = next(n for name, n in by_module.items() if name.endswith("audio_tower"))
                results[str(keep)] |= {
                    "encoder_counter": tower,
                    "encoder_formula": encoder_flops(adapter.config.audio_config, rows),
                }
        found[kind] = results
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("words", "flops"))
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--sound-alone", action="store_true")
    given = parser.parse_args()
    found = words(given.clips, not given.sound_alone) if given.part == "words" else flops()
    setup = made("", None) | {"command": " ".join(["python", *sys.argv]), "versions": versions()}
    print(json.dumps({"setup": setup, **found}, indent=1))
