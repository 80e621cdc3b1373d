"""The training recipe's shortcuts are exact: composed sequences are the processor's, blocks do not see each other.

Trains nothing. Lives beside `training/`, which is in the repository but not in the wheel.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omnidrop.models import adapt

ROOT = Path(__file__).parents[2]
pytest.importorskip("av")
pytest.importorskip("PIL")
if not (ROOT / "training").is_dir():
    pytest.skip("the training recipe is in the repository only", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def training():
    sys.path.insert(0, str(ROOT))
    try:
        from training import (  # noqa: F401
            attention,
            build,
            carry,
            chunks,
            cluttered,
            compose,
            encoders,
            evaluate,
            extend,
            llm,
            spoken,
        )
    finally:
        sys.path.remove(str(ROOT))
    import training as package

    return package


@pytest.fixture(scope="module")
def composer(training):
    """Random features, one row for each kind of chunk."""
    things = [(c, s) for c in range(6) for s in range(6)] + [(6, 6)]
    labels = torch.tensor([[c, s, c, s, 0] for c, s in things])
    torch.manual_seed(0)
    video, audio = (torch.randn(len(labels), n, training.build.PLAIN.width).half() for n in (18, 10))
    return training.compose.Composer(video, audio, labels, training.build.model(0).eval())


@pytest.fixture(scope="module")
def cluttered(training):
    """Random features of chunks with every pair of colour and shape, alone and in twos, and every sound."""
    from omnidrop_lab.needle.levels import LEVELS

    content = [chunk for i in range(60) for chunk in LEVELS["clutter"].clip("dev", i).chunks]
    torch.manual_seed(0)
    video, audio = (torch.randn(len(content), n, training.build.CLUTTER.width).half() for n in (32, 10))
    model = training.build.model(0, training.build.CLUTTER).eval()
    composer = training.cluttered.Composer(video, audio, content, model)
    composer.speech = training.spoken.Hearing(model, 0)
    return composer


@pytest.mark.parametrize("level", ["plain", "clutter"])
def test_a_composed_sequence_is_the_processors(training, request, tmp_path, level, monkeypatch):
    monkeypatch.setattr(training.compose, "ALOUD", 0.0)
    from omnidrop_lab.needle import files, prompts
    from omnidrop_lab.needle.levels import LEVELS

    composer = request.getfixturevalue("composer" if level == "plain" else "cluttered")
    sizes = training.build.SIZES[level]
    front = training.build.processor(sizes)
    batch = composer.batch([3], 5, 2, seed=0, split="dev")
    pictures, sound = files.read(files.write(LEVELS[level].clip("dev", 3, 5), tmp_path / "clip.mp4"))
    ids = batch.embeds_ids[0]
    stop = int(batch.at[0, 0, 0]) + 1
    body = batch.media_start + 5 * sizes.per_chunk + 2
    assert sizes.per_chunk == {"plain": 28, "clutter": 42}[level]
    text = " ".join(front.tokenizer.convert_ids_to_tokens(ids[body : stop - 3].tolist()))
    prompt = front.apply_chat_template(prompts.conversation("-", text), add_generation_prompt=True, tokenize=False)
    x = training.build.process(front, [prompt], [pictures], [sound], sizes)
    real = x["input_ids"][0]
    media = (real == front.tokenizer.video_token_id) | (real == front.tokenizer.audio_token_id)
    assert len(real) == stop and torch.equal(real[~media], ids[:stop][~media])
    where = media.nonzero().flatten()
    assert where[0] == batch.media_start and len(where) == 5 * sizes.per_chunk
    positions, _ = composer.model.get_rope_index(
        x["input_ids"], video_grid_thw=x["video_grid_thw"], attention_mask=x["attention_mask"],
        use_audio_in_video=True, audio_seqlens=x["feature_attention_mask"].sum(1),
        second_per_grids=torch.tensor([1.0]),
    )  # fmt: skip
    assert torch.equal(positions[:, 0], batch.positions[:, 0, :stop])


@torch.no_grad()
def test_a_composed_spoken_question_is_the_processors(training, cluttered, monkeypatch):
    """Tokens, positions and features of a recording behind the clip, and the targets at what is said last."""
    from omnidrop_lab.needle import ask
    from omnidrop_lab.needle.clutter import speech
    from omnidrop_lab.needle.levels import LEVELS

    from omnidrop.media import Media
    from omnidrop.prompt import process

    monkeypatch.setattr(training.compose, "ALOUD", 1.0)
    front, made = training.build.processor(training.build.CLUTTER), LEVELS["clutter"].clip("dev", 3, 5)
    batch = cluttered.batch([3], 5, 6, seed=0, split="dev")
    ids, body = batch.embeds_ids[0], batch.media_start + 5 * 42 + 2
    j = batch.kind[0].index("spoken")
    begin = [body, *(int(places.max()) + 1 for places in batch.at[0])][j]
    rows = [*range(body), *range(begin, int(batch.at[0, j, 0]) + 1)]
    said = ids[rows][body:] == front.tokenizer.audio_token_id
    assert said[1:-4].all() and said.sum() % training.spoken.PER_WORD == 0  # recording, its marks, the template's three

    def heard(samples):
        return Media("said", "audio", None, None, None, samples, 16_000, len(samples) / 16_000)

    noise = np.random.default_rng(0).normal(0, 0.1, int(said.sum()) * 3200).astype(np.float32)
    clip = process(front, ask.in_memory(made, 112))
    x = type(clip).join([clip, process(front, heard(noise))]).ask(front, "")
    real, composed = x["input_ids"][0], ids[rows].clone()
    clip_s = slice(batch.media_start, body - 2)
    assert set(real[clip_s].tolist()) == {front.tokenizer.video_token_id, front.tokenizer.audio_token_id}
    composed[clip_s] = real[clip_s]  # composed clips hold features in the place of ids
    assert torch.equal(real, composed)
    positions, _ = cluttered.model.get_rope_index(
        x["input_ids"], video_grid_thw=x["video_grid_thw"], attention_mask=x["attention_mask"],
        use_audio_in_video=True, audio_seqlens=x["feature_attention_mask"].sum(1),
        second_per_grids=x["video_second_per_grid"],
    )  # fmt: skip
    assert torch.equal(positions[:, 0], batch.positions[:, 0, rows])
    mark = begin + int(said.sum()) + 1
    assert batch.hint[0, mark] == batch.answer[0, rows[-1]] != training.compose.IGNORE
    assert int(batch.spoken_at.sum()) == len(batch.spoken) and batch.spoken_at[0, begin + 1 : mark].all()

    hearing, text = cluttered.speech, "what color is the upward square ?"
    rng = np.random.default_rng(5)
    samples = hearing.bank[int(rng.integers(len(hearing.bank))), [hearing.row[w] for w in speech.words_of(text)]]
    samples = samples.reshape(-1) + rng.normal(0, 0.004, samples.size).astype(np.float32)
    x = process(front, heard(samples)).ask(front, "")
    real = cluttered.model.get_audio_features(x["input_features"], x["feature_attention_mask"]).last_hidden_state
    made = hearing.features(cluttered.model, [text], np.random.default_rng(5))
    torch.testing.assert_close(made, real)
    assert len(made) == hearing.tokens(text) == 12 and hearing.place(5) == 11


@torch.no_grad()
def test_a_question_among_others_is_the_question_alone(training, composer):
    """Logits in the block layout equal those of the class's own forward on one question."""
    batch = composer.batch([5], 4, 24, seed=1, split="dev")
    assert {"caption", "transcribe"} & set(batch.kind[0])
    model, layers = composer.model, training.build.LAYERS
    together, _ = training.llm.forward(model, batch, [batch.plain] * layers)
    body = batch.media_start + 4 * 28 + 2
    stops = [int(places.max()) + 1 for places in batch.at[0]]
    for j, (begin, stop) in enumerate(zip([body, *stops], stops, strict=False)):
        rows = [*range(body), *range(begin, stop)]
        ids = batch.embeds_ids[:, rows]
        words = model.get_input_embeddings()(ids)
        words[:, batch.media_start : body - 2] = batch.media
        alone = adapt(model).decoder.module(inputs_embeds=words, position_ids=batch.positions[:, :, rows])
        first = int(batch.at[0, j, 0])
        torch.testing.assert_close(
            model.lm_head(alone.last_hidden_state[:, first - stop :]),
            model.lm_head(together[:, first:stop]),
            atol=2e-4,
            rtol=1e-3,
        )


