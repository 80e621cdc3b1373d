"""The ports of a model family: side inputs that are sliced by name, and encoders that a model may lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import MEDIA, model_of
from prompts import prompt

import omnidrop
from omnidrop import models
from omnidrop.engine.session import Pruning
from omnidrop.models import Qwen25Omni
from omnidrop.models.base import Decoder
from omnidrop.models.side_inputs import along

METHOD = omnidrop.OmniDrop(keep=0.3)


def test_a_side_input_is_sliced_along_its_sequence() -> None:
    columns = torch.tensor([[0, 2], [1, 1]])
    flat, wide = torch.arange(6).view(2, 3), torch.arange(24).view(2, 3, 4)
    axes = torch.arange(72).view(3, 2, 3, 4)
    assert along(-1)(flat, columns).tolist() == [[0, 2], [4, 4]]
    for b, row in enumerate(columns.tolist()):
        for k, column in enumerate(row):
            assert torch.equal(along(-2)(wide, columns)[b, k], wide[b, column])
            assert torch.equal(along(-2)(axes, columns)[:, b, k], axes[:, b, column])
    pair = along(-2)((wide, None), columns)
    assert isinstance(pair, tuple) and pair[1] is None and torch.equal(pair[0], along(-2)(wide, columns))


def test_a_declared_side_input_follows_the_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another family gives its layers for each token, by the declaration alone; not declared, it is refused."""
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=3)
    length = made.inputs["input_ids"].shape[1]
    extra = {"per_token": torch.arange(length).view(1, length, 1)}
    for name in ("side_inputs", "layer_side_inputs"):
        monkeypatch.setattr(Decoder, name, {**getattr(Decoder, name), "per_token": along(-2)})
    decoder = models.adapt(model).decoder
    handles = [decoder.module.register_forward_pre_hook(lambda m, a, k: (a, k | extra), with_kwargs=True)]
    got: list[list[int]] = []
    try:
        with omnidrop.prune(model, METHOD) as trace, torch.no_grad():
            for layer in decoder.layers:

                def note(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
                    got.append(kwargs["per_token"].flatten().tolist())
                    return args, {name: value for name, value in kwargs.items() if name != "per_token"}

                handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
            model(**made.inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert got == [row.tolist() for (row,) in trace.kept] and len(got[-1]) < len(got[0]) < length


class VideoOnly(Qwen25Omni):
    audio_class = None


def test_a_model_without_an_audio_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["silent video"], seed=3).inputs
    tower = models.adapt(model).audio.module

    def run() -> list[int]:
        with omnidrop.lean(model), omnidrop.prune(model, METHOD) as trace, torch.no_grad():
            hooked.append(bool(tower._forward_pre_hooks))
            tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0].tolist()
        assert trace.keep == pytest.approx(0.3, abs=0.02)
        return tokens

    hooked: list[bool] = []
    want = run()
    monkeypatch.setitem(models.THINKERS, type(model).__name__, VideoOnly)
    assert run() == want
    assert hooked == [True, False]
    assert omnidrop.layout(model, inputs).count(0)["audio"] == 0


def test_append_needs_its_with() -> None:
    pruning = omnidrop.prune(model_of("qwen2_5"), METHOD)
    assert isinstance(pruning, Pruning)
    with pytest.raises(omnidrop.ModelError, match="outside of its `with"):
        pruning.append(None, torch.zeros(1, 1), torch.zeros(3, 1, 1), None)  # type: ignore[arg-type]
