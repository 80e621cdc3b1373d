"""Everything generate() does, under prune(): sampling, beams, several sequences, no cache, second turns, speech.

Where the variant chooses tokens its own way, the oracle is fed those tokens and must produce the same logits.
"""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import tiny
import torch
from cases import BATCH, EXPANDS_PICTURES, MEDIA, cache_layers, cache_of, greedy, model_of, with_cache
from prompts import Prompt, batch, prompt

import omnidrop

pytestmark = pytest.mark.slow

FAMILIES = ["qwen2_5", "qwen3"]
P_INIT, P_FINAL = 0.05, 0.45
DROP = omnidrop.OmniDrop(keep=None, p_init=P_INIT, p_final=P_FINAL)
STEPS = 8


def expected(model: Any, row: Prompt, forced: list[int], steps: int | None = None, **plan: Any) -> oracle.Run:
    """The oracle under DROP, fed `forced`."""
    layers = len(oracle.parts(model).layers)
    plan = {"p": oracle.sigmoid_schedule(layers, P_INIT, P_FINAL), "tds_start": layers // 2, **plan}
    return oracle.run(model, row, oracle.Plan(**plan), len(forced) if steps is None else steps, forced)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def log_probability(run: oracle.Run, tokens: list[int]) -> float:
    return sum(float(torch.log_softmax(run.logits[i], -1)[token]) for i, token in enumerate(tokens))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("sequences", "clip"), [(1, "video"), (3, "video"), (3, "audio")])
def test_sampling(family: str, sequences: int, clip: str) -> None:
    if sequences > 1 and clip == "video" and not EXPANDS_PICTURES:
        pytest.skip("this transformers garbles pictures when it repeats a prompt")
    model, row = model_of(family), prompt(family, MEDIA[clip], seed=1)
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        with omnidrop.prune(model, DROP) as trace:
            outputs.append(
                model.generate(
                    **row.inputs, max_new_tokens=STEPS, do_sample=True, temperature=1.5, top_k=0, output_logits=True,
                    num_return_sequences=sequences, return_dict_in_generate=True,
                )
            )  # fmt: skip
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert len({tuple(s) for s in outputs[0].sequences.tolist()}) == sequences
    for i in range(sequences):
        tokens = outputs[0].sequences[i, row.length :].tolist()
        run = expected(model, row, tokens[:-1])
        close(torch.stack([step[i] for step in outputs[0].logits]), run.logits)
        assert [kept[i].tolist() for kept in trace.kept] == [kept.tolist() for kept in run.kept]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clips", [["audio"], ["video"], ["video", "audio"], ["audio", "text"]], ids=str)
def test_beams(family: str, clips: list[str]) -> None:
    """The score of the winning beam is the oracle's log probability of it: the caches were reordered with the beams."""
    if "video" in clips and not EXPANDS_PICTURES:
        pytest.skip("this transformers garbles pictures when it repeats a prompt")
    model = model_of(family)
    every = [prompt(family, MEDIA[clip], seed=2 + i) for i, clip in enumerate(clips)]
    inputs = batch(every)
    with omnidrop.prune(model, DROP):
        out = model.generate(
            **inputs, max_new_tokens=STEPS, num_beams=2, do_sample=False, length_penalty=0.0, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    for b, row in enumerate(every):
        tokens = out.sequences[b, inputs["input_ids"].shape[1] :].tolist()
        run = expected(model, row, tokens[:-1])
        assert float(out.sequences_scores[b]) == pytest.approx(log_probability(run, tokens), abs=1e-3)
        best_first = expected(model, row, [], STEPS - 1)
        assert log_probability(run, tokens) >= log_probability(best_first, best_first.tokens) - 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 4])
def test_without_a_cache(family: str, rows: int) -> None:
    model = model_of(family)
    every = [prompt(family, MEDIA[clip], seed=4 + i) for i, clip in enumerate(BATCH[:rows])]
    inputs = batch(every)
    with omnidrop.prune(model, DROP):
        cached = greedy(model, inputs, STEPS)
    with omnidrop.prune(model, DROP) as trace:
        again = greedy(model, inputs, STEPS, use_cache=False)
    assert torch.equal(cached.sequences, again.sequences)
    for one, other in zip(cached.logits, again.logits, strict=True):
        close(one, other)
    length = inputs["input_ids"].shape[1]
    for b, row in enumerate(every):
        run = expected(model, row, [], STEPS)
        assert again.sequences[b, length:].tolist() == run.tokens
        assert [(kept[b] - (length - row.length)).tolist() for kept in trace.kept] == [k.tolist() for k in run.kept]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 4])