def test_every_word_of_an_answer_is_a_target(training, composer):
    """Read back from the composed rows: header, words, end; short answers are padded with what no loss looks at."""
    from training.compose import IGNORE

    words = training.build.tokenizer().convert_ids_to_tokens
    batch = composer.batch([5], 8, 24, seed=4, split="dev")
    ids = batch.embeds_ids[0]
    for kind, at, word in zip(batch.kind[0], batch.at[0], batch.word[0], strict=True):
        told = word[word != IGNORE]
        header, n = int(at[0]), len(told)
        assert at.tolist() == [*range(header, header + n), *[header] * (7 - n)] and (word[n:] == IGNORE).all()
        assert words(ids[header].item()) == "assistant" and words(told[-1].item()) == "<|im_end|>"
        assert torch.equal(batch.answer[0, header : header + n], told)  # each at the place before it
        assert torch.equal(ids[header + 1 : header + n], told[:-1])  # and said, so that the next one can follow
        long = kind in ("transcribe", "caption")
        assert (n > 2) if long else (n == 2)
        middle = batch.middle[0, header + 1 : header + n]
        assert torch.equal(middle, told[1:]) if long else (middle == IGNORE).all()
        if long:
            assert batch.hint[0, header - 3] == batch.middle[0, header - 3] == told[0]
            assert words(ids[header - 3].item()) == "?"


