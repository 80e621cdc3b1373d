"""Live input on a model: what is answered, held, skipped, and left as it was. Stock `generate` is the oracle."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny as random_models
import torch
from cases import greedy, model_of
from prompts import Audio, Prompt, Video, prompt
from test_stream import cut

import omnidrop
from omnidrop import loading, media
from omnidrop.errors import InputError, ModelError, SettingError
from omnidrop.livestream import Live, Piece, units

pytestmark = pytest.mark.slow

NOTHING = torch.zeros(0)
QUESTIONS = ["what color is the circle ?", "what pattern is the tenor one ?"]
CLIPS = {
    "video": (Video(20.0),),
    "silent video": (Video(20.0, sound=False),),
    "audio": (Audio(20.0),),
    "odd end": (Video(19.0, second_per_grid=0.5, sound=18.37),),
}
METHODS = {
    "all": omnidrop.OmniDrop(keep=1.0),
    "paper": omnidrop.OmniDrop(keep=0.3),
    "tuned": omnidrop.OmniDrop.tuned(keep=0.3),
    "merging": omnidrop.methods.OmniZip(keep=0.5),
    "saliency of pictures": omnidrop.methods.VisionZip(keep=0.5),
}


# the engine, on random models of both families ------------------------------------------------------------------------


def held_units(model: Any, method: Any, whole: Prompt, chunks: int = 2) -> list[units.Unit]:
    return [units.encode_unit(model, method, part, start, 2.0 * chunks) for start, part in cut(whole, chunks)]


def around(whole: Prompt, held: list[units.Unit]) -> tuple[dict[str, Any], int]:
    """The inputs of the prompt with `held` in place of its clip, and where they begin."""
    where = (whole.modality != 0).nonzero()[:, 0]
    ids = whole.inputs["input_ids"][:, : where[0]], whole.inputs["input_ids"][:, where[-1] + 1 :]
    joined = torch.cat([ids[0], *(unit.ids[None] for unit in held), ids[1]], 1)
    inputs = {"input_ids": joined, "attention_mask": torch.ones_like(joined), **units.joined_inputs(held)}
    return inputs, int(where[0])


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize(("clip", "method"), [*((c, "paper") for c in CLIPS), *(("video", m) for m in METHODS)])
def test_all_that_is_held_is_one_prompt(family: str, clip: str, method: str) -> None:
    """Units that were encoded one by one: what `prune` keeps of the whole clip, and the tokens of `generate`."""
    model, whole, chosen = model_of(family), prompt(family, CLIPS[clip], seed=50), METHODS[method]
    with torch.no_grad(), omnidrop.prune(model, chosen) as trace:
        stock = greedy(model, whole.inputs, 6)
    held = held_units(model, chosen, whole)
    assert len(held) == 5
    inputs, first = around(whole, held)
    assert torch.equal(inputs["input_ids"], whole.inputs["input_ids"])
    adapter = omnidrop.models.adapt(model)
    at = units.positions(adapter, inputs, held, first)
    with torch.inference_mode(), units.answering(adapter, held, at), omnidrop.prune(model, chosen) as ours:
        live = greedy(model, inputs, 6)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(ours.kept, trace.kept, strict=True))
    assert torch.equal(live.sequences, stock.sequences)
    for one, other in zip(live.logits, stock.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_of_an_encoder_only_what_the_decoder_reads_is_held(family: str) -> None:
    """One row a token: merged tokens of video (and DeepStack's), pooled ones of sound; nothing of the patches."""
    unit = held_units(model_of(family), METHODS["all"], prompt(family, CLIPS["video"], seed=54))[0]
    tokens = {kind: int((unit.modality == kind).sum()) for kind in (1, 2)}
    features = (1 if family == "qwen2_5" else 3) * tokens[2] + tokens[1]
    numbers = features * random_models.HIDDEN * 4  # float32
    assert unit.tokens == sum(tokens.values()) and unit.nbytes == numbers + 2 * 8 * unit.tokens


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("method", ["paper", "saliency of pictures"])
def test_bytes_are_those_of_the_memory_behind_them(family: str, method: str) -> None:
    """No tensor is a piece of a larger one that is kept alive with it."""
    unit = held_units(model_of(family), METHODS[method], prompt(family, CLIPS["video"], seed=55))[0]
    memory: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            memory[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for each in value.values():
                visit(each)
        elif isinstance(value, list | tuple):
            for each in value:
                visit(each)

    visit([unit.ids, unit.modality, *((item.output, item.attended) for item in unit.outputs.values())])
    assert sum(memory.values()) == pytest.approx(unit.nbytes, rel=0.02)  # ids may be cut from the prompt's few


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("clip", ["video", "silent video", "audio"])
def test_a_gap_leaves_every_unit_at_its_own_time(family: str, clip: str) -> None:
    """The positions of what is held are those of the whole clip; the text goes on behind the last of them."""
    model, whole = model_of(family), prompt(family, CLIPS[clip], seed=51)
    adapter = omnidrop.models.adapt(model)
    held = held_units(model, METHODS["all"], whole)
    stay = [held[0], held[2], held[4]]
    natural = numbered(adapter, whole.inputs)
    inputs, first = around(whole, stay)
    at = units.positions(adapter, inputs, stay, first)
    mine = torch.cat([(whole.chunk // 2 == n).nonzero()[:, 0] for n in (0, 2, 4)])
    assert torch.equal(at[..., first : first + len(mine)], natural[..., mine])
    assert torch.equal(at[..., :first], natural[..., :first])
    assert torch.equal(at[..., first + len(mine) :], natural[..., -(at.shape[-1] - first - len(mine)) :])


def numbered(adapter: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The model's own positions."""
    mask = inputs.get("feature_attention_mask")
    found, _ = adapter.thinker.get_rope_index(
        input_ids=inputs["input_ids"],
        video_grid_thw=inputs.get("video_grid_thw"),
        attention_mask=inputs["attention_mask"],
        use_audio_in_video=bool(inputs.get("use_audio_in_video", False)),
        audio_seqlens=None if mask is None else mask.sum(-1),
        second_per_grids=inputs.get("video_second_per_grid"),
    )
    return found


def test_gaps_that_leave_the_range_of_positions_become_shorter() -> None:
    model = random_models.THINKERS["qwen2_5"](max_positions=2000)
    whole = prompt("qwen2_5", CLIPS["video"], seed=52)
    adapter = omnidrop.models.adapt(model)
    one, other, last = held_units(model, METHODS["paper"], whole)[:3]
    later = [one, dataclasses.replace(other, start=1004.0), dataclasses.replace(last, start=4008.0)]
    moves = units.gaps(adapter, later)
    room = 2000 - 1024 - 12 * 25
    assert moves[0] == 0 and moves[2] == room and moves[1] == room // 4  # gaps of 1000 s and 3000 s
    inputs, first = around(whole, later)
    at = units.positions(adapter, inputs, later, first)
    assert int(at.max()) < 2000 and bool((at[0, 0].diff() >= 0)[first + one.tokens - 1])
    with torch.inference_mode(), units.answering(adapter, later, at), omnidrop.prune(model, METHODS["paper"]):
        assert greedy(model, inputs, 2).sequences.shape[1] == inputs["input_ids"].shape[1] + 3


def test_the_model_is_as_it_was() -> None:
    model, whole = model_of("qwen2_5"), prompt("qwen2_5", CLIPS["video"], seed=53)
    adapter = omnidrop.models.adapt(model)
    modules = [model, adapter.backbone, adapter.decoder.module, *(each.module for each in adapter.encoders)]
    before = [(dict(vars(module)), len(module._forward_pre_hooks)) for module in modules]
    held = held_units(model, METHODS["paper"], whole)
    inputs, first = around(whole, held)
    at = units.positions(adapter, inputs, held, first)
    with units.answering(adapter, held, at):
        pass
    for module, (attributes, hooks) in zip(modules, before, strict=True):
        assert vars(module).keys() == attributes.keys() and len(module._forward_pre_hooks) == hooks


# the stream, on the included model ------------------------------------------------------------------------------------


@cache
def tiny() -> tuple[Any, Any]:
    return omnidrop.load(device="cpu")


@cache
def clip() -> media.Media:
    return media.read(loading.TINY.parent / "demo.mp4")


def pieces(seconds: float = 16.0, each: float = 0.5) -> Iterator[Piece]:
    """The included clip, over and over, in pieces."""
    whole = clip()
    assert whole.frames is not None and whole.waveform is not None
    for i in range(round(seconds / each)):
        start = i * each
        frame = round(start * 2) % len(whole.frames)
        sample = round(start * whole.sample_rate) % len(whole.waveform)
        yield Piece(
            frames=whole.frames[frame], times=[start],
            sound=whole.waveform[sample : sample + round(each * whole.sample_rate)],
        )  # fmt: skip


def opened(method: Any = None, **settings: Any) -> Live:
    return omnidrop.live(*tiny(), method or omnidrop.OmniDrop(keep=0.3), **settings)


@pytest.mark.parametrize("lossless", [True, False])
def test_pictures_alone_get_the_answer_of_a_conversation(lossless: bool) -> None:
    chat = omnidrop.Conversation(*tiny(), omnidrop.OmniDrop(keep=0.3), use_audio=False, lossless=lossless)
    chat.add(clip())
    with opened(sound=False, lossless=lossless) as live:
        live.feed([dataclasses.replace(clip(), waveform=None)], wait=True)
        for question in QUESTIONS:
            answer = live.ask(question, max_new_tokens=8)
            single = omnidrop.Conversation(*tiny(), omnidrop.OmniDrop(keep=0.3), use_audio=False, lossless=lossless)
            single.add(clip())
            assert answer.text == single.ask(question, max_new_tokens=8)
            assert single.trace is not None
            assert all(torch.equal(a[0], b[0]) for a, b in zip(answer.trace.kept, single.trace.kept, strict=True))
            assert answer.at == 16.0 and [start for start, _, _ in answer.units] == [2.0 * i for i in range(8)]


def test_pictures_and_sound_get_the_answer_of_generate() -> None:
    """On the inputs that the processor makes of each stretch of 2 s, one behind the other."""
    model, processor = tiny()
    whole = clip()
    assert whole.frames is not None and whole.waveform is not None and whole.times is not None
    parts = [
        omnidrop.build(
            processor,
            dataclasses.replace(
                whole, frames=whole.frames[4 * i : 4 * i + 4], times=whole.times[4 * i : 4 * i + 4],
                waveform=whole.waveform[32000 * i : 32000 * (i + 1)], seconds=2.0,
            ),
            "x",
        )
        for i in range(4)
    ]  # fmt: skip
    first_half = dataclasses.replace(
        whole, frames=whole.frames[:16], times=whole.times[:16], waveform=whole.waveform[:128000], seconds=8.0
    )
    with opened() as live:
        live.feed(pieces(8.0), wait=True)
        for question in QUESTIONS:
            inputs = dict(omnidrop.build(processor, first_half, question))
            inputs["pixel_values_videos"] = torch.cat([part["pixel_values_videos"] for part in parts])
            masks = [part["feature_attention_mask"].bool()[0] for part in parts]
            mels = [p["input_features"][..., mask] for p, mask in zip(parts, masks, strict=True)]
            inputs["input_features"] = torch.cat(mels, -1)
            inputs["feature_attention_mask"] = torch.ones(inputs["input_features"].shape[::2], dtype=torch.long)
            with torch.inference_mode(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
                output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answer = live.ask(question, max_new_tokens=8)
            assert answer.text == text.strip()
            assert all(torch.equal(a[0], b[0]) for a, b in zip(answer.trace.kept, trace.kept, strict=True))
            first = int((inputs["input_ids"][0] == model.config.video_token_id).nonzero()[0])
            share = [
                np.mean(
                    [len({*range(first + 28 * i, first + 28 * i + 28)} & {*k[0].tolist()}) / 28 for k in trace.kept]
                )
                for i in range(4)
            ]
            assert [unit[2] for unit in answer.units] == pytest.approx(share)


@pytest.mark.parametrize("seconds", [7.0, 6.5])
@pytest.mark.parametrize("kinds", ["both", "pictures", "sound"])
def test_a_short_rest_is_the_end_of_the_prompt(seconds: float, kinds: str) -> None:
    """The prompt is that of the clip up to there, also where its last unit has one picture, or is sound alone."""
    whole = clip()
    assert whole.frames is not None and whole.times is not None and whole.waveform is not None
    both = dataclasses.replace(
        whole, frames=whole.frames[: round(2 * seconds)], times=whole.times[: round(2 * seconds)],
        waveform=whole.waveform[: round(16000 * seconds)], seconds=seconds,
    )  # fmt: skip
    part = {
        "both": both,
        "pictures": dataclasses.replace(both, waveform=None),
        "sound": dataclasses.replace(both, kind="audio", frames=None, times=None, fps=None),
    }[kinds]
    with opened(pictures=kinds != "sound", sound=kinds != "pictures") as live:
        live.feed([part], wait=True)
        inputs = live.inputs(live.units, QUESTIONS[0])
        want = omnidrop.build(tiny()[1], part, QUESTIONS[0])
        assert torch.equal(inputs["input_ids"], want["input_ids"])
        for name in ("video_grid_thw", "video_second_per_grid"):
            assert (name in inputs) == (name in want) and torch.equal(
                inputs.get(name, NOTHING), want.get(name, NOTHING)
            )
        assert live.ask(QUESTIONS[0], max_new_tokens=4).at == seconds


def test_features_and_bytes_stay_flat_for_any_duration() -> None:
    """Counted, after every piece: never more than the limits and the one unit that has just come."""
    with opened(max_tokens=100) as live:
        counts = []
        for i, piece in enumerate(pieces(40.0, each=1.0)):
            live.push(piece.frames, piece.times, piece.sound, wait=True)
            if i % 2:
                live.settle()
            status = live.status()
            counts.append((status.held_bytes, status.waiting_bytes))
            assert status.held_tokens <= 100
        one = live.units[0].nbytes
        assert status.units == 3 and status.left_units >= 15 and live.most_bytes == 4 * one
        assert max(held for held, _ in counts) == 3 * one
        assert max(wait for _, wait in counts[20:]) == max(wait for _, wait in counts[:20])
        assert live.ask(QUESTIONS[0], max_new_tokens=4).at == live.units[-1].end


def test_a_limit_of_bytes() -> None:
    with opened(sound=False) as live:
        live.feed(_frames(4.0), wait=True)
        one = live.units[0].nbytes
    with opened(sound=False, max_bytes=2 * one, rule="newest") as live:
        live.feed(_frames(12.0), wait=True)
        assert [unit.start for unit in live.units] == [8.0, 10.0] and live.status().held_bytes == 2 * one
    with opened(sound=False, max_bytes=one - 1) as live, pytest.raises(SettingError, match="hold not even one"):
        live.feed(_frames(4.0), wait=True)


def _frames(seconds: float) -> Iterator[Piece]:
    return (dataclasses.replace(piece, sound=None) for piece in pieces(seconds))


def test_a_rule_holds_what_differs() -> None:
    """Six units of one still picture and two others: the two stay, and of the equal ones the newest."""
    frames = clip().frames
    assert frames is not None
    shown = [frames[0]] * 4 + [frames[8]] * 4 + [frames[0]] * 8 + [frames[25]] * 4 + [frames[0]] * 12
    with opened(sound=False, max_tokens=3 * 18) as live:
        live.feed((Piece(frames=each, times=[i / 2]) for i, each in enumerate(shown)), wait=True)
        assert [unit.start for unit in live.units] == [2.0, 8.0, 14.0]


class Paused:
    """An answer that stops at its first word until it is let go on."""

    def __init__(self, live: Live) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.answers: list[Any] = []
        self.thread = threading.Thread(target=self._ask, args=(live,))
        self.thread.start()
        assert self.begun.wait(60)

    def _ask(self, live: Live) -> None:
        try:
            self.answers.append(live.ask(QUESTIONS[0], max_new_tokens=8, on_text=self._wait))
        except Exception as error:
            self.answers.append(error)

    def _wait(self, text: str) -> None:
        self.begun.set()
        assert self.go_on.wait(60)

    def end(self) -> Any:
        self.go_on.set()
        self.thread.join(60)
        return self.answers[0]


def test_one_thread_pushes_while_another_asks(caplog: pytest.LogCaptureFixture) -> None:
    """While a question is answered pushing goes on; what is too much is skipped, the oldest first, and said."""
    with opened(backlog=2) as live:
        parts = list(pieces(22.0, each=2.0))
        for piece in parts[:3]:
            live.push(piece.frames, piece.times, piece.sound, wait=True)
        live.settle()
        held = live.units
        paused = Paused(live)
        with caplog.at_level(logging.WARNING, logger="omnidrop"):
            for piece in parts[3:9]:
                live.push(piece.frames, piece.times, piece.sound)
        status = live.status()
        assert live.units == held and status.waiting_units == 2 and status.seconds == 18.0
        answer = paused.end()
        assert answer.at == held[-1].end
        live.settle()
        starts = [unit.start for unit in live.units]
        assert starts == [0.0, 2.0, 12.0, 14.0]
        assert list(live.skipped) == [(4.0, 6.0), (6.0, 8.0), (8.0, 10.0), (10.0, 12.0)]
        status = live.status()
        assert (status.skipped_units, status.skipped_seconds) == (4, 8.0) and "8 s skipped" in str(status)
        assert [r.args[:2] for r in caplog.records if r.name.startswith("omnidrop")] == list(live.skipped)
        after = live.ask(QUESTIONS[0], max_new_tokens=8)
        assert after.at == 16.0


def test_many_questions_while_a_source_is_fed() -> None:
    """Each answer is the one that the units named in it give: no two threads meet in the model."""
    with opened(max_tokens=140) as live:
        feeder = threading.Thread(target=live.feed, args=(pieces(16.0),), kwargs={"wait": True})
        feeder.start()
        answers = list(live.watch(QUESTIONS[0], max_new_tokens=4))
        others: list[Any] = []
        askers = [
            threading.Thread(target=lambda q=q: others.append(live.ask(q, max_new_tokens=4))) for q in QUESTIONS * 2
        ]
        for thread in askers:
            thread.start()
        for thread in [feeder, *askers]:
            thread.join(120)
        assert answers and len(others) == 4 and live.standing == []
        again = {q: live.ask(q, max_new_tokens=4).text for q in QUESTIONS}
        assert all(answer.text == again[answer.question] for answer in others)


def test_a_standing_question_tells_when_its_answer_changes_and_guides_what_is_held() -> None:
    with opened() as live:
        seen: list[float] = []
        parts = pieces(16.0)
        for piece in itertools.islice(parts, 5):
            live.push(piece.frames, piece.times, piece.sound, wait=True)
        live.settle()
        watching = live.watch(QUESTIONS[0], every=4.0, max_new_tokens=8)

        def rest() -> None:
            for piece in parts:
                live.push(piece.frames, piece.times, piece.sound, wait=True)
                live.settle()
            live.finish()

        texts = []
        for answer in watching:
            if not seen:
                assert live.standing == [QUESTIONS[0]] and live._holding.relevance
                threading.Thread(target=rest).start()
            seen.append(answer.at)
            texts.append(answer.text)
        assert all(a != b for a, b in itertools.pairwise(texts))
        assert all(later - earlier >= 2.0 for earlier, later in itertools.pairwise(seen))
        assert live.standing == [] and not live._holding.relevance
        assert texts[-1] == live.ask(QUESTIONS[0], max_new_tokens=8).text


def test_what_a_question_kept_stays_while_it_stands() -> None:
    with opened(guide=0.0) as live:
        live.feed(pieces(8.0), wait=True)
        units_then = live.units
        live._holding.note({units_then[1]: 0.9, units_then[2]: 0.1})
        live._holding.guide, live._holding.max_tokens, live._holding.recent = 5.0, 60, 0.0
        live._holding.add(dataclasses.replace(units_then[0], start=8.0))
        assert live.units == [units_then[1], live.units[-1]] and live.units[-1].start == 8.0


def test_whoever_has_the_turn_has_the_model() -> None:
    """`turn` is entered for every unit and every answer, and left again; what it raises ends them."""
    lock, entered = threading.Lock(), []

    @contextmanager
    def turn() -> Iterator[None]:
        with lock:
            entered.append(threading.current_thread().name)
            yield

    with opened(turn=turn) as live:
        parts = pieces(8.0)
        with lock:
            for piece in itertools.islice(parts, 8):
                live.push(piece.frames, piece.times, piece.sound)
            assert live.units == [] and entered == []
        live.settle()
        assert entered == ["omnidrop.live"] * 2
        live.ask(QUESTIONS[0], max_new_tokens=2)
        assert entered[2:] == [threading.current_thread().name] and not lock.locked()


def test_an_interruption_leaves_the_stream_as_it_was() -> None:
    with opened() as live:
        live.feed(pieces(8.0), wait=True)
        want, held = live.ask(QUESTIONS[0], max_new_tokens=8).text, live.units

        def stop(text: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            live.ask(QUESTIONS[0], max_new_tokens=8, on_text=stop)
        with pytest.raises(InputError, match="while this thread makes an answer"):
            live.ask(QUESTIONS[0], max_new_tokens=8, on_text=lambda text: live.ask(QUESTIONS[1]))
        handle = omnidrop.models.adapt(tiny()[0]).decoder.layers[3].register_forward_pre_hook(lambda m, a: stop(""))
        with pytest.raises(KeyboardInterrupt):
            live.ask(QUESTIONS[0], max_new_tokens=8)
        handle.remove()
        assert live.units == held and live.ask(QUESTIONS[0], max_new_tokens=8).text == want


def test_a_stream_that_is_closed_ends_its_answer() -> None:
    live = opened()
    live.feed(pieces(4.0), wait=True)
    paused = Paused(live)
    closer = threading.Thread(target=live.close)
    closer.start()
    closer.join(60)
    assert isinstance(paused.end(), InputError)
    with pytest.raises(InputError, match="was closed"):
        live.ask(QUESTIONS[0])
    assert live.units == [] and not live._worker.is_alive()
    live.close()


def test_an_error_of_the_worker_reaches_those_who_push_and_ask() -> None:
    with opened(sound=False) as live:
        live.push(np.stack([np.zeros((84, 84, 3), np.uint8)] * 4), [0.0, 0.5, 1.0, 1.5])
        live.settle()
        live.push(np.stack([np.zeros((56, 84, 3), np.uint8)] * 4), [2.0, 2.5, 3.0, 3.5])
        with pytest.raises(InputError, match=r"pictures became \(56, 84\) \(height, width\) after \(84, 84\)"):
            live.settle()
        with pytest.raises(InputError, match="pictures became"):
            live.push(np.zeros((84, 84, 3), np.uint8), [4.0])
        with pytest.raises(InputError, match="pictures became"):
            live.ask(QUESTIONS[0])
        with pytest.raises(InputError, match="pictures became"):
            next(live.watch(QUESTIONS[0]))


def test_mistakes_are_answered() -> None:
    with opened() as live:
        with pytest.raises(InputError, match="nothing is held yet"):
            live.ask(QUESTIONS[0])
        with pytest.raises(InputError, match="the question is empty"):
            live.ask("")
        assert repr(live).startswith("<Live: 0.0 s, 0 s held in 0 units")
        live.finish()
        assert list(live.watch(QUESTIONS[0])) == []
        with pytest.raises(InputError, match="has ended"):
            live.push(sound=np.zeros(5))
    for settings, says in (
        ({"rule": "best"}, "choose one of 'newest'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"recent": 2.0}, "recent is a share"),
        ({"horizon": 0.0}, "horizon is 0.0"),
        ({"backlog": 0}, "backlog is 0"),
        ({"patience": -1.0}, "patience is -1"),
        ({"pictures": False, "sound": False}, "leave nothing to stream"),
    ):
        with pytest.raises(SettingError, match=says):
            opened(**settings)


def test_other_families_are_refused() -> None:
    from omnidrop.models import FAMILIES

    for family in FAMILIES:
        if family.processor not in ("Qwen2_5OmniProcessor", "Qwen3OmniMoeProcessor"):
            assert family.unstreamed or not family.rope_parameters
    with pytest.raises(ModelError, match="no model that omnidrop knows"):
        omnidrop.live(torch.nn.Linear(2, 2), tiny()[1])
