"""Seconds of a prefill, stock and pruned in turns, against its FLOPs, at real width with few layers on a CPU.

    python benchmarks/real_width.py > benchmarks/results/real_width.json
    python benchmarks/real_width.py --small --rounds 1

One family of each kind of decoder: full attention (Qwen3-VL 8B), sliding windows (Gemma 4), recurrent layers (Qwen3.5
9B), sound alone (Qwen2-Audio 7B). Widths are the published ones (Gemma 4: those that transformers' configuration has
where nothing is said); layers are few, encoders have one layer, the vocabulary is small, weights are random. `--small`
takes narrow widths: it shows that the script runs, its seconds mean nothing.

The decoder is timed: its forward pass, and in it the selection between layers; the input stage of pruning, before it,
is told apart. A round runs the stock model and the pruned one after another, in changing order, and the ratio is the
median of the rounds' ratios. `slack` is the ratio of seconds over the ratio of FLOPs: 1.0 where what is saved on paper
is saved in time. Progress on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from omnidrop_lab.bench import architectures, workload
from torch import nn

import omnidrop
from omnidrop._torchvision import ensure_importable
from omnidrop.models import MODEL_TYPES, adapt
from omnidrop.provenance import made, versions

VOCABULARY = 1024  # the last ones are special: see IDS
IDS = {name: VOCABULARY - 1 - number for number, name in enumerate(
    ("end", "image", "video", "audio", "start", "stop", "sound start", "sound stop")
)}  # fmt: skip
NARROW = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
ENCODER = {"hidden_size": 32, "intermediate_size": 48}
PICTURES = {"patch": 16, "side": 3, "rows": 6, "columns": 11}  # Gemma 4: 66 tokens of 3 x 3 patches, as of 720p

Inputs = dict[str, Any]


def of_bench(name: str, layers: int, small: bool, dtype: torch.dtype, seconds: float) -> tuple[Any, Inputs]:
    """A model of `bench.architectures` on a clip without sound."""
    config = architectures.configuration(name, layers=layers, vision_layers=1)
    if small:
        narrow = {**NARROW, "head_dim": 64, **(LINEAR if hasattr(config.text_config, "linear_num_key_heads") else {})}
        for key, value in narrow.items():
            setattr(config.text_config, key, value)
        for key, value in {**ENCODER, "num_heads": 2, "out_hidden_size": NARROW["hidden_size"]}.items():
            setattr(config.vision_config, key, value)
    config.text_config.vocab_size, config.text_config.eos_token_id = VOCABULARY, IDS["end"]
    config.image_token_id, config.video_token_id = IDS["image"], IDS["video"]
    config.vision_start_token_id, config.vision_end_token_id = IDS["start"], IDS["stop"]
    model = random(config, architectures.ARCHITECTURES[name].kind, dtype)
    return model, workload.make(adapt(model), workload.Workload(seconds=seconds))


def gemma(layers: int, small: bool, dtype: torch.dtype, seconds: float) -> tuple[Any, Inputs]:
    """Gemma 4 on 32 pictures, as its processor takes from a clip of any length, without sound."""
    full = {*range(5, layers, 6), layers - 1}
    kinds = ["full_attention" if layer in full else "sliding_attention" for layer in range(layers)]
    text: dict[str, Any] = {
        "num_hidden_layers": layers, "layer_types": kinds, "vocab_size": VOCABULARY, "eos_token_id": IDS["end"],
        "vocab_size_per_layer_input": VOCABULARY,
    }  # fmt: skip
    patch, side, rows, columns = PICTURES.values()
    vision = {"num_hidden_layers": 1, "patch_size": patch, "pooling_kernel_size": side}
    if small:
        text |= NARROW | {"head_dim": 16, "global_head_dim": 32}
        vision |= ENCODER | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = thinker("gemma4").config_class(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IDS["image"],
        video_token_id=IDS["video"], audio_token_id=IDS["audio"], boi_token_id=IDS["start"],
        eoi_token_id=IDS["stop"], tie_word_embeddings=False,
    )  # fmt: skip
    model = random(config, "gemma4", dtype)
    frames = max(2, min(32, round(2 * seconds)))
    frame = [*words(6), IDS["start"], *[IDS["video"]] * (rows * columns), IDS["stop"]]
    ids = torch.tensor([[*words(9), *frame * frames, *words(41)]])
    row, column = torch.meshgrid(torch.arange(side * rows), torch.arange(side * columns), indexing="ij")
    places = torch.stack([column.flatten(), row.flatten()], 1).expand(frames, -1, -1)
    pixels = torch.rand(frames, places.shape[1], 3 * patch**2)
    return model, {
        **of_text(ids), "mm_token_type_ids": 2 * (ids == IDS["video"]).long(), "pixel_values_videos": pixels,
        "video_position_ids": places, "num_frames_per_video": torch.tensor([frames]),
    }  # fmt: skip


def sound(layers: int, small: bool, dtype: torch.dtype, seconds: float) -> tuple[Any, Inputs]:
    """Qwen2-Audio on recordings of 30 s."""
    wide = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    encoder: dict[str, Any] = {"model_type": "qwen2_audio_encoder", "encoder_layers": 1}
    if small:
        encoder |= {"d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    config = thinker("qwen2_audio").config_class(
        text_config={"model_type": "qwen2", **(NARROW if small else wide), "num_hidden_layers": layers,
                     "vocab_size": VOCABULARY, "eos_token_id": IDS["end"]},
        audio_config=encoder, audio_token_index=IDS["audio"],
    )  # fmt: skip
    model = random(config, "qwen2_audio", dtype)
    recordings = max(1, round(seconds / 30))
    tokens = adapt(model).audio.token_counts(torch.tensor([3000]))[0]
    clip = [IDS["sound start"], *[IDS["audio"]] * tokens, IDS["sound stop"]]
    features = torch.randn(recordings, config.audio_config.num_mel_bins, 3000)
    return model, {
        **of_text(torch.tensor([[*words(9), *clip * recordings, *words(41)]])), "input_features": features,
        "feature_attention_mask": torch.ones(recordings, 3000, dtype=torch.long),
    }  # fmt: skip


def thinker(kind: str) -> Any:
    """The class of a family's thinker."""
    ensure_importable()
    import transformers

    return getattr(transformers, MODEL_TYPES[kind].thinkers[0])