def test_an_answer_is_right_with_all_its_words(training, composer):
    """Hidden states that make the head say what is wanted; then one word, in one place, is another."""
    batch = composer.batch([6], 8, 8, seed=1, split="dev")
    j = next(j for j, kind in enumerate(batch.kind[0]) if kind in ("transcribe", "caption"))
    target = batch.answer.clamp_min(0)

    class Echo:
        lm_head = staticmethod(lambda ids: torch.nn.functional.one_hot(ids, 210))

    assert training.llm.answered(Echo, target, batch).all()
    for place in (batch.at[0, j, 0], batch.at[0, j, 1], batch.at[0, j].max()):
        other = target.clone()
        other[0, place] += 1
        right = training.llm.answered(Echo, other, batch)
        assert not right[0, j] and right.sum() == right.numel() - 1


def test_clips_of_the_cluttered_level_are_composed_of_chunks_that_show_them(training, cluttered):
    """Features come from chunks with the clip's own things and sounds, and read-outs name what is there."""
    from omnidrop_lab.needle.clutter.scene import COLORS, MOTIONS, PLACES, SHAPES
    from omnidrop_lab.needle.task import PITCHES

    for index in range(10):
        clip, video, audio = cluttered.make("train", index, 8, 0, np.random.default_rng(index))
        facts = cluttered.facts(clip)
        counts, sounds = {}, 0
        for i, (chunk, seen, heard) in enumerate(zip(clip.chunks, video, audio, strict=True)):
            assert chunk.things == cluttered.content[seen].things and chunk.decoys == cluttered.content[seen].decoys
            assert chunk.sound == cluttered.content[heard].sound
            held = {thing.place: thing for thing in chunk.things}
            for thing in chunk.things:
                counts[thing.color] = counts.get(thing.color, 0) + 1
            for quarter, place in enumerate(PLACES):
                named = [facts[name][i][quarter] for name in ("color", "shape", "motion")]
                thing = held.get(place)
                want = [6] * 3
                if thing is not None:
                    want = [COLORS.index(thing.color), SHAPES.index(thing.shape), MOTIONS.index(thing.motion)]
                    assert facts["ordinal"][i][quarter] == counts[thing.color] - 1
                assert named == want
            sounds += chunk.sound is not None
            assert facts["sounds"][i] == sounds
            assert facts["pitch"][i] == (6 if chunk.sound is None else PITCHES.index(chunk.sound.pitch))


