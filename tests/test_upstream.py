"""A release of transformers that calls things otherwise is refused, and what would be silently wrong is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from cases import MEDIA, greedy
from prompts import Image, Video, prompt
from torch import nn

import omnidrop
from omnidrop import ModelError, models, streaming
from omnidrop.engine import upstream
from omnidrop.engine.forward_inputs import ForwardInputs
from omnidrop.tested import TESTED

METHOD = omnidrop.OmniDrop(keep=0.3)


@pytest.fixture
def model() -> Any:
    return tiny.THINKERS["qwen2_5"](layers=4, seed=0)


def inputs() -> dict[str, Any]:
    return prompt("qwen2_5", MEDIA["video"], seed=3).inputs


def decoder_of(model: Any) -> Any:
    return models.adapt(model).decoder.module


def segments() -> Iterator[tuple[float, dict[str, Any]]]:
    yield 0.0, inputs()


ENTER: dict[str, Callable[[Any], Any]] = {
    "prune": lambda model: omnidrop.prune(model, METHOD).__enter__(),
    "lean": lambda model: omnidrop.lean(model).__enter__(),
    "stream": lambda model: streaming.prefill(model, segments(), method=METHOD),
}
entered = pytest.mark.parametrize("how", ENTER)


def renamed(module: Any, old: str, new: str) -> None:
    """Give a module a class whose forward calls one parameter otherwise."""
    stock = type(module)
    names = [name for name in upstream.Signature.of_forward(module, (), "").defaults]
    body = ", ".join(f"{new if name == old else name}=None" for name in names)
    call = ", ".join(f"{name}={new if name == old else name}" for name in names)
    scope: dict[str, Any] = {"stock": stock}
    exec(f"def forward(self, {body}, **kwargs): return stock.forward(self, {call}, **kwargs)", scope)
    module.__class__ = type(f"Next{stock.__name__}", (stock,), {"forward": scope["forward"]})


PLACES: dict[str, Callable[[Any], Any]] = {
    "layer": lambda model: decoder_of(model).layers[1],
    "decoder": decoder_of,
    "thinker": lambda model: model,
    "vision_encoder": lambda model: models.adapt(model).vision.module,
    "audio_encoder": lambda model: models.adapt(model).audio.module,
    "vision_attention": lambda model: models.adapt(model).vision.attention,
}
CACHE = upstream.MASK_CACHE


@entered
@pytest.mark.parametrize(("place", "name"), [
    ("layer", CACHE), ("layer", "position_embeddings"), ("layer", "attention_mask"), ("decoder", CACHE),
    ("decoder", "inputs_embeds"), ("thinker", "input_ids"), ("thinker", "use_audio_in_video"),
    ("vision_encoder", "grid_thw"), ("audio_encoder", "feature_lens"), ("vision_attention", "cu_seqlens"),
])  # fmt: skip
def test_the_next_rename_is_refused(how: str, place: str, name: str, model: Any) -> None:
    module = PLACES[place](model)
    renamed(module, name, "kv_store")
    with pytest.raises(ModelError) as error:
        ENTER[how](model)
    said = str(error.value)
    assert f"{type(module).__name__}.forward has no parameter {name}" in said
    assert f"Tested: {TESTED['transformers'][0]} to {TESTED['transformers'][1]}" in said and "pip install" in said


@entered
@pytest.mark.parametrize("lost", ["max_position_embeddings", "position_id_per_seconds", "n_window", "head"])
def test_a_missing_part_or_number_is_refused(how: str, lost: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if lost in ("max_position_embeddings", "position_id_per_seconds"):
        config = decoder_of(model).config if lost == "max_position_embeddings" else model.config
        vars(config).pop(lost)
        monkeypatch.delattr(type(config), lost, raising=False)
    elif lost == "n_window":
        del models.adapt(model).audio.module.n_window
    else:
        del decoder_of(model).layers[2].self_attn.k_proj
    with pytest.raises(ModelError, match="is not what omnidrop was tested with"):
        ENTER[how](model)


def test_names_are_those_of_the_installed_release(model: Any) -> None:
    names = upstream.names_of(models.adapt(model))
    assert names.cache in names.layer and names.cache in names.decoder and names.cache in names.thinker
    output = model(**inputs(), use_cache=True)
    assert upstream.cache_of(output).get_seq_length() == inputs()["input_ids"].shape[1]


def test_arguments_are_found_however_they_are_passed() -> None:
    def forward(self: Any, a: int, b: int = 2, *, c: Any = None, **further: Any) -> None: ...

    signature = upstream.Signature.of(forward, "forward", ("a", "b", "c"), "a test")
    assert [signature.read((1, 5), {}, name) for name in "abc"] == [1, 5, None]
    assert [signature.read((1,), {"c": 7}, name) for name in "abc"] == [1, 2, 7]
    assert "further" not in signature and "self" not in signature
    with pytest.raises(ModelError, match="forward has no parameter d, e"):
        upstream.Signature.of(forward, "forward", ("a", "d", "e"), "a test")


# ---- postconditions: each fires on a fault put in on purpose


class Forgetful(nn.Module):
    """An attention's cache argument that stores nothing."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stock = attention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.stock(*args, **{**kwargs, CACHE: None})

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "stock" else getattr(super().__getattr__("stock"), name)