def test_hidden_states_are_full_length(family: str, rows: int) -> None:
    model = model_of(family)
    every = [prompt(family, MEDIA[clip], seed=7 + i) for i, clip in enumerate(BATCH[:rows])]
    inputs = batch(every)
    with omnidrop.prune(model, DROP):
        out = greedy(model, inputs, 3, output_hidden_states=True)
    length, layers = inputs["input_ids"].shape[1], len(oracle.parts(model).layers)
    assert [[state.shape[1] for state in step] for step in out.hidden_states] == [
        [length] * (layers + 1), *[[1] * (layers + 1)] * 3,
    ]  # fmt: skip
    for b, row in enumerate(every):
        run = expected(model, row, [], 3)
        for ours, state in zip(out.hidden_states[0], run.states, strict=True):
            close(ours[b, length - row.length :], state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("evict", [False, True])
def test_a_second_turn_of_text(family: str, evict: bool) -> None:
    model, row = model_of(family), prompt(family, MEDIA["mixed"], seed=11)
    method = omnidrop.OmniDrop(keep=None, p_init=P_INIT, p_final=P_FINAL, evict=evict)
    turn = [241, 252, 240, 249, 252, 17, 33, 190, 241, 252, 240, 251, 252]
    with omnidrop.prune(model, method):
        first = greedy(model, row.inputs, 4)
        ids = torch.cat([first.sequences, torch.tensor([turn])], 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        second = greedy(model, inputs, STEPS, **with_cache(cache_of(first)))
    forced = first.sequences[0, row.length :].tolist() + turn
    run = expected(model, row, forced, len(forced) + STEPS, evict=evict)
    assert second.sequences[0, ids.shape[1] :].tolist() == run.tokens[len(forced) :]
    close(torch.cat(second.logits), run.logits[len(forced) :])
    held = [keys.shape[-2] for keys, _ in cache_layers(cache_of(second))]
    assert held == [size + len(forced) + STEPS for size in run.kv_lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_of_text_in_a_padded_batch(family: str) -> None:
    model = model_of(family)
    rows = [prompt(family, MEDIA[clip], seed=12 + i) for i, clip in enumerate(BATCH)]
    inputs = batch(rows)
    turn = torch.tensor([[241, 240, 249, 3, 5 + b, 241, 240, 251] for b in range(len(rows))])
    with omnidrop.prune(model, DROP):
        first = greedy(model, inputs, 2)
        ids = torch.cat([first.sequences, turn], 1)
        grown = (0, ids.shape[1] - inputs["attention_mask"].shape[1])
        mask = torch.nn.functional.pad(inputs["attention_mask"], grown, value=1)
        second = greedy(model, {"input_ids": ids, "attention_mask": mask}, 4, **with_cache(cache_of(first)))
    for b, row in enumerate(rows):
        forced = ids[b, inputs["input_ids"].shape[1] :].tolist()
        run = expected(model, row, forced, len(forced) + 4)
        close(torch.stack([step[b] for step in second.logits]), run.logits[len(forced) :])
        assert second.sequences[b, ids.shape[1] :].tolist() == run.tokens[len(forced) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(family: str, dtype: torch.dtype, attention: str) -> None:
    """Same budgets as in float32 (they follow from counts), finite logits of the model's own dtype's accuracy."""
    model = tiny.THINKERS[family](dtype=dtype, attn_implementation=attention)
    rows = [prompt(family, MEDIA[clip], seed=16 + i, dtype=dtype) for i, clip in enumerate(BATCH)]
    with omnidrop.prune(model, DROP) as trace:
        out = greedy(model, batch(rows), STEPS)
    assert all(torch.isfinite(step).all() for step in out.logits)
    assert {keys.dtype for keys, _ in cache_layers(cache_of(out))} == {dtype}
    full = model_of(family)
    for b, row in enumerate(rows):
        exact = Prompt(**{**vars(row), "inputs": prompt(family, MEDIA[BATCH[b]], seed=16 + b).inputs})
        run = expected(full, exact, [], 0)
        assert [kept[b].numel() for kept in trace.kept] == [kept.numel() for kept in run.kept]
        text = torch.where(row.modality == 0)[0] + trace.kept[0][b][-1] + 1 - row.length
        assert all(set(text.tolist()) <= set(kept[b].tolist()) for kept in trace.kept)


# ---- speech


def user_turn(row: Prompt) -> tuple[int, int]:
    _system, user, assistant = (row.inputs["input_ids"][0] == int(tiny.Ids.IM_START)).nonzero()[:, 0].tolist()
    return user, assistant


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 2])
def test_speech(family: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The talker gets the thinker's full-length states, dropped positions put back, and speaks."""
    model = tiny.FULL[family]()
    every = [prompt(family, MEDIA["video"], seed=20), prompt(family, MEDIA["mixed"], seed=21)][:rows]
    inputs = batch(every)
    heard: dict[str, Any] = {}
    speak = type(model.talker).generate

    def listen(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard.update(kwargs, inputs_embeds=kwargs["inputs_embeds"].clone())
        return speak(self, *args, **kwargs)

    monkeypatch.setattr(type(model.talker), "generate", listen)
    with omnidrop.prune(model, DROP) as trace:
        sequences, waves = model.generate(**tiny.speech_inputs(inputs, family), **tiny.SPEECH[family])
    assert trace.keep < 0.9
    for wave in waves if rows > 1 else [waves]:
        assert wave.numel() > 8 and torch.isfinite(wave).all() and wave.abs().max() > 0

    length = inputs["input_ids"].shape[1]
    for b, row in enumerate(every):
        run = expected(model, row, [], 3)
        assert sequences[b, length:].tolist() == run.tokens
        if family == "qwen2_5":
            embeddings = torch.where((row.modality == 0)[:, None], run.states[0], 0.0)
            close(heard["inputs_embeds"][b, length - row.length : length], run.states[-1] + embeddings)
        else:
            accepted = run.states[model.config.talker_config.accept_hidden_layer]
            with torch.no_grad():
                spoken = torch.where(
                    (row.modality == 0)[:, None],
                    model.talker.text_projection(run.states[0]), model.talker.hidden_projection(accepted),
                )  # fmt: skip
            first, last = user_turn(row)
            width = max(stop - start for start, stop in map(user_turn, every))  # user turns are packed to the right
            close(heard["inputs_embeds"][b, width - (last - first) : width], spoken[first:last])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_of_the_full_model(family: str) -> None:
    model, row = tiny.FULL[family](), prompt(family, MEDIA["video"], seed=22)
    silent = {"return_audio": False} if family == "qwen3" else {"generation_mode": "text"}
    with omnidrop.prune(model, DROP):
        whole = model.generate(**row.inputs, thinker_max_new_tokens=STEPS + 1, thinker_do_sample=False, **silent)
    assert whole[0, row.length :].tolist() == expected(model, row, [], STEPS).tokens
