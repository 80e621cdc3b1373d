"""Tables of docs/vllm.md and docs/batch.md, for `benchmarks.pages`: what was measured inside vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.site_blocks import table

RESULTS = Path(__file__).parent / "results"
PAGES = ("docs/vllm.md",)
SERVERS = ("unpruned", "compute-only", "kv-groups")


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"vllm_{name}.json").read_text(encoding="utf-8"))


def _model(document: Any) -> str:
    told = document["settings"]
    return (
        f"{told['layers']} layers of width {told['hidden']}, {told['dtype']}, {document['threads']} threads of "
        f"{document['machine']}, vLLM {document['versions']['vllm']}"
    )


def prefill() -> list[str]:
    """One prompt, on and off in turns, beside the FLOPs."""
    rows = []
    for name in ("prefill", "prefill_every_layer"):
        document = _result(name)
        found = document["result"]
        decoder, request = found["decoder_seconds"], found["request_seconds"]
        rows.append(
            [
                str(document["settings"]["stages"]), f"{found['prompt_tokens']:,}", f"{found['ideal_flop_ratio']:.3f}",
                f"{decoder['off']:.1f}", f"{decoder['on']:.1f}",
                f"{decoder['ratio_median']:.3f} ({decoder['ratio_least']:.3f} to {decoder['ratio_most']:.3f})",
                f"{request['ratio_median']:.3f}",
            ]
        )  # fmt: skip
    head = [
        "stages", "tokens of the prompt", "FLOPs, on / off", "decoder off, s", "on, s", "decoder, on / off",
        "whole request, on / off",
    ]  # fmt: skip
    told = _result("prefill")
    return [f"{_model(told)}; medians of {told['settings']['rounds']} rounds, in turns.", "",
            *table(head, rows)]  # fmt: skip


def concurrency() -> list[str]:
    """How many requests at once in a cache of a fixed size."""
    document = _result("concurrency")
    found = document["result"]
    rows = [
        [name, str(found[name]["peak_running"]), str(found[name]["steps"]), f"{found[name]['seconds']:.0f}"]
        for name in SERVERS
    ]
    return [
        f"{found['requests']} equal requests of {found['prompt_tokens']} tokens at once, {found['kv_mib']} MiB of KV "
        f"cache; {_model(document)}.",
        "",
        *table(["server", "most requests running at once", "steps until all were done", "seconds"], rows),
    ]  # fmt: skip


def throughput() -> list[str]:
    """Requests a second under load."""
    document = _result("throughput")
    found = document["result"]
    rates = found["requests_per_second"]
    clients = list(found["requests"])
    rows = [
        [
            name,
            *(
                f"{rates[name][n]['median']:.2f} ({rates[name][n]['median'] / rates[SERVERS[0]][n]['median']:.2f}x)"
                for n in clients
            ),
        ]
        for name in SERVERS
    ]  # fmt: skip
    firsts = found["first_token_seconds_median"]
    rows += [
        [f"{name}: first token, s", *(f"{firsts[name][n]:.1f}" for n in clients)] for name in SERVERS
    ]  # fmt: skip
    return [
        f"Requests a second, {found['prompt_tokens']} tokens in and {found['answer_tokens']} out, "
        f"{found['kv_mib']} MiB of KV cache; medians of {document['settings']['rounds']} rounds; {_model(document)}.",
        "",
        *table(["server", *(f"{n} at once" for n in clients)], rows),
    ]  # fmt: skip


def over_http() -> list[str]:
    """Needle questions through a real server."""
    document = _result("needle_http")
    rows = [
        [
            "unpruned" if found["server"] == "none" else found["server"],
            f"{100 * found['http']['accuracy']:.1f}", f"{100 * found['transformers']['accuracy']:.1f}",
            f"{100 * found['same']:.1f}", f"{found['kv_cache_usage_after']:g}",
        ]
        for found in document["results"]
    ]  # fmt: skip
    told = document["settings"]
    head = ["server", "right over HTTP, %", "right in transformers, %", "same answers, %", "cache held afterwards"]
    return [
        f"{told['questions']} questions about {told['clips']} mp4 files with sound ({told['split']} split), "
        f"{told['clients']} clients at once, the shipped tiny model, keep 0.3 in 4 stages.",
        "",
        *table(head, rows),
    ]  # fmt: skip


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "vllm_prefill": prefill,
    "vllm_concurrency": concurrency,
    "vllm_throughput": throughput,
    "vllm_http": over_http,
}