def test_a_sound_tells_when_before_what_was_seen_then(training, cluttered):
    """Read back from composed rows: in "what ... during the tenor one ?" the sound's word says the time of its chunk in
    the middle layer, and the word behind it the answer."""
    words = training.build.tokenizer(training.build.CLUTTER).convert_ids_to_tokens
    found = 0
    for index in range(4):
        clip, *_ = cluttered.make("dev", index, 8, 0, np.random.default_rng([0, index, 8]))
        batch = cluttered.batch([index], 8, 40, seed=0, split="dev")
        for at, word in zip(batch.at[0], batch.word[0], strict=True):
            mark = int(at[0]) - 3
            text = words(batch.embeds_ids[0, mark - 4 : mark].tolist())
            if text[:2] != ["during", "the"]:
                continue
            place = mark - 2
            when = [i for i, c in enumerate(clip.chunks) if c.sound and text[2] in (c.sound.pitch, c.sound.pattern)]
            if text[3] == "one" and len(when) == 1:
                found += 1
                assert words(batch.middle[0, place].item()) == f"{2 * when[0]}s"
                assert batch.middle[0, place + 1] == batch.hint[0, place + 1] == word[0]
    assert found >= 10


def test_a_step_of_the_cluttered_level(training, cluttered):
    """Losses are finite, reach every weight of the decoder, and a question about one modality may not see the other."""
    from omnidrop_lab.needle.clutter.questions import TYPES

    batch = cluttered.batch([1, 2], 8, 40, seed=3, strict=1.0)
    assert {kind for row in batch.kind for kind in row} == set(TYPES)
    heads = training.cluttered.Heads()
    parts, right = training.llm.losses(cluttered.model, heads, batch, [batch.barred] * training.build.LAYERS)
    assert set(parts) == set(training.llm.SHARE) and right.shape == (2, 40)
    sum(parts.values()).backward()
    lacking = [n for n, p in adapt(cluttered.model).decoder.module.named_parameters() if p.grad is None]
    assert not lacking and all(torch.isfinite(value) for value in parts.values())
    media = slice(batch.media_start, batch.media_start + 8 * 42)
    last = batch.at[0].amax(1) - media.stop
    sees = batch.barred[0, 0, last][:, media].reshape(40, 8, 42)
    joint = []
    for kind, row in zip(batch.kind[0], sees, strict=True):
        video, audio = bool(row[..., :32].all()), bool(row[..., 32:].all())
        if kind == "joint":
            assert audio and (video or not row[..., :32].any())
            joint.append(video)
        elif kind not in ("time", "order", "list", "count", "none", "spoken"):
            assert video != audio
    assert {*joint} == {True, False}  # some have to do with what the sound knows of the pictures
    cluttered.model.zero_grad()


def test_tokens_of_the_cluttered_level_name_what_they_show(training):
    """A thing of the second second names the tokens of its quarter there and no others."""
    from omnidrop_lab.needle.clutter.scene import Chunk, Thing

    thing = Thing("green", "ring", "upward", "topright", 0.5, (False, True))
    decoy = Thing("red", "bar", "still", "topleft", 0.5, (True, True), stripes=True)
    named = training.cluttered.token_targets([Chunk((thing,), (decoy,), None, 1.0, (), 0)])
    color = named["color"].reshape(2, 4, 4)
    assert (color[0] == 6).all() and (color[1, :2, 2:] == 2).all() and (color[1] == 2).sum() == 4
    assert (named["pitch"] == 6).all() and named["pitch"].shape == (1, 10)


def test_masks_hide_what_they_say(training, composer):
    batch = composer.batch([7], 4, 16, seed=2, strict=1.0)
    media = slice(batch.media_start, batch.media_start + 4 * 28)
    length = batch.embeds_ids.shape[1]
    assert batch.plain.shape == (1, 1, length - media.stop, length)  # rows for what is behind the media
    assert batch.plain[0, 0, :, media].all() and not batch.early[0, 0, :, media].any()
    last = batch.at[0].amax(1) - media.stop
    assert not batch.plain[0, 0, last].triu(media.stop + 1 + int(last.max())).any()
    sees = batch.barred[0, 0, last][:, media].reshape(16, 4, 28)
    for kind, row in zip(batch.kind[0], sees, strict=True):
        video, audio = bool(row[:, :18].all()), bool(row[:, 18:].all())
        if kind == "joint":
            assert video and audio
        elif kind in ("video", "caption"):
            assert video and not row[:, 18:].any()
        elif kind in ("audio", "transcribe"):
            assert audio and not row[:, :18].any()
    assert {"caption", "transcribe"} & set(batch.kind[0])
    assert not batch.barred[0, 0, :2, media].any()  # the end tokens, at strict 1


