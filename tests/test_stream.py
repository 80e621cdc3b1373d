"""A clip read in segments against the same clip as one prompt: stock `generate` is the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from cases import greedy, model_of
from prompts import AUDIO, CHUNK_SECONDS, VIDEO, Audio, Prompt, Video, prompt
from snapshot import state
from tiny import Ids
from torch import Tensor

import omnidrop
from omnidrop.errors import InputError, ModelError, SettingError
from omnidrop.methods import Method
from omnidrop.streaming import held, prefill

pytestmark = pytest.mark.slow

FAMILIES = ["qwen2_5", "qwen3"]
ALL = omnidrop.OmniDrop(keep=1.0)
MEL_FRAMES = 200  # a chunk
CLIPS = {
    "video": (Video(20.0),),
    "silent video": (Video(20.0, sound=False),),
    "audio": (Audio(20.0),),
    "two pictures a second": (Video(20.0, second_per_grid=0.5),),
    "odd end": (Video(19.0, second_per_grid=0.5, sound=18.37),),
    "sound ends first": (Video(20.0, sound=13.1),),
    "sound goes on": (Video(10.0, sound=20.0),),
}


def cut(whole: Prompt, chunks: int) -> Iterator[tuple[float, dict[str, Any]]]:
    """The prompt's one clip in segments of so many chunks, each as a prompt of its own: (its start, its inputs)."""
    inputs, where = whole.inputs, (whole.modality != 0).nonzero()[:, 0]
    before, behind = inputs["input_ids"][0, : where[0]], inputs["input_ids"][0, where[-1] + 1 :]
    frames = 0
    for first in range(0, int(whole.chunk.max()) + 1, chunks):
        mine = (whole.chunk >= first) & (whole.chunk < first + chunks)
        seen, heard = (bool((whole.modality[mine] == kind).any()) for kind in (VIDEO, AUDIO))
        closed = [] if seen else [Ids.VISION_START, Ids.VISION_END]  # as the processor frames what there is
        closed += [] if heard else [Ids.AUDIO_START, Ids.AUDIO_END]
        start, end = (part[~torch.isin(part, torch.tensor(closed))] for part in (before, behind))
        ids = torch.cat([start, inputs["input_ids"][0, mine], end])[None]
        part: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if seen:
            grids = len(whole.frame[mine & (whole.modality == VIDEO)].unique())
            _, height, width = inputs["video_grid_thw"][0].tolist()
            rows = inputs["pixel_values_videos"].view(-1, height * width, inputs["pixel_values_videos"].shape[1])
            part["pixel_values_videos"] = rows[frames : frames + grids].flatten(0, 1)
            part["video_grid_thw"] = torch.tensor([[grids, height, width]])
            part["video_second_per_grid"] = inputs["video_second_per_grid"]
            frames += grids
        if heard:
            mel = slice(first * MEL_FRAMES, (first + chunks) * MEL_FRAMES)
            part["input_features"] = inputs["input_features"][:, :, mel]
            part["feature_attention_mask"] = inputs["feature_attention_mask"][:, mel]
        part["use_audio_in_video"] = seen and heard
        yield first * CHUNK_SECONDS, part


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("chunks", [2, 4])
def test_segments_are_one_prompt(family: str, clip: str, chunks: int) -> None:
    """Without pruning and without `hold`: the logits of stock `generate` to rounding, and its tokens."""
    model, whole = model_of(family), prompt(family, CLIPS[clip], seed=30)
    stock = greedy(model, whole.inputs, 6)
    streamed = prefill(model, cut(whole, chunks), method=ALL)
    ours = greedy_stream(streamed, 6)
    assert len(streamed.segments) == -(-int(whole.chunk.max() + 1) // chunks) > 1
    who = omnidrop.layout(model, whole.inputs)
    for name in ("modality", "chunk", "item", "frame", "query", "valid"):
        assert torch.equal(getattr(streamed.trace.layout, name), getattr(who, name)), name
    torch.testing.assert_close(streamed.trace.layout.second, who.second, equal_nan=True)
    assert torch.equal(ours.sequences, stock.sequences)
    for one, other in zip(ours.logits, stock.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def greedy_stream(streamed: Any, steps: int, **options: Any) -> Any:
    return streamed.generate(
        max_new_tokens=steps + 1, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )


METHODS = {
    "paper": omnidrop.OmniDrop(keep=None, p_init=0.05, p_final=0.45),
    "evicting": omnidrop.OmniDrop(keep=None, p_init=0.05, p_final=0.45, evict=True),
    "tuned": omnidrop.OmniDrop.tuned(keep=0.3),
    "merging": omnidrop.methods.OmniZip(keep=0.5),
    "random": omnidrop.Random(keep=0.4, where="layers"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_one_segment_is_prune(family: str, method: str) -> None:
    """A clip in a single segment is pruned as `prune` prunes its prompt: positions, logits, tokens, size of the cache.

    But for `evict`, where the text runs once more over what is left, and so the answer is another.
    """
    model, whole, chosen = model_of(family), prompt(family, CLIPS["video"], seed=31), METHODS[method]
    if method == "random":  # the draw depends on the text of the pass, which has no opening here
        chosen = omnidrop.OmniDrop(keep=0.4, lambda_div=0.0)
    with omnidrop.prune(model, chosen) as trace:
        stock = greedy(model, whole.inputs, 6)
    streamed = prefill(model, cut(whole, 10), method=chosen)
    ours = greedy_stream(streamed, 6)
    for one, other in zip(streamed.trace.kept, trace.kept, strict=True):
        assert torch.equal(one[0], other[0])
    if not chosen.evict:
        assert torch.equal(ours.sequences, stock.sequences)
        for one, other in zip(ours.logits, stock.logits, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    left = {name: share for name, share in trace.budgets.items() if name != "total"}  # of segments it is not known
    assert streamed.trace.kv_bytes == trace.kv_bytes and streamed.trace.budgets == left
    assert [len(row) for row in streamed.held] == [
        int((whole.modality[(trace.kept[-1] if chosen.evict else layer)[0]] != 0).sum()) for layer in trace.kept
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_model_answers_by_its_thinker(family: str) -> None:
    model, whole = tiny.FULL[family](), prompt(family, CLIPS["video"], seed=45)
    seen: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            seen.extend(value.flatten().tolist())

        def end(self) -> None:
            seen.append(-1)

    streamed = prefill(model, cut(whole, 4), method=ALL)
    said = streamed.generate(max_new_tokens=4, do_sample=False, streamer=Streamer())
    assert torch.equal(said, greedy(model.thinker, whole.inputs, 3).sequences)
    assert seen == [*said[0].tolist(), -1]


@dataclass
class Logged:
    """A rule that writes down what it leaves: [segment][layer] prompt positions."""

    rule: Any
    left: dict[int, list[Tensor]] = field(default_factory=dict)  # by the position at which the next segment starts

    def __call__(self, scores: Sequence[Tensor], media: Sequence[Tensor], hold: int) -> list[Tensor]:
        chosen = self.rule(scores, media, hold)
        self.left[max(int(m[-1]) for m in media)] = [m[c] for m, c in zip(media, chosen, strict=True)]
        return chosen


def masked(model: Any, whole: Prompt, streamed: Any, logged: Logged, *, evict: bool) -> Tensor:
    """The oracle: one stock pass over the whole prompt, in which each layer's mask hides what was not there.

    A token sees the text before the clip, what its layer held when its segment began, and what of its own segment
    entered the layer. `evict`: once a segment is done, of it only what entered the last layer is left. Returns the
    newest position's logits (V,).
    """
    length = whole.length
    last = torch.zeros(length, dtype=torch.bool)
    last[streamed.trace.kept[-1][0]] = True
    media = (whole.modality != 0).nonzero()[:, 0]
    first, end = int(media[0]), int(media[-1]) + 1
    starts = [first]
    for each in streamed.segments:
        starts.append(starts[-1] + sum(each.tokens.values()))
    masks = []
    for layer, kept in enumerate(streamed.trace.kept):
        mask = torch.zeros(length, length, dtype=torch.bool)
        entered = torch.zeros(length, dtype=torch.bool)
        entered[kept[0]] = True
        there = torch.zeros(length, dtype=torch.bool)
        there[:first] = True
        stretches = [(0, first), *pairwise(starts), (end, length)]
        for start, stop in stretches:
            own = torch.zeros(length, dtype=torch.bool)
            own[start:stop] = entered[start:stop]
            mask[start:stop] = there | own
            there = there | own
            if evict:
                there[start:stop] &= last[start:stop]
            newest = [left for at, left in logged.left.items() if start <= at < stop]
            if newest and start >= first and stop <= end:
                there[first:stop] = False
                there[newest[0][layer]] = True
        masks.append(mask.tril()[None, None] | torch.eye(length, dtype=torch.bool))
    hooks = []
    layers = next(m for name, m in model.named_modules() if name.endswith("layers") and "audio" not in name)
    for layer, mask in zip(layers, masks, strict=True):

        def put(module: Any, args: tuple, kwargs: dict, mask: Tensor = mask) -> tuple[tuple, dict]:
            return args, {**kwargs, "attention_mask": mask}

        hooks.append(layer.register_forward_pre_hook(put, with_kwargs=True))
    try:
        with torch.no_grad():
            return model(**whole.inputs, use_cache=False).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "hold"),
    [(ALL, 70), (METHODS["paper"], 70), (METHODS["evicting"], 5), (omnidrop.Uniform(keep=0.6), 70)],
    ids=["all", "paper", "evicting", "input"],
)
def test_what_left_is_not_seen(family: str, method: Method, hold: int) -> None:
    """With pruning and with `hold`, the answer's logits are those of a stock model that may not look at what left."""
    model, whole, logged = model_of(family), prompt(family, CLIPS["video"], seed=32), Logged(held.by_layer)
    streamed = prefill(model, cut(whole, 2), method=method, hold=hold, rule=logged)
    assert len(logged.left) >= 2
    got = greedy_stream(streamed, 0).logits[0][0]
    torch.testing.assert_close(got, masked(model, whole, streamed, logged, evict=method.evict), atol=1e-4, rtol=0)
    final = logged.left[max(logged.left)]
    assert all(torch.equal(one, other) for one, other in zip(streamed.held, final, strict=True))


@pytest.mark.parametrize("method", [ALL, METHODS["paper"], METHODS["tuned"]], ids=["all", "paper", "tuned"])
@pytest.mark.parametrize("hold", [1, 40, 100])
def test_no_layer_holds_more(method: Method, hold: int) -> None:
    """After a segment at most `hold` entries, while one runs at most one segment more; the text never leaves."""
    model, whole = model_of("qwen2_5"), prompt("qwen2_5", CLIPS["video"], seed=33)
    streamed = prefill(model, cut(whole, 2), method=method, hold=hold)
    text = int((whole.modality == 0).sum())
    for each in streamed.segments:
        assert max(each.held) <= hold
    largest = [max(each.entered[layer] for each in streamed.segments) for layer in range(len(streamed.held))]
    assert all(most <= hold + new for most, new in zip(streamed.most, largest, strict=True))
    for layer, media in zip(streamed.cache.layers, streamed.held, strict=True):
        assert layer.keys.shape[-2] == layer.values.shape[-2] == text - 1 + len(media)
        assert layer.get_seq_length() == whole.length - 1
        assert torch.equal(media, media.unique()) and bool((whole.modality[media] != 0).all())
    size = 2 * 2 * 16 * 4  # keys and values, two groups of width 16, float32
    assert streamed.kv_bytes == sum(text - 1 + len(media) for media in streamed.held) * size


@dataclass(frozen=True, kw_only=True)
class Watching(Method):
    """Drops one token after layer 2, and shows what it saw there."""

    seen: list[Tensor] = field(default_factory=list)

    def plan(self, budget: Any) -> list[int]:
        return [int(layer == 2) for layer in range(budget.layers)]

    def at_layer(self, view: Any, k: int) -> Tensor:
        self.seen.append(view.head_attention())
        return torch.arange(k, len(view.modality))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_models_own_attention(family: str) -> None:
    """What a method and `hold` see in the last segment is the stock model's attention, over all keys, from the asking
    rows."""
    whole, ranked = prompt(family, CLIPS["video"], seed=34), Logged(held.by_layer)
    scores: list[Sequence[Tensor]] = []
    ranked.rule = lambda worth, media, hold: scores.append(worth) or [torch.arange(len(m)) for m in media]
    with torch.no_grad():
        attention = model_of(family, attention="eager")(**whole.inputs, output_attentions=True).attentions
    asks = omnidrop.layout(model_of(family), whole.inputs).query[0]
    media = (whole.modality != 0).nonzero()[:, 0]
    prefill(model_of(family), cut(whole, 4), method=ALL, hold=1, rule=ranked)
    for worth, weights in zip(scores[-1], attention, strict=True):
        torch.testing.assert_close(worth, weights[0].mean(0)[asks].mean(0)[media], atol=1e-5, rtol=0)
    method, last = Watching(), media[whole.chunk[media] >= 8]
    prefill(model_of(family), cut(whole, 4), method=method)
    assert len(method.seen) == 3
    torch.testing.assert_close(method.seen[-1], attention[2][0][:, asks].mean(1)[:, last], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_may_be_called_again(family: str) -> None:
    model, whole = model_of(family), prompt(family, CLIPS["video"], seed=35)
    streamed = prefill(model, cut(whole, 4), method=METHODS["paper"], hold=60)
    first = greedy_stream(streamed, 5)
    torch.manual_seed(0)
    drawn = streamed.generate(max_new_tokens=6, do_sample=True, temperature=1.5, top_k=0)
    again = greedy_stream(streamed, 5)
    assert torch.equal(first.sequences, again.sequences) and not torch.equal(first.sequences, drawn)
    for one, other in zip(first.logits, again.logits, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_several_sequences(family: str) -> None:
    """As stock `generate` without pruning; the prompt's own cache stays as it was."""
    model, whole = model_of(family), prompt(family, CLIPS["audio"], seed=44)
    beams = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    streamed = prefill(model, cut(whole, 4), method=ALL)
    ours, stock = streamed.generate(**beams), model.generate(**whole.inputs, **beams)
    assert torch.equal(ours, stock) and ours.shape == (2, whole.length + 5)
    assert torch.equal(greedy_stream(streamed, 3).sequences, greedy(model, whole.inputs, 3).sequences)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [ALL, METHODS["paper"]], ids=["all", "paper"])
def test_lean_nests(family: str, method: Method) -> None:
    """The same answer and the same held tokens in all layers but the last, which scores by its newest row alone."""
    model, whole = model_of(family), prompt(family, CLIPS["video"], seed=36)
    plain = prefill(model, cut(whole, 4), method=method)
    with omnidrop.lean(model):
        lean = prefill(model, cut(whole, 4), method=method)
        full = prefill(model, cut(whole, 4), method=method, hold=50)
        ours = greedy_stream(lean, 4)
    assert max(map(len, full.held)) <= 50
    stock = greedy_stream(plain, 4)
    assert torch.equal(ours.sequences, stock.sequences)
    for one, other in zip(ours.logits, stock.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_behind(family: str) -> None:
    """Neither after an answer nor after an error on the way; the model's memory of its own last prompt stays."""
    model, whole = tiny.THINKERS[family](), prompt(family, CLIPS["video"], seed=37)
    stock = greedy(model, whole.inputs, 3)
    backbone = model.model if hasattr(model.model, "rope_deltas") else model
    before, delta = state(model), backbone.rope_deltas
    greedy_stream(prefill(model, cut(whole, 4), method=METHODS["paper"], hold=50), 3)
    assert state(model) == before and backbone.rope_deltas is delta

    def broken() -> Iterator[tuple[float, dict[str, Any]]]:
        yield from list(cut(whole, 4))[:1]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        prefill(model, broken(), method=METHODS["paper"])
    assert state(model) == before
    assert torch.equal(greedy(model, whole.inputs, 3).sequences, stock.sequences)


def test_the_record_of_the_whole_prompt(tmp_path: Any) -> None:
    """Per layer what entered in its segment, and a trace that saves and loads; per segment times and counts."""
    model, whole = model_of("qwen2_5"), prompt("qwen2_5", CLIPS["video"], seed=38)
    streamed = prefill(model, cut(whole, 4), method=omnidrop.OmniDrop(keep=0.4, audio_keep=1, video_keep=1))
    assert streamed.trace.keep == pytest.approx(0.4, abs=0.01)
    assert [each.start for each in streamed.segments] == [0.0, 8.0, 16.0]
    tokens = [sum(each.tokens.values()) for each in streamed.segments]
    assert sum(tokens) == int((whole.modality != 0).sum())
    for layer, kept in enumerate(streamed.trace.kept):
        assert torch.equal(kept[0], kept[0].unique())
        media = kept[0][whole.modality[kept[0]] != 0]
        assert torch.equal(media, streamed.held[layer])  # nothing but the method took tokens away
        assert [int((whole.chunk[media] // 4 == s).sum()) for s in range(3)] == [
            each.entered[layer] for each in streamed.segments
        ]
    streamed.trace.save(tmp_path / "trace.json")
    assert omnidrop.Trace.load(tmp_path / "trace.json").counts == streamed.trace.counts


def test_time_scale() -> None:
    """Half as many positions a second: time is halved on the clip's axis, picture rows and columns are not."""
    from omnidrop.models import adapt
    from omnidrop.streaming.place import frame_of, place

    model, whole = model_of("qwen2_5"), prompt("qwen2_5", CLIPS["silent video"], seed=39)
    adapter = adapt(model)
    parts = [(start, part, omnidrop.layout(model, part)) for start, part in cut(whole, 4)]
    frame = frame_of(adapter, parts[0][1], parts[0][2])
    for start, part, who in parts:
        full, half = (place(adapter, part, who, frame, start, scale).positions - frame.base for scale in (1.0, 0.5))
        assert torch.equal(half[1:], full[1:])
        assert torch.equal(half[0], full[0] // 2)
    short = prefill(model, cut(whole, 4), method=ALL, time_scale=0.5)
    stock = prefill(model, cut(whole, 4), method=ALL)
    assert not torch.allclose(greedy_stream(short, 0).logits[0], greedy_stream(stock, 0).logits[0], atol=1e-3)


def test_a_clip_beyond_the_models_positions() -> None:
    model, whole = tiny.qwen2_5_thinker(layers=2, max_positions=300), prompt("qwen2_5", CLIPS["video"], seed=40)
    with pytest.raises(InputError, match=r"reaches position \d+, but the model has positions 0 to 299 .*below 1,"):
        prefill(model, cut(whole, 4), method=ALL)
    assert len(prefill(model, cut(whole, 4), method=ALL, time_scale=0.5).segments) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hold": 0}, "hold is 0; it must be a number of tokens, at least 1, or None"),
        ({"hold": 2.5}, "hold is 2.5"),
        ({"hold": True}, "hold is True"),
        ({"time_scale": 0.0}, r"time_scale is 0.0; it must lie in \(0, 1\]"),
        ({"time_scale": 1.5}, "time_scale is 1.5"),
        ({"method": 0.3}, "the method is 0.3; give one of omnidrop.methods"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], text: str) -> None:
    whole = prompt("qwen2_5", CLIPS["audio"], seed=41)
    with pytest.raises(SettingError, match=text):
        prefill(model_of("qwen2_5"), cut(whole, 4), **{"method": ALL, **options})


def test_prompts_that_are_no_segments() -> None:
    model, whole = model_of("qwen2_5"), prompt("qwen2_5", (Video(4.0), Video(4.0)), seed=42)
    with pytest.raises(InputError, match="one row with one clip"):
        prefill(model, [(0.0, whole.inputs)], method=ALL)
    with pytest.raises(InputError, match="no segment"):
        prefill(model, [], method=ALL)
    row = prompt("qwen2_5", CLIPS["audio"], seed=43)
    with omnidrop.prune(model, ALL), pytest.raises(ModelError, match="being pruned already"):
        prefill(model, cut(row, 4), method=ALL)
    streamed = prefill(model, cut(row, 4), method=ALL)
    for options, text in (({"input_ids": row.inputs["input_ids"]}, "was given input_ids"), ({"use_cache": False}, "")):
        with pytest.raises(InputError, match=f"{text}.*is read already"):
            streamed.generate(max_new_tokens=1, **options)


@pytest.mark.parametrize("seed", range(5))
def test_who_leaves(seed: int) -> None:
    """Against plain Python; scores in eighths, so that many are equal: of those the earlier leaves first."""
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(0, 5, (entries,), generator=generator) / 8 for entries in (9, 12, 7, 5, 3, 0)]
    for worth, chosen in zip(scores, held.by_layer(scores, scores, 5), strict=True):
        ranked = sorted(range(len(worth)), key=lambda place: (float(worth[place]), place))
        assert chosen.tolist() == sorted(ranked[max(0, len(worth) - 5) :])
