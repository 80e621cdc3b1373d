"""The edges of a `with`: who else touches the model meanwhile, and what is left when it ends. Right, or refused."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import tiny
import torch
from cases import MEDIA, cache_of, greedy, model_of, with_cache
from prompts import Audio, Video, prompt
from snapshot import state

import omnidrop
from omnidrop import InputError, ModelError

pytestmark = pytest.mark.slow

METHOD = omnidrop.OmniDrop(keep=0.3)
FAMILIES = list(tiny.THINKERS)
ENTER: dict[str, Callable[[Any], Any]] = {
    "prune": lambda model: omnidrop.prune(model, METHOD),
    "lean": omnidrop.lean,
}
entered = pytest.mark.parametrize("how", ENTER)


def clip(family: str = "qwen2_5", kind: str = "video", seed: int = 3) -> Any:
    return prompt(family, MEDIA[kind], seed=seed)


def answer(model: Any, inputs: dict[str, Any], **options: Any) -> list[int]:
    with torch.no_grad():
        return greedy(model, inputs, 3, **options).sequences[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture
def fresh() -> Iterator[Callable[[str], Any]]:
    """Models of one's own, for what changes them; Dynamo's caches are emptied around."""
    torch._dynamo.reset()
    yield lambda family="qwen2_5": tiny.THINKERS[family](layers=4, seed=0)
    torch._dynamo.reset()


# ---- copies


@entered
@pytest.mark.parametrize("how_copied", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_inside_is_refused(how: str, how_copied: str) -> None:
    model = model_of("qwen2_5")
    copies = {"deepcopy": copy.deepcopy, "pickle": pickle.dumps, "torch.save": lambda m: torch.save(m, io.BytesIO())}
    with ENTER[how](model), pytest.raises(ModelError, match=rf"copied or pickled inside `with omnidrop.{how}"):
        copies[how_copied](model)
    inputs = clip().inputs
    assert answer(copy.deepcopy(model), inputs) == answer(model, inputs)


def test_a_copy_of_a_part_is_refused_too() -> None:
    """`lean` lends single modules another forward, which would compute with the weights of the original."""
    model = model_of("qwen2_5")
    with omnidrop.lean(model), pytest.raises(ModelError, match="copied or pickled"):
        copy.deepcopy(model.model.visual.blocks[0] if hasattr(model.model, "visual") else model.visual.blocks[0])


@entered
def test_the_weights_may_be_saved_inside(how: str) -> None:
    model = model_of("qwen2_5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ENTER[how](model):
        assert before.keys() == model.state_dict().keys()


# ---- threads


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returned or raised in a thread of its own."""
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(work())
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return got[0]


@entered
def test_another_thread_is_refused_and_this_one_goes_on(how: str) -> None:
    model, inputs = model_of("qwen2_5"), clip().inputs
    with ENTER[how](model):
        want = answer(model, inputs)
    with ENTER[how](model):
        error = in_thread(lambda: answer(model, inputs))
        assert isinstance(error, ModelError) and f"entered `with omnidrop.{how}(...)`" in str(error)
        assert answer(model, inputs) == want


@entered
def test_a_with_inside_the_thread_works(how: str) -> None:
    model, inputs = model_of("qwen2_5"), clip().inputs

    def work() -> list[int]:
        with ENTER[how](model):
            return answer(model, inputs)

    assert in_thread(work) == work()


# ---- a lost object, an exception, two at once


@entered
def test_a_lost_object_switches_off_and_says_so(how: str) -> None:
    model, inputs = model_of("qwen2_5"), clip().inputs
    plain, before = answer(model, inputs), state(model)
    thing = ENTER[how](model)
    thing.__enter__()
    with pytest.warns(RuntimeWarning, match=rf"omnidrop.{how}\(...\) returned was lost"):
        del thing
        gc.collect()
    assert state(model) == before
    assert answer(model, inputs) == plain
    with ENTER[how](model):
        pass


@entered
def test_entered_twice_is_refused_and_the_first_goes_on(how: str) -> None:
    model, inputs = model_of("qwen2_5"), clip().inputs
    thing = ENTER[how](model)
    with thing:
        want = answer(model, inputs)
        for other in (thing, ENTER[how](model)):
            with pytest.raises(ModelError, match="already: leave the other"):
                other.__enter__()
        assert answer(model, inputs) == want


