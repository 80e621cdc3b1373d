"""Spoken questions: the recording asks by its own rows and is never dropped."""

from __future__ import annotations

import dataclasses
import json
import math
import wave
from functools import cache
from typing import Any

import pytest
import torch
from cases import greedy, model_of
from prompts import AUDIO, TEXT, VIDEO, Audio, Image, Prompt, Video, batch, prompt
from tiny import Ids

import omnidrop
from omnidrop import InputError, SettingError, loading, media
from omnidrop.cli import main
from omnidrop.core.budget import DecoderShape
from omnidrop.core.tokens import TokenLayout
from omnidrop.engine.prefill import AttentionInputs, Prefill

FAMILIES = ["qwen2_5", "qwen3"]
CLIP, SPOKEN = Video(4.0), Audio(1.5)


def spoken(family: str = "qwen2_5", items: Any = (CLIP, SPOKEN), **options: Any) -> Prompt:
    """No text in the user's turn."""
    return prompt(family, items, question=0, **options)


def recording(made: Prompt, item: int) -> list[int]:
    return torch.where((made.modality == AUDIO) & (made.item == item))[0].tolist()


def asking(made: Prompt, query: str = "after_media") -> list[int]:
    rows = omnidrop.layout(model_of(made.family), made.inputs, query=query).query[0]
    return torch.where(rows)[0].tolist()


def behind(made: Prompt, last: int) -> list[int]:
    return [i for i in range(last + 1, made.length) if made.modality[i] == TEXT]


