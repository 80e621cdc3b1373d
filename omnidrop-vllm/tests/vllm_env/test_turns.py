"""Several questions about one clip: the engine encodes once, and prunes each turn for its own question."""

from __future__ import annotations

from collections import Counter
from typing import Any

import models
import pytest
from parity import Watcher, differences, expected, got, params

import omnidrop
from omnidrop import OmniDrop

QUESTIONS = ["what color is the circle ?", "when is the soprano one ?"]


def count_encoders(watcher: Watcher) -> Counter[str]:
    """How often each encoder has run since."""
    model = watcher.core.model_executor.driver_worker.worker.model_runner.get_model()
    runs: Counter[str] = Counter()
    for name in ("visual", "audio_tower"):
        getattr(model, name).register_forward_pre_hook(lambda module, args, name=name: runs.update([name]))
    return runs


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_each_turn_is_pruned_for_its_question_and_nothing_is_encoded_twice(
    thinker: Any, engine: Any, family: str
) -> None:
    small = thinker(family)
    clip, silent, spoken = models.video(8, sound=8, seed=31), models.video(8, seed=33), models.recording(1.5, seed=32)
    said, front = QUESTIONS[0], small.processor
    prompts = [
        models.dialogue(front, [([clip], said, None)]),
        models.dialogue(front, [([clip], said, "red"), ([], QUESTIONS[1], None)]),
        models.dialogue(front, [([silent], said, None)]),
        models.dialogue(front, [([silent], said, "red"), ([spoken], "", None)]),  # vLLM weaves all sounds or none
    ]
    llm = engine(small.folder, {"keep": 0.5, "stages": 2, "query": "question"})
    watcher = Watcher(llm)
    runs, encoded, answers = count_encoders(watcher), [], []
    for prompt in prompts:
        runs.clear()
        answers.append(got(*llm.generate([prompt.vllm], params(), use_tqdm=False), watcher))
        encoded.append(dict(runs))
    assert encoded == [{"visual": 1, "audio_tower": 1}, {}, {"visual": 1}, {"audio_tower": 1}]
    method = OmniDrop(keep=0.5, stages=2, query="question")
    assert differences(answers, [expected(small, prompt, method) for prompt in prompts]) == []
    kept = [set(answer.kept[-1]) & of_kind(small, prompt, 2) for answer, prompt in zip(answers, prompts, strict=True)]
    assert kept[0] != kept[1] and kept[2] != kept[3]  # other pictures of the same clip
    assert of_kind(small, prompts[3], 1) <= set(answers[3].kept[-1])  # a recording that asks is never dropped


def of_kind(small: Any, prompt: models.Prompt, modality: int) -> set[int]:
    """Positions of sound (1) or pictures of a video (2)."""
    return set((omnidrop.layout(small.model, prompt.inputs).modality[0] == modality).nonzero()[:, 0].tolist())


def test_the_same_clip_in_other_requests_is_encoded_once(thinker: Any, engine: Any) -> None:
    """Also under another keep, and unpruned. (Options of the processor are part of what a clip is known by.)"""
    small = thinker("qwen2_5")
    clips = [models.video(6, sound=6, seed=seed) for seed in (41, 42)]
    asked = [
        (models.ask(small.processor, [clips[0]], QUESTIONS[0]), {}, 1),
        (models.ask(small.processor, [clips[0]], QUESTIONS[1]), {"omnidrop_keep": 0.6}, 0),
        (models.ask(small.processor, [clips[1]], QUESTIONS[0]), {}, 1),
        (models.ask(small.processor, [clips[0]], QUESTIONS[0]), {"omnidrop": "off"}, 0),
    ]
    llm = engine(small.folder, {"keep": 0.5, "stages": 2})
    watcher = Watcher(llm)
    runs, methods = count_encoders(watcher), [OmniDrop(keep=keep, stages=2) for keep in (0.5, 0.6, 0.5)]
    for (prompt, extra, encoded), method in zip(asked, [*methods, None], strict=True):
        runs.clear()
        answer = got(*llm.generate([prompt.vllm], params(**extra), use_tqdm=False), watcher)
        assert dict(runs) == ({"visual": encoded, "audio_tower": encoded} if encoded else {})
        assert differences([answer], [expected(small, prompt, method)]) == []