@pytest.mark.parametrize("long", [1_024, 0], ids=["products", "sdpa"])
def test_two_parts_of_attention_are_one_with_the_whole_mask(training, long, monkeypatch):
    """Values and gradients, against the definition written out; and the model attends as before afterwards."""
    monkeypatch.setattr(training.attention, "LONG", long)
    torch.manual_seed(0)
    heads, groups, length, behind, size = 4, 2, 23, 9, 8
    shapes = (heads, length), (heads // groups, length), (heads // groups, length)
    inputs = [torch.randn(2, *shape, size, dtype=torch.double, requires_grad=True) for shape in shapes]
    sees = torch.rand(2, 1, behind, length) < 0.5
    sees[..., 0] = True
    module = torch.nn.Module()
    module.num_key_value_groups = groups
    biases = training.attention.biases([sees, sees], length, torch.double)[1]
    assert (biases[0] is None) == (not long)
    got, _ = training.attention.attend(module, *inputs, biases, scaling=0.3)
    whole = torch.ones(length, length, dtype=torch.bool).tril().expand(2, 1, -1, -1).clone()
    whole[:, :, -behind:] = sees
    query, key, value = inputs
    scores = torch.einsum("bgrid,bgjd->bgrij", query.unflatten(1, (-1, groups)), key) * 0.3
    chance = scores.masked_fill(~whole[:, :, None], -torch.inf).softmax(-1)
    want = torch.einsum("bgrij,bgjd->bigrd", chance, value).flatten(2, 3)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    for one, other in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, other)

    decoder = adapt(training.build.model(0)).decoder.module
    was = decoder.config._attn_implementation
    with pytest.raises(ZeroDivisionError), training.attention.installed(decoder):
        assert decoder.layers[0].self_attn.config._attn_implementation != was
        raise ZeroDivisionError
    assert decoder.config._attn_implementation == was


