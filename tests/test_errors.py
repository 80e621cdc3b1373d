"""What cannot be pruned is an error that says what to do next, and leaves the model exactly as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from cases import MEDIA, cache_of, greedy, model_of, with_cache
from prompts import Video, batch, prompt
from snapshot import same_bits, state
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import omnidrop

pytestmark = pytest.mark.slow

METHOD = omnidrop.OmniDrop(keep=0.3)
SettingError, InputError, ModelError = omnidrop.SettingError, omnidrop.InputError, omnidrop.ModelError


# ---- settings: refused where they are given


@pytest.mark.parametrize(("settings", "says"), [
    ({"keep": 0}, r"keep is 0\b.*\(0(\.0)?, 1(\.0)?\]"),
    ({"keep": -0.1}, r"keep is -0\.1\b.*\(0(\.0)?, 1(\.0)?\]"),
    ({"keep": 1.2}, r"keep is 1\.2\b.*\(0(\.0)?, 1(\.0)?\]"),
    ({"keep": float("nan")}, r"keep is nan"),
    ({"keep": 0.3, "p_init": 0.1}, r"keep=0\.3 and p_init exclude.*keep=None"),
    ({"keep": 0.3, "p_final": 0.1}, r"keep=0\.3 and p_final exclude.*keep=None"),
    ({"p_init": 0.1, "p_final": 0.2}, r"p_init.*exclude.*keep=None"),
    ({"keep": None}, r"keep=None needs both p_init and p_final"),
    ({"keep": None, "p_init": 0.1}, r"keep=None needs both p_init and p_final"),
    ({"keep": None, "p_init": 1.2, "p_final": 0.1}, r"p_init is 1\.2\b"),
    ({"keep": None, "p_init": 0.1, "p_final": -0.2}, r"p_final is -0\.2\b"),
    ({"video_keep": 0.2}, r"video_keep is 0\.2\b.*\[0\.25, 1(\.0)?\]"),
    ({"video_keep": 1.1}, r"video_keep is 1\.1\b"),
    ({"audio_keep": 0}, r"audio_keep is 0\b.*\(0(\.0)?, 1(\.0)?\]"),
    ({"audio_keep": 2}, r"audio_keep is 2\b"),
    ({"query": "who"}, r"query is 'who'.*'after_media'.*'question'.*'last'"),
    ({"images": "drop"}, r"images is 'drop'.*'keep'.*'prune'"),
    ({"tds_start": -1}, r"tds_start is -1\b"),
    ({"lambda_div": -0.5}, r"lambda_div is -0\.5\b"),
    ({"beta": -3.0}, r"beta is -3\.0\b"),
    ({"t_mid": 7.0}, r"t_mid is 7\.0\b"),
    ({"keep": "0.3"}, r"keep is '0\.3'; it must be a number"),
    ({"keep": True}, r"keep is True; it must be a number"),
    ({"beta": float("inf")}, r"beta is inf; it must be a number"),
    ({"evict": "yes"}, r"evict is 'yes'; it must be True or False"),
    ({"normalize": 1}, r"normalize is 1; it must be True or False"),
], ids=str)  # fmt: skip
def test_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says) as error:
        omnidrop.OmniDrop(**settings)
    assert isinstance(error.value, omnidrop.OmnidropError | ValueError)


@pytest.mark.parametrize("preset", [("70b", 30), ("7b", 25)])
def test_unknown_presets(preset: tuple[str, int]) -> None:
    with pytest.raises(SettingError, match=r"'7b'.*'3b'.*30.*20"):
        omnidrop.OmniDrop.paper(*preset)


def test_settings_are_keywords_and_frozen() -> None:
    with pytest.raises(TypeError):
        omnidrop.OmniDrop(0.3)
    with pytest.raises(AttributeError):
        METHOD.keep = 0.5


# ---- models


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )


@pytest.mark.parametrize("build", [
    _llama, lambda: torch.nn.Linear(2, 2), lambda: "Qwen/Qwen2.5-Omni-7B", lambda: None,
    lambda: tiny.qwen2_5_full().talker,
], ids=["llama", "linear", "name", "none", "talker"])  # fmt: skip
def test_unsupported_models(build: Callable[[], Any]) -> None:
    model = build()
    before = state(model) if isinstance(model, LlamaForCausalLM) else None
    names = r"Qwen2_5OmniThinkerForConditionalGeneration.*Qwen3OmniMoeForConditionalGeneration"
    with pytest.raises(ModelError, match=rf"a {type(model).__name__} is no model that omnidrop knows.*{names}"):
        omnidrop.prune(model, METHOD).__enter__()
    assert before is None or state(model) == before


@pytest.mark.parametrize("method", [0.3, omnidrop.OmniDrop, None], ids=str)
def test_what_is_no_method(method: Any) -> None:
    with pytest.raises(SettingError, match=r"method is .*OmniDrop\(keep=0\.3\)"):
        omnidrop.prune(model_of("qwen2_5"), method).__enter__()


# ---- inputs and ways of decoding: refused inside the `with`, and the model is as before


def _forward(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **options)


def _without(inputs: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in inputs.items() if key != name}


def _media_on_a_filled_cache(model: Any, row: Any) -> None:
    first = greedy(model, row.inputs, 2)
    second = prompt(row.family, MEDIA["video"], seed=5)
    ids = torch.cat([first.sequences, second.inputs["input_ids"]], 1)
    inputs = {**second.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    greedy(model, inputs, 2, **with_cache(cache_of(first)))


def _with_4d_mask(model: Any, row: Any) -> None:
    square = torch.ones(1, 1, row.length, row.length).tril().bool()
    positions = torch.arange(row.length).expand(3, 1, -1)
    _forward(model, {**row.inputs, "attention_mask": square}, position_ids=positions)


def _static(model: Any) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=400)


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Any, Any], Any]]] = {
    "no attention mask": (
        InputError, r"no attention_mask.*position.*model\(\*\*inputs\)",
        lambda model, row: _forward(model, _without(row.inputs, "attention_mask")),
    ),
    "labels": (
        InputError, r"labels.*inference", lambda model, row: _forward(model, row.inputs, labels=row.inputs["input_ids"])
    ),
    "a 4-D mask": (InputError, r"attention_mask.*(4|four|dim)", _with_4d_mask),
    "media on a filled cache": (InputError, r"new audio, video or images.*fresh cache", _media_on_a_filled_cache),
    "static cache by name": (
        ModelError, r"StaticCache.*DynamicCache",
        lambda model, row: greedy(model, row.inputs, 2, cache_implementation="static"),
    ),
    "static cache": (
        ModelError, r"StaticCache.*DynamicCache",
        lambda model, row: greedy(model, row.inputs, 2, **with_cache(_static(model))),
    ),
    "prompt lookup": (
        ModelError, r"assisted decoding.*prompt_lookup_num_tokens.*without it",
        lambda model, row: greedy(model, row.inputs, 2, prompt_lookup_num_tokens=3),
    ),
    "assistant": (
        ModelError, r"assisted decoding.*assistant_model.*without it",
        lambda model, row: greedy(model, row.inputs, 2, assistant_model=tiny.THINKERS[row.family](layers=3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("what", REFUSED)
def test_refused(family: str, what: str) -> None:
    error, says, call = REFUSED[what]
    model, row = tiny.THINKERS[family](), prompt(family, MEDIA["video"], seed=1)
    greedy(model, row.inputs, 2, output_hidden_states=True)
    plain = greedy(model, row.inputs, 2)
    with omnidrop.prune(model, METHOD):
        pruned = greedy(model, row.inputs, 2)
    before = state(model)
    with omnidrop.prune(model, METHOD):
        with pytest.raises(error, match=says):
            call(model, row)
        same_bits(pruned, greedy(model, row.inputs, 2))  # the `with` goes on as if nothing had happened
    with pytest.raises(error, match=says), omnidrop.prune(model, METHOD):
        call(model, row)
    assert state(model) == before
    same_bits(plain, greedy(model, row.inputs, 2))


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_a_prompt_longer_than_the_positions(family: str) -> None:
    model, row = tiny.THINKERS[family](max_positions=60), prompt(family, (Video(8.0),), seed=2)
    before = state(model)
    with pytest.raises(InputError, match=r"position \d+.*0 to 59.*shorten the clip"), omnidrop.prune(model, METHOD):
        greedy(model, row.inputs, 2)
    assert state(model).keys() == before.keys()
    with omnidrop.prune(model, METHOD):
        greedy(model, prompt(family, (Video(1.0),), seed=2).inputs, 2)  # a short one still runs


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_nested(family: str) -> None:
    full = tiny.FULL[family]()
    row = prompt(family, MEDIA["video"], seed=3)
    greedy(full.thinker, row.inputs, 2, output_hidden_states=True)
    before = state(full)
    for outer, inner in ((full, full), (full, full.thinker), (full.thinker, full)):
        with omnidrop.prune(outer, METHOD):
            with pytest.raises(ModelError, match=r"being pruned already.*leave"), omnidrop.prune(inner, METHOD):
                pass
            pruned = greedy(full.thinker, row.inputs, 2)  # the outer one is still at work
        assert cache_of(pruned).layers[-1].keys.shape[-2] < row.length
        assert state(full) == before
    with omnidrop.prune(full, METHOD), omnidrop.prune(model_of(family), METHOD):
        pass  # two models at once are fine
    again = omnidrop.prune(full, METHOD)
    for _ in range(2):  # one object, one `with` after another: each with a trace of its own
        with again as trace:
            assert greedy(full.thinker, row.inputs, 2).sequences.equal(pruned.sequences) and not trace.history
            with pytest.raises(ModelError, match=r"being pruned already"), again:
                pass
        assert state(full) == before


def test_clips_that_beams_would_mix_up() -> None:
    """generate() repeats rows of the media tensors: with several sounds in one prompt they end up in other prompts."""
    row = prompt("qwen2_5", (Video(4.0), Video(6.0, sound=3.0)), seed=4)
    model = model_of("qwen2_5")
    with pytest.raises(InputError, match=r"order of their prompts.*ask for one"), omnidrop.prune(model, METHOD):
        model.generate(**row.inputs, max_new_tokens=2, num_beams=2, do_sample=False)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_generate_makes_a_missing_mask_itself(family: str) -> None:
    """Not an error: generate() builds the mask from the padding token before the model sees the prompt."""
    model, row = model_of(family), prompt(family, MEDIA["video"], seed=6)
    with omnidrop.prune(model, METHOD):
        same_bits(greedy(model, row.inputs, 2), greedy(model, _without(row.inputs, "attention_mask"), 2))


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_a_placeholder_too_many(family: str) -> None:
    """Upstream's own check of placeholders against features still speaks first, and nothing stays behind."""
    model, row = tiny.THINKERS[family](), prompt(family, MEDIA["video"], seed=7)
    greedy(model, row.inputs, 2, output_hidden_states=True)
    before = state(model)
    inputs = batch([row])
    inputs["input_ids"][0, 5] = int(tiny.Ids.VIDEO)
    with pytest.raises((ValueError, omnidrop.OmnidropError)), omnidrop.prune(model, METHOD):
        greedy(model, inputs, 2)
    assert state(model) == before