# which rows ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query", ["after_media", "question", "speech", "speech:1"])
def test_a_recording_without_text_asks_by_its_own_rows(family, query):
    made = spoken(family)
    assert asking(made, query) == recording(made, 1)  # item 0 is the sound inside the video
    assert asking(made, "last") == [made.length - 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_asks_beside_a_recording_and_both_where_speech_is_asked_for(family):
    made = prompt(family, (CLIP, SPOKEN))
    own = recording(made, 1)
    assert asking(made) == behind(made, own[-1])
    assert asking(made, "speech") == own + torch.where(made.question)[0].tolist()


def test_text_between_media_and_recording_asks_too_where_it_sees_the_media():
    made = prompt("qwen2_5", (CLIP, SPOKEN), question=0)
    ids = made.inputs["input_ids"][0].tolist()
    own = recording(made, 1)
    for place, asks in ((own[0] - 1, True), (ids.index(Ids.VISION_START), False)):  # before the recording, the video
        longer = [*ids[:place], 21, 22, *ids[place:]]
        inputs = {**made.inputs, "input_ids": torch.tensor([longer]), "attention_mask": torch.ones(1, len(longer))}
        rows = omnidrop.layout(model_of("qwen2_5"), inputs, query="speech").query[0]
        assert torch.where(rows)[0].tolist() == [place, place + 1] * asks + [i + 2 for i in own]
        plain = omnidrop.layout(model_of("qwen2_5"), inputs).query[0]
        assert torch.where(plain)[0].tolist() == [i + 2 for i in behind(made, own[-1])]  # the turn has text


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sound_inside_a_video_is_no_question(family):
    made = spoken(family, (CLIP,))
    last = int(torch.where(made.modality != TEXT)[0][-1])
    assert asking(made) == behind(made, last)
    with pytest.raises(InputError, match="needs a recording, and the prompt has none"):
        asking(made, "speech")


def test_a_lone_recording_is_the_medium():
    made = spoken("qwen2_5", (Audio(3.0),))
    assert asking(made) == behind(made, recording(made, 0)[-1])
    with pytest.raises(InputError, match="the recording is all that the prompt has"):
        asking(made, "speech")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recording_before_the_video_cannot_see_it_and_the_text_behind_asks_too(family):
    made = spoken(family, (SPOKEN, CLIP))
    last = int(torch.where(made.modality != TEXT)[0][-1])
    for query in ("after_media", "speech"):
        assert asking(made, query) == recording(made, 0) + behind(made, last)


def test_recordings_are_named_by_number():
    made = prompt("qwen2_5", (Audio(1.0), CLIP, SPOKEN, Audio(0.5)))
    last = int(torch.where(made.modality != TEXT)[0][-1])
    said = torch.where(made.question)[0].tolist()
    assert asking(made, "speech:3") == asking(made, "speech") == recording(made, 3) + said
    assert asking(made, "speech:2") == recording(made, 2) + behind(made, last)
    assert asking(made, "speech:1") == recording(made, 0) + behind(made, last)
    with pytest.raises(InputError, match="query='speech:4' needs a recording, and the prompt has 3"):
        asking(made, "speech:4")
    for wrong in ("speech:0", "speech:", "speech:x", "speech:-1", "Speech"):
        with pytest.raises(SettingError, match="or a recording by number: 'speech:1'"):
            asking(made, wrong)
        with pytest.raises(SettingError, match="or a recording by number"):
            omnidrop.OmniDrop(query=wrong)
        with pytest.raises(SettingError, match="or a recording by number"):
            omnidrop.prune(model_of("qwen2_5"), omnidrop.OmniDrop(), query=wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_newest_turn_of_a_dialogue_decides(family):
    """Turn 1: a video and text; turn 2: a recording, alone or with text; turn 3: text."""
    made = prompt(family, (CLIP, SPOKEN))
    ids, own = made.inputs["input_ids"][0].tolist(), recording(made, 1)
    header = [Ids.IM_END, Ids.NEWLINE, Ids.IM_START, Ids.ASSISTANT, Ids.NEWLINE]
    start, end = own[0] - 1, own[-1] + 2  # with its marks
    tail = [Ids.IM_END, Ids.NEWLINE, Ids.IM_START, Ids.ASSISTANT, Ids.NEWLINE]
    before = [*ids[:start], 21, *header, 31, Ids.IM_END, Ids.NEWLINE, Ids.IM_START, Ids.USER, Ids.NEWLINE]
    moved = [place - start + len(before) for place in own]

    def rows(further: list[int], query: str) -> list[int]:
        whole = [*before, *ids[start:end], *further, *tail]
        inputs = {**made.inputs, "input_ids": torch.tensor([whole]), "attention_mask": torch.ones(1, len(whole))}
        return torch.where(omnidrop.layout(model_of(family), inputs, query=query).query[0])[0].tolist()

    behind_it = moved[-1] + 2
    assert rows([], "after_media") == rows([], "question") == rows([], "speech") == moved
    assert rows([41], "after_media")[:3] == [behind_it - 1, behind_it, behind_it + 1]
    assert rows([41], "speech") == [*moved, behind_it]
    later = [*header, 51, Ids.IM_END, Ids.NEWLINE, Ids.IM_START, Ids.USER, Ids.NEWLINE, 61]
    assert rows(later, "question") == [behind_it + len(later) - 1]  # a spoken question of an earlier turn is media
    assert not set(rows(later, "after_media")) & set(moved)
    assert rows(later, "speech") == moved


def test_rows_of_a_batch_ask_each_for_itself():
    rows = [spoken(), prompt("qwen2_5", (CLIP,), seed=2), spoken(items=(SPOKEN, CLIP), seed=3), prompt(items=())]
    layout = omnidrop.layout(model_of("qwen2_5"), batch(rows))
    for b, row in enumerate(rows):
        shift = layout.shape[1] - row.length
        assert torch.where(layout.query[b])[0].tolist() == [shift + place for place in asking(row)]


# scores --------------------------------------------------------------------------------------------------------------


def by_hand(modality: list[int], item: list[int], query: list[int]) -> Prefill:
    """One row; kinds and items of its tokens, and 1 for those that ask."""
    kinds, asks = torch.tensor([modality]), torch.tensor([query]).bool()
    media = kinds != TEXT
    layout = TokenLayout(
        modality=kinds, chunk=torch.where(media, 0, -1), second=torch.where(media, 0.0, math.nan), query=asks,
        valid=torch.ones_like(media), item=torch.tensor([item]), frame=torch.where(kinds == VIDEO, 0, -1),
    )  # fmt: skip
    shape = DecoderShape(layers=4, hidden=2, heads=1, kv_heads=1, head_dim=2, mlp=4, vocabulary=9, bytes_per_value=4)
    return Prefill(
        method=omnidrop.OmniDrop(), layout=layout, prompt_hashes=[0], shape=shape, device=torch.device("cpu")
    )


def mean_attention(queries: list[list[float]], keys: list[list[float]], rows: list[int]) -> list[float]:
    total = [0.0] * len(keys)
    for row in rows:
        weights = [math.exp(sum(a * b for a, b in zip(queries[row], keys[j], strict=True))) for j in range(row + 1)]
        for j, weight in enumerate(weights):
            total[j] += weight / sum(weights) / len(rows)
    return total


@pytest.mark.parametrize(
    ("modality", "item", "query", "scoring"),
    [
        ([0, 2, 2, 0, 1, 1, 1, 0, 0], [-1, 0, 0, -1, 0, 0, 0, -1, -1], [0, 0, 0, 0, 1, 1, 1, 0, 0], [4, 5, 6]),
        ([0, 2, 2, 0, 1, 1, 1, 0, 0], [-1, 0, 0, -1, 0, 0, 0, -1, -1], [0, 0, 0, 0, 1, 1, 1, 1, 0], [4, 5, 6, 7]),
        # before the video, and between two: what does not see all of it does not score it
        ([0, 1, 1, 0, 2, 2, 2, 0, 0], [-1, 0, 0, -1, 0, 0, 0, -1, -1], [0, 1, 1, 0, 0, 0, 0, 1, 1], [7, 8]),
        ([0, 2, 2, 0, 1, 1, 2, 2, 0], [-1, 0, 0, -1, 0, 0, 1, 1, -1], [0, 0, 0, 0, 1, 1, 0, 0, 1], [8]),
    ],
    ids=["alone", "with text", "before", "between"],
)
def test_scores_are_the_mean_over_the_rows_that_see_all_media(modality, item, query, scoring):
    prefill = by_hand(modality, item, query)
    generator = torch.Generator().manual_seed(3)
    queries, keys = (torch.randn(len(modality), 2, generator=generator) for _ in range(2))
    given = AttentionInputs(
        hidden=torch.zeros(1, len(modality), 2), queries=queries[None, :, None], keys=keys[None, :, None], rotary=None,
        scale=1.0,
    )  # fmt: skip
    want = mean_attention(queries.tolist(), keys.tolist(), scoring)
    torch.testing.assert_close(prefill.attention(0, 0, given)[0], torch.tensor(want))
    assert prefill.totals == [sum(m != TEXT and not q for m, q in zip(modality, query, strict=True))]
    prefill.note_scores(given)
    able = [i for i, (m, q) in enumerate(zip(modality, query, strict=True)) if m != TEXT and not q]
    torch.testing.assert_close(prefill.scores[0][0], torch.tensor([want[i] for i in able]))


def test_scores_of_a_model_are_its_own_attention():
    """Layer 0 sees the whole prompt: the same model's attention weights, averaged over the recording's rows."""
    made, model = spoken(), model_of("qwen2_5", attention="eager")
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(audio_keep=1, video_keep=1), scores=True) as trace:
        model(**made.inputs)
    with torch.no_grad():
        weights = model(**made.inputs, output_attentions=True).attentions[0][0]
    own = recording(made, 1)
    able = [i for i in range(made.length) if made.modality[i] != TEXT and i not in own]
    torch.testing.assert_close(trace.scores[0][0], weights[:, own].mean((0, 1))[able], atol=1e-6, rtol=1e-4)


# what is kept --------------------------------------------------------------------------------------------------------


def methods() -> list[Any]:
    return [kind(keep=0.45) for name, kind in sorted(omnidrop.methods.available().items()) if name not in SPECIAL]


SPECIAL = {"cutoff", "dycoke", "apack", "pyramiddrop", "fastv", "seats"}  # reach other targets


@pytest.mark.slow
@pytest.mark.parametrize("method", methods(), ids=lambda method: type(method).__name__)
def test_no_method_drops_a_recording_that_asks(method):
    made, model = spoken(items=(Video(8.0), SPOKEN)), model_of("qwen2_5")
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        model(**made.inputs)
    check_kept(made, trace, 0.45)


def check_kept(made: Prompt, trace: Any, keep: float) -> None:
    own = set(recording(made, 1))
    able = {i for i in range(made.length) if made.modality[i] != TEXT} - own
    for layer in trace.kept:
        assert own <= set(layer[0].tolist())
    shares = [len(able & set(layer[0].tolist())) / len(able) for layer in trace.kept]
    assert trace.keep == pytest.approx(sum(shares) / len(shares)) == pytest.approx(keep, abs=0.02)
    assert trace.input_keep == pytest.approx(shares[0])
    assert trace.asked == [f"{len(own)} tokens of audio 1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "seats"])
def test_methods_that_ask_with_the_last_token_take_speech_by_name(name):
    made, model = spoken(items=(Video(8.0), SPOKEN)), model_of("qwen2_5")
    for method, query in ((f"{name}:query=speech", None), (name, "speech")):
        chosen = omnidrop.methods.parse(method, keep=0.8)
        with torch.no_grad(), omnidrop.prune(model, chosen, query=query) as trace:
            model(**made.inputs)
        check_kept(made, trace, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "items", [(CLIP, SPOKEN), (SPOKEN, CLIP), (Image(), SPOKEN, CLIP)], ids=["after", "before", "3"]
)
def test_dropped_equals_masked_and_everything_is_everything(family, items):
    made, model = spoken(family, items), model_of(family, attention="eager")
    with torch.no_grad():
        plain = model(**made.inputs).logits[0, -1]
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=1.0)):
            assert torch.equal(model(**made.inputs).logits[0, -1], plain)
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4), query="speech") as trace:
            pruned = model(**made.inputs).logits[0, -1]
    handles = []
    layers = omnidrop.models.adapt(model).decoder.layers
    for layer, kept in zip(layers, trace.kept, strict=True):
        hidden = torch.full((made.length,), torch.finfo(torch.float32).min)
        hidden[kept[0]] = 0.0

        def mask(module: Any, args: tuple, kwargs: dict, hidden: torch.Tensor = hidden) -> tuple[tuple, dict]:
            given = kwargs["attention_mask"] + hidden
            return args, {**kwargs, "attention_mask": given.clamp(min=torch.finfo(torch.float32).min)}

        handles.append(layer.register_forward_pre_hook(mask, with_kwargs=True))
    try:
        with torch.no_grad():
            hidden_only = model(**made.inputs).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(pruned, hidden_only, atol=1e-4, rtol=1e-4)
    assert len(trace.kept[-1][0]) < made.length


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_is_the_row_in_a_batch_and_with_a_cache_as_without(family):
    model, method = model_of(family), omnidrop.OmniDrop(keep=0.4)
    rows = [spoken(family, seed=1), prompt(family, (CLIP,), seed=2), spoken(family, (SPOKEN, CLIP), seed=3)]
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        alone, kept = [], []
        for row in rows:
            alone.append(greedy(model, row.inputs, 3))
            kept.append([layer[0] for layer in trace.kept])
            again = greedy(model, row.inputs, 3, use_cache=False)
            for a, b in zip(alone[-1].logits, again.logits, strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        together = greedy(model, batch(rows), 3)
    for b, row in enumerate(rows):
        shift = max(other.length for other in rows) - row.length
        assert all(torch.equal(layer[b] - shift, mine) for layer, mine in zip(trace.kept, kept[b], strict=True))
        for one, all_rows in zip(alone[b].logits, together.logits, strict=True):
            torch.testing.assert_close(one[0], all_rows[b], atol=1e-4, rtol=1e-4)


# what is said --------------------------------------------------------------------------------------------------------


def test_trace_tells_who_asked(tmp_path):
    model, rows = model_of("qwen2_5"), [spoken(), prompt("qwen2_5", (CLIP,), seed=2)]
    own = len(recording(rows[0], 1))
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)) as trace:
        model(**batch(rows))
    texts = len(behind(rows[1], int(torch.where(rows[1].modality != TEXT)[0][-1])))
    assert trace.asked == [f"{own} tokens of audio 1", f"{texts} tokens of text"]
    assert trace.remarks[0] == (
        f"Asked by {own} tokens of audio 1. A recording that asks is never dropped and does not count in keep."
    )
    assert "asked in speech" in repr(trace) and f"Asked by {own} tokens" in trace.summary().replace("\n", " ")
    trace.save(tmp_path / "trace.json")
    again = omnidrop.Trace.load(tmp_path / "trace.json")
    assert again.asked == trace.asked and again.keep == trace.keep and again.remarks == trace.remarks
    frame = pytest.importorskip("pandas") and trace.to_frame()
    assert not frame[frame["query"]]["prunable"].any()
    assert set(frame[frame["query"] & (frame["row"] == 0)]["modality"]) == {"audio"}


