"""`omnidrop bench`: what a prompt costs, stage by stage: stock, lean and pruning side by side, measured and counted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnidrop.cli.options import Commands, checkpoint_options, output_options
from omnidrop.cli.progress import Progress
from omnidrop.cli.setup import at_least, loading_options, one_thread_if_tiny, quiet_transformers
from omnidrop.cli.tables import fill, table
from omnidrop.core import units
from omnidrop.errors import SettingError
from omnidrop.provenance import made, versions

from . import checks

if TYPE_CHECKING:
    from ..bench.workload import Workload

TINY = "tiny"
LAYERS = ("layers", "vision_layers", "audio_layers")
STAGES = {
    "positions": "positions",
    "pixel_stage": "pixels",
    "vision_encoder": "vision",
    "audio_encoder": "audio",
    "input_stage": "input",
    "decoder": "decoder",
    "head": "head",
    "other": "other",
    "first_token": "first token",
    "token": "each further",
}  # what the document calls a stage, and the table


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options. Architectures and defaults of `omnidrop.bench` are looked up when it runs: help must be instant."""
    command = commands.add_parser(
        "bench",
        help="time, memory and FLOPs of every stage: stock, lean, pruned",
        description=(
            "Measure what one prompt costs, stage by stage, for the stock model, omnidrop.lean and pruning methods in "
            "turns, beside the counted FLOPs. Sizes of the published models with random weights (--arch), or a saved "
            "model (--model); inputs are random tensors of the right shapes, or a file (--clip)."
        ),
    )
    what = command.add_argument_group("model")
    what.add_argument(
        "--arch", metavar="NAME",
        help="a published size with random weights: qwen2.5-omni-7b or -3b, qwen3-omni-30b-a3b, qwen2.5-vl-7b or -3b, "
        "qwen3-vl-8b, qwen3-vl-30b-a3b, qwen3.5-9b, qwen3.5-35b-a3b; or tiny, the shipped model (default tiny)",
    )  # fmt: skip
    what.add_argument("--model", metavar="PATH_OR_HUB_ID", help="a saved model or a hub id, instead of --arch")
    for part in LAYERS:
        what.add_argument(
            f"--{part.replace('_', '-')}",
            type=int,
            metavar="N",
            help=f"{part.replace('_', ' ')} with --arch, instead of the published number",
        )
    what.add_argument(
        "--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: bfloat16 with --arch, else the model's)"
    )
    what.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    what.add_argument("--attn", metavar="NAME", help="sdpa, eager, flash_attention_2, ... (default sdpa)")
    checkpoint_options(what)
    what.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own)")
    _workload_options(command.add_argument_group("workload"))
    run = command.add_argument_group("running")
    run.add_argument(
        "--methods", nargs="+", metavar="VARIANT",
        help="what runs side by side: stock, lean, a method such as omnidrop:keep=0.3, lean+METHOD, or what a user "
        "does without a library: fewer-frames:keep=0.5, fewer-pixels:keep=0.5 (default: stock lean "
        "lean+omnidrop:keep=0.3 lean+tuned:keep=0.2)",
    )  # fmt: skip
    run.add_argument("--repeats", type=int, default=5, metavar="N", help="measured rounds (default 5)")
    run.add_argument("--warmup", type=int, default=1, metavar="N", help="rounds before them (default 1)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and inputs (default 0)")
    output = command.add_argument_group("output")
    output_options(output)
    output.add_argument("--plot", metavar="FILE", help="a picture of time and memory against length, such as bench.png")
    return command


