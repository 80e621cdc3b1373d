"""The synthetic task: reproducible, disjoint by split, and every answer is right by a slow second opinion."""

from collections import Counter

import numpy as np
import pytest
from omnidrop_lab.needle import clip, prompts, questions
from omnidrop_lab.needle.task import ATTRIBUTES, LONGEST, MODALITY, NUMBERS, SEQUENCES, TYPES, every_question

pytestmark = pytest.mark.slow


def chunks_that_say(made, word):
    """All chunks with a colour, shape, pitch or pattern of this name."""
    events = [(c.thing and (c.thing.color, c.thing.shape)) or () for c in made.chunks]
    heard = [(c.sound and (c.sound.pitch, c.sound.pattern)) or () for c in made.chunks]
    return [i for i in range(made.n_chunks) if word in events[i] + heard[i]]


def slow_answer(made, text):
    """Reads the question's words and the clip's events, with no use of the generator's own fields."""
    words = text.replace(" ?", "").replace(" one", "").replace("the ", "").split()
    attribute = {"color": ("thing", "color"), "shape": ("thing", "shape"),
                 "pitch": ("sound", "pitch"), "pattern": ("sound", "pattern")}  # fmt: skip

    def value(i, name):
        owner, field = attribute[name]
        event = getattr(made.chunks[i], owner)
        return None if event is None else getattr(event, field)

    if words[0] in ("spell", "list"):
        assert (words[0] == "spell") == (words[1] in ("pitch", "pattern"))
        return " ".join(v for i in range(made.n_chunks) if (v := value(i, words[1])) is not None)
    if words[:2] == ["how", "many"]:
        return NUMBERS[sum((c.thing if words[2] == "things" else c.sound) is not None for c in made.chunks)]
    if words[0] == "when":
        (at,) = chunks_that_say(made, words[-1])
        return f"{2 * at}s"
    if words[:3] == ["which", "is", "first"]:
        return min((words[3], words[5]), key=lambda word: chunks_that_say(made, word))
    if words[2:4] == ["comes", "after"]:
        (at,) = chunks_that_say(made, words[-1])
        return next(v for i in range(at + 1, made.n_chunks) if (v := value(i, words[1])) is not None)
    at = chunks_that_say(made, words[-1])
    return value(at[0], words[1]) if at else "none"


@pytest.mark.parametrize("n_chunks", [2, 3, 4, 8, 16, 64, 128])
def test_every_answer_is_right(n_chunks):
    for index in range(5):
        made = clip("dev", index, n_chunks)
        assert made.n_chunks == n_chunks and made.seconds == 2 * n_chunks
        for q in every_question(made):
            assert slow_answer(made, q.text) == q.answer, (q, made)
            assert set(q.words) <= set(q.choices) and len(set(q.choices)) == len(q.choices)
            assert len(q.words) == 1 or q.type in SEQUENCES
            assert all(0 <= i < n_chunks for i in q.evidence) and list(q.evidence) == sorted(q.evidence)


def test_the_same_seed_gives_the_same_clip_and_other_splits_other_clips():
    assert clip("train", 3, 12) == clip("train", 3, 12)
    assert questions(clip("dev", 1)) == questions(clip("dev", 1))
    made = [clip(split, i).chunks for split in ("train", "dev", "test") for i in range(200)]
    assert len(set(made)) == len(made)
    assert clip("test", 0).chunks != clip("test", 0, seed=1).chunks


def test_a_key_names_one_chunk_and_every_chunk_distracts():
    for n_chunks in (4, 8, 64):
        for index in range(30):
            made = clip("train", index, n_chunks)
            for name in ATTRIBUTES:
                values = [v for c in made.chunks if (v := c.value(name)) is not None]
                assert len(set(values)) == len(values) and 2 <= len(values) <= 6
            assert sum(c.thing is not None and c.sound is not None for c in made.chunks) >= 2
            for c in made.chunks:
                assert c.grey and c.bursts
                assert c.thing is None or c.thing.cell not in [cell for _, cell in c.grey]


