"""What a first user gets wrong in Python is answered by name, with an error of the library and the next step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import omnidrop
from omnidrop import FileError, InputError, MediaError, ModelError, OmniDrop, OmnidropError, SettingError, Trace, media

pytestmark = pytest.mark.slow

DEMO = str(Path(omnidrop.__file__).parent / "assets" / "demo.mp4")
QUESTION = "what color is the circle ?"
SECRET = b"do not print me" * 10


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return omnidrop.load()


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else one[name] == other[name]
        for name in one
    )


def test_build_takes_paths(tiny: tuple[Any, Any]) -> None:
    processor = tiny[1]
    clip = media.read(DEMO)
    whole = omnidrop.build(processor, clip, QUESTION)
    assert equal(omnidrop.build(processor, DEMO, QUESTION), whole)
    assert equal(omnidrop.build(processor, Path(DEMO), QUESTION), whole)
    two = omnidrop.build(processor, [clip, clip], QUESTION)
    assert equal(omnidrop.build(processor, [DEMO, clip], QUESTION), two)
    silent = omnidrop.build(processor, media.read(DEMO, sound=False), QUESTION)
    assert equal(omnidrop.build(processor, DEMO, QUESTION, use_audio=False), silent)
    small = omnidrop.build(processor, media.read(DEMO, max_pixels=28 * 28), QUESTION, max_pixels=28 * 28)
    assert equal(omnidrop.build(processor, DEMO, QUESTION, max_pixels=28 * 28), small)


def test_a_path_is_read_at_the_rate_of_the_processor(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    def read(path: Any, **options: Any) -> media.Media:
        rates.append(options["sample_rate"])
        return media.read(path, **options)

    monkeypatch.setattr("omnidrop.prompt.read", read)
    monkeypatch.setattr(tiny[1].feature_extractor, "sampling_rate", 8_000)
    omnidrop.build(tiny[1], DEMO, QUESTION)
    assert rates == [8_000]


BUILDS: dict[str, tuple[type[Exception], str, Callable[[Any, Any], Any]]] = {
    "no media": (SettingError, r"media are None; give a path", lambda m, p: omnidrop.build(p, None, QUESTION)),
    "a model": (
        SettingError, r"processor is Qwen2_5Omni\w+, which has no tokenizer.*order is build\(processor",
        lambda m, p: omnidrop.build(m, DEMO, QUESTION),
    ),
    "clip first": (
        SettingError, r"processor is Media.*order is build\(processor",
        lambda m, p: omnidrop.build(media.read(DEMO), p, QUESTION),
    ),
    "question first": (
        SettingError, r"demo.mp4' is a file.*as the question; the order is build\(processor",
        lambda m, p: omnidrop.build(p, QUESTION, DEMO),
    ),
    "no such file": (MediaError, r"no.mp4 does not exist", lambda m, p: omnidrop.build(p, "no.mp4", QUESTION)),
    "a URL": (
        MediaError, r"is a URL, and URLs are not read; download it",
        lambda m, p: omnidrop.build(p, "https://example.org/clip.mp4", QUESTION),
    ),
    "bytes": (SettingError, r"media are bytes of length 150", lambda m, p: omnidrop.build(p, SECRET, QUESTION)),
    "bytes in a list": (
        SettingError, r"clip 1 of the media is bytes of length 150",
        lambda m, p: omnidrop.build(p, [DEMO, SECRET], QUESTION),
    ),
    "an array": (
        SettingError, r"media are ndarray of shape \(2, 3\)",
        lambda m, p: omnidrop.build(p, np.zeros((2, 3)), QUESTION),
    ),
    "a chat message": (SettingError, r"media are dict", lambda m, p: omnidrop.build(p, {"video": DEMO}, QUESTION)),
    "no question": (SettingError, r"question is None; give text", lambda m, p: omnidrop.build(p, DEMO, None)),
    "an empty question": (InputError, r"question is empty \(''\)", lambda m, p: omnidrop.build(p, DEMO, "")),
    "a blank question": (InputError, r"question is empty", lambda m, p: omnidrop.build(p, [], " \n")),
    "no inputs": (SettingError, r"inputs are Media; pass what", lambda m, p: omnidrop.layout(m, media.read(DEMO))),
    "a stream with two models": (
        SettingError, r"processor is Qwen\w+, which has no tokenizer",
        lambda m, p: omnidrop.stream(m, m, DEMO, QUESTION, method=OmniDrop()),
    ),
    "a stream of a list": (
        SettingError, r"a path is wanted, not a list",
        lambda m, p: omnidrop.stream(m, p, [DEMO], QUESTION, method=OmniDrop()),
    ),
    "a blank question about a stream": (
        InputError, r"question is empty", lambda m, p: omnidrop.stream(m, p, DEMO, " ", method=OmniDrop()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BUILDS)
def test_build(what: str, tiny: tuple[Any, Any]) -> None:
    error, says, call = BUILDS[what]
    with pytest.raises(error, match=says) as caught:
        call(*tiny)
    assert isinstance(caught.value, OmnidropError)
    assert len(str(caught.value)) < 400 and "do not print me" not in str(caught.value)


@pytest.mark.parametrize("given", [[DEMO], np.zeros((4, 2)), SECRET, None, 3, "https://example.org/a.mp4"], ids=repr)
def test_what_is_no_file_is_not_read(given: Any) -> None:
    with pytest.raises((SettingError, MediaError), match=r"a path is wanted, not|URLs are not read") as caught:
        media.read(given)
    assert len(str(caught.value)) < 200 and "do not print me" not in str(caught.value)


def test_prune_with_swapped_and_half_made_arguments(tiny: tuple[Any, Any]) -> None:
    model = tiny[0]
    calls: list[tuple[type[Exception], str, tuple[Any, Any]]] = [
        (SettingError, r"write omnidrop.prune\(model, method\)", (OmniDrop(), model)),
        (SettingError, r"method is the class OmniDrop; .*OmniDrop\(keep=0.3\)", (model, OmniDrop)),
        (SettingError, r"methods.parse\('fastv'\)", (model, "fastv")),
        (SettingError, r"method is Qwen\w+; give one", (model, model)),
        (ModelError, r"load returns two: model, processor", (tiny, OmniDrop())),
        (ModelError, r"must be loaded first", ("Qwen/Qwen2.5-Omni-3B", OmniDrop())),
    ]
    for error, says, given in calls:
        with pytest.raises(error, match=says) as caught:
            omnidrop.prune(*given)
        assert len(str(caught.value)) < 1000  # all supported classes, and no model printed


def test_what_prune_returns_is_no_trace(tiny: tuple[Any, Any]) -> None:
    trace = omnidrop.prune(tiny[0], OmniDrop())
    with pytest.raises(
        AttributeError, match=r"no 'keep': the trace is what `with omnidrop.prune\(model, method\) as trace"
    ):
        _ = trace.keep


@pytest.mark.parametrize("method", [OmniDrop, omnidrop.Random])
def test_a_keep_in_percent(method: Any) -> None:
    with pytest.raises(SettingError, match=r"keep is 30; it must lie in \(0, 1\]: write 0.3 for 30 %"):
        method(keep=30)


def test_files_of_traces(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    with omnidrop.prune(model, OmniDrop()) as trace:
        model.generate(**omnidrop.build(processor, DEMO, QUESTION), max_new_tokens=1)
    for path in (tmp_path / "no" / "t.json", tmp_path, "a\0b"):
        with pytest.raises(FileError, match=f"cannot be written to {re.escape(str(path))}: .*; check the path"):
            trace.save(path)
        with pytest.raises(FileError, match=f"trace {re.escape(str(path))} cannot be read: .*; check the path"):
            Trace.load(path)
    for none in (None, 3, b"t.json"):
        with pytest.raises(SettingError, match="the path of a trace is"):
            trace.save(none)
        with pytest.raises(SettingError, match="the path of a trace is"):
            Trace.load(none)
    assert isinstance(FileError("x"), OSError)  # as `open` raises


def test_a_folder_that_is_missing_is_no_error_of_type() -> None:
    with pytest.raises(ModelError, match="no folder /nope") as caught:
        omnidrop.load("/nope")
    assert not isinstance(caught.value, TypeError)
