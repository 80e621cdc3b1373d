"""What each saving of `omnidrop.lean` saves by itself: seconds and peak memory of encoders and prefill, as JSON.

    python benchmarks/lean.py > benchmarks/results/lean_cpu.json

Random weights in the shapes of Qwen2.5-Omni, made from configurations; nothing is downloaded. Parts:
  small      both encoders at small width (128), a whole clip
  encoders   both encoders at the real width (1280, 16 and 20 heads), few layers, a part of a clip
  decoder    prefill at 3B width (2048) with the real vocabulary, few layers, text only
The variants of a part take turns, round after round, each round beginning with another one. `seconds` lists all
rounds; `over_stock` is the median of the rounds' ratios. `peak_mib` is the highest resident memory of a run above that
before it (Linux; the operating system's count, so a few MiB are noise). A measurement, not a test.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from omnidrop._torchvision import ensure_importable

ensure_importable()
import transformers  # noqa: E402
from transformers import Qwen2_5OmniThinkerForConditionalGeneration  # noqa: E402
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig  # noqa: E402

import omnidrop  # noqa: E402

OFF = dict(
    last_logits=False, last_layer=False, mlp_rows=0, encoder_windows=False, encoder_patches=False, encoder_rows=0,
    positions=False,
)  # fmt: skip
ENCODERS = {
    "encoder_windows": OFF | {"encoder_windows": True},
    "encoder_patches": OFF | {"encoder_patches": True},
    "encoder_rows": OFF | {"encoder_rows": None},
    "lean": {},
}
DECODER = {
    "last_logits": OFF | {"last_logits": True},
    "last_layer": OFF | {"last_logits": True, "last_layer": True},
    "mlp_rows": OFF | {"mlp_rows": None},
    "lean": {},
}
SIDE, MEL_PER_SECOND = 24, 100  # patches a side: pictures of 336 x 336, 144 tokens each; one grid a second


def thinker(
    *, encoder_width: int, heads: tuple[int, int], encoder_layers: int, decoder_layers: int, hidden: int, vocab: int
) -> Any:
    """A random thinker. The last vision layer has full attention, the others windows of 112 x 112 pixels."""
    small = hidden < 1000
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=256 if small else 11008,
            num_hidden_layers=decoder_layers, num_attention_heads=4 if small else 16, num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6,
                             "mrope_section": [4, 6, 6] if small else [16, 24, 24]},
        ),
        vision_config=dict(
            depth=encoder_layers, hidden_size=encoder_width, intermediate_size=int(encoder_width * 2.672),
            num_heads=heads[0], out_hidden_size=hidden, fullatt_block_indexes=[encoder_layers - 1],
        ),
        audio_config=dict(
            encoder_layers=encoder_layers, encoder_attention_heads=heads[1], encoder_ffn_dim=4 * encoder_width,
            d_model=encoder_width, output_dim=hidden,
        ),
        vision_start_token_id=0, vision_end_token_id=0,  # checkpoints carry them; a text prompt only looks
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2_5OmniThinkerForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def encode(model: Any, seconds: int) -> Callable[[], None]:
    """Both encoders on `seconds` of random pictures and sound."""
    inner = model.model if hasattr(model.model, "visual") else model
    patches, grid = torch.randn(seconds * SIDE * SIDE, 3 * 2 * 14 * 14), torch.tensor([[seconds, SIDE, SIDE]])
    mel, lengths = torch.randn(128, seconds * MEL_PER_SECOND), torch.tensor([seconds * MEL_PER_SECOND])

    def run() -> None:
        inner.visual(patches, grid_thw=grid)
        inner.audio_tower(mel, feature_lens=lengths)

    return run


def prefill(model: Any, positions: int) -> Callable[[], None]:
    ids = torch.randint(1, 1000, (1, positions))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return lambda: model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)


def resident(key: str) -> float:
    """VmRSS (now) or VmHWM (highest since the last reset) in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def measured(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds of one run, and MiB above the memory held before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.perf_counter()
    run()
    return time.perf_counter() - start, resident("VmHWM") - before


def compare(model: Any, run: Callable[[], None], variants: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Each variant's seconds and peak, stock among them, in turns."""
    contexts = {"stock": None} | {name: omnidrop.lean(model, **settings) for name, settings in variants.items()}
    names = list(contexts)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad():
        for turn in range(-1, rounds):  # the first turn warms up and is not counted
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if contexts[name] is None:
                    found = measured(run)
                else:
                    with contexts[name]:
                        found = measured(run)
                if turn >= 0:
                    seconds[name].append(found[0])
                    peaks[name].append(found[1])
    return {
        name: {
            "seconds": [round(s, 3) for s in seconds[name]],
            "median": round(statistics.median(seconds[name]), 3),
            "over_stock": round(
                statistics.median(s / stock for s, stock in zip(seconds[name], seconds["stock"], strict=True)), 3
            ),
            "peak_mib": round(statistics.median(peaks[name])),
        }
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["small", "encoders", "decoder"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60, help="of the clip at small width (default 60)")
    parser.add_argument("--wide-seconds", type=int, default=16, help="of the clip at real width (default 16)")
    parser.add_argument("--positions", type=int, default=2048, help="of the prompt (default 2048)")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers, and encoder layers at real width")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts: dict[str, tuple[Callable[[], Any], Callable[[Any], Callable[[], None]], dict[str, Any]]] = {
        "small": (
            lambda: thinker(
                encoder_width=128, heads=(4, 4), encoder_layers=8, decoder_layers=1, hidden=128, vocab=1000
            ),
            lambda model: encode(model, args.seconds),
            ENCODERS,
        ),
        "encoders": (
            lambda: thinker(
                encoder_width=1280, heads=(16, 20), encoder_layers=args.layers, decoder_layers=1, hidden=128, vocab=1000
            ),
            lambda model: encode(model, args.wide_seconds),
            ENCODERS,
        ),
        "decoder": (
            lambda: thinker(
                encoder_width=128, heads=(4, 4), encoder_layers=1, decoder_layers=args.layers, hidden=2048, vocab=151936
            ),
            lambda model: prefill(model, args.positions),
            DECODER,
        ),
    }
    results = {}
    for name in args.parts:
        build, work, variants = parts[name]
        model = build()
        results[name] = compare(model, work(model), variants, args.rounds)
        print(name, {variant: found["over_stock"] for variant, found in results[name].items()}, file=sys.stderr)
        del model
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        json.dumps(
            {
                "format": "omnidrop.lean",
                "setup": {
                    "machine": f"{processor()}, {platform.system()}, {args.threads} thread(s)",
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "commit": head,
                    "command": " ".join(["python", *sys.argv]),
                    "settings": vars(args),
                    "dtype": "float32",
                },
                "results": results,
            }
        )
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