@contextmanager
def shared_decoder() -> Iterator[tuple[Any, Any]]:
    """Two thinkers with the same decoder."""
    one, two = tiny.THINKERS["qwen2_5"](seed=0), tiny.THINKERS["qwen2_5"](seed=0)
    if hasattr(one.model, "language_model"):
        two.model.language_model = one.model.language_model
    else:
        two.model = one.model
    yield one, two


@entered
def test_models_that_share_a_decoder(how: str) -> None:
    inputs = clip().inputs
    with shared_decoder() as (one, two):
        plain = answer(two, inputs)
        with ENTER[how](one):
            want = answer(one, inputs)
            with pytest.raises(ModelError, match="shares its decoder"):
                ENTER[how](two).__enter__()
            assert answer(two, inputs) == plain
            assert answer(one, inputs) == want


# ---- a pruned cache afterwards


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_pruned_cache_is_refused_outside(tokens: int) -> None:
    model, made = model_of("qwen2_5"), clip()
    with torch.no_grad():
        with omnidrop.prune(model, METHOD):
            first = greedy(model, made.inputs, 2)
        more = torch.cat([first.sequences, torch.tensor([[5, 6][: tokens - 1]], dtype=torch.long)], 1)
        later = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        with pytest.raises(ModelError, match=r"holds a pruned prompt.*inside `with omnidrop.prune"):
            greedy(model, later, 2, **with_cache(cache_of(first)))
        with omnidrop.prune(model, METHOD):
            with pytest.raises(ModelError, match="another thread"):
                raise in_thread(lambda: greedy(model, later, 2, **with_cache(cache_of(first))))
            greedy(model, later, 2, **with_cache(cache_of(first)))


# ---- compiled models


def compiled_forward(model: Any) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


@entered
@pytest.mark.parametrize("compile_it", [lambda m: m.compile(backend="eager"), compiled_forward])
def test_compiled_in_place_is_refused(how: str, compile_it: Any, fresh: Any) -> None:
    model = fresh()
    compile_it(model)
    with pytest.raises(ModelError, match="compiled in place"), ENTER[how](model):
        pass


@entered
@pytest.mark.parametrize("when", ["before", "inside", "in an earlier with"])
def test_a_compiled_wrapper_computes_what_the_model_does(how: str, when: str, fresh: Any) -> None:
    """Compiled code does not look for hooks that came later, and keeps those that it saw."""
    model, inputs = fresh(), clip().inputs
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]
        with ENTER[how](model):
            want = model(**inputs).logits[0, -1]
        wrapper = torch.compile(model, backend="eager") if when != "inside" else None
        if when == "before":
            wrapper(**inputs)
        if when == "in an earlier with":
            with ENTER[how](model):
                wrapper(**inputs)
        with ENTER[how](model) as trace:
            if wrapper is None:
                wrapper = torch.compile(model, backend="eager")
            got = wrapper(**inputs)
            assert torch.allclose(got.logits[0, -1], want, atol=1e-5)
            if how == "prune":
                assert trace.keep < 0.4
        assert torch.allclose(wrapper(**inputs).logits[0, -1], plain, atol=1e-5)


def test_a_compiled_wrapper_itself_is_refused(fresh: Any) -> None:
    with pytest.raises(ModelError, match="compile after entering"):
        omnidrop.prune(torch.compile(fresh(), backend="eager"), METHOD)


def test_compiled_parts_that_are_not_hooked_work(fresh: Any) -> None:
    model, inputs = fresh(), clip().inputs
    with omnidrop.prune(model, METHOD):
        want = answer(model, inputs)
    with ExitStack():
        for layer in (getattr(model.model, "language_model", None) or model.model).layers:
            layer.mlp.compile(backend="eager")
        with omnidrop.prune(model, METHOD) as trace:
            assert answer(model, inputs) == want and trace.keep < 0.4


# ---- gradient checkpointing


