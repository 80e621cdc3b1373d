"""The cluttered level: every answer by a slow second opinion, pictures and sound that show what the plan says."""

import json
from collections import Counter

import numpy as np
import pytest
from omnidrop_lab.needle import levels, prompts
from omnidrop_lab.needle.clutter import pictures, scene, sound, speech
from omnidrop_lab.needle.clutter.questions import TYPES
from omnidrop_lab.needle.levels import LEVELS
from omnidrop_lab.needle.render import PITCH_HZ, RGB, SAMPLE_RATE
from omnidrop_lab.needle.task import NUMBERS, SEQUENCES

pytestmark = pytest.mark.slow
LEVEL = LEVELS["clutter"]
KIND = {
    **dict.fromkeys(("red", "yellow", "green", "cyan", "blue", "pink"), "color"),
    **dict.fromkeys(("circle", "square", "triangle", "cross", "ring", "bar"), "shape"),
    **dict.fromkeys(("still", "leftward", "rightward", "upward", "downward"), "motion"),
    **dict.fromkeys(("topleft", "topright", "bottomleft", "bottomright"), "place"),
    **dict.fromkeys(("bass", "baritone", "tenor", "alto", "mezzo", "soprano"), "pitch"),
    **dict.fromkeys(("steady", "double", "pulsed", "rising", "buzzing", "fading"), "pattern"),
}


def events(made):
    """(chunk, what it is) of everything that can be asked for, in order: things with four words, sounds with two."""
    things = [
        (i, {"color": t.color, "shape": t.shape, "motion": t.motion, "place": t.place})
        for i, chunk in enumerate(made.chunks)
        for t in chunk.things
    ]
    sounds = [(i, {"pitch": c.sound.pitch, "pattern": c.sound.pattern}) for i, c in enumerate(made.chunks) if c.sound]
    return things, sounds


def slow_answer(made, text):
    """(answer, chunks looked at) from the question's words and the clip's events alone."""
    words = text.removesuffix(" ?").split()
    things, sounds = events(made)
    named = [word for word in words if word in KIND]
    everything = things + sounds

    def those(keys):
        return [(i, e) for i, e in everything if all(e.get(KIND[key]) == key for key in keys)]

    if words[0] == "spell":
        return " ".join(e[words[2]] for _, e in sounds), [i for i, _ in sounds]
    if words[0] == "list":
        held = [(i, e) for i, e in things if e["color"] == named[0]]
        return " ".join(e["shape"] for _, e in held), [i for i, _ in held]
    if words[:2] == ["how", "many"]:
        held = sounds if words[2] == "sounds" else those(named)
        return NUMBERS[len(held)], [i for i, _ in held]
    if words[0] == "which":
        split = words.index("or")
        left = [word for word in words[3:split] if word in KIND]
        right = [word for word in words[split:] if word in KIND]
        ((i, a),), ((j, b),) = those(left), those(right)
        first = a if i < j else b
        return first[KIND[left[0]]], [i, j]
    if "after" in words:
        color = named[0] if KIND[named[0]] == "color" else None
        ask = words[1] if color is None else "shape"
        row = [(i, e) for i, e in everything if ask in e and (color is None or e["color"] == color)]
        at = next(k for k, (_, e) in enumerate(row) if e[ask] == named[-1])
        return row[at + 1][1][ask], [row[at][0], row[at + 1][0]]
    if "during" in words:
        during = words.index("during")
        asked = [word for word in words[:during] if word in KIND]
        ((i, found),) = those([word for word in words[during:] if word in KIND])
        if not asked:
            return next(e for j, e in sounds if j == i)[words[1]], [i]
        ((i, found),) = [(j, e) for j, e in things if j == i and e[KIND[asked[0]]] == asked[0]]
        return found[words[1]], [i]
    found = those(named)
    if not found:
        return "none", []
    ((i, event),) = found
    return (f"{2 * i}s" if words[0] == "when" else event[words[1]]), [i]


@pytest.mark.parametrize("n_chunks", [2, 4, 8, 16, 64])
def test_every_answer_is_right(n_chunks):
    for index in range(4):
        made = LEVEL.clip("dev", index, n_chunks)
        assert made.n_chunks == n_chunks and made.seconds == 2 * n_chunks
        for q in LEVEL.every_question(made):
            answer, chunks = slow_answer(made, q.text)
            assert (answer, sorted(set(chunks))) == (q.answer, list(q.evidence)), (q, made)
            assert set(q.words) <= set(q.choices) and len(set(q.choices)) == len(q.choices)
            assert len(q.words) == 1 or q.type in SEQUENCES
            assert q.english.split(" Only")[0].endswith(("?", ".")) and not set(q.english.split()) & {
                "topleft",
                "upward",
            }


def test_one_word_of_a_key_is_never_enough():
    """Other things, or decoys, share each of the two words; the two together are one thing's."""
    asked = 0
    for index in range(20):
        made = LEVEL.clip("train", index)
        things = [t for chunk in made.chunks for t in chunk.things]
        decoys = [t for chunk in made.chunks for t in chunk.decoys]
        assert len({(t.color, t.shape) for t in things}) == len(things)
        for q in LEVEL.every_question(made):
            if q.type not in ("place", "motion"):
                continue
            asked += 1
            first, second = q.keys
            same = [t for t in things if getattr(t, KIND[first]) == first and getattr(t, KIND[second]) == second]
            assert len(same) == 1
            for key in q.keys:
                assert sum(getattr(t, KIND[key]) == key for t in things + decoys) > 1
    assert asked > 1000


