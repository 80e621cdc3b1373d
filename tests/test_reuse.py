"""`reuse_encoders`: equal media are encoded once, and the answers are those of encoding them every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import tiny
import torch
import zoo
from cases import MEDIA, greedy, model_of
from prompts import Audio, Image, Prompt, Video, prompt

import omnidrop
from omnidrop import methods, models

pytestmark = pytest.mark.slow
family = pytest.mark.parametrize("family", list(tiny.THINKERS))
METHODS = {
    "OmniDrop": omnidrop.OmniDrop(keep=0.3),
    "video attention too": methods.VisionZip(keep=0.4),
    "no attention": omnidrop.FastV(keep=0.5),
}


@contextmanager
def rows_encoded(model: Any) -> Iterator[dict[str, int]]:
    """Patches and mel frames that really pass through the encoders' last layers."""
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        for encoder in models.adapt(model).encoders:

            def count(module: Any, args: tuple, kwargs: dict, name: str = encoder.name) -> None:
                rows = args[0] if args else kwargs["hidden_states"]
                counts[name] = counts.get(name, 0) + rows.shape[0]

            hook = encoder.attention.register_forward_pre_hook(count, with_kwargs=True)
            stack.callback(hook.remove)
        yield counts


def run(model: Any, made: Prompt, method: Any = None, **options: Any) -> Any:
    with torch.no_grad(), ExitStack() as stack:
        if method is not None:
            stack.enter_context(omnidrop.prune(model, method))
        return greedy(model, made.inputs, 3, **options)


def same_bits(one: Any, other: Any) -> None:
    assert torch.equal(one.sequences, other.sequences)
    assert all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))


@family
@pytest.mark.parametrize("name", METHODS)
def test_a_repeated_prompt_gets_the_same_bits_and_encodes_nothing(family: str, name: str) -> None:
    model, made, method = model_of(family), prompt(family, MEDIA["mixed"], seed=1), METHODS[name]
    want = run(model, made, method)
    with omnidrop.reuse_encoders(model) as store:
        same_bits(want, run(model, made, method))
        with rows_encoded(model) as counts:
            same_bits(want, run(model, made, method))
        assert counts == {}
    assert store.encoded == store.reused == 5  # two videos' worth: sound, video and its sound, image, sound
    same_bits(want, run(model, made, method))


@family
def test_unpruned_prompts_reuse_too_and_attention_is_read_when_it_is_needed(family: str) -> None:
    model, made = model_of(family), prompt(family, MEDIA["video"], seed=1)
    plain, pruned = run(model, made), run(model, made, METHODS["OmniDrop"])
    with omnidrop.reuse_encoders(model) as store:
        same_bits(plain, run(model, made))
        with rows_encoded(model) as counts:
            same_bits(pruned, run(model, made, METHODS["OmniDrop"]))  # the features are there, the attention is not
        assert set(counts) == {"audio_encoder"} and store.reused == 1
        with rows_encoded(model) as counts:
            same_bits(pruned, run(model, made, METHODS["OmniDrop"]))
            same_bits(plain, run(model, made))
        assert counts == {}


@family
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("lean", ["without", "inside", "outside"])
def test_only_new_media_are_encoded(family: str, name: str, lean: str) -> None:
    model, method = model_of(family), METHODS[name]
    first = prompt(family, (Video(6.0), Audio(4.0)), seed=1)
    both = prompt(family, (Video(6.0), Audio(4.0), Image(), Audio(3.0), Video(4.0)), seed=1)
    with omnidrop.prune(model, method) as trace:
        want = greedy(model, both.inputs, 3)
    kept = [rows[0].tolist() for rows in trace.kept]
    with ExitStack() as stack:
        if lean == "outside":
            stack.enter_context(omnidrop.lean(model, encoder_rows=32))
        store = stack.enter_context(omnidrop.reuse_encoders(model))
        if lean == "inside":
            stack.enter_context(omnidrop.lean(model, encoder_rows=32))
        run(model, first, method)
        with rows_encoded(model) as counts:
            trace = stack.enter_context(omnidrop.prune(model, method))
            got = greedy(model, both.inputs, 3)
    assert [rows[0].tolist() for rows in trace.kept] == kept
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    adapter = models.adapt(model)
    grid = both.inputs["video_grid_thw"][1].prod() + both.inputs["image_grid_thw"][0].prod()
    assert counts["vision_encoder"] == grid
    frames = adapter.audio.frame_counts(both.inputs["feature_attention_mask"].sum(-1)[2:])
    assert counts["audio_encoder"] == sum(frames) and store.reused > 0


