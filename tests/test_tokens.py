"""Who is where: layouts checked against the prompts' own ground truth, for both families, batches and copies."""

from __future__ import annotations

import pytest
import torch
from cases import CLIPS, MEDIA, model_of
from prompts import Video, batch, prompt
from tiny import Ids

import omnidrop
from omnidrop import InputError, Modality, SettingError, TokenLayout
from omnidrop.core.layout import build
from omnidrop.core.tokens import Vocabulary


@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_layout_is_the_prompts_own(family, clips):
    made = prompt(family, MEDIA[clips])
    got = omnidrop.layout(model_of(family), made.inputs)
    for name in ("modality", "chunk", "item", "frame"):
        assert getattr(got, name)[0].tolist() == getattr(made, name).tolist(), name
    assert got.valid.all() and got.query[0].any()
    assert torch.isnan(got.second[0][made.modality == 0]).all() and (got.second[0][made.modality > 0] >= 0).all()


def test_batch_rows_are_the_single_layouts():
    model = model_of("qwen2_5")
    rows = [prompt("qwen2_5", MEDIA[name], seed=i) for i, name in enumerate(("video", "three videos", "one grid"))]
    got = omnidrop.layout(model, batch(rows))
    for b, row in enumerate(rows):
        alone = omnidrop.layout(model, row.inputs)
        shift = got.shape[1] - row.length
        assert got.valid[b].sum() == row.length and not got.valid[b, :shift].any()
        for name in ("modality", "chunk", "item", "frame", "query"):
            assert torch.equal(getattr(got, name)[b, shift:], getattr(alone, name)[0]), name


def test_copies_of_a_prompt_share_their_media():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["three videos"])
    inputs = dict(made.inputs)
    inputs["input_ids"] = inputs["input_ids"].repeat_interleave(3, 0)
    inputs["attention_mask"] = inputs["attention_mask"].repeat_interleave(3, 0)
    got = omnidrop.layout(model, inputs)
    for name in ("chunk", "item", "frame"):
        for b in range(3):
            assert getattr(got, name)[b].tolist() == getattr(made, name).tolist()


def test_seconds_follow_the_clip():
    made = prompt("qwen2_5", (Video(6.0),))
    got = omnidrop.layout(model_of("qwen2_5"), made.inputs)
    video = got.second[0][made.modality == Modality.VIDEO]
    audio = got.second[0][made.modality == Modality.AUDIO]
    assert video.unique().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert audio[:3].tolist() == pytest.approx([0.0, 0.04, 0.08])


@pytest.mark.parametrize("query", ["after_media", "question", "last"])
def test_query_rows(query):
    made = prompt("qwen2_5", MEDIA["video"])
    got = omnidrop.layout(model_of("qwen2_5"), made.inputs, query=query).query[0]
    last_media = int(torch.where(made.modality != 0)[0][-1])
    want = {
        "after_media": torch.arange(made.length) > last_media,
        "question": made.question,
        "last": torch.arange(made.length) == made.length - 1,
    }[query]
    assert torch.equal(got, want)


def turn(role: int, text: list[int], *, newline: bool = True, closed: bool = True) -> list[int]:
    line = [Ids.NEWLINE] * newline
    return [Ids.IM_START, role, *line, *text, *([Ids.IM_END, *line] if closed else [])]


ASKED, OLDER = [21, Ids.USER, 23, 22], [31, 32]


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("newline", [True, False])
@pytest.mark.parametrize(
    ("later", "asks"),
    [
        ([(Ids.USER, ASKED)], ASKED),
        ([(Ids.USER, OLDER), (Ids.ASSISTANT, [41, 42, 43]), (Ids.USER, ASKED)], ASKED),
        ([(Ids.USER, ASKED), (Ids.ASSISTANT, [41])], ASKED),  # an answer that is closed: the question stays
        ([], None),  # the first turn's
    ],
    ids=["second turn", "third turn", "answered", "one turn"],
)
def test_the_newest_question_of_a_dialogue_asks(family, newline, later, asks):
    made = prompt(family, MEDIA["video"])
    ids = made.inputs["input_ids"][0].tolist() + [33, 34, Ids.IM_END] + [Ids.NEWLINE] * newline
    for role, text in later:
        ids += turn(role, text, newline=newline)
    ids += turn(Ids.ASSISTANT, [], newline=newline, closed=False)
    pad = 5  # of a longer row beside it
    mask = torch.ones(1, len(ids) + pad, dtype=torch.long)
    mask[0, :pad] = 0
    inputs = {**made.inputs, "input_ids": torch.tensor([[Ids.IM_END] * pad + ids]), "attention_mask": mask}
    rows = {q: omnidrop.layout(model_of(family), inputs, query=q).query[0] for q in ("question", "after_media", "last")}
    first = made.inputs["input_ids"][0][made.question].tolist()
    assert inputs["input_ids"][0][rows["question"]].tolist() == (first if asks is None else asks)
    assert rows["after_media"].nonzero().flatten().tolist() == list(
        range(pad + int(torch.where(made.modality != 0)[0][-1]) + 1, pad + len(ids))
    )  # the paper's rule: every later turn
    assert rows["last"].nonzero().flatten().tolist() == [pad + len(ids) - 1]