def test_reproducible_and_other_splits_and_levels_are_others():
    assert LEVEL.clip("dev", 3, 12) == LEVEL.clip("dev", 3, 12)
    assert LEVEL.questions(LEVEL.clip("dev", 1)) == LEVEL.questions(LEVEL.clip("dev", 1))
    made = [LEVEL.clip(split, i).chunks for split in ("train", "dev", "test") for i in range(60)]
    assert len(set(made)) == len(made)
    assert levels.of(LEVEL.clip("dev", 0)) is LEVEL and levels.of(LEVELS["plain"].clip("dev", 0)) is LEVELS["plain"]
    seen = Counter(q.type for i in range(40) for q in LEVEL.questions(LEVEL.clip("dev", i)))
    assert set(seen) == set(TYPES) and min(seen.values()) >= 30


def test_spoken_questions_are_some_of_the_others():
    """Their answers and evidence are those of the same text; every type that may be spoken is."""
    kinds = Counter()
    for index in range(40):
        made = LEVEL.clip("dev", index)
        every = {q.text: q for q in LEVEL.every_question(made)}
        for q in LEVEL.questions(made, ("spoken",)):
            written = every[q.text]
            assert (q.answer, q.evidence, q.modality) == (written.answer, written.evidence, written.modality)
            kinds[written.type] += 1
    assert set(kinds) == {"place", "motion", "audio", "joint", "time"}


def test_speech_has_a_beat_a_word_and_tells_words_and_voices_apart():
    question = "what color is the upward square ?"
    wave = speech.say(question, 1, 2)
    assert wave.dtype == np.float32 and len(wave) == 6 * 2 * SAMPLE_RATE // 5 and 0.1 < np.abs(wave).max() < 0.5
    assert np.array_equal(wave, speech.say(question, 1, 2)) and not np.array_equal(wave, speech.say(question, 1, 3))
    assert np.abs(wave.reshape(6, -1)[:, -400:]).max() < 0.03  # a pause behind each word
    with pytest.raises(ValueError, match="'0s' cannot be spoken"):
        speech.say("when is 0s ?", 1)

    def spectrum(word, seed):
        rng = np.random.default_rng(seed)
        frames = speech.word(word, speech.Voice(120, 1.0, 0.3), rng)[:5600].reshape(14, 400)
        bands = np.abs(np.fft.rfft(frames * np.hanning(400)))[:, :128].reshape(14, 32, 4).sum(-1)
        return np.log(bands + 0.1)

    known = {word: spectrum(word, 0) for word in KIND}
    for word in KIND:  # the same word said again is nearer than every other
        again = spectrum(word, 1)
        assert min(known, key=lambda other: np.abs(known[other] - again).mean()) == word


def test_spoken_questions_are_for_models_of_this_level():
    """A real model would hear noise: they are left out, and refused where they are asked for."""
    from omnidrop_lab.needle.bench import Config

    from omnidrop.errors import SettingError

    assert "spoken" in Config(model="", level="clutter").types
    assert "spoken" not in Config(model="", level="clutter", words=False).types
    with pytest.raises(SettingError, match="which no other model understands"):
        Config(model="", level="clutter", words=False, types=("spoken",))


def test_every_clip_bears_the_logo():
    """White on black in the top left corner, at any size, whatever moves below it."""
    for size in (112, 448):
        corner = pictures.frames(LEVEL.clip("dev", 0, 4), size)[:, : round(0.09 * size), : round(0.09 * size)].mean(-1)
        half = corner.shape[1] // 2
        assert (corner[:, half, 1:-1] > 190).all() and (corner[:, 1, 1] < 60).all()


