"""The logger "omnidrop": which prompts ran pruned, which did not and why; silent until an application asks for it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import model_of
from prompts import Image, Video, batch, prompt

import omnidrop
from omnidrop import OmniDrop, Random

pytestmark = pytest.mark.slow


def said(caplog: pytest.LogCaptureFixture, method: Any, media: Sequence[Any], rows: int = 1) -> list[tuple[str, str]]:
    """(level, message) of every record of one prompt."""
    model = model_of("qwen2_5")
    made = batch([prompt("qwen2_5", media, seed=seed) for seed in range(rows)])
    with caplog.at_level(logging.INFO, "omnidrop"), torch.no_grad(), omnidrop.prune(model, method):
        model(**made)
    assert {record.name for record in caplog.records} == {"omnidrop"}
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_pruned_prompt(caplog: pytest.LogCaptureFixture, rows: int) -> None:
    model = model_of("qwen2_5")
    made = batch([prompt("qwen2_5", [Video()], seed=seed) for seed in range(rows)])
    with caplog.at_level(logging.INFO, "omnidrop"), omnidrop.prune(model, OmniDrop(keep=0.4)) as trace:
        model.generate(**made, max_new_tokens=3)  # one record a prompt, none a token
    counts = [sum(layer[kind] for kind in ("audio", "video")) for layer in (trace.counts[0], trace.counts[-1])]
    total = sum(sum(trace.layout.count(row)[kind] for kind in ("audio", "video")) for row in range(rows))
    (record,) = caplog.records
    assert record.levelname == "INFO" and record.getMessage() == (
        f"pruned by OmniDrop(keep=0.4): of {total} media tokens {counts[0]} enter layer 0 and {counts[1]} the last "
        "layer"
    )


def test_unpruned_as_expected(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, OmniDrop(keep=0.4), []) == [("INFO", "unpruned: the prompt holds no audio, video or images")]
    caplog.clear()
    ((level, text),) = said(caplog, Random(keep=1.0), [Video()])
    assert level == "INFO" and text.startswith("unpruned, as asked for: Random(keep=1.0) keeps all of ")


def test_unpruned_against_expectation(caplog: pytest.LogCaptureFixture) -> None:
    ((level, text),) = said(caplog, OmniDrop(keep=0.4), [Image()])
    assert level == "WARNING" and "may drop none of its tokens. All 6 image tokens are kept by default" in text
    assert "set images='prune'" in text
    caplog.clear()
    ((level, text),) = said(caplog, OmniDrop(keep=0.999), [Video(seconds=1.0, sound=False)])
    assert level == "WARNING" and "OmniDrop(keep=0.999) drops none of 6 media tokens" in text


def test_images_beside_a_video(caplog: pytest.LogCaptureFixture) -> None:
    ((level, text),) = said(caplog, OmniDrop(keep=0.4), [Video(), Image()])
    assert level == "INFO" and text.startswith("pruned by") and "All 6 image tokens are kept by default" in text


def test_the_text_model_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("qwen2_5")
    with omnidrop.prune(model, OmniDrop()), torch.no_grad():
        model.model.language_model(input_ids=torch.tensor([[1, 2, 3]]))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "the text model was called by itself" in record.getMessage()


def test_a_streamed_clip_says_so_for_each_segment_and_not_for_its_text(caplog: pytest.LogCaptureFixture) -> None:
    model, processor = omnidrop.load()
    clip = Path(omnidrop.__file__).parent / "assets" / "demo.mp4"
    with caplog.at_level(logging.INFO, "omnidrop"):
        streamed = omnidrop.stream(model, processor, clip, "what color ?", method=OmniDrop(keep=0.3), segment=8.0)
        streamed.generate(max_new_tokens=2)
    totals = [passed.tokens["audio"] + passed.tokens["video"] for passed in streamed.segments]
    assert [record.levelname for record in caplog.records] == ["INFO"] * len(totals)
    for record, total in zip(caplog.records, totals, strict=True):
        assert f"of {total} media tokens" in record.getMessage()


def test_nothing_is_printed_by_default() -> None:
    code = """
import logging, omnidrop
from omnidrop.engine.announce import log
log.warning("unpruned")
assert not logging.getLogger().handlers and log.name == "omnidrop"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
