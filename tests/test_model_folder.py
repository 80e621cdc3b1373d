"""A damaged model folder is a `ModelError`, whatever is wrong with it; nothing in it is run, and nobody is asked."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnidrop import loading
from omnidrop.errors import ModelError

pytestmark = pytest.mark.slow

Change = Callable[[Path], Any]
JSON = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
NEEDED = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(loading.TINY, tmp_path / "model"))


def cut(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def says(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def config(*path: Any) -> Change:
    *steps, last, value = path

    def change(folder: Path) -> None:
        whole = part = json.loads((folder / "config.json").read_text())
        for step in steps:
            part = part[step]
        part[last] = value
        (folder / "config.json").write_text(json.dumps(whole))

    return change


def noise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(5000))


DAMAGES: dict[str, Change] = {
    **{f"{name} is gone": gone(name) for name in NEEDED},
    **{f"{name} is cut": cut(name) for name in (*JSON, *NEEDED) if "generation" not in name},
    **{f"{name} is {text[:5]}": says(name, text) for name in JSON for text in ("[]", "null", "3", "[" * 50_000)},
    "the weights are empty": says("model.safetensors", ""),
    "the weights are noise": noise,
    "the tokenizer is empty": says("tokenizer.json", "{}"),
    "a width is wrong": config("text_config", "hidden_size", 192),
    "a width is negative": config("text_config", "hidden_size", -64),
    "a count is text": config("text_config", "num_hidden_layers", "x"),
    "heads are none": config("text_config", "num_attention_heads", 0),
    "the type is a list": config("model_type", []),
    "the dtype is unknown": config("dtype", "x"),
    "a part is text": config("audio_config", "x"),
    "another audio token": config("audio_token_index", 3),
    "no seconds in a chunk": config("seconds_per_chunk", 0),
    "the template is no template": says("chat_template.jinja", "{% for"),
    "the template fails": says("chat_template.jinja", "{{ 1 / 0 }}"),
    "the template has no media": says("chat_template.jinja", "hello"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_is_a_model_error(damage: str, folder: Path) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(ModelError) as caught:
        loading.load(folder, device="cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_code_in_the_folder_is_neither_run_nor_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass X: pass\n")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor",
             "AutoFeatureExtractor", "AutoVideoProcessor")  # fmt: skip
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        document = json.loads((folder / name).read_text())
        document["auto_map"] = {kind: "code.X" for kind in kinds} | {"AutoTokenizer": ["code.X", "code.X"]}
        if name == "tokenizer_config.json":
            document["tokenizer_class"] = "X"
        (folder / name).write_text(json.dumps(document))

    class Deaf(io.StringIO):
        def readline(self, *_: Any) -> str:
            raise AssertionError("somebody was asked on standard input")

    monkeypatch.setattr(sys, "stdin", Deaf("y\n"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    with suppress(ModelError):
        loading.load(folder, device="cpu")
    assert not trace.exists()
