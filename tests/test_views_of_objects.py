"""What objects say of themselves: one line in a REPL, a table for a terminal, HTML for a notebook, a data frame."""

from __future__ import annotations

import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from cases import MEDIA, model_of
from prompts import Image, Video, batch, prompt
from test_trace import SHAPE, layout, record

import omnidrop
from omnidrop import Cutoff, FastV, InputError, OmniDrop, OmnidropError, Random, Trace
from omnidrop.core.trace import Cost, Record
from omnidrop.media import Media
from omnidrop.methods.base import InputMethod


def traced(method: Any, *media: Any, rows: int = 1) -> Trace:
    made = [prompt("qwen2_5", media, seed=seed) for seed in range(rows)]
    with torch.no_grad(), omnidrop.prune(model_of("qwen2_5"), method) as trace:
        model_of("qwen2_5")(**batch(made))
    return trace


def test_a_trace_in_one_line() -> None:
    assert repr(Trace()) == "Trace(empty: no prompt has run yet)"
    # 7 media tokens of 11; 4 of 7 entries of the first row, 7 of 11 in all: see `record`
    text = repr(Trace(record(), [Trace(record())]))
    assert text.startswith("Trace(Test: keep=0.500 of 7 media tokens in 2 layers, KV cache 68.2 %, FLOPs ")
    assert text.endswith(" %, 1 earlier prompts)")
    none = replace(record(), layout=layout([[0, 0], [0, 0]], [[1, 1], [1, 1]]), kept=[[torch.arange(2)] * 2] * 2)
    assert repr(Trace(none)) == "Trace(Test: nothing to prune)"


def test_a_summary_by_hand() -> None:
    made = Trace(replace(record(), method={"name": "Test", "keep": 0.5, "budget": "input"}, extrapolated=["far", ""]))
    entry = 2 * 2 * 2 * 2  # as in test_trace
    lines = made.summary().splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["layer", "text", "audio", "video", "kept"],
        ["prompt", "4", "3", "4", "100.0", "%"],
        ["0", "4", "2", "3", "71.4", "%"],
        ["1", "4", "1", "1", "28.6", "%"],
    ]
    assert lines[5:8] == [
        "method    Test",
        "keep      0.714 of the media tokens at the input, asked for 0.5",
        "input     0.714 of the media tokens enter layer 0",
    ]
    assert lines[8] == f"KV cache  {15 * entry} B instead of {22 * entry} B (68.2 %)"
    assert lines[9].startswith("decoder   ") and lines[10:] == ["Outside of the method's paper: far."]


@pytest.mark.slow
@pytest.mark.parametrize("method", [OmniDrop(keep=0.3), Random(keep=0.5), FastV(keep=0.5), Cutoff(layer=1)], ids=repr)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_summary_fits_a_terminal(method: Any, rows: int) -> None:
    trace = traced(method, Video(8.0, sound=8.0), Image(), rows=rows)
    lines = trace.summary().splitlines()
    assert max(map(len, lines)) <= 80 and not any(line != line.rstrip() for line in lines)
    assert "\n" not in repr(trace) and len(repr(trace)) < 200