def test_report_shows_who_asked():
    pytest.importorskip("jinja2")
    made, model = spoken(), model_of("qwen2_5")
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4), scores=True) as trace:
        model(**made.inputs)
    page = omnidrop.report(trace)
    own = len(recording(made, 1))
    assert f"asked by {own} tokens of audio 1" in page and "(asks)" in page


# files, conversations, commands ---------------------------------------------------------------------------------------


@cache
def shipped() -> tuple[Any, Any]:
    return omnidrop.load(device="cpu")


@cache
def clip() -> media.Media:
    return media.read(loading.TINY.parent / "demo.mp4")


@cache
def question(seconds: float = 1.0) -> media.Media:
    """A second of the clip's sound, as a recording."""
    sound = clip().waveform[: int(seconds * clip().sample_rate)]
    return dataclasses.replace(
        clip(), path="question.wav", kind="audio", frames=None, times=None, fps=None, waveform=sound, seconds=seconds
    )


def asked_audio(trace: Any) -> int:
    """How many tokens of recordings asked; text did not."""
    assert int((trace.layout.query & (trace.layout.modality == TEXT)).sum()) == 0
    return int((trace.layout.query & (trace.layout.modality == AUDIO)).sum())


@pytest.mark.slow
def test_build_takes_a_spoken_question():
    model, processor = shipped()
    inputs = omnidrop.build(processor, [clip(), question()], "")
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        model.generate(**inputs, max_new_tokens=1)
    alone = omnidrop.layout(model, omnidrop.build(processor, question(), "what ?")).count(0)["audio"]
    assert asked_audio(trace) == alone > 0 and trace.keep == pytest.approx(0.3, abs=0.02)
    for clips in (clip(), [clip()], question(), [question()], [clip(), clip()]):
        with pytest.raises(InputError, match=r"the question is empty .*, or put a recording that asks behind them"):
            omnidrop.build(processor, clips, "")
    with pytest.raises(InputError, match="the question is empty"):
        omnidrop.build(processor, [clip(), question()], " ")