def _workload_options(work: Any) -> None:
    """Length, pictures and sound of the prompts."""
    work.add_argument("--seconds", type=float, metavar="SECONDS", help="length of the video (default 64)")
    work.add_argument("--lengths", nargs="+", type=float, metavar="SECONDS", help="several lengths, in turn")
    work.add_argument("--fps", type=float, default=2.0, metavar="N", help="pictures a second (default 2)")
    for side, tokens in (("height", 9), ("width", 16)):
        work.add_argument(
            f"--{side}", type=int, default=0, metavar="PIXELS",
            help=f"{side} of the model's own picture (default: {tokens} tokens, as of 720p in the paper; tiny: 84)",
        )  # fmt: skip
    work.add_argument("--no-audio", action="store_true", help="a video without sound")
    work.add_argument(
        "--clip", metavar="FILE", help="a video file instead: its decoding and the processor are timed too"
    )
    work.add_argument("--batch", type=int, default=1, metavar="N", help="prompts at once (default 1)")
    work.add_argument(
        "--question-tokens", type=int, default=32, metavar="N", help="length of the question in tokens (default 32)"
    )
    work.add_argument(
        "--new-tokens", type=int, default=16, metavar="N", help="length of the answer in tokens (default 16)"
    )


def main(options: argparse.Namespace) -> int:
    """Run it. Cheap checks come first."""
    from ..bench import variants

    _check(options)
    chosen = [variants.read(text) for text in dict.fromkeys(options.methods or variants.DEFAULT)]
    works = _workloads(options)
    checks.plot_option(options)

    import torch

    from omnidrop.models import adapt

    from ..bench import architectures

    if not (options.model or _is_tiny(options)):
        works[0].picture(architectures.configuration(options.arch, **_layers(options)))
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet_transformers()
    progress = Progress(options.quiet)
    progress.stage(f"making the model {options.model or options.arch or TINY}")
    model, processor = _model(options)
    if options.threads is None:
        one_thread_if_tiny(model)
    points, reading = _points(options, model, processor, works, chosen, progress)
    progress.done()
    document = {
        "format": "omnidrop.bench",
        "version": 1,
        "setup": _setup(options, adapt(model)),
        "reading_seconds": reading,
        "points": points,
    }
    print(json.dumps(document) if options.json else report(document))
    if options.plot:  # last: the numbers are out, whatever becomes of the picture
        progress.wrote(_plot(document, options.plot))
    return 0


