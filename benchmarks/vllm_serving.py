"""What layer-wise pruning saves inside vLLM: requests at once in a fixed cache, prefill time, throughput under load.

    python benchmarks/vllm_serving.py prefill > DIR/vllm_prefill.json
    python benchmarks/vllm_serving.py concurrency > DIR/vllm_concurrency.json
    python benchmarks/vllm_serving.py throughput > DIR/vllm_throughput.json

The model is a random Qwen2.5-Omni thinker with a decoder of realistic proportions and small encoders: weights do not
change how long a step takes. Each variant (unpruned, compute-only, kv-groups) is an engine of its own, all on the same
prompts with different clips. Runs in the environment of `make test-vllm`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for name, value in {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "omnidrop-vllm" / "tests" / "vllm_env")]

VARIANTS: dict[str, dict[str, Any] | None] = {
    "unpruned": None,
    "compute-only": {"keep": 0.3, "stages": 4, "mode": "compute-only"},
    "kv-groups": {"keep": 0.3, "stages": 4, "mode": "kv-groups"},
}


def make(folder: Path, *, hidden: int, layers: int, dtype: str) -> Path:
    """A random thinker whose decoder has this width and depth, as a folder that vLLM serves."""
    import models
    import torch
    from omnidrop_vllm.export import serve_copy
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    config = models._qwen2_5(2).config  # the tests' encoders and token ids
    text = config.text_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = hidden, layers, 4 * hidden
    text.num_attention_heads, text.num_key_value_heads = hidden // 128, max(hidden // 512, 1)
    text.layer_types, text.max_position_embeddings = ["full_attention"] * layers, 16384
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [16, 24, 24]}
    config.vision_config.out_hidden_size = config.audio_config.output_dim = hidden
    torch.manual_seed(0)
    model = Thinker(config).to(getattr(torch, dtype))
    model.save_pretrained(folder / "thinker")
    models.processor("qwen2_5").save_pretrained(folder / "thinker")
    return serve_copy(folder / "thinker", folder / "served")


def engine(folder: Path, pruning: dict[str, Any] | None, *, longest: int, dtype: str, **options: Any) -> Any:
    """An engine in this process."""
    import models
    from vllm import LLM

    told: dict[str, Any] = {
        "dtype": dtype, "max_model_len": longest, "max_num_batched_tokens": longest, "block_size": 32,
        "enforce_eager": True, "enable_prefix_caching": False, "enable_chunked_prefill": False,
        "mm_processor_kwargs": models.MM_KWARGS, "limit_mm_per_prompt": {"image": 0, "audio": 1, "video": 1},
        "mm_processor_cache_gb": 0,
    }  # fmt: skip
    if pruning is not None:
        told["additional_config"] = {"omnidrop": pruning}
    return LLM(str(folder), **told | options)


def end(llm: Any) -> None:
    """Free the engine's memory for the next."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def asked(tokens: int, **extra: Any) -> Any:
    """Greedy, exactly so many tokens."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, extra_args=extra or None
    )


def clips(front: Any, count: int, seconds: float) -> list[Any]:
    """`count` prompts about different videos with sound."""
    import models

    return [
        models.ask(front, [models.video(seconds, sound=seconds, seed=seed)], "what color is the circle ?")
        for seed in range(count)
    ]


def runner(llm: Any) -> Any:
    """The model runner of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def prefill(args: argparse.Namespace, folder: Path, front: Any) -> dict[str, Any]:
    """One prompt, unpruned and pruned in turns in the same engine: the model's forward pass, and the whole request."""
    import torch
    from omnidrop_vllm.served import planner_of

    prompts = clips(front, args.rounds + 1, args.seconds)
    longest = max(prompt.length for prompt in prompts) + 64
    llm = engine(
        folder,
        VARIANTS["kv-groups"] | {"stages": args.stages},
        longest=longest,
        dtype=args.dtype,
        kv_cache_memory_bytes=1 << 30,
    )
    model, spent = runner(llm).get_model(), []
    forward = model.forward

    def timed(*inputs: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = forward(*inputs, **named)
        spent.append(time.perf_counter() - start)
        return result

    model.forward = timed
    rows: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    for number, prompt in enumerate(prompts):
        for switch in ("off", "on") if number % 2 else ("on", "off"):
            spent.clear()
            start = time.perf_counter()
            llm.generate([prompt.vllm], asked(1, omnidrop=switch), use_tqdm=False)
            if number:  # the first round warms up
                rows[switch].append((spent[0], time.perf_counter() - start))
        print(f"prefill: round {number} of {args.rounds}", file=sys.stderr, flush=True)
    planner = planner_of(llm.llm_engine.vllm_config)
    shape, length = planner.shape, prompts[0].length
    kept = []
    model.pruner.watch = lambda request, done: kept.append([len(rows[0]) for rows in done.kept.positions])
    llm.generate([prompts[0].vllm], asked(1), use_tqdm=False)
    ideal = sum(shape.layer_flops(n) for n in kept[0]) / (shape.layers * shape.layer_flops(length))
    end(llm)
    result: dict[str, Any] = {
        "prompt_tokens": length,
        "tokens_per_layer": kept[0],
        "ideal_flop_ratio": ideal,
        "threads": torch.get_num_threads(),
    }
    for index, what in enumerate(("decoder_seconds", "request_seconds")):
        off, on = ([row[index] for row in rows[switch]] for switch in ("off", "on"))
        ratios = sorted(b / a for a, b in zip(off, on, strict=True))
        result[what] = {
            "off": statistics.median(off), "on": statistics.median(on), "ratio_median": statistics.median(ratios),
            "ratio_least": ratios[0], "ratio_most": ratios[-1],
        }  # fmt: skip
    return result


def concurrency(args: argparse.Namespace, folder: Path, front: Any) -> dict[str, Any]:
    """How many of equal requests run at once in a KV cache of a fixed size, and after how many steps all are done."""
    prompts = clips(front, args.requests, args.seconds)
    longest = max(prompt.length for prompt in prompts) + 64
    result: dict[str, Any] = {"prompt_tokens": prompts[0].length, "requests": args.requests, "kv_mib": args.kv_mib}
    for name, pruning in VARIANTS.items():
        llm = engine(
            folder, pruning, longest=longest, dtype=args.dtype, kv_cache_memory_bytes=args.kv_mib << 20,
            max_num_seqs=args.requests,
        )  # fmt: skip
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        for number, prompt in enumerate(prompts):
            llm.llm_engine.add_request(str(number), dict(prompt.vllm), asked(args.tokens))
        peak, steps, preempted = 0, 0, 0
        start = time.perf_counter()
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
            steps += 1
            peak = max(peak, len(scheduler.running))
            preempted = max(preempted, max((r.num_preemptions for r in scheduler.running), default=0))
        result[name] = {
            "peak_running": peak, "steps": steps, "seconds": time.perf_counter() - start,
            "most_preemptions_of_one_request": preempted, "blocks": scheduler.kv_cache_config.num_blocks,
            "groups": len(scheduler.kv_cache_config.kv_cache_groups),
        }  # fmt: skip
        print(f"concurrency: {name} {result[name]}", file=sys.stderr, flush=True)
        end(llm)
    return result


def throughput(args: argparse.Namespace, folder: Path, front: Any) -> dict[str, Any]:
    """Requests a second, with so many clients that each send the next request when theirs is answered."""
    most = max(args.clients)
    count = {clients: max(args.requests, 2 * clients) for clients in args.clients}
    prompts = clips(front, max(count.values()), args.seconds)
    longest = max(prompt.length for prompt in prompts) + 64
    result: dict[str, Any] = {
        "prompt_tokens": prompts[0].length, "answer_tokens": args.tokens, "kv_mib": args.kv_mib,
        "requests": {str(clients): number for clients, number in count.items()},
        "requests_per_second": {name: {} for name in VARIANTS},
        "first_token_seconds_median": {name: {} for name in VARIANTS},
    }  # fmt: skip
    for name, pruning in VARIANTS.items():
        llm = engine(
            folder, pruning, longest=longest, dtype=args.dtype, max_num_seqs=most,
            kv_cache_memory_bytes=args.kv_mib << 20,
        )  # fmt: skip
        llm.generate([prompts[0].vllm], asked(args.tokens), use_tqdm=False)
        for clients in args.clients:
            runs = [_serve(llm, prompts[: count[clients]], clients, args.tokens) for _ in range(args.rounds)]
            rates, firsts = [run[0] for run in runs], [run[1] for run in runs]
            result["requests_per_second"][name][str(clients)] = {
                "median": statistics.median(rates), "least": min(rates), "most": max(rates),
            }  # fmt: skip
            result["first_token_seconds_median"][name][str(clients)] = statistics.median(firsts)
            print(f"throughput: {name}, {clients} clients: {rates} requests/s", file=sys.stderr, flush=True)
        end(llm)
    return result


def _serve(llm: Any, prompts: list[Any], clients: int, tokens: int) -> tuple[float, float]:
    """(requests a second, median seconds to the first token) of a closed loop."""
    core, waiting, running = llm.llm_engine, list(enumerate(prompts)), {}
    firsts: list[float] = []
    start = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < clients:
            number, prompt = waiting.pop(0)
            running[str(number)] = time.perf_counter()
            core.add_request(str(number), dict(prompt.vllm), asked(tokens))
        for output in core.step():
            if len(output.outputs[0].token_ids) == 1:
                firsts.append(time.perf_counter() - running[output.request_id])
            if output.finished:
                del running[output.request_id]
    return len(prompts) / (time.perf_counter() - start), statistics.median(firsts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["prefill", "concurrency", "throughput"])
    parser.add_argument("--hidden", type=int, default=1024, help="width of the decoder (default 1024)")
    parser.add_argument("--layers", type=int, default=16, help="decoder layers (default 16)")
    parser.add_argument("--stages", type=int, default=4, help="of `prefill` (default 4)")
    parser.add_argument("--seconds", type=float, default=16.0, help="length of a clip (default 16)")
    parser.add_argument("--requests", type=int, default=20, help="at least so many (default 20)")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer (default 32)")
    parser.add_argument("--kv-mib", type=int, default=40, help="size of the KV cache in MiB (default 40)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of what is timed (default 3)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()

    import models
    import vllm

    from omnidrop import provenance

    with tempfile.TemporaryDirectory() as place:
        folder = make(Path(place), hidden=args.hidden, layers=args.layers, dtype=args.dtype)
        front = models.processor("qwen2_5")
        result = {"prefill": prefill, "concurrency": concurrency, "throughput": throughput}[args.what](
            args, folder, front
        )
    document = {
        "format": f"omnidrop.vllm_{args.what}",
        **provenance.made("", None),
        "command": f"python benchmarks/vllm_serving.py {' '.join(sys.argv[1:])}",
        "settings": vars(args),
        "pruning": VARIANTS["kv-groups"],
        "versions": provenance.versions() | {"vllm": vllm.__version__},
        "result": result,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