def test_layers_that_look_alike_share_a_row_and_deep_decoders_stay_short() -> None:
    deep = replace(record(), shape=replace(SHAPE, layers=60))
    deep.kept = [[torch.arange(7)[: 7 - layer // 30], torch.tensor([3, 4, 5, 6])] for layer in range(60)]
    rows = Trace(deep).summary().splitlines()
    assert [line.split()[0] for line in rows[:4]] == ["layer", "prompt", "0-29", "30-59"]
    many = torch.arange(200)
    whole = layout([[0] + [1] * 199], [[1] * 200])
    steep = Record(
        layout=whole, kept=[[many[: 200 - layer]] for layer in range(60)], prunable=(1,),
        shape=deep.shape, method={"name": "Test"},
    )  # fmt: skip
    rows = Trace(steep).summary().split("\n\n")[0].splitlines()
    assert len(rows) == 18 and rows[2].split()[0] == "0" and rows[-1].split()[0] == "59"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_whole_and_escaped() -> None:
    evil = Trace(replace(record(), method={"name": "<script>alert(1)</script>"}, extrapolated=["<b>", ""]))
    for trace in (evil, Trace(), Trace(record())):
        parser = _Tags()
        parser.feed(trace._repr_html_())
        assert not parser.open and parser.seen <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert "&lt;script&gt;" in evil._repr_html_() and "&lt;b&gt;" in evil._repr_html_()
    for cell in ("<td>71.4 %</td>", "<th>KV cache</th>"):
        assert cell in evil._repr_html_()


def test_an_empty_trace_has_no_summary() -> None:
    for ask in (Trace().summary, Trace().to_frame):
        with pytest.raises(InputError, match="run the model on a prompt"):
            ask()


def test_a_frame_has_a_row_for_each_token() -> None:
    pytest.importorskip("pandas")
    frame = Trace(record()).to_frame()
    assert list(frame.columns) == [
        "row", "position", "modality", "item", "frame", "chunk", "second", "query", "prunable", "layers"
    ]  # fmt: skip
    assert len(frame) == 11 and list(frame["row"]) == [0] * 7 + [1] * 4
    assert list(frame["position"]) == [*range(7), 3, 4, 5, 6]
    names = ["text", "audio", "audio", "video", "video", "video", "text", "text", "audio", "video", "text"]
    assert list(frame["modality"]) == names and list(frame["prunable"]) == [name != "text" for name in names]
    assert list(frame["layers"]) == [2, 1, 0, 1, 2, 0, 2, 2, 2, 1, 2]  # how many of the two lists of `record` name it
    counts = frame[frame["layers"] > 1].groupby("modality", observed=False).size()
    assert counts.to_dict() == Trace(record()).counts[1]


def test_without_pandas_the_frame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OmnidropError, match="needs pandas, which is not installed; pip install pandas"):
        Trace(record()).to_frame()


@pytest.mark.slow
def test_images_that_are_kept_by_default_are_said_everywhere() -> None:
    both = traced(OmniDrop(keep=0.3), Video(8.0), Image())
    images = both.layout.count(0)["image"]
    assert f"{images} image tokens kept by default" in repr(both)
    assert any(
        f"All {images} image tokens are kept by default" in remark and "images='prune'" in remark
        for remark in both.remarks
    )
    alone = traced(OmniDrop(keep=0.3), Image())
    assert len(alone.remarks) == 2 and alone.remarks[1].endswith("it ran unpruned.")
    for show in (both.summary(), both._repr_html_(), alone.summary()):
        assert "kept by default" in show
    assert "Random has no setting for them" in traced(Random(keep=0.5), Video(8.0), Image()).remarks[0]
    assert traced(OmniDrop(keep=0.3, images="prune"), Image()).remarks == []
    assert traced(OmniDrop(keep=0.3), Video(8.0)).remarks == []


def test_methods_show_what_is_not_default() -> None:
    assert repr(OmniDrop()) == "OmniDrop(keep=0.3)"
    assert repr(OmniDrop(keep=0.2, evict=True, query="last")) == "OmniDrop(keep=0.2, query='last', evict=True)"
    assert repr(OmniDrop.paper("7b", 30)).startswith("OmniDrop(keep=None, p_init=")
    assert repr(Cutoff(layer=3)) == "Cutoff(layer=3)"
    for method in (OmniDrop(keep=0.7, images="prune"), Random(keep=0.1, seed=3), FastV(budget="kv")):
        assert eval(repr(method), vars(omnidrop.methods)) == method


def test_a_method_of_a_user_shows_the_same() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Mine(InputMethod):
        power: float = 2.0

        def choose(self, view: Any, n: int) -> torch.Tensor:
            return torch.arange(n)

    @dataclass(frozen=True, kw_only=True)
    class Named(Mine):
        def __repr__(self) -> str:
            return "my own"

    assert repr(Mine(power=3.0)) == "Mine(keep=0.3, power=3.0)" and repr(Named()) == "my own"


@pytest.mark.slow
def test_no_array_is_printed() -> None:
    model = model_of("qwen2_5")
    pruning = omnidrop.prune(model, OmniDrop(keep=0.5))
    assert repr(pruning) == "Pruning(Qwen2_5OmniThinkerForConditionalGeneration, OmniDrop(keep=0.5), not entered)"
    with pruning:
        assert repr(pruning).endswith(", active)")
    assert repr(Cost(1, 4)) == "Cost(pruned=1, full=4, ratio=0.250)"
    assert (
        repr(layout([[0, 1, 1, 2], [0, 0, 3, 0]], [[1] * 4, [0, 1, 1, 1]]))
        == "TokenLayout(2 x 4 positions: 3 text, 2 audio, 1 video, 1 image, 1 padding)"
    )
    frames, times = np.zeros((4, 10, 20, 3), np.uint8), np.arange(4.0)
    clip = Media("a.mp4", "video", frames, times, 2.0, np.zeros(32_000, np.float32), 16_000, 2.0, ("a", "b"))
    assert repr(clip) == (
        "Media(video 'a.mp4', 2.0 s, frames (4, 10, 20, 3) at 2 a second, waveform (32000,) at 16000 Hz, 2 notes)"
    )
    picture = Media("a.png", "image", frames[:1], times[:1], None, None, 16_000, 0.0)
    assert repr(picture) == "Media(image 'a.png', frames (1, 10, 20, 3))"


@pytest.mark.slow
def test_a_streamed_clip_in_one_line() -> None:
    from pathlib import Path

    model, processor = omnidrop.load()
    clip = Path(omnidrop.__file__).parent / "assets" / "demo.mp4"
    streamed = omnidrop.stream(model, processor, clip, "what color ?", method=OmniDrop(keep=0.3), segment=8.0)
    assert repr(streamed).startswith(f"Streamed(2 segments, {streamed.input_ids.shape[1]} prompt tokens, ")
    assert "tensor" not in repr(streamed) and "\n" not in repr(streamed)


def test_the_mixed_prompt_of_the_tests_counts_all_kinds() -> None:
    """`MEDIA["mixed"]` of the other tests goes through `repr` of its layout."""
    made = prompt("qwen2_5", MEDIA["mixed"])
    text = repr(omnidrop.layout(model_of("qwen2_5"), made.inputs))
    for kind in ("audio", "video", "image"):
        value = {"audio": 1, "video": 2, "image": 3}[kind]
        assert f" {int((made.modality == value).sum())} {kind}" in text