def _points(
    options: argparse.Namespace, model: Any, processor: Any, works: Sequence[Workload], chosen: Any, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(what was measured for each workload, the seconds of reading --clip)."""
    from omnidrop.models import adapt

    from ..bench import compare, workload

    adapter = adapt(model)
    reading = None
    points = []
    for work in works:

        def say(text: str, seconds: float = work.seconds) -> None:
            progress.stage(f"{'' if options.clip else f'{seconds:g} s, '}{text}")

        try:
            if options.clip:
                progress.stage(f"reading {options.clip}")
                inputs, reading = workload.from_file(adapter, processor, options.clip, work, options.repeats)
            else:
                inputs = workload.make(adapter, work, options.seed)
        except (RuntimeError, MemoryError) as error:
            if not compare.out_of_memory(error):
                raise
            points.append(_too_large(work, chosen))  # what was measured before stays
            continue
        found = compare.compare(
            model,
            inputs,
            chosen,
            own={each.text: _smaller(options, adapter, processor, work, each.fewer) for each in chosen if each.fewer},
            new_tokens=options.new_tokens,
            repeats=options.repeats,
            warmup=options.warmup,
            progress=say,
        )
        points.append({**_described(adapter, inputs, None if options.clip else work), "variants": found})
        del inputs
    return points, reading


def _smaller(options: argparse.Namespace, adapter: Any, processor: Any, work: Workload, fewer: Any) -> Any:
    """The inputs of a clip with fewer frames or pixels, or why there are none."""
    from ..bench import plan, workload

    try:
        if options.clip:
            return workload.from_file(adapter, processor, options.clip, work, 1, fewer)[0]
        return workload.make(adapter, plan.fewer(adapter, work, fewer), options.seed)
    except SettingError as error:
        return str(error)


def _workloads(options: argparse.Namespace) -> list[Workload]:
    from ..bench.workload import Workload

    size = 84 if _is_tiny(options) else 0
    return [
        Workload(
            seconds=length,
            fps=options.fps,
            height=options.height or size,
            width=options.width or size,
            audio=not options.no_audio,
            batch=options.batch,
            question_tokens=options.question_tokens,
        )
        for length in options.lengths or [64.0 if options.seconds is None else options.seconds]
    ]


def _plot(document: dict[str, Any], path: str) -> Path:
    """The file of --plot. Raises `SettingError`."""
    from ..bench import plot

    try:
        return plot.draw(document, Path(path))
    except (OSError, ValueError) as error:
        raise SettingError(f"--plot {path} cannot be written: {error}") from error


def _is_tiny(options: argparse.Namespace) -> bool:
    return options.model is None and options.arch in (None, TINY)


def _check(options: argparse.Namespace) -> None:
    """Raise `SettingError` for options that contradict each other or are out of range."""
    if options.model and options.arch:
        raise SettingError(f"--model {options.model} and --arch {options.arch} both name a model; leave one out")
    reduced = [name for name in LAYERS if getattr(options, name) is not None]
    if reduced and (options.model or _is_tiny(options)):
        raise SettingError(
            f"--{reduced[0].replace('_', '-')} reduces an architecture with random weights: give --arch "
            "qwen2.5-omni-7b, qwen3-vl-8b or another (`--help` lists them), or leave it out"
        )
    if options.clip and not (options.model or _is_tiny(options)):
        raise SettingError(
            f"--clip {options.clip} needs a processor, and --arch {options.arch} has none: give --model, or leave "
            "--clip out (inputs are then random tensors)"
        )
    if options.clip and (options.lengths or options.seconds):
        raise SettingError("--clip has its own length; leave --seconds and --lengths out")
    if (options.quantize or options.revision) and not options.model:
        given = "quantize" if options.quantize else "revision"
        raise SettingError(f"--{given} is of a saved model; give --model, or leave it out")
    if options.lengths and options.seconds:
        raise SettingError("--seconds and --lengths both say how long the video is; leave one out")
    at_least(options, 1, "new_tokens", "repeats", "threads")
    at_least(options, 0, "warmup")
    if options.device == "auto":
        raise SettingError(
            "--device auto spreads the model, and stages are timed on one device: name it, such as cuda:0"
        )


def _model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and its processor where it has one."""
    from omnidrop import loading

    if options.model or _is_tiny(options):
        return loading.load(options.model, options.dtype, options.device, options.attn, **loading_options(options))
    import torch

    from ..bench import architectures

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = architectures.make(
        options.arch,
        **_layers(options),
        dtype=options.dtype or "bfloat16",
        device=device,
        attention=options.attn or "sdpa",
        seed=options.seed,
    )
    return model, None


def _layers(options: argparse.Namespace) -> dict[str, int | None]:
    return {name: getattr(options, name) for name in LAYERS}


def _setup(options: argparse.Namespace, adapter: Any) -> dict[str, Any]:
    model, config = adapter.thinker, adapter.config
    return {
        **made("bench", model),
        **versions(),
        "model": options.model or options.arch or TINY,
        "random_weights": not (options.model or _is_tiny(options)),
        "layers": config.text_config.num_hidden_layers,
        "vision_layers": config.vision_config.depth,
        "audio_layers": config.audio_config.encoder_layers if adapter.audio else 0,
        "weight_bytes": sum(weight.nbytes for weight in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": config._attn_implementation,
        "repeats": options.repeats,
        "warmup": options.warmup,
        "new_tokens": options.new_tokens,
        "seed": options.seed,
        "spread": "median, min and max of the rounds",
    }


def _too_large(work: Any, chosen: Sequence[Any]) -> dict[str, Any]:
    """A point whose inputs alone do not fit."""
    from dataclasses import asdict

    from ..bench.compare import OUT_OF_MEMORY

    failed = [{"variant": variant.text, "error": f"{OUT_OF_MEMORY} (the inputs alone)"} for variant in chosen]
    return {"workload": asdict(work), "seconds": work.seconds, "tokens": None, "variants": failed}


def _described(adapter: Any, inputs: Mapping[str, Any], work: Any) -> dict[str, Any]:
    """The workload of a point: as asked for, and in tokens."""
    from dataclasses import asdict

    from omnidrop.models import layout

    from ..bench import compare

    tokens = layout(adapter.thinker, inputs)
    sizes = compare.sizes(inputs)
    merge = adapter.config.vision_config.spatial_merge_size**2
    return {
        "workload": None if work is None else asdict(work),
        "seconds": max(float(tokens.second.nan_to_num(0.0).max()), 0.0) if work is None else work.seconds,
        "tokens": {
            kind: sum(tokens.count(row)[kind] for row in range(tokens.shape[0]))
            for kind in ("text", "audio", "video", "image")
        },
        "patches": sum(t * h * w for t, h, w in sizes.grids),
        "tokens_of_a_grid": sizes.grids[0][1] * sizes.grids[0][2] // merge if sizes.grids else None,
        "mel_frames": sum(sizes.recordings),
    }


def report(document: dict[str, Any]) -> str:
    """Every point as a table of variants; the document has all of it."""
    made = document["setup"]
    parts = [
        fill(
            f"{made['model']}{' (random weights)' if made['random_weights'] else ''}, {made['layers']} decoder, "
            f"{made['vision_layers']} vision and {made['audio_layers']} audio layers, {made['dtype']}, "
            f"{made['attention']}; {made['machine']}, {made['threads']} thread(s); medians of {made['repeats']} rounds"
        )
    ]
    if document["reading_seconds"]:
        read = [f"{name} {units.seconds(value['median'])}" for name, value in document["reading_seconds"].items()]
        parts.append("before the model: " + ", ".join(read))
    for point in document["points"]:
        tokens = point["tokens"]
        if tokens is None:
            parts.append(f"{point['seconds']:g} s: {point['variants'][0]['error']}")
            continue
        parts.append(
            f"{point['seconds']:g} s: {tokens['video']} video, {tokens['audio']} audio and {tokens['text']} text "
            f"tokens, {point['patches']} patches\n" + _table(point["variants"])
        )
    told = (
        "first token: as a user waits for it, encoders and all; other: what is in no stage (embeddings, Python, ...).",
        "(min-max): of the first token. peak: above weights and inputs. KV cache: with the answer. FLOPs: of the "
        "prompt. x ideal: first token / (stock's seconds x share of its FLOPs, stage by stage).",
        "Least and most of every stage, each stage against its ideal, what was kept: --json.",
    )
    parts.append("\n".join(map(fill, told)))
    return "\n\n".join(parts)


def _table(variants: Sequence[dict[str, Any]]) -> str:
    shown = [name for name in STAGES if any(name in (entry.get("seconds") or {}) for entry in variants)]
    rows = [["variant", *(STAGES[name] for name in shown), "(min-max)", "peak", "KV cache", "FLOPs", "x ideal"]]
    failed = [f"{entry['variant']}: {entry['error']}" for entry in variants if entry["error"]]
    for entry in variants:
        if entry["error"]:
            continue
        seconds, peak = entry["seconds"], entry["peak_bytes_above_weights_and_inputs"]
        first = seconds["first_token"]
        over = (entry["over_ideal"] or {}).get("first_token")
        rows.append(
            [entry["variant"],
             *(units.seconds(seconds[name]["median"]) if name in seconds else "" for name in shown),
             "" if first["min"] == first["max"] else f"({units.seconds(first['min'])}-{units.seconds(first['max'])})",
             units.size(None if peak is None else peak["median"]), units.size(entry["kv_bytes"]),
             units.operations(entry["flops"]["total"]), "" if over is None else f"{over:.2f}"]
        )  # fmt: skip
    if all(row[-4 - 1] == "" for row in rows[1:]):  # one round has no spread
        rows = [[*row[:-5], *row[-4:]] for row in rows]
    return "\n".join([table(rows), *failed] if len(rows) > 1 else failed)