def test_lengths_are_drawn_and_a_step_reads_about_as_much(training, composer, tmp_path, monkeypatch):
    """After the curriculum: only the lengths given, all of them, 64 chunks a step or one clip."""
    llm = training.llm
    drawn = []

    class EnoughError(Exception):
        pass

    def batch(indices, n_chunks, n_questions, seed, **how):
        drawn.append((n_chunks, len(indices), n_questions))
        if len(drawn) == 40:
            raise EnoughError
        return composer.batch([0], 2, 1, seed)

    composer_like = type("Composer", (), {"batch": staticmethod(batch), "questions": 16})
    monkeypatch.setattr(llm, "CURRICULUM", ())
    monkeypatch.setattr(
        llm, "losses", lambda model, heads, b, masks: ({"answer": heads.index.weight.sum()}, b.word[..., 0] == 0)
    )
    with pytest.raises(EnoughError):
        llm.train(training.build.model(0), composer_like, tmp_path, 0, 100, 100, lengths=(4, 16, 64, 128))
    assert set(drawn) == {(4, 11, 16), (16, 4, 16), (64, 1, 64), (128, 1, 128)}


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(training, composer, tmp_path, monkeypatch):
    llm, build = training.llm, training.build
    monkeypatch.setattr(llm, "check", lambda *args, **kwargs: {})

    class InterruptionError(Exception):
        pass

    def stop(text):
        raise InterruptionError

    def run(folder, minutes, log):
        folder.mkdir(exist_ok=True)
        model = build.model(3)
        llm.train(model, composer, folder, seed=3, minutes=minutes, steps=3, log=log)
        return model.state_dict()

    whole = run(tmp_path / "whole", 100, print)
    with pytest.raises(InterruptionError):
        run(tmp_path / "broken", 0, stop)  # saves after every step, is stopped after the first
    resumed = run(tmp_path / "broken", 100, print)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_is_carried_to_another_folder(training, composer, tmp_path, monkeypatch):
    """It goes on at its step, with its weights to bfloat16; a run that is there is not overwritten."""
    llm, build, carry = training.llm, training.build, training.carry
    monkeypatch.setattr(llm, "check", lambda *args, **kwargs: {})
    first, then = tmp_path / "first", tmp_path / "then"
    first.mkdir()
    model = build.model(3)
    llm.train(model, composer, first, seed=3, minutes=100, steps=2)
    carry.pack(first, tmp_path / "packed.pt")
    assert (tmp_path / "packed.pt").stat().st_size < 0.25 * (first / "llm.pt").stat().st_size
    carry.unpack(tmp_path / "packed.pt", then)
    told, carried = [], build.model(9)
    llm.train(carried, composer, then, seed=3, minutes=100, steps=2, log=told.append)
    assert told == ["goes on from step 2"]
    for (name, was), now in zip(model.state_dict().items(), carried.state_dict().values(), strict=True):
        torch.testing.assert_close(now, was, rtol=2**-8, atol=0, msg=name)
    assert torch.load(then / "encoders.pt").keys() == model.state_dict().keys()
    llm.train(carried, composer, then, seed=3, minutes=100, steps=3, log=told.append)
    after = torch.load(then / "llm.pt", weights_only=False)
    assert "optimiser" in after and after["state"]["begin"] == 2 and after["state"]["step"] == 3
    with pytest.raises(FileExistsError, match="empty folder"):
        carry.unpack(tmp_path / "packed.pt", then)