@pytest.mark.slow
def test_a_conversation_takes_spoken_questions(tmp_path):
    model, processor = shipped()
    chat = omnidrop.Conversation(model, processor, omnidrop.OmniDrop(keep=0.3))
    chat.add(clip())
    chat.ask("what color is the circle ?", max_new_tokens=2)
    encoded = chat.encoded.encoded
    answer = chat.ask(speech=question(), max_new_tokens=2)
    assert chat.encoded.encoded == encoded + 1  # the recording alone
    own = asked_audio(chat.trace)
    inputs = chat_inputs(chat)
    with torch.no_grad(), omnidrop.prune(model, chat.method) as trace:  # the rule finds it in the dialogue's ids
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert trace.asked == chat.trace.asked == [f"{own} tokens of audio 1"]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(trace.kept, chat.trace.kept, strict=True))
    text = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert text == answer and chat.turns[-1].question == "" and chat.turns[-1].media == (question(),)
    # both ask; the spoken question of the turn before is media now
    chat.ask("what color is it ?", speech=question(0.5), max_new_tokens=2)
    assert chat.trace.asked[0].endswith("tokens of audio 2 and 5 tokens of text")
    chat.add(question(0.7))
    chat.ask(max_new_tokens=2)
    assert asked_audio(chat.trace) and chat.waiting == []
    chat.save(tmp_path / "chat.npz")
    again = omnidrop.Conversation.load(tmp_path / "chat.npz", model, processor)
    assert torch.equal(again.inputs("x")["input_ids"], chat.inputs("x")["input_ids"])