def test_the_same_item_twice_in_one_prompt_is_encoded_once() -> None:
    model, made = model_of("qwen2_5"), prompt("qwen2_5", (Image(), Image()), seed=1)
    pixels = made.inputs["pixel_values"]
    made.inputs["pixel_values"] = torch.cat([pixels[: len(pixels) // 2]] * 2)
    want = run(model, made)
    with omnidrop.reuse_encoders(model) as store, rows_encoded(model) as counts:
        got = run(model, made)
    assert counts["vision_encoder"] == len(pixels) // 2 and (store.encoded, store.reused) == (1, 1)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_another_content_of_the_same_size_is_encoded() -> None:
    model = model_of("qwen2_5")
    one, other = (prompt("qwen2_5", MEDIA["video"], seed=seed) for seed in (1, 2))
    other.inputs["input_ids"] = one.inputs["input_ids"]
    want = run(model, other)
    with omnidrop.reuse_encoders(model):
        run(model, one)
        same_bits(want, run(model, other))


def test_the_least_recently_used_item_leaves_first_and_is_encoded_again() -> None:
    model = model_of("qwen2_5")
    made = [prompt("qwen2_5", MEDIA["silent video"], seed=seed) for seed in range(3)]
    want = [run(model, each) for each in made]
    with omnidrop.reuse_encoders(model) as store:
        run(model, made[0])
        size = store.nbytes
    with omnidrop.reuse_encoders(model, max_bytes=2 * size) as store:
        for i in (0, 1, 0, 2):  # 1 leaves
            same_bits(want[i], run(model, made[i]))
        assert len(store) == 2 and store.nbytes == 2 * size and (store.encoded, store.reused) == (3, 1)
        same_bits(want[0], run(model, made[0]))
        same_bits(want[1], run(model, made[1]))
        assert (store.encoded, store.reused) == (4, 2)
    with omnidrop.reuse_encoders(model, max_bytes=size - 1) as store:
        same_bits(want[0], run(model, made[0]))
        assert len(store) == store.nbytes == 0


def test_a_store_outlives_its_with_and_may_lie_elsewhere() -> None:
    model, made = model_of("qwen3"), prompt("qwen3", MEDIA["mixed"], seed=1)
    store = omnidrop.EncodedMedia(device="cpu")
    with omnidrop.reuse_encoders(model, store):
        want = run(model, made)
    with omnidrop.reuse_encoders(model, store), rows_encoded(model) as counts:
        same_bits(want, run(model, made))
    assert counts == {}
    store.clear()
    assert len(store) == 0


def test_leaving_restores_the_encoders_and_nesting_twice_is_refused() -> None:
    model = tiny.THINKERS["qwen2_5"]()
    forwards = [encoder.module.forward for encoder in models.adapt(model).encoders]
    with pytest.raises(KeyError), omnidrop.reuse_encoders(model):
        with pytest.raises(omnidrop.ModelError, match="reused already"), omnidrop.reuse_encoders(model):
            pass
        raise KeyError
    assert forwards == [encoder.module.forward for encoder in models.adapt(model).encoders]
    assert not any("forward" in vars(encoder.module) for encoder in models.adapt(model).encoders)


@pytest.mark.parametrize("bad", [-1, 1.5, True, "2 GB"])
def test_a_wrong_bound_is_refused(bad: Any) -> None:
    with pytest.raises(omnidrop.SettingError, match="max_bytes is"):
        omnidrop.EncodedMedia(max_bytes=bad)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_family_reuses_what_was_encoded(name: str) -> None:
    member = zoo.member(name)
    model, kind = member.build().eval(), next(iter(member.prompts))
    inputs = member.prompts[kind](1)
    method = omnidrop.OmniDrop(**{"keep": 0.4, **member.settings})

    def run() -> Any:
        with torch.no_grad(), omnidrop.prune(model, method):
            return greedy(model, inputs, 3)

    want = run()
    with omnidrop.reuse_encoders(model) as store:
        same_bits(want, run())
        with rows_encoded(model) as counts:
            same_bits(want, run())
    assert counts == {} and store.encoded == store.reused
