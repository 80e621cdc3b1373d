"""A thinker that was saved alone, as a folder that vLLM serves.

    python -m omnidrop_vllm.export OUT [--model FOLDER] [--json]

Config, weights and processor of a thinker, written as the full checkpoint that vLLM 0.32 reads: the thinker's config
inside `thinker_config`, its weights under `thinker.`. No number changes, no talker is made up, and a full checkpoint
(every published one) needs none of this.

vLLM serves the thinker of a Qwen-Omni checkpoint and skips the rest, so the rest may be absent.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnidrop.errors import ModelError, OmnidropError
from omnidrop.loading import TINY

# model_type of a thinker -> model_type and architecture of the full checkpoint, as vLLM's registry knows it.
FULL = {
    "qwen2_5_omni_thinker": ("qwen2_5_omni", "Qwen2_5OmniModel"),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe", "Qwen3OmniMoeForConditionalGeneration"),
}
CONFIG, PROCESSOR, INDEX = "config.json", "processor_config.json", "model.safetensors.index.json"
PUBLISHED = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}  # pixels; what the processor classes assume


def serve_copy(thinker_folder: str | Path, out_folder: str | Path) -> Path:
    """Write what vLLM serves of the thinker in `thinker_folder` into `out_folder`, new or empty; returns that folder.

    Takes the disk space of the weights once more, and the memory of one weight file. Raises `ModelError`.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    source, out = Path(thinker_folder), Path(out_folder)
    config = _config(source)
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source} holds no weights (*.safetensors); save the model with save_pretrained")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and is no empty folder; name a new one")
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (CONFIG, INDEX):
            shutil.copyfile(file, out / file.name)
    _write(out / CONFIG, config)
    places: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            tensors = {f"thinker.{name}": weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
            save_file(tensors, out / file.name, metadata=weights.metadata())
        (out / file.name).chmod(0o644)  # safetensors writes files that only their owner may read
        places |= dict.fromkeys(tensors, file.name)
    if len(files) > 1:
        _write(out / INDEX, {"metadata": {}, "weight_map": places})
    return out


def _config(source: Path) -> dict[str, Any]:
    """The full config around the thinker's own."""
    try:
        thinker = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"no thinker at {source}: no {CONFIG} can be read there; name a saved thinker") from error
    kind = thinker.get("model_type")
    if kind not in FULL:
        hint = "is a full checkpoint: vLLM serves it as it is" if "thinker_config" in thinker else "is no thinker"
        raise ModelError(f"{source} is of type {kind!r}; this {hint}, and only {', '.join(FULL)} can be exported")
    if "position_id_per_seconds" in thinker:
        # vLLM weaves a video's sound by this number of the vision config, transformers by the thinker's. The published
        # checkpoints have both, and the same.
        thinker["vision_config"]["tokens_per_second"] = thinker["position_id_per_seconds"]
    if kind.startswith("qwen3"):  # read by vLLM, no fields of the class: what the published checkpoints have
        vision = thinker["vision_config"]
        side = round(vision["num_position_embeddings"] ** 0.5)
        thinker["vision_config"] = {"image_size": side * vision["patch_size"], "apply_vit_abs_pos_embed": True} | vision
    model_type, architecture = FULL[kind]
    full = {
        "architectures": [architecture],
        "model_type": model_type,
        "enable_audio_output": False,
        "thinker_config": thinker,
    }
    return full | {name: thinker[name] for name in ("dtype", "transformers_version") if name in thinker}


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def processor_kwargs(folder: str | Path) -> dict[str, Any]:
    """What `vllm serve --mm-processor-kwargs` must be told so that videos are read at the size saved in `folder`.

    The processor classes take a saved size for images only; videos get 128 to 768 tokens a picture whatever was saved.
    Empty where that is right, or where nothing was saved.
    """
    path = Path(folder) / PROCESSOR
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    size = saved.get("video_processor", {}).get("size") or PUBLISHED
    return {} if size == PUBLISHED else {"size": size}


def serve_command(folder: str | Path, longest: int = 4096) -> str:
    """The shell command that serves `folder` with pruning, prompts and answers of up to `longest` tokens."""
    words = ["vllm", "serve", str(folder), "--additional-config", json.dumps({"omnidrop": {"keep": 0.3, "stages": 4}})]
    # A prompt must be read in one step to be pruned.
    words += ["--max-model-len", str(longest), "--max-num-batched-tokens", str(longest)]
    # Without the last one no request may ask for the sound of its video.
    words += ["--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--trust-request-mm-kwargs"]
    if told := processor_kwargs(folder):
        words += ["--mm-processor-kwargs", json.dumps(told)]
    return f"VLLM_USE_V2_MODEL_RUNNER=0 {shlex.join(words)}"  # the plugin knows the first of vLLM's model runners


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and print the command that serves it; 2 for a clear error."""
    parser = argparse.ArgumentParser(
        prog="python -m omnidrop_vllm.export",
        description="Write a thinker that was saved alone as a folder that vLLM serves.",
    )
    parser.add_argument("out", metavar="OUT", help="the folder to write: new or empty")
    parser.add_argument("--model", metavar="FOLDER", default=TINY, help="a saved thinker (default: the tiny model)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(argv)
    try:
        folder = serve_copy(options.model, options.out)
    except OmnidropError as error:
        print(f"omnidrop_vllm.export: {error}", file=sys.stderr)
        return 2
    command = serve_command(folder)
    print(json.dumps({"folder": str(folder), "serve": command}) if options.json else command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