def test_pictures_show_the_things_where_and_as_they_move():
    """Read back from pixels alone: the colour's centre lies in the quarter, and moves as the plan says."""
    size, checked = 112, Counter()
    for index in range(12):
        made = LEVEL.clip("test", index)
        shot = pictures.frames(made, size).astype(float)
        assert shot.shape == (made.n_chunks * 4, size, size, 3)
        for i, chunk in enumerate(made.chunks):
            for thing in chunk.things:
                rgb = np.array(RGB[thing.color], float)
                if any(t.color == thing.color and t is not thing for t in (*chunk.things, *chunk.decoys)):
                    continue
                centres = []
                for f in range(4):
                    picture = shot[4 * i + f]
                    shade = (picture @ rgb) / (rgb @ rgb)
                    near = (np.linalg.norm(picture - shade[..., None] * rgb, axis=-1) < 25) & (shade > 0.6)
                    if thing.shown[f // 2]:
                        assert near.sum() > 60, (index, i, thing)
                        y, x = (axis.mean() for axis in np.nonzero(near))
                        centres.append((x, y))
                    else:
                        assert near.sum() < 60
                (x0, y0), (x1, y1) = centres[0], centres[-1]
                across, down = x1 - x0, y1 - y0
                way = "still" if max(abs(across), abs(down)) < 3 else None
                way = way or (("leftward" if across < 0 else "rightward") if abs(across) > abs(down) else None)
                assert (way or ("upward" if down < 0 else "downward")) == thing.motion
                side = (
                    "top" if (y0 + y1) / 2 < size / 2 else "bottom",
                    "left" if (x0 + x1) / 2 < size / 2 else "right",
                )
                assert "".join(side) == thing.place
                checked[thing.motion] += 1
    assert len(checked) == 5 and min(checked.values()) >= 3


def test_backgrounds_have_texture_and_move():
    made = LEVEL.clip("test", 0)
    shot = pictures.frames(made, 112).astype(float)
    assert shot.std((1, 2)).min() > 10
    moved = [np.abs(shot[f + 1] - shot[f]).mean() for f in range(len(shot) - 1)]
    assert np.median(moved) > 10  # grain alone would give about 5.6


def test_sounds_are_there_among_the_noise():
    length = 2 * SAMPLE_RATE
    heard = 0
    for index in range(10):
        made = LEVEL.clip("test", index)
        wave = sound.waveform(made)
        assert wave.dtype == np.float32 and len(wave) == made.n_chunks * length and np.abs(wave).max() <= 1
        for i, chunk in enumerate(made.chunks):
            assert chunk.noises and all(n.start >= 0 and n.start + n.seconds <= 2 for n in chunk.noises)
            spectrum = np.abs(np.fft.rfft(wave[i * length : (i + 1) * length]))
            hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
            loud = {name: spectrum[np.abs(hz - f) < 0.02 * f].max() for name, f in PITCH_HZ.items()}
            if chunk.sound is not None and chunk.sound.pattern == "steady":
                heard += max(loud, key=loud.get) == chunk.sound.pitch
                assert loud[chunk.sound.pitch] > 3 * np.median(spectrum)
    assert heard >= 4


def test_every_choice_in_english():
    letters = Counter()
    for index in range(30):
        made = LEVEL.clip("dev", index)
        for q in LEVEL.questions(made, tuple(kind for kind in TYPES if kind not in SEQUENCES)):
            prompt, letter = prompts.multiple_choice(q, made)
            (right,) = [line for line in prompt.splitlines() if line.startswith(f"{letter}. ")]
            said = {**scene.PLACE_NAMES, **scene.MOTION_NAMES, "none": "there is none"}.get(q.answer, q.answer)
            if q.type == "time":
                said = f"between {q.answer[:-1]} and"
            assert said in right
            letters[letter] += q.type != "order"
    assert min(letters[x] for x in "ABCD") > 0.12 * sum(letters.values())


def test_legal_values_are_named():
    with pytest.raises(ValueError, match="split is 'validation'; legal: train, dev, test"):
        LEVEL.clip("validation", 0)
    with pytest.raises(ValueError, match="n_chunks is 1; legal: 2 to 128"):
        LEVEL.clip("dev", 0, 1)


def test_the_command_runs_the_level_and_refuses_a_model_without_its_words(capsys):
    """The plain level's model would answer by guessing."""
    from omnidrop.cli import main
    from omnidrop.loading import TINY

    command = ["needle", "--clutter", "--split", "dev", "--clips", "1", "--methods", "none", "--quiet"]
    assert main([*command, "--model", str(TINY)]) == 2
    assert "does not know the words of --clutter" in capsys.readouterr().err
    assert main([*command, "--types", "video"]) == 2
    assert "the clutter level has no question type 'video'; choose among place, motion" in capsys.readouterr().err


def test_the_levels_own_model_answers_written_and_spoken_questions(capsys):
    """The default of --clutter, through the command: all tokens, then pruned; what asks is never dropped."""
    from omnidrop.cli import main

    command = ["needle", "--clutter", "--split", "dev", "--clips", "4", "--draws", "1", "--methods", "omnidrop"]
    assert main([*command, "--keep", "0.3", "--resamples", "100", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    full, pruned = document["results"]
    assert document["setup"]["model"] == "tiny (shipped)" and document["task"]["size"] == 112
    assert document["task"]["tokens_per_clip"] == {"audio": 80, "video": 256}
    assert full["accuracy"]["all"]["value"] > 0.9 and full["accuracy"]["spoken"]["value"] > 0.7
    assert pruned["keep"] == pytest.approx(0.3, abs=0.02) and pruned["accuracy"]["spoken"]["value"] > 0.2
    size = sum(file.stat().st_size for file in LEVEL.model.iterdir())
    assert size < 8e6


@pytest.mark.parametrize("samples", [4321, 6400, 11361, 25600])  # at 4,321 and 11,361 a beat falls on the end
def test_babble_of_any_length(samples: int) -> None:
    babble = scene.Noise("babble", 0.0, (samples + 0.5) / 16_000, 0.1)
    wave = sound.noise(babble, np.random.default_rng(1))
    assert len(wave) == samples and np.abs(wave).max() <= 0.1 and np.abs(wave).max() > 0.01