@entered
def test_gradient_checkpointing_in_training_mode(how: str, fresh: Any) -> None:
    """Where layers then store nothing, `prune` refuses and `lean` computes what the stock model does, or refuses."""
    model, inputs = fresh(), clip().inputs
    with ENTER[how](model):
        want = answer(model, inputs)
    enable = "activation_checkpointing_enable"  # its name from 5.24 on
    getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()
    model.train()

    def logits() -> list[float]:
        return model(**inputs, use_cache=True).logits[0, -1].tolist()

    stock = {run: run() for run in (logits, lambda: answer(model, inputs))}
    for run, plain in stock.items():
        try:
            with ENTER[how](model):
                got = run()
        except ModelError as error:
            assert "call model.eval() first" in str(error)
        else:
            if how == "lean":
                assert got == pytest.approx(plain, abs=1e-5)
            elif run is not logits:
                assert got == want
    model.eval()
    with ENTER[how](model):
        assert answer(model, inputs) == want


# ---- generation without a cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [METHOD, omnidrop.OmniDrop.tuned(keep=0.3), omnidrop.methods.OmniPack(keep=0.3)])
def test_another_clip_with_the_same_ids_without_a_cache(family: str, method: Any) -> None:
    """Scoring candidate answers one after another: the ids of the second prompt go on where the first one's end."""
    model, one, other = model_of(family), clip(family, seed=3).inputs, dict(clip(family, seed=4).inputs)
    other["input_ids"] = torch.cat([one["input_ids"], torch.tensor([[47]])], 1)
    other["attention_mask"] = torch.ones_like(other["input_ids"])

    def score(inputs: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits[0, -1]

    with omnidrop.prune(model, method):
        want = score(other)
    with omnidrop.prune(model, method) as trace:
        score(one)
        assert torch.equal(score(other), want)
        assert len(trace.history) == 1


# ---- use_audio_in_video and the prompt


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("call", ["generate", "forward"])
@pytest.mark.parametrize("flag", [None, False])
def test_a_missing_flag_is_refused(family: str, call: str, flag: bool | None) -> None:
    model, inputs = model_of(family), {**clip(family).inputs, "use_audio_in_video": flag}
    with omnidrop.prune(model, METHOD), pytest.raises(InputError, match="use_audio_in_video=True"):
        answer(model, inputs) if call == "generate" else model(**inputs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("call", ["generate", "forward"])
@pytest.mark.parametrize("kind", ["silent video", "video and separate audio"])
def test_a_flag_without_sound_is_refused(family: str, call: str, kind: str) -> None:
    model, inputs = model_of(family), clip(family, kind).inputs
    with omnidrop.prune(model, METHOD):
        want = answer(model, inputs)
    inputs = {**inputs, "use_audio_in_video": True}
    with (
        omnidrop.prune(model, METHOD),
        pytest.raises(InputError, match=r"a video without sound inside.*leave the flag out"),
    ):
        answer(model, inputs) if call == "generate" else model(**inputs)
    with omnidrop.prune(model, METHOD):
        assert answer(model, {**inputs, "use_audio_in_video": False}) == want


@pytest.mark.parametrize("family", FAMILIES)
def test_the_flag_without_any_video_changes_nothing(family: str) -> None:
    model, inputs = model_of(family), prompt(family, (Audio(4.0),), seed=3).inputs
    with omnidrop.prune(model, METHOD):
        assert answer(model, inputs) == answer(model, {**inputs, "use_audio_in_video": True})


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_of_ones_own_need_no_flag(family: str) -> None:
    """Whoever numbers an interleaved prompt himself, rightly, has said what the flag says."""
    model, inputs = model_of(family), prompt(family, (Video(6.0),), seed=3).inputs
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        decoder = getattr(model.model, "language_model", None) or model.model
        handle = decoder.register_forward_pre_hook(
            lambda m, a, kwargs: seen.append(kwargs["position_ids"][-3:].clone()), with_kwargs=True
        )
        with omnidrop.prune(model, METHOD):
            want = model(**inputs).logits
        handle.remove()
        with omnidrop.prune(model, METHOD):
            got = model(**{**inputs, "use_audio_in_video": None, "position_ids": seen[0]}).logits
    assert torch.equal(got, want)