def random(config: Any, kind: str, dtype: torch.dtype) -> Any:
    """A model with random weights, for inference."""
    torch.manual_seed(0)
    model = thinker(kind)._from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def words(count: int) -> list[int]:
    """Tokens of text."""
    return [1 + 7 * number % (VOCABULARY - 100) for number in range(count)]


def of_text(ids: torch.Tensor) -> Inputs:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


KINDS: dict[str, tuple[str, int, Callable[..., tuple[Any, Inputs]]]] = {  # kind: model, layers, what makes it
    "full": ("qwen3-vl-8b", 4, lambda *given: of_bench("qwen3-vl-8b", *given)),
    "sliding": ("gemma4", 12, gemma),
    "linear": ("qwen3.5-9b", 8, lambda *given: of_bench("qwen3.5-9b", *given)),
    "sound": ("qwen2-audio-7b", 4, sound),
}


class DecoderTime:
    """Seconds of the decoder's forward pass. Enter it last: what hooks do before the decoder is then not in it."""

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder, self.seconds, self.since = decoder, 0.0, 0.0

    def __enter__(self) -> DecoderTime:
        def begin(*given: Any) -> None:
            self.since = time.perf_counter()

        def end(*given: Any) -> None:
            self.seconds = time.perf_counter() - self.since

        self.handles = [self.decoder.register_forward_pre_hook(begin), self.decoder.register_forward_hook(end)]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One family: its seconds in `options.rounds` rounds behind one that is not counted."""
    name, layers, make = KINDS[kind]
    layers = layers if options.layers is None else options.layers
    dtype = getattr(torch, options.dtype)
    model, inputs = make(layers, options.small, dtype, options.seconds)
    adapter, method = adapt(model), omnidrop.OmniDrop(keep=options.keep)
    seconds: dict[str, list[float]] = {"stock": [], "pruned": []}
    stages: dict[str, list[float]] = {"input_stage": [], "selection": []}
    trace = None
    for number in range(options.rounds + 1):
        order = list(seconds) if number % 2 else list(seconds)[::-1]
        for which in order:
            pruning = omnidrop.prune(model, method) if which == "pruned" else contextlib.nullcontext()
            with torch.inference_mode(), pruning as found, DecoderTime(adapter.decoder.module) as timed:
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
            if number:
                seconds[which].append(timed.seconds)
            if number and found is not None:
                for stage, values in stages.items():
                    values.append(found.seconds.get(stage, 0.0))
            trace = found if found is not None else trace
    assert trace is not None, "the pruned model runs in every round"
    ratio = median(b / a for a, b in zip(seconds["stock"], seconds["pruned"], strict=True))
    return {
        "kind": kind,
        "model": name,
        "layers": layers,
        "kinds_of_layers": list(adapter.decoder.kinds),
        "hidden": adapter.decoder.shape.hidden,
        "tokens": inputs["input_ids"].shape[1],
        "entering": [sum(counts.values()) for counts in trace.counts],
        "keep": trace.keep,
        "seconds": seconds,
        "median_seconds": {which: median(values) for which, values in (seconds | stages).items()},
        "decoder_flops": trace.flops._asdict(),
        "ratio_of_flops": trace.flops.ratio,
        "ratio_of_seconds": ratio,
        "slack": ratio / trace.flops.ratio,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--layers", type=int, help="of the decoder, instead of each kind's own number")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the clip; sound is 30 s at least")
    parser.add_argument("--keep", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of PyTorch; as it is without")
    parser.add_argument("--dtype", choices=architectures.DTYPES, default="float32")
    parser.add_argument("--small", action="store_true", help="narrow widths, to see that it runs")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    setup = made("", None) | {"command": " ".join(["python", *sys.argv]), "versions": versions()}
    rows = []
    for kind in options.kinds:
        print(f"{kind} ...", file=sys.stderr, flush=True)
        rows.append(measure(kind, options))
    document = {"setup": setup, "options": vars(options), "threads": torch.get_num_threads(), "rows": rows}
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