def test_question_types_evidence_and_modality():
    seen = Counter()
    for index in range(40):
        made = clip("dev", index)
        for q in questions(made):
            seen[q.type] += 1
            assert q.modality in {"video": ("video",), "audio": ("audio",), "joint": ("both",), "none": ("none",)}.get(
                q.type, ("video", "audio")
            )
            if q.type in SEQUENCES:
                own = "sound" if q.type == "transcribe" else "thing"
                assert q.evidence == tuple(i for i, c in enumerate(made.chunks) if getattr(c, own) is not None)
                assert q.modality == ("audio" if q.type == "transcribe" else "video")
                assert 2 <= len(q.words) == len(q.evidence) <= LONGEST and q.key_attribute is None
            if q.type in ("order", "list"):
                assert len(q.evidence) == 2
            if q.type == "none":
                assert q.evidence == () and q.answer == "none"
            if q.type in ("video", "audio", "joint", "time"):
                (at,) = q.evidence
                assert made.chunks[at].value(q.key_attribute) == q.keys[0]
                if q.type == "joint":
                    assert MODALITY[q.ask] != MODALITY[q.key_attribute]
    assert set(seen) == set(TYPES) and min(seen.values()) >= 30  # a clip that shows all six of everything has no "none"


def test_answers_are_spread():
    firsts = Counter()
    for index in range(300):
        for q in questions(clip("train", index), ("order",)):
            firsts[q.keys.index(q.answer)] += 1
    assert 0.4 < firsts[0] / sum(firsts.values()) < 0.6


def test_multiple_choice_in_english():
    letters = Counter()
    for index in range(60):
        made = clip("dev", index)
        for q in questions(made, tuple(kind for kind in TYPES if kind not in SEQUENCES)):
            prompt, letter = prompts.multiple_choice(q, made)
            assert (prompt, letter) == prompts.multiple_choice(q, made)
            lines = prompt.splitlines()
            assert lines[0].endswith("?") and lines[-1].startswith("Answer with the letter")
            (right,) = [line for line in lines if line.startswith(f"{letter}. ")]
            if q.type == "time":
                assert f"between {q.answer[:-1]} and" in right
            elif q.type == "none":
                assert "none" in right
            else:
                assert q.answer in right
            letters[letter] += q.type != "order"
    assert min(letters[x] for x in "ABCD") > 0.15 * sum(letters.values())
    messages = prompts.conversation("a.mp4", "when is the ring ?", system="be brief")
    assert [m["role"] for m in messages] == ["system", "user"]
    assert [p["type"] for p in messages[1]["content"]] == ["video", "text"]


def test_sequences_in_english():
    """The prompt gives the words and the order in which to say them, and not the answer."""
    order = {}
    for q in every_question(clip("dev", 0)):
        if q.type in SEQUENCES:
            first, known, how = prompts.listing(q).splitlines()
            order[q.ask] = first
            assert [w for w in prompts.words_of(known) if w not in ("about", "hz")] == [
                *("the", "words", "are"),
                *ATTRIBUTES[q.ask],
            ]
            assert how == "Answer with the words only, separated by spaces."
    assert order == {
        "color": "List the colors of the colored objects in the order in which they appear.",
        "shape": "List the shapes of the colored objects in the order in which they appear.",
        "pitch": "List the pitches of the tones in the order in which they are heard.",
        "pattern": "List the sound patterns of the tones in the order in which they are heard.",
    }
    assert prompts.words_of(" Red, green;BLUE.\n1) pink") == ("red", "green", "blue", "pink")
    assert prompts.words_of("...") == ()


def test_the_new_types_left_the_old_draws_as_they_were():
    """What a published clip was asked before there were sequences, word for word."""
    old = tuple(kind for kind in TYPES if kind not in SEQUENCES)
    assert TYPES[:8] == old == ("video", "audio", "joint", "time", "order", "list", "count", "none")
    drawn = questions(clip("test", 1))
    assert questions(clip("test", 1), old) == drawn[: len(old)]
    assert [q.text for q in drawn[: len(old)]] == [
        "what color is the circle ?",
        "what pattern is the tenor one ?",
        "what pitch during the cyan one ?",
        "when is the triangle ?",
        "which is first tenor or soprano ?",
        "what shape comes after circle ?",
        "how many sounds ?",
        "what pattern during the pink one ?",
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: clip("validation", 0), "split is 'validation'; legal: train, dev, test"),
        (lambda: clip("dev", 0, 1), "n_chunks is 1; legal: 2 to 128"),
    ],
)
def test_errors_name_the_legal_values(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_importing_the_task_is_cheap():
    import subprocess
    import sys

    code = "import sys, omnidrop_lab.needle; print([m for m in ('torch', 'transformers', 'av') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert isinstance(clip("dev", np.int64(2)).n_chunks, int)
