"""Needle questions over HTTP: the trained tiny model served by vLLM, with and without pruning, and beside transformers.

    python -m benchmarks.vllm_http > benchmarks/results/vllm_needle_http.json

Clips are written as mp4 files with sound and sent whole, by several clients at once, to `vllm serve`; answers stream
back. The same files and questions go through this library's transformers path with the same method. Needs an
environment with vLLM and PyAV (`make test-vllm` makes one). `accuracy` is the share of right answers: an answer of
several words counts if all words are there, in order, and then the end. `same` is the share of answers that are the
transformers path's word for word. A server's numbers also say what its /metrics said before it was stopped.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnidrop_lab import needle
from omnidrop_lab.needle import files, prompts
from omnidrop_lab.needle.task import SEQUENCES, Question

SERVERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "kv-groups": {"keep": 0.3, "stages": 4, "mode": "kv-groups"},
    "compute-only": {"keep": 0.3, "stages": 4, "mode": "compute-only"},
}
OPTIONS = (
    "--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "4096",
    "--max-num-batched-tokens", "4096", "--no-enable-prefix-caching", "--no-enable-chunked-prefill",
    "--trust-request-mm-kwargs",  # else a request may not ask for the sound of its video
)  # fmt: skip
WOVEN = {"use_audio_in_video": True}  # mm_processor_kwargs of a request: hear the sound of its videos
START = 300  # seconds that a server may take to start


# A server


@contextlib.contextmanager
def serving(folder: Path, omnidrop: dict[str, Any] | None, *options: str, log: Path | None = None) -> Iterator[str]:
    """`vllm serve` on a free port, stopped at the end: -> its address. `log`: a file for what it prints."""
    from omnidrop_vllm.export import processor_kwargs

    port = _free_port()
    words = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--port", str(port), "--host", "127.0.0.1",
        "--served-model-name", "omni", "--mm-processor-kwargs", json.dumps(processor_kwargs(folder)), *OPTIONS,
        *options,
    ]  # fmt: skip
    if omnidrop is not None:
        words += ["--additional-config", json.dumps({"omnidrop": omnidrop})]
    told = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }  # fmt: skip
    environment = told | os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(log or os.devnull, "wb") as out:
        server = subprocess.Popen(words, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, address)
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(30)
                os.killpg(server.pid, signal.SIGKILL)  # the engine's process, should it have been left
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(server: subprocess.Popen, address: str) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode} while it started; read its log")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {START} s; read its log")


def metrics(address: str) -> dict[str, float]:
    """/metrics: `name` or `name{label=value}` -> value, summed over engines and models; counters and gauges."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = [f"{k}={v}" for k, v in sorted(sample.labels.items()) if k not in ("engine", "model_name")]
            found[sample.name + (f"{{{','.join(own)}}}" if own else "")] += sample.value
    return dict(found)


def idle(address: str, seconds: float = 10.0) -> dict[str, float]:
    """/metrics once no request is left and no KV block is held, or after so many seconds whatever is there."""
    deadline = time.monotonic() + seconds
    while True:
        now = metrics(address)
        if time.monotonic() > deadline or not (now["vllm:num_requests_running"] or now["vllm:kv_cache_usage_perc"]):
            return now
        time.sleep(0.2)


# Questions


@dataclass(frozen=True)
class Item:
    """One question about one file."""

    file: Path
    question: Question

    @property
    def room(self) -> int:
        """Tokens that the answer may take: one, or for a sequence of words the longest legal one and its end."""
        return len(self.question.choices) + 1 if self.question.type in SEQUENCES else 1

    def right(self, text: str, ended: bool) -> bool:
        """Whether an answer is the right one; a sequence must also have ended."""
        if self.question.type in SEQUENCES:
            return ended and prompts.words_of(text) == self.question.words
        return text.strip() == self.question.answer


def items(folder: Path, split: str, clips: int, chunks: int | None = None) -> list[Item]:
    """One question of each type about each clip; the clips are written into `folder` as mp4 with sound."""
    made = []
    for index in range(clips):
        clip = needle.clip(split, index) if chunks is None else needle.clip(split, index, chunks)
        file = files.write(clip, folder / f"{split}{index}.mp4")
        made += [Item(file, question) for question in needle.questions(clip)]
    return made


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    ended: bool  # whether the model ended it, rather than the limit on tokens
    pieces: int = 1  # parts in which the stream brought it
    prompt_tokens: int | None = None  # before pruning; a stream does not say
    report: dict[str, Any] | None = None  # what the plugin says of the request; a stream does not say


def data_url(file: Path, kind: str) -> str:
    """A file inside an address, as in `data:video/mp4;base64,...`."""
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def post(
    address: str,
    content: list[dict[str, Any]],
    room: int,
    xargs: dict[str, Any] | None = None,
    *,
    sound: bool = True,
    stream: bool = True,
) -> Answer:
    """One chat completion, greedy, through the OpenAI client; errors are the client's own."""
    from openai import OpenAI

    extra: dict[str, Any] = {"mm_processor_kwargs": WOVEN} if sound else {}
    if xargs:
        extra["vllm_xargs"] = xargs
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300) as client:
        got: Any = client.chat.completions.create(
            model="omni", messages=[{"role": "user", "content": content}], max_tokens=room, temperature=0,
            stream=stream, extra_body=extra,
        )  # fmt: skip
        if not stream:
            (choice,) = got.choices
            report = (got.kv_transfer_params or {}).get("omnidrop")
            return Answer(choice.message.content, choice.finish_reason == "stop", 1, got.usage.prompt_tokens, report)
        pieces, reason = [], None
        for part in got:
            for choice in part.choices:
                pieces += [choice.delta.content] if choice.delta.content else []
                reason = choice.finish_reason or reason
    return Answer("".join(pieces), reason == "stop", len(pieces))


