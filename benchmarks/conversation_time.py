"""First token of three questions about one clip at published sizes: whole dialogue against conversation, as JSON.

    python benchmarks/conversation_time.py --seconds 12 > benchmarks/results/conversation_time.json

Random weights; noise in place of a clip. The prompt of a later question is the earlier one, 8 tokens of answer and a
new question. Both ways take turns in one run: stock (`generate`, all tokens, encoders every time), and
`reuse_encoders`, `lean` and `OmniDrop(keep=0.3)` together, pruned by the newest question's rows, as
`omnidrop.Conversation` does. Seconds are those of `generate` with one new token; of later questions each way's median,
least and most of `--repeats` rounds, and the median of the rounds' ratios. The first question, which encodes, is asked
once, after a warm-up with a clip of its own. Progress on standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import omnidrop_lab
import torch
from omnidrop_lab.bench import architectures, workload

import omnidrop
from omnidrop import measure
from omnidrop.models import adapt
from omnidrop.provenance import made, source_checksum, versions

ANSWER = 8  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="qwen2.5-omni-3b", choices=list(architectures.ARCHITECTURES))
    parser.add_argument("--layers", type=int, help="decoder layers (default: the published number)")
    parser.add_argument("--encoder-layers", type=int, help="layers of each encoder (default: the published number)")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the clip in seconds (default 12)")
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each question but the first")
    options = parser.parse_args()
    depth = options.encoder_layers
    model = architectures.make(
        options.arch, layers=options.layers, vision_layers=depth, audio_layers=depth, dtype="bfloat16", device="cpu"
    )
    adapter, work = adapt(model), workload.Workload(seconds=options.seconds)
    inputs = workload.make(adapter, work)
    runs = {
        name: module.register_forward_pre_hook(lambda m, a, name=name: encoded.append(name))
        for name, module in ((encoder.name, encoder.attention) for encoder in adapter.encoders)
    }
    encoded: list[str] = []
    measure.generate(model, workload.make(adapter, workload.Workload(seconds=2.0)), 1)  # warm-up
    store, rows = omnidrop.EncodedMedia(), []
    ids, asks = inputs["input_ids"], work.question_tokens
    generator = torch.Generator().manual_seed(1)
    for number in range(options.questions):
        if number:
            more = torch.randint(1, 2000, (1, ANSWER + asks), generator=generator)
            ids = torch.cat([ids, more], 1)
        prompt = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        query = torch.zeros_like(ids, dtype=torch.bool)
        query[:, -asks:] = True
        row: dict[str, Any] = {"question": number + 1, "prompt_tokens": ids.shape[1]}
        times: dict[str, list[float]] = {"stock": [], "conversation": []}
        for _ in range(options.repeats if number else 1):
            for way, seconds in times.items():
                encoded.clear()
                with ExitStack() as stack:
                    if way == "conversation":
                        stack.enter_context(omnidrop.reuse_encoders(model, store))
                        stack.enter_context(omnidrop.lean(model))
                        stack.enter_context(omnidrop.prune(model, omnidrop.OmniDrop(keep=options.keep), query=query))
                    seconds.append(measure.generate(model, prompt, 1).first_token_seconds)
                row[way] = {"encoders_run": sorted(set(encoded))}
                print(row["question"], way, round(seconds[-1], 2), row[way], file=sys.stderr)
        for way, seconds in times.items():
            row[way]["first_token_seconds"] = [round(f(seconds), 2) for f in (statistics.median, min, max)]
        ratios = [mine / stock for mine, stock in zip(times["conversation"], times["stock"], strict=True)]
        row["ratio"] = [round(f(ratios), 3) for f in (statistics.median, min, max)]
        rows.append(row)
    for hook in runs.values():
        hook.remove()
    setup = made("", model) | {"command": " ".join(["python", *sys.argv]), "versions": versions()}
    json.dump(
        {
            "setup": setup | {"code": source_checksum(omnidrop, omnidrop_lab), "dtype": "bfloat16"},
            "architecture": {
                "name": options.arch,
                "decoder_layers": adapter.decoder.shape.layers,
                "encoder_layers": depth or "published",
                "seconds": options.seconds,
                "keep": options.keep,
            },
            "bytes_of_encoded_media": store.nbytes,
            "questions": rows,
        },
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