def test_a_layer_that_stored_nothing(model: Any) -> None:
    layer = decoder_of(model).layers[2]
    layer.self_attn = Forgetful(layer.self_attn)
    with omnidrop.prune(model, METHOD), torch.no_grad(), pytest.raises(ModelError, match="layer 2 stored 0 entries"):
        model(**inputs(), use_cache=True)


def test_a_last_layer_that_did_not_store_all_rows(model: Any) -> None:
    layer = decoder_of(model).layers[-1]
    layer.self_attn = Forgetful(layer.self_attn)
    with omnidrop.lean(model), torch.no_grad(), pytest.raises(ModelError, match="last layer did not store"):
        model(**inputs(), use_cache=True)


def test_a_later_step_without_its_cache(model: Any) -> None:
    def lose(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, kwargs if kwargs["inputs_embeds"].shape[1] > 1 else {**kwargs, CACHE: None}

    decoder_of(model).register_forward_pre_hook(lose, with_kwargs=True)
    with omnidrop.prune(model, METHOD), pytest.raises(ModelError, match="no cache that holds the others"):
        greedy(model, inputs(), 2)


def test_media_that_ran_past_the_hooks(model: Any) -> None:
    decoder = decoder_of(model)
    decoder._call_impl = decoder.forward  # what compiled or wrapped code can do: no hook runs
    with omnidrop.prune(model, METHOD), torch.no_grad(), pytest.raises(ModelError, match="ran past the hooks"):
        model(**inputs())


def test_hidden_states_that_nobody_prepared_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "recorded", lambda *args: False)
    with omnidrop.prune(model, METHOD), torch.no_grad(), pytest.raises(ModelError, match="hidden states came back"):
        model(**inputs(), output_hidden_states=True)


def test_projections_that_fire_no_hook(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(models.adapt(model).decoder), "query_module", lambda self, layer: nn.Identity())
    with (
        omnidrop.prune(model, METHOD),
        torch.no_grad(),
        pytest.raises(ModelError, match="gave no queries to its hooks"),
    ):
        model(**inputs())


@contextmanager
def given(module: nn.Module, **further: torch.Tensor) -> Iterator[None]:
    def give(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, **further}

    handle = module.register_forward_pre_hook(give, with_kwargs=True)
    yield
    handle.remove()


def test_a_side_input_that_nobody_shortens(model: Any) -> None:
    length = inputs()["input_ids"].shape[1]
    with (
        given(decoder_of(model), per_token=torch.zeros(1, length, 3)),
        omnidrop.prune(model, METHOD),
        torch.no_grad(),
        pytest.raises(ModelError, match="given per_token, one entry for each"),
    ):
        model(**inputs())


def test_saliency_that_is_missing(model: Any) -> None:
    """Encoders that ran before the `with`: what they attended to was not seen."""
    made, encoder = inputs(), models.adapt(model).audio.attention
    encoder._call_impl = encoder.forward
    with omnidrop.prune(model, METHOD), torch.no_grad(), pytest.raises(omnidrop.OmnidropError, match="attention"):
        model(**made)


def test_grids_that_the_encoder_did_not_read(model: Any) -> None:
    """The call of the videos taken for that of the images, by sizes that agree in count."""
    made = prompt("qwen2_5", (Image(4, 5), Video(1.0, height=4, width=5, sound=False)), seed=3).inputs
    adapter = models.adapt(model)
    call = ForwardInputs(
        adapter=adapter,
        names=upstream.names_of(adapter),
        args=(),
        kwargs={**made, "video_grid_thw": made["video_grid_thw"][:, [0, 2, 1]]},
    )
    with pytest.raises(ModelError, match="read other sizes than video_grid_thw says"):
        call.sizes([made["image_grid_thw"], made["video_grid_thw"]], None)
