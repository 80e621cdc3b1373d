"""`omnidrop.load`: which keywords reach `from_pretrained`, where the model goes, and what is shown meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import omnidrop
from omnidrop import ModelError, OmnidropError, SettingError, loading, quantization
from omnidrop.errors import KeywordError
from omnidrop.quiet import no_weight_bars

pytestmark = pytest.mark.slow

MODEL = transformers.Qwen2_5OmniThinkerForConditionalGeneration
PROCESSOR = transformers.Qwen2_5OmniProcessor
HUB_ID = "someone/a-model"


class AskedError(Exception):
    """Ends a load once its keywords are known."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What config, processor and model are asked for."""
    found: dict[str, dict[str, Any]] = {}

    def config(source: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        found["config"] = {"source": source, **options}
        return {"model_type": "qwen2_5_omni"}, {}

    def processor(source: str, **options: Any) -> None:
        found["processor"] = {"source": source, **options}

    def model(source: str, **options: Any) -> None:
        found["model"] = {"source": source, **options}
        raise AskedError("enough")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", config)
    monkeypatch.setattr(PROCESSOR, "from_pretrained", processor)
    monkeypatch.setattr(MODEL, "from_pretrained", model)
    return found


def ask(*args: Any, **options: Any) -> None:
    with pytest.raises(ModelError, match="cannot be loaded: enough"):
        omnidrop.load(*args, **options)


def test_options_reach_those_who_take_them(asked: dict[str, dict[str, Any]]) -> None:
    quantized = object()
    ask(HUB_ID, "bfloat16", attn_implementation="eager", revision="v2", token="t", variant="fp16",
        quantization_config=quantized, device_map={"": "cpu"})  # fmt: skip
    shared = {"source": HUB_ID, "trust_remote_code": False, "revision": "v2", "token": "t"}
    assert asked["config"] == asked["processor"] == shared
    assert asked["model"] == {
        **shared, "dtype": torch.bfloat16, "attn_implementation": "eager", "variant": "fp16",
        "quantization_config": quantized, "device_map": {"": "cpu"}, "output_loading_info": True,
    }  # fmt: skip


def test_unsaid_options_are_not_passed(asked: dict[str, dict[str, Any]]) -> None:
    ask(HUB_ID, device="cpu")
    assert asked["processor"] == {"source": HUB_ID, "trust_remote_code": False}
    assert asked["model"] == {
        "source": HUB_ID, "trust_remote_code": False, "dtype": "auto", "output_loading_info": True
    }  # fmt: skip
    ask(HUB_ID, device="auto", trust_remote_code=True)
    assert asked["model"]["device_map"] == "auto" and asked["model"]["trust_remote_code"] is True


def test_quantized_weights_are_made_where_they_stay(
    asked: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "quantization_config", lambda name: f"config of {name}")
    ask(HUB_ID, quantize="bnb-4bit", device="cuda:1")
    assert asked["model"]["quantization_config"] == "config of bnb-4bit"
    assert asked["model"]["device_map"] == {"": "cuda:1"}
    ask(HUB_ID, quantize="bnb-4bit", device_map="auto")
    assert asked["model"]["device_map"] == "auto"


WRONG = {
    "an unknown keyword": (
        KeywordError,
        {"quantise": "bnb-4bit"},
        r"no keyword 'quantise'; it takes name_or_path, dtype",
    ),
    "an old keyword": (KeywordError, {"torch_dtype": "float16"}, r"no keyword 'torch_dtype'; .*trust_remote_code"),
    "two places": (
        SettingError,
        {"device": "cpu", "device_map": "auto"},
        "device='cpu' and device_map='auto' both say",
    ),
    "two quantizations": (
        SettingError,
        {"quantize": "bnb-4bit", "quantization_config": object()},
        "both say how to quantize",
    ),
    "an unknown quantization": (
        SettingError,
        {"quantize": "int3"},
        "quantize is 'int3'; choose bnb-4bit, bnb-8bit, torchao-int8",
    ),
    "a revision of a folder": (SettingError, {"revision": "main"}, "revision is 'main', and .*tiny is a folder"),
    "no name": (SettingError, {"name_or_path": 7}, "the model is 7; give the folder"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_read(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, options, says = WRONG[what]
    monkeypatch.setattr(MODEL, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=says) as caught:
        omnidrop.load(**options)
    assert isinstance(caught.value, OmnidropError)
    assert isinstance(caught.value, TypeError) == (error is KeywordError)


@pytest.mark.parametrize("name", quantization.PACKAGES)
def test_a_missing_package_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes", "torchao-int8": "torchao"}[name]
    monkeypatch.setattr(quantization, "find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(SettingError, match=f"'{name}' needs {package}; pip install {package}") as caught:
        omnidrop.load(quantize=name)
    assert ("CUDA" in str(caught.value)) == (package == "bitsandbytes")
    monkeypatch.setattr(quantization, "find_spec", lambda wanted: None)
    with pytest.raises(SettingError, match=f"pip install {package} accelerate"):
        omnidrop.load(quantize=name)


@pytest.mark.parametrize("name", quantization.PACKAGES)
def test_a_quantized_model_is_pruned(name: str) -> None:
    """Only where the package is installed."""
    pytest.importorskip(quantization.PACKAGES[name])
    model, processor = omnidrop.load(quantize=name)
    kind = type(model.model.language_model.layers[0].self_attn.q_proj.weight)
    assert kind is not torch.nn.Parameter and "omnidrop" not in kind.__module__
    clip = Path(omnidrop.__file__).parent / "assets" / "demo.mp4"
    inputs = omnidrop.build(processor, clip, "what color is the circle ?").to(model.device)
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        output = model.generate(**inputs, max_new_tokens=3)
    assert processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]).startswith("blue")
    assert trace.keep == pytest.approx(0.3, abs=0.01)


SCRIPT = """
import omnidrop
omnidrop.load({options})
from transformers.utils import logging
print(logging.is_progress_bar_enabled())
"""


@pytest.mark.parametrize(("options", "shown"), [("", False), ("progress=True", True)])
def test_the_bar_of_weights_shows_when_it_is_asked_for(options: str, shown: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(options=options)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.split() == ["True"], done.stderr
    assert ("Loading weights" in done.stderr) == shown


def test_bars_are_as_before_when_the_last_thread_is_done() -> None:
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with no_weight_bars():
            inside.set()
            leave.wait(5)

    before = logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    try:
        logging.enable_progress_bar()
        thread = threading.Thread(target=other)
        with no_weight_bars():
            thread.start()
            assert inside.wait(5)
            assert not logging.is_progress_bar_enabled() and not hub.are_progress_bars_disabled()  # downloads show
        assert not logging.is_progress_bar_enabled()  # the other thread is still at it
        leave.set()
        thread.join(5)
        assert logging.is_progress_bar_enabled() and not hub.are_progress_bars_disabled()
        logging.disable_progress_bar()
        with no_weight_bars():
            assert hub.are_progress_bars_disabled()
        assert not logging.is_progress_bar_enabled() and hub.are_progress_bars_disabled()
    finally:
        (logging.enable_progress_bar if before[0] else logging.disable_progress_bar)()
        (hub.disable_progress_bars if before[1] else hub.enable_progress_bars)()