def chat_inputs(chat: omnidrop.Conversation) -> Any:
    """Of the prompt before the newest answer."""
    copy = omnidrop.Conversation(chat.model, chat.processor, chat.method)
    copy.turns, copy.waiting = chat.turns[:-1], list(chat.turns[-1].media)
    return copy.inputs(chat.turns[-1].question)


@pytest.mark.slow
def test_what_is_no_spoken_question_leaves_the_conversation_as_it_was():
    chat = omnidrop.Conversation(*shipped(), omnidrop.OmniDrop(keep=0.3))
    with pytest.raises(InputError, match="the recording is all that the conversation has"):
        chat.ask(speech=question())
    assert chat.waiting == []
    chat.add(clip())
    with pytest.raises(SettingError, match=r"speech is .*demo.mp4, which is video"):
        chat.ask(speech=clip())
    with pytest.raises(InputError, match="the question is empty"):
        chat.ask()
    assert len(chat.waiting) == 1 and chat.turns == []


def test_who_reads_no_recordings_refuses_them():
    method = omnidrop.OmniDrop(query="speech")
    with pytest.raises(SettingError, match="read in segments has no recording beside it"):
        omnidrop.stream(*shipped(), loading.TINY.parent / "demo.mp4", "what ?", method=method)


@pytest.mark.slow
def test_run_takes_a_spoken_question(tmp_path, capsys):
    sound = (clip().waveform[:16000] * 32767).clip(-32768, 32767).astype("<i2")
    path = tmp_path / "question.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(sound.tobytes())
    demo = str(loading.TINY.parent / "demo.mp4")
    assert main(["run", demo, str(path), "", "--json", "-q", "--max-new-tokens", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["asked"].endswith("tokens of audio 1") and said["question"] == ""
    assert main(["run", demo, str(path), "what ?", "--query", "speech", "-q", "--max-new-tokens", "2"]) == 0
    assert "asked by" in (out := capsys.readouterr().out) and "tokens of audio 1 and 2 tokens of text, never" in out
    for arguments, message in (
        ([demo, ""], "the question is empty"),
        ([demo, demo, ""], "the question is empty"),
        ([demo, "what ?", "--query", "speech"], "needs a recording"),
        ([demo, "what ?", "--query", "spech"], "query is 'spech'; choose one of"),
        ([demo, "what ?", "--query", "last", "--method", "divprune"], "--query does not apply to the method"),
        ([demo, "what ?", "--query", "last", "--method", "omnidrop:query=last"], "both name the query"),
        ([demo, "what ?", "--query", "last", "--method", "none"], "--method none is the model with all tokens"),
    ):
        assert main(["run", *arguments, "-q"]) != 0
        assert message in capsys.readouterr().err
