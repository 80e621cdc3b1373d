"""The training recipe's shortcuts are exact: composed sequences are the processor's, blocks do not see each other.

Trains nothing. Lives beside `training/`, which is in the repository but not in the wheel.
"""

import sys
from pathlib import Path

import pytest
import torch

from omnidrop.models import adapt

ROOT = Path(__file__).parent.parent
pytest.importorskip("av")
pytest.importorskip("PIL")
if not (ROOT / "training").is_dir():
    pytest.skip("the training recipe is in the repository only", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def training():
    sys.path.insert(0, str(ROOT))
    try:
        from training import build, chunks, compose, encoders, evaluate, llm  # noqa: F401
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
    video, audio = (torch.randn(len(labels), n, training.build.WIDTH).half() for n in (18, 10))
    return training.compose.Composer(video, audio, labels, training.build.model(0).eval())


def test_a_composed_sequence_is_the_processors(training, composer, tmp_path):
    from omnidrop.needle import clip, files, prompts

    front = training.build.processor()
    batch = composer.batch([3], 5, 2, seed=0, split="dev")
    pictures, sound = files.read(files.write(clip("dev", 3, 5), tmp_path / "clip.mp4"))
    ids = batch.embeds_ids[0]
    stop = int(batch.at[0, 0]) + 1
    body = batch.media_start + 5 * 28 + 2
    text = " ".join(front.tokenizer.convert_ids_to_tokens(ids[body : stop - 3].tolist()))
    prompt = front.apply_chat_template(prompts.conversation("-", text), add_generation_prompt=True, tokenize=False)
    x = training.build.process(front, [prompt], [pictures], [sound])
    real = x["input_ids"][0]
    media = (real == front.tokenizer.video_token_id) | (real == front.tokenizer.audio_token_id)
    assert len(real) == stop and torch.equal(real[~media], ids[:stop][~media])
    where = media.nonzero().flatten()
    assert where[0] == batch.media_start and len(where) == 5 * 28
    positions, _ = composer.model.get_rope_index(
        x["input_ids"], video_grid_thw=x["video_grid_thw"], attention_mask=x["attention_mask"],
        use_audio_in_video=True, audio_seqlens=x["feature_attention_mask"].sum(1),
        second_per_grids=torch.tensor([1.0]),
    )  # fmt: skip
    assert torch.equal(positions[:, 0], batch.positions[:, 0, :stop])


@torch.no_grad()
def test_a_question_among_others_is_the_question_alone(training, composer):
    """Logits in the block layout equal those of the class's own forward on one question."""
    batch = composer.batch([5], 4, 6, seed=1, split="dev")
    model, layers = composer.model, training.build.LAYERS
    together, _ = training.llm.forward(model, batch, [batch.plain] * layers)
    body = batch.media_start + 4 * 28 + 2
    begins = [body, *(int(a) + 2 for a in batch.at[0, :-1])]
    for j, begin in enumerate(begins):
        rows = [*range(body), *range(begin, int(batch.at[0, j]) + 1)]
        ids = batch.embeds_ids[:, rows]
        words = model.get_input_embeddings()(ids)
        words[:, batch.media_start : body - 2] = batch.media
        alone = adapt(model).decoder(inputs_embeds=words, position_ids=batch.positions[:, :, rows])
        torch.testing.assert_close(
            model.lm_head(alone.last_hidden_state[:, -1]),
            model.lm_head(together[:, batch.at[0, j]]),
            atol=2e-4,
            rtol=1e-3,
        )


def test_masks_hide_what_they_say(training, composer):
    batch = composer.batch([7], 4, 16, seed=2, strict=1.0)
    media = slice(batch.media_start, batch.media_start + 4 * 28)
    behind = media.stop
    assert not batch.early[0, 0, behind:, media].any() and batch.early[0, 0, : media.stop].tril().any()
    sees = batch.barred[0, 0, batch.at[0]][:, media].reshape(16, 4, 28)
    for kind, row in zip(batch.kind[0], sees, strict=True):
        video, audio = bool(row[:, :18].all()), bool(row[:, 18:].all())
        if kind == "joint":
            assert video and audio
        elif kind == "video":
            assert video and not row[:, 18:].any()
        elif kind == "audio":
            assert audio and not row[:, :18].any()
    assert batch.plain[0, 0, batch.at[0]][:, media].all()


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