def test_a_finished_run_learns_new_words(training, composer, tmp_path, monkeypatch):
    """Old rows, weights and moments stay as they were; new words get fresh rows; the learning rate begins anew."""
    llm, build = training.llm, training.build
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    monkeypatch.setattr(llm, "check", lambda *args, **kwargs: {})
    with monkeypatch.context() as before:
        model = build.model(5, replace(build.PLAIN, words=build.WORDS[:-1]))
        before.setitem(training.compose.WEIGHTS, "caption", 0.0)  # asks with the last word
        llm.train(model, composer, old, seed=5, minutes=100, steps=2)
        features = {"video": composer.video, "audio": composer.audio, "model": model.state_dict()}
        torch.save(features, old / "features.pt")
    training.extend.run(old, new, seed=5)
    grown = ("embed_tokens.weight", "lm_head.weight")  # the first is model.(language_model.)embed_tokens
    fresh = build.model(5).state_dict()
    for file in ("features.pt", "llm.pt"):
        was, now = (torch.load(folder / file, weights_only=False) for folder in (old, new))
        for name, value in now["model"].items():
            n = len(was["model"][name])
            assert torch.equal(value[:n], was["model"][name]) and len(value) == n + name.endswith(grown)
            assert torch.equal(value[n:], fresh[name][n:])
    assert now["state"] == {**was["state"], "begin": 2}
    for i, moments in now["optimiser"]["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            n = len(was["optimiser"]["state"][i][name])
            assert torch.equal(moments[name][:n], was["optimiser"]["state"][i][name]) and not moments[name][n:].any()
    told = []
    llm.train(build.model(5), composer, new, seed=5, minutes=100, steps=3, log=told.append)
    assert told == ["goes on from step 2"]
    assert torch.load(new / "llm.pt", weights_only=False)["state"]["step"] == 3


def test_the_learning_rate_of_an_extension(training):
    """Warm-up over 100 steps, constant, and the cosine over the last 40 % of the steps since the run began."""
    rate = lambda step, begin: training.llm.rate(step, begin, begin + 1000, 1.0) - 1e-5  # noqa: E731
    for begin in (0, 2200):
        assert rate(begin, begin) == pytest.approx(0.01) and rate(begin + 99, begin) == pytest.approx(1.0)
        assert rate(begin + 599, begin) == pytest.approx(1.0)
        assert rate(begin + 800, begin) == pytest.approx(0.5)
        assert rate(begin + 999, begin) == pytest.approx(0.0, abs=1e-4)


@pytest.fixture(scope="module")
def reading(training, tmp_path_factory):
    """The shipped model has read a clip; with it the clip, the processor's inputs for any question, what was read."""
    from omnidrop_lab.needle import clip, files, prompts

    import omnidrop

    model, front = training.evaluate.load(Path(omnidrop.__file__).parent / "assets" / "tiny")
    made = clip("dev", 2)
    decoded = files.read(files.write(made, tmp_path_factory.mktemp("clip") / "clip.mp4"))

    def inputs(text):
        prompt = front.apply_chat_template(prompts.conversation("-", text), add_generation_prompt=True, tokenize=False)
        return training.build.process(front, [prompt], *([part] for part in decoded))

    return training.evaluate.Reading(model, front, *decoded), made, inputs, (front, *decoded)


def test_the_evaluation_reads_answers_of_any_length(reading):
    """Against the truth of a clip that the shipped model knows; blind, it neither knows it nor is it made up."""
    from omnidrop_lab.needle import questions

    read, made, *_ = reading
    asked = [q for q in questions(made) if q.type in ("video", "audio", "transcribe", "caption")]
    assert len({len(q.words) for q in asked}) == 3  # of one word, and of two other lengths
    assert read.answers(asked) == [q.answer for q in asked]
    blind = read.answers(asked, blind_after=0)
    assert not any(one == q.answer for one, q in zip(blind, asked, strict=True))
    # cut short: what was said so far, and a mark that it went on
    (caption,) = [q for q in asked if q.type == "caption"]
    assert read.ask(caption.text, words=2) == " ".join([*caption.words[:2], "..."])


def test_a_clip_read_once_answers_as_one_read_for_each_question(training, reading):
    """Against the class's own `generate` from the processor's inputs, by the scores of each word. An untrained model:
    a trained one says the right words also with positions that are a little wrong."""
    _, _, inputs, source = reading
    model = training.build.model(1).eval()
    read = training.evaluate.Reading(model, *source)
    scores = []
    model.lm_head.register_forward_hook(lambda module, args, out: scores.append(out.flatten(0, -2)[-1]))
    for text in ("what color during the tenor one ?", "list the shape ?"):
        ids = inputs(text)
        scores.clear()
        said = model.generate(**ids, use_audio_in_video=True, max_new_tokens=7, do_sample=False)
        want = torch.stack(scores)
        scores.clear()
        words = read.words.convert_ids_to_tokens(said[0, ids["input_ids"].shape[1] :].tolist())
        assert read.ask(text, words=7) == " ".join([*words, "..."])
        torch.testing.assert_close(torch.stack(scores), want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("hide", [("video", "audio"), ("audio",), ("video",)])
@pytest.mark.parametrize("after", [-1, 4, 7])
def test_blind_layers_are_those_said_and_hide_what_is_said(reading, hide, after):
    """Against the class's own forward of the whole row, in which a hook gives each layer its mask."""
    read, _, inputs, _ = reading
    for text in ("what color during the tenor one ?", "list the shape ?", "how many sounds ?", "when is the red one ?"):
        x = inputs(text)
        ids = x["input_ids"][0]
        token = {"video": read.words.video_token_id, "audio": read.words.audio_token_id}
        gone = torch.isin(ids, torch.tensor([token[name] for name in hide]))
        last = int(torch.isin(ids, torch.tensor(list(token.values()))).nonzero().max())
        sees = torch.ones(len(ids), len(ids)).tril().bool()
        blind = sees.clone()
        blind[last + 1 :, gone] = False

        def give(mask):
            return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask[None, None]})

        hooks = [
            layer.register_forward_pre_hook(give(sees if i <= after else blind), with_kwargs=True)
            for i, layer in enumerate(read.decoder.layers)
        ]
        try:
            logits = read.model(**x, use_audio_in_video=True).logits[0, -1]
        finally:
            for hook in hooks:
                hook.remove()
        assert read.ask(text, blind_after=after, hide=hide) == read.words.convert_ids_to_tokens(int(logits.argmax()))