def about(file: Path, text: str, kind: str = "video/mp4") -> list[dict[str, Any]]:
    """A file and a question, as the content of a chat message."""
    part = f"{kind.partition('/')[0]}_url"
    return [{"type": part, part: {"url": data_url(file, kind)}}, {"type": "text", "text": text}]


def over_http(address: str, asked: Sequence[Item], clients: int) -> list[Answer]:
    """All questions, `clients` at once, as streams."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda item: post(address, about(item.file, item.question.text), item.room), asked))


def by_transformers(asked: Sequence[Item], omnidrop: dict[str, Any] | None, model: Path | None = None) -> list[Answer]:
    """The same through this library's transformers path, with the same method and stages."""
    import torch

    from omnidrop import load, media, methods, prompt, prune

    net, processor = load(model)
    method = None
    if omnidrop is not None:
        fields = {name: value for name, value in omnidrop.items() if name not in ("mode", "method")}
        method = methods.Method.from_json({"name": omnidrop.get("method", "omnidrop"), **fields})
    answers = []
    end = processor.tokenizer.eos_token_id
    for item in asked:
        inputs = prompt.build(processor, media.read(item.file), item.question.text)
        with torch.inference_mode(), prune(net, method) if method else contextlib.nullcontext():
            out = net.generate(**inputs, max_new_tokens=item.room, do_sample=False)
        said = out[0, inputs["input_ids"].shape[1] :].tolist()
        ended = end in said
        text = processor.tokenizer.decode(said, skip_special_tokens=True)
        answers.append(Answer(text, ended))
    return answers


def score(asked: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy over all, and by type of question."""
    right: dict[str, list[bool]] = defaultdict(list)
    for item, answer in zip(asked, answers, strict=True):
        right[item.question.type].append(item.right(answer.text, answer.ended))
    total = [each for some in right.values() for each in some]
    return {
        "accuracy": sum(total) / len(total),
        "right": sum(total),
        "by_type": {kind: sum(some) / len(some) for kind, some in right.items()},
    }


def same(one: Sequence[Answer], other: Sequence[Answer]) -> float:
    """Share of answers that are the same words, and both ended or both not."""
    equal = [a.text.split() == b.text.split() and a.ended == b.ended for a, b in zip(one, other, strict=True)]
    return sum(equal) / len(equal)


def main() -> None:
    """Write the clips, ask both paths under every setting, print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--clients", type=int, default=8, help="requests at once")
    parser.add_argument("--logs", type=Path, help="a folder for what the servers print")
    parser.add_argument("--servers", nargs="+", choices=tuple(SERVERS), default=list(SERVERS))
    options = parser.parse_args()
    from omnidrop_vllm.export import serve_copy

    from omnidrop.loading import TINY
    from omnidrop.provenance import versions

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served = serve_copy(TINY, folder / "served")
        asked = items(folder, options.split, options.clips)
        note(f"{len(asked)} questions about {options.clips} clips")
        reference: dict[str, list[Answer]] = {}
        for server in options.servers:
            setting = SERVERS[server]
            log = None
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                log = options.logs / f"{server}.log"
            key = json.dumps(_method(setting))
            if key not in reference:
                reference[key] = by_transformers(asked, setting)
                note(f"transformers, {key}: accuracy {score(asked, reference[key])['accuracy']:.3f}")
            with serving(served, setting, log=log) as address:
                answers = over_http(address, asked, options.clients)
                after = idle(address)
            results.append(
                {
                    "server": server,
                    "omnidrop": setting,
                    "http": score(asked, answers),
                    "transformers": score(asked, reference[key]),
                    "same": same(answers, reference[key]),
                    "kv_cache_usage_after": after["vllm:kv_cache_usage_perc"],
                    "metrics": {
                        name: value
                        for name, value in sorted(after.items())
                        if name.startswith("omnidrop:") and not name.endswith("_created") and "_created{" not in name
                    },
                }
            )
            note(f"{server}: accuracy {results[-1]['http']['accuracy']:.3f}, same {results[-1]['same']:.3f}")
    document = {
        "format": "omnidrop.vllm_http",
        **_made(),
        "versions": versions() | _vllm(),
        "settings": {
            "split": options.split,
            "clips": options.clips,
            "questions": len(asked),
            "clients": options.clients,
            "serve": list(OPTIONS),
        },
        "units": {
            "accuracy, by_type, same": "share of questions, 0 to 1",
            "kv_cache_usage_after": "share of KV blocks held after the last answer",
            "metrics": "counts over all requests of the server; stage_tokens and prompt_tokens hold the text too",
        },
        "results": results,
    }
    print(json.dumps(document, indent=1))


def _method(setting: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if setting is None else {name: value for name, value in setting.items() if name != "mode"}


def _made() -> dict[str, Any]:
    from omnidrop.provenance import made

    return {**made("", None), "command": " ".join(["python -m benchmarks.vllm_http", *sys.argv[1:]])}


def _vllm() -> dict[str, str]:
    from importlib.metadata import version

    return {"vllm": version("vllm")}


if __name__ == "__main__":
    main()