def test_an_open_turn_of_the_user_asks():
    made, model = prompt("qwen2_5", MEDIA["video"]), model_of("qwen2_5")
    for text, asks in ((ASKED, ASKED), ([], [Ids.NEWLINE])):  # nothing asked yet: the newest token
        ids = [
            *made.inputs["input_ids"][0].tolist(), 33, Ids.IM_END, Ids.NEWLINE, *turn(Ids.USER, text, closed=False)
        ]  # fmt: skip
        inputs = {**made.inputs, "input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        assert torch.tensor(ids)[omnidrop.layout(model, inputs, query="question").query[0]].tolist() == asks


def test_media_of_the_newest_turn_come_before_its_question():
    """The turn's text before its own media cannot see them: what stands behind them asks, as in a single turn."""
    made, model = prompt("qwen2_5", MEDIA["three videos"]), model_of("qwen2_5")
    ids = made.inputs["input_ids"][0].tolist()
    second = int(torch.where((made.modality == Modality.VIDEO) & (made.item == 1))[0][0]) - 2  # with its two openings
    ids[second:second] = [*OLDER, Ids.IM_END, Ids.NEWLINE, *turn(Ids.ASSISTANT, [41]), *turn(Ids.USER, [24, 25])[:-2]]
    inputs = {**made.inputs, "input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
    asks = torch.tensor(ids)[omnidrop.layout(model, inputs, query="question").query[0]].tolist()
    assert asks == made.inputs["input_ids"][0][made.question].tolist()


def test_a_question_before_the_media_falls_to_the_header():
    made = prompt("qwen2_5", MEDIA["video"], question_first=True)
    got = omnidrop.layout(model_of("qwen2_5"), made.inputs).query[0]
    assert got.any() and not (got & made.question).any()
    ends = made.inputs["input_ids"][:, : int(torch.where(made.modality != 0)[0][-1]) + 1]
    assert int(ends[0, -1]) in (Ids.AUDIO, Ids.VIDEO)
    cut = build(  # a prompt that ends with its media: the last token asks
        ends, None, omnidrop.models.adapt(model_of("qwen2_5")).prompt.vocabulary,
        omnidrop.models.adapt(model_of("qwen2_5")).prompt.sizes_of(made.inputs),
    )  # fmt: skip
    assert cut.query[0].nonzero().flatten().tolist() == [ends.shape[1] - 1]


def test_errors():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"])
    short = {**made.inputs, "input_ids": made.inputs["input_ids"][:, :-40]}
    del short["attention_mask"]
    with pytest.raises(InputError, match="placeholder tokens, but"):
        omnidrop.layout(model, short)
    with pytest.raises(InputError, match="no input_ids"):
        omnidrop.layout(model, {})
    with pytest.raises(SettingError, match="choose one of 'after_media', 'question', 'last'"):
        omnidrop.layout(model, made.inputs, query="all")
    nameless = Vocabulary(audio=Ids.AUDIO, video=Ids.VIDEO, image=Ids.IMAGE)
    sizes = omnidrop.models.adapt(model).prompt.sizes_of(made.inputs)
    with pytest.raises(InputError, match="end-of-turn token"):
        build(made.inputs["input_ids"], None, nameless, sizes, "question")
    with pytest.raises(SettingError, match="bool tensor of shape"):
        omnidrop.layout(model, made.inputs, query=torch.ones(1, 3))


def test_json_round_trip():
    layout = omnidrop.layout(model_of("qwen2_5"), prompt("qwen2_5", MEDIA["mixed"]).inputs)
    again = TokenLayout.from_json(layout.to_json())
    for name in ("modality", "chunk", "second", "query", "valid", "item", "frame"):
        torch.testing.assert_close(getattr(again, name), getattr(layout, name), equal_nan=True)
