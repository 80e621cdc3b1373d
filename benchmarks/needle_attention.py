"""Where the asking rows look: mean attention S (eq. 5) of the unpruned tiny model on needle clips, as JSON.

    python benchmarks/needle_attention.py --clips 16 > benchmarks/results/needle_dev_attention.json

Per decoder layer, for questions of each kind: the share of the media's attention that lies on the evidence chunks, how
often the highest S is in one of them, and the share on video tokens. Chance for one chunk of eight is .125. It explains
which layers' scores can guide pruning; docs/needle_first_model.md uses it. Development split: not for reporting.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

import torch
from omnidrop_lab.needle import ask, bench, clip

from omnidrop import loading
from omnidrop.core.tokens import Modality
from omnidrop.provenance import model_checksum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = loading.load(attn_implementation="eager")  # the backend that hands out attention
    config = bench.Config(model="", split="dev", chunks=args.chunks, types=("video", "audio", "joint"), draws=1)
    layers = model.config.get_text_config().num_hidden_layers
    seen: dict[str, list[dict[str, list[float]]]] = {
        kind: [defaultdict(list) for _ in range(layers)] for kind in config.types
    }
    for index in range(args.clips):
        made, asked = clip("dev", index, args.chunks), bench.ask_about(config, index)
        for batch in ask.prepare(model, processor, made, asked, size=config.size, words=True, batch=8):
            with torch.inference_mode():
                attention = model(**batch.inputs, use_cache=False, output_attentions=True).attentions
            for row, each in enumerate(batch.asked):
                who = batch.layout
                media, video = who.modality[row] != Modality.TEXT, who.modality[row] == Modality.VIDEO
                evidence = torch.isin(who.chunk[row], torch.tensor(each.question.evidence)) & media
                for layer, weights in enumerate(attention):
                    s = weights[row].mean(0)[who.query[row]].mean(0) * media
                    here = seen[each.question.type][layer]
                    here["on_evidence_chunk"].append(float(s[evidence].sum() / s.sum()))
                    here["highest_in_evidence_chunk"].append(float(evidence[s.argmax()]))
                    here["on_video"].append(float(s[video].sum() / s.sum()))
                    here["on_media"].append(float(s.sum()))
    print(
        json.dumps(
            {
                "format": "omnidrop.needle_attention",
                "model": model_checksum(loading.TINY),
                "split": "dev",
                "clips": args.clips,
                "chunks": args.chunks,
                "questions": {kind: len(by_layer[0]["on_media"]) for kind, by_layer in seen.items()},
                "by_layer": {
                    kind: [{name: round(sum(x) / len(x), 4) for name, x in here.items()} for here in by_layer]
                    for kind, by_layer in seen.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
