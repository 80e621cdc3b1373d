"""Models of sound alone, beyond the contract of all families: what their encoders attended to, which rows of features
make a recording, who asks, what is refused, and files through their own processors."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import audio_models as shared
import numpy as np
import pytest
import torch
import transformers
import zoo
from tiny import MEL_BINS, Ids

import omnidrop
from omnidrop import loading, media, methods, prompt, streaming
from omnidrop.core.tokens import Modality
from omnidrop.models import adapt

pytestmark = pytest.mark.slow

FAMILIES = ["family_qwen2_audio", "family_voxtral", "family_audio_flamingo3", "family_qwen3_asr"]
WHISPER = FAMILIES[:3]
each_family = pytest.mark.parametrize("name", FAMILIES)


@cache
def model_of(name: str, attention: str = "sdpa") -> Any:
    return zoo.member(name).build(attn_implementation=attention).eval()


def prompt_of(name: str, kind: str, seed: int = 2) -> dict[str, Any]:
    return zoo.member(name).prompts[kind](seed)


def run(model: Any, inputs: dict[str, Any], method: Any, **options: Any) -> tuple[Any, Any]:
    with torch.no_grad(), omnidrop.prune(model, method, **options) as trace:
        return model(**inputs), trace


# encoders ------------------------------------------------------------------------------------------------------------


def received(name: str, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """(tokens,) of the encoder's own eager weights: mean over heads, sum over the rows that become tokens, pooled."""
    model = model_of(name, "eager")
    last = model.model.audio_tower.layers[-1].self_attn
    module = sys.modules[type(last).__module__]
    stock, caught = module.eager_attention_forward, []

    def recording(owner: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = stock(owner, *args, **kwargs)
        if owner is last:
            caught.append(weights.float().mean(1))  # (rows, queries, keys)
        return output, weights

    monkeypatch.setattr(module, "eager_attention_forward", recording)
    with torch.no_grad():
        model(**inputs)
    monkeypatch.undo()
    if name == "family_qwen3_asr":  # one call a window, one frame a token
        return torch.cat([weights[0].sum(0) for weights in caught])
    (weights,) = caught
    masks = [inputs[key] for key in ("feature_attention_mask", "input_features_mask") if key in inputs]
    each = 4 if name == "family_voxtral" else 2
    tokens = []
    for row, of_row in enumerate(weights):
        mel = int(masks[0][row].sum()) if masks else shared.MEL
        frames = (mel + 1) // 2
        tokens.append(of_row[:frames].sum(0)[: frames // each * each].view(-1, each).mean(1))
    return torch.cat(tokens)


@each_family
@pytest.mark.parametrize("kind", ["sound", "two sounds"])
def test_saliency_is_the_encoders_own_attention(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = prompt_of(name, kind)
    want = received(name, inputs, monkeypatch)
    seen: list[Any] = []
    stock = methods.OmniDrop.at_input

    def watch(self: Any, view: Any) -> Any:
        seen.append(view)
        return stock(self, view)

    monkeypatch.setattr(methods.OmniDrop, "at_input", watch)
    run(model_of(name), inputs, omnidrop.OmniDrop(keep=0.4))
    assert want.std() > 0.05
    torch.testing.assert_close(seen[0].saliency, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["family_voxtral", "family_audio_flamingo3"])
def test_lean_encodes_rows_one_after_another(name: str) -> None:
    model, inputs = model_of(name), prompt_of(name, "long sound")
    whole, _ = run(model, inputs, omnidrop.OmniDrop(keep=0.4))
    sizes: list[int] = []
    handle = model.model.audio_tower.conv1.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    with omnidrop.lean(model, encoder_rows=shared.MEL, last_logits=False):
        lean, _ = run(model, inputs, omnidrop.OmniDrop(keep=0.4))
    handle.remove()
    assert sizes == [1, 1, 1]
    torch.testing.assert_close(lean.logits, whole.logits, atol=1e-5, rtol=1e-4)


def test_the_head_of_qwen2_audio_runs_on_one_position_only_when_lean() -> None:
    """Its forward has no `logits_to_keep`: `generate` computes the logits of all positions."""
    model, inputs = model_of("family_qwen2_audio"), prompt_of("family_qwen2_audio", "sound")
    rows: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda m, args, out: rows.append(out.shape[1]))
    model.generate(**inputs, max_new_tokens=1)
    with omnidrop.lean(model):
        model.generate(**inputs, max_new_tokens=1)
    handle.remove()
    assert rows == [inputs["input_ids"].shape[1], 1]


# layout --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "lengths", "rate"),
    [
        ("family_qwen2_audio", "two sounds", [22, 50], 25.0),
        ("family_voxtral", "long sound", [75], 12.5),
        ("family_voxtral", "two sounds", [50, 25], 12.5),
        ("family_audio_flamingo3", "long sound", [132], 25.0),
        ("family_audio_flamingo3", "two sounds", [72, 15], 25.0),
        ("family_qwen3_asr", "two sounds", [44, 78], 13.0),
    ],
)
def test_rows_of_features_are_joined_to_recordings(name: str, kind: str, lengths: list[int], rate: float) -> None:
    layout = omnidrop.layout(model_of(name), prompt_of(name, kind))
    audio = layout.modality[0] == Modality.AUDIO
    assert [int((layout.item[0] == item).sum()) for item in range(len(lengths))] == lengths
    seconds = torch.cat([torch.arange(length) / rate for length in lengths])
    torch.testing.assert_close(layout.second[0][audio], seconds.float())
    ends = [int((length - 1) / rate // 2) + 1 for length in lengths]
    assert int(layout.chunk.max()) + 1 == sum(ends)


def test_adjacent_recordings_are_told_by_a_short_last_row_alone() -> None:
    """Audio Flamingo writes no marks: what fills its last window goes on into the next recording."""
    model = model_of("family_audio_flamingo3")

    def items(*mel: int) -> int:
        inputs = shared.chat([Ids.AUDIO] * sum(m // 4 for m in mel) + shared.text(1, 4), 1)
        rows = [part for m in mel for part in shared.windows(m)]
        inputs |= shared.rows_of(rows, 1, "input_features_mask")
        return int(omnidrop.layout(model, inputs).item.max()) + 1

    assert items(300, 100) == 2
    assert items(400, 100) == 1


def test_windows_out_of_their_order_are_refused() -> None:
    """What beams do to a recording of several windows: its rows come twice each, the prompts one after another."""
    model, inputs = model_of("family_audio_flamingo3"), prompt_of("family_audio_flamingo3", "long sound")
    twice = {name: value.repeat_interleave(2, 0) for name, value in inputs.items()}
    with pytest.raises(omnidrop.InputError, match="not filled by whole windows of sound"):
        omnidrop.layout(model, twice)


@pytest.mark.parametrize(("name", "kind"), [("family_voxtral", "long sound"), ("family_qwen3_asr", "two sounds")])
def test_beams_over_several_rows_of_sound_are_refused(name: str, kind: str) -> None:
    """Generation repeats each row by itself, so the copies of a prompt would hear other windows than their own."""
    model, inputs = model_of(name), prompt_of(name, kind)
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
        with pytest.raises(omnidrop.InputError, match="out of order in transformers"):
            model.generate(**inputs, max_new_tokens=1, num_beams=2, do_sample=False)
        model.generate(**prompt_of(name, "sound"), max_new_tokens=1, num_beams=2, do_sample=False)


# who asks ------------------------------------------------------------------------------------------------------------


def asks(inputs: dict[str, Any], query: str) -> list[int]:
    return omnidrop.layout(model_of("family_audio_flamingo3"), inputs, query=query).query[0].nonzero()[:, 0].tolist()


def test_a_request_before_its_sound_asks_too() -> None:
    inputs = prompt_of("family_audio_flamingo3", "request first")
    ids = inputs["input_ids"][0].tolist()
    first, length = ids.index(Ids.AUDIO), len(ids)
    last = length - 1 - ids[::-1].index(Ids.AUDIO)
    turn = ids.index(Ids.IM_END) + 1  # of the system text; then newline, start, role, newline, the request
    assert asks(inputs, "after_media") == [*range(turn, first), *range(last + 1, length)]
    assert asks(inputs, "question") == [*range(turn + 4, first), length - 1]
    assert asks(inputs, "last") == [length - 1]
    padded = shared.batch([inputs, prompt_of("family_audio_flamingo3", "long sound")])
    shift = padded["input_ids"].shape[1] - length
    assert asks(padded, "question") == [place + shift for place in asks(inputs, "question")]


def test_a_request_behind_its_sound_asks_alone() -> None:
    inputs = prompt_of("family_audio_flamingo3", "sound")
    ids = inputs["input_ids"][0].tolist()
    last = len(ids) - 1 - ids[::-1].index(Ids.AUDIO)
    assert asks(inputs, "after_media") == list(range(last + 1, len(ids)))


def test_the_mark_that_closes_a_sound_is_no_part_of_the_question() -> None:
    inputs = prompt_of("family_qwen2_audio", "sound")
    ids = inputs["input_ids"][0].tolist()
    layout = omnidrop.layout(model_of("family_qwen2_audio"), inputs, query="question")
    asking = layout.query[0].nonzero()[:, 0].tolist()
    assert asking == list(range(ids.index(Ids.AUDIO_END) + 1, len(ids) - 5))  # up to the end of the turn


def test_rows_before_the_sound_do_not_dilute_its_scores() -> None:
    """They cannot see it: scores are the attention of the rows behind it, whoever else asks."""
    model, inputs = model_of("family_audio_flamingo3"), prompt_of("family_audio_flamingo3", "request first")
    audio = inputs["input_ids"] == Ids.AUDIO
    behind = torch.zeros_like(audio)
    behind[0, int(audio.nonzero()[-1, 1]) + 1 :] = True
    scores = []
    for query in (None, behind):
        _, trace = run(model, inputs, omnidrop.OmniDrop(keep=0.4), scores=True, query=query)
        scores.append(trace.scores[0][0])
    assert torch.equal(scores[0], scores[1]) and scores[0].sum() > 0.01


# methods -------------------------------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("method", sorted(set(methods.METHODS) - {"cutoff"}))
def test_every_method_runs_or_says_why_not(name: str, method: str) -> None:
    kind = methods.METHODS[method]
    model, inputs = model_of(name), prompt_of(name, "sound")
    total = int((inputs["input_ids"] == Ids.AUDIO).sum())
    try:
        output, trace = run(model, inputs, kind(keep=0.5))
    except omnidrop.SettingError as error:
        assert "cannot be reached" in str(error) or "audio" in str(error) or "video" in str(error)
        return
    assert output.logits[0, -1].isfinite().all()
    assert trace.keep == pytest.approx(0.5, abs=0.002 + 1 / total)


@each_family
def test_transcripts_are_what_these_models_are_for(name: str) -> None:
    """`OmniDrop.tuned` drops at the input alone, blind to the request; as asked for by name elsewhere."""
    model, inputs = model_of(name), prompt_of(name, "sound")
    _, trace = run(model, inputs, omnidrop.OmniDrop.tuned(keep=0.4))
    assert len({len(rows[0]) for rows in trace.kept}) == 1 and trace.record.method["task"] == "transcribe"
    with pytest.raises(omnidrop.SettingError, match="task='transcribe'"):
        run(model, inputs, omnidrop.OmniDrop.tuned(keep=0.1))
    _, trace = run(model, inputs, omnidrop.OmniDrop.tuned(keep=0.1, task="answer"))
    assert trace.keep == pytest.approx(0.1, abs=0.03)


# refusals ------------------------------------------------------------------------------------------------------------


def test_unexpanded_placeholders_are_refused() -> None:
    model, inputs = model_of("family_qwen2_audio"), prompt_of("family_qwen2_audio", "two sounds")
    ids = inputs["input_ids"][0]
    once = ids[(ids != Ids.AUDIO) | (ids.roll(1) != Ids.AUDIO)]
    inputs |= {"input_ids": once[None], "attention_mask": torch.ones(1, len(once), dtype=torch.long)}
    with pytest.raises(omnidrop.InputError, match="one placeholder for each of 2 recordings"):
        run(model, inputs, omnidrop.OmniDrop(keep=0.4))


@each_family
def test_a_stream_is_refused_by_name(name: str) -> None:
    model = model_of(name)
    with pytest.raises(omnidrop.ModelError, match=f"a {type(model).__name__} cannot be streamed"):
        streaming.prefill(model, [(0.0, prompt_of(name, "sound"))], method=omnidrop.OmniDrop())


@each_family
def test_a_plain_forward_needs_no_mask(name: str) -> None:
    """Positions simply count; gaps in them are no bounds of packed sequences."""
    model, inputs = model_of(name), prompt_of(name, "sound")
    with_mask, _ = run(model, inputs, omnidrop.OmniDrop(keep=0.4))
    del inputs["attention_mask"]
    without, _ = run(model, inputs | {"use_cache": False}, omnidrop.OmniDrop(keep=0.4))
    torch.testing.assert_close(without.logits[0, -1], with_mask.logits[0, -1], atol=1e-5, rtol=1e-5)


def test_the_text_of_a_mask_covers_all_kinds() -> None:
    """Qwen2 takes its mask from a dict by kinds of layers, Llama has one: both are left alone at keep 1."""
    for name in ("family_qwen2_audio", "family_voxtral"):
        model, inputs = model_of(name, "eager"), prompt_of(name, "sound")
        with torch.no_grad():
            stock = model(**inputs).logits
        assert torch.equal(run(model, inputs, omnidrop.OmniDrop(keep=1.0))[0].logits, stock)


# files ---------------------------------------------------------------------------------------------------------------

MARKS = {
    "family_qwen2_audio": ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    "family_audio_flamingo3": ("<sound>", "<none>", "<none>"),
    "family_qwen3_asr": ("<|audio_pad|>", "<|audio_start|>", "<|audio_end|>"),
}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% else %}MEDIA{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASR = CHAT.replace("{{ c['text'] }}", "{% if m['role'] == 'system' %}{{ c['text'] }}{% endif %}")


def processor_of(name: str, folder: Path) -> Any:
    """The family's own processor over a vocabulary of a few words."""
    tokenizers = import_module("tokenizers")
    audio, start, end = MARKS[name]
    special = {"<pad>": 0, "<unk>": 1, "<|im_start|>": 240, "<|im_end|>": 241, start: 244, audio: int(Ids.AUDIO)}
    special |= {end: 245, "user": 249, "system": 250, "assistant": 251}
    words = {word: 10 + i for i, word in enumerate(["what", "is", "said", "?", "quietly"])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(special | words, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    named = {"audio_token": audio, "audio_bos_token": start, "audio_eos_token": end}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>",
        **({"extra_special_tokens": named} if name == "family_qwen3_asr" else {}),
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": [s for s in special if s.startswith("<|")] + [audio]})
    marks = start + audio + end if start.startswith("<|") else audio
    template = (ASR if name == "family_qwen3_asr" else CHAT).replace("MEDIA", marks)
    if name == "family_qwen3_asr":
        kind = import_module("transformers.models.qwen3_asr.feature_extraction_qwen3_asr").Qwen3ASRFeatureExtractor
        processor = transformers.Qwen3ASRProcessor(kind(feature_size=MEL_BINS), tokenizer, chat_template=template)
    else:
        extractor = transformers.WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=2)
        kind = getattr(transformers, adapt(model_of(name)).processor)
        processor = kind(feature_extractor=extractor, tokenizer=tokenizer, chat_template=template)
    processor.save_pretrained(folder)
    return processor


def clip_of(seconds: float, kind: str = "audio", seed: int = 0) -> media.Media:
    wave = np.random.default_rng(seed).standard_normal(round(16_000 * seconds)).astype(np.float32) * 0.1
    return media.Media(
        path=f"{kind}.file", kind=kind, frames=None, times=None, fps=None, waveform=wave, sample_rate=16_000,
        seconds=seconds,
    )  # fmt: skip


def question_of(name: str) -> str:
    return "" if name == "family_qwen3_asr" else "what is said ?"


@pytest.mark.parametrize("name", list(MARKS))
def test_clips_become_prompts_and_answers(name: str, tmp_path: Path) -> None:
    model, processor = model_of(name), processor_of(name, tmp_path)
    clips = [clip_of(1.37), clip_of(0.03, seed=1), clip_of(1.9, seed=2)]
    built = [omnidrop.build(processor, clip, question_of(name), system="quietly") for clip in clips]
    for inputs in [*built, omnidrop.build(processor, clips, question_of(name))]:
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.5)) as trace:
            model.generate(**inputs, max_new_tokens=2)
        assert trace.layout.count(0)["audio"] == int((inputs["input_ids"] == Ids.AUDIO).sum()) > 0
    batch = prompt.collate(processor, built)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.5)):
        together = model(**batch).logits[:, -1]
        alone = torch.cat([model(**inputs).logits[:, -1] for inputs in built])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(MARKS))
def test_what_a_processor_would_drop_is_said(name: str, tmp_path: Path) -> None:
    processor = processor_of(name, tmp_path)
    with pytest.raises(omnidrop.MediaError, match="is an image"):
        omnidrop.build(processor, clip_of(1.0, "image"), question_of(name))
    with pytest.warns(UserWarning, match="the pictures are left out"):
        assert "input_features" in omnidrop.build(processor, clip_of(1.0, "video"), question_of(name))
    with pytest.raises(omnidrop.MediaError, match="sound was to be left out"):
        omnidrop.build(processor, clip_of(1.0, "video"), question_of(name), use_audio=False)


def test_long_sounds(tmp_path: Path) -> None:
    qwen2, flamingo, asr = (processor_of(name, tmp_path / name) for name in MARKS)
    with pytest.raises(omnidrop.MediaError, match=r"2\.5 seconds of sound; this model's processor reads 2 of"):
        omnidrop.build(qwen2, clip_of(2.5), "what is said ?")
    inputs = omnidrop.build(flamingo, clip_of(5.0), "what is said ?")
    assert inputs["input_features"].shape[0] == 3 and int((inputs["input_ids"] == Ids.AUDIO).sum()) == 125
    layout = omnidrop.layout(model_of("family_audio_flamingo3"), inputs)
    assert int(layout.item.max()) == 0 and float(layout.second.nan_to_num().max()) == pytest.approx(124 / 25)
    flamingo.max_audio_len = 4
    with pytest.raises(omnidrop.MediaError, match=r"5\.0 seconds of sound; this model's processor reads 4 of"):
        omnidrop.build(flamingo, clip_of(5.0), "what is said ?")
    assert int((omnidrop.build(asr, clip_of(40.0), "")["input_ids"] == Ids.AUDIO).sum()) == 520


def test_a_template_without_a_place_for_the_question_is_said(tmp_path: Path) -> None:
    with pytest.raises(omnidrop.InputError, match="chat template leaves out the question"):
        omnidrop.build(processor_of("family_qwen3_asr", tmp_path), clip_of(1.0), "what is said ?")


@pytest.mark.parametrize("name", list(MARKS))
def test_a_saved_model_is_loaded(name: str, tmp_path: Path) -> None:
    processor_of(name, tmp_path)
    model_of(name).save_pretrained(tmp_path)
    model, processor = loading.load(tmp_path, device="cpu")
    inputs = omnidrop.build(processor, clip_of(1.0), question_of(name))
    with omnidrop.lean(model), omnidrop.prune(model, omnidrop.OmniDrop.tuned(keep=0.5)):
        assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    config = json.loads((tmp_path / "config.json").read_text())
    key = "audio_token_index" if "audio_token_index" in config else "audio_token_id"
    (tmp_path / "config.json").write_text(json.dumps(config | {key: 17}))
    with pytest.raises(omnidrop.ModelError, match="marks audio by token 17"):
        loading.load(tmp_path, device="cpu")


def test_voxtrals_prompts_are_its_processors_own() -> None:
    processor = type("VoxtralProcessor", (), {"tokenizer": None, "apply_chat_template": None})()
    with pytest.raises(omnidrop.ModelError, match="apply_transcription_request"):
        omnidrop.build(processor, clip_of(1.0), "what is said ?")
