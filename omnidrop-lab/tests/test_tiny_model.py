"""The shipped model loads by the ordinary classes and still answers, through a real file and the real processor."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from omnidrop_lab.needle import clip, files, prompts
from omnidrop_lab.needle.task import LONGEST, PATTERNS, SEQUENCES, TIMES, TYPES, every_question

import omnidrop
from omnidrop._torchvision import ensure_importable

pytest.importorskip("av")
pytest.importorskip("PIL")
# transformers' own processor trips over numpy 2 and torch: np.arange(tensor)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

ASSETS = Path(omnidrop.__file__).parent / "assets"
SIZE = {"shortest_edge": 84 * 84, "longest_edge": 84 * 84}


@pytest.fixture(scope="module")
def tiny():
    ensure_importable()
    from transformers import AutoProcessor, Qwen2_5OmniThinkerForConditionalGeneration

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(ASSETS / "tiny", dtype=torch.float32).eval()
    yield model, AutoProcessor.from_pretrained(ASSETS / "tiny")
    torch.set_num_threads(threads)


def inputs(processor, path, text, system=None):
    pictures, sound = files.read(path)
    prompt = processor.apply_chat_template(
        prompts.conversation(str(path), text, system), add_generation_prompt=True, tokenize=False
    )
    timing = {"seconds_per_chunk": 2.0, "position_id_per_seconds": 5}
    kwargs = {"videos_kwargs": {"size": SIZE}, "sampling_rate": 16000, "return_tensors": "pt"}
    if "audio_from_video_indices" in inspect.signature(type(processor).__mro__[1].__call__).parameters:
        kwargs |= {"load_audio_from_video": True, "audio_from_video_indices": [0], **timing}
    else:
        kwargs["videos_kwargs"] |= {"use_audio_in_video": True, **timing}
    out = processor(text=[prompt], videos=[pictures], audio=[sound], **kwargs)
    out.pop("mm_token_type_ids", None)
    return out


def says(tiny, path, text, **kwargs):
    model, processor = tiny
    x = inputs(processor, path, text, **kwargs)
    out = model.generate(**x, use_audio_in_video=True, max_new_tokens=LONGEST + 1, do_sample=False)
    new = out[0, x["input_ids"].shape[1] :]
    assert len(new) >= 2 and new[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    return processor.decode(new, skip_special_tokens=True).strip()


def test_folder_is_ordinary_and_small(tiny):
    model, processor = tiny
    size = sum(f.stat().st_size for f in (ASSETS / "tiny").iterdir())
    assert size < 8e6 and (ASSETS / "demo.mp4").stat().st_size < 4e5
    assert type(processor).__name__ == "Qwen2_5OmniProcessor"
    assert model.config.text_config.num_hidden_layers == 16
    # get_rope_index reads it, though the config class has no such field
    assert model.config.vision_start_token_id == processor.tokenizer.convert_tokens_to_ids("<|vision_bos|>")
    from safetensors import safe_open

    with safe_open(ASSETS / "tiny" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_every_word_of_the_task_is_one_token(tiny):
    words = tiny[1].tokenizer
    for index in range(5):
        for question in every_question(clip("dev", index, 16)):
            ids = words(f"{question.text} {question.answer}")["input_ids"]
            assert len(ids) == len(question.text.split()) + len(question.words) and words.unk_token_id not in ids
    assert words("What COLOR is the Circle?")["input_ids"] == words("what color is the circle ?")["input_ids"]
    assert words("zebra")["input_ids"] == [words.unk_token_id]
    assert len(words(" ".join(TIMES))["input_ids"]) == len(TIMES)


def test_chunks_are_interleaved_and_local(tiny):
    model, processor = tiny
    x = inputs(processor, ASSETS / "demo.mp4", "when is the circle ?")
    ids = x["input_ids"][0].tolist()
    video, audio = processor.tokenizer.video_token_id, processor.tokenizer.audio_token_id
    first = ids.index(video)
    assert ids[first : first + 8 * 28] == ([video] * 18 + [audio] * 10) * 8
    assert ids[: first - 2] == processor.tokenizer("<|im_start|>system you are a helpful assistant .<|im_end|>"
                                                   "<|im_start|>user")["input_ids"]  # fmt: skip
    with torch.no_grad():  # sound features of a chunk do not depend on the other chunks
        whole = model.get_audio_features(x["input_features"], x["feature_attention_mask"]).last_hidden_state
        part = model.get_audio_features(x["input_features"][:, :, 80:120], torch.ones(1, 40, dtype=torch.long))
    torch.testing.assert_close(whole[20:30], part.last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "image", "image": "-"}, {"type": "text", "text": "x"}],
        [{"type": "audio", "audio": "-"}, {"type": "video", "video": "-"}, {"type": "text", "text": "x"}],
    ],
)
def test_template_knows_all_parts(tiny, parts):
    processor = tiny[1]
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    talk += [{"role": "assistant", "content": "red"}, {"role": "user", "content": "why ?"}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    marks = {"image": "<|vision_bos|><|IMAGE|><|vision_eos|>", "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
             "video": "<|vision_bos|><|VIDEO|><|vision_eos|>", "text": "x"}  # fmt: skip
    body = "".join(marks[part["type"]] for part in parts)
    assert text == (
        f"<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n{body}<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nwhy ?<|im_end|>\n<|im_start|>assistant\n"
    )


def demo_rows():
    rows = json.loads((ASSETS / "demo.json").read_text())["questions"]
    return [pytest.param(row, id=row["type"]) for row in rows]


@pytest.mark.parametrize("row", demo_rows())
def test_the_demo_is_answered(tiny, row):
    assert says(tiny, ASSETS / "demo.mp4", row["text"]) == row["tiny_says"]


def test_the_demo_is_the_clip_it_claims_to_be(tmp_path):
    told = json.loads((ASSETS / "demo.json").read_text())
    made = clip(told["split"], told["index"], told["n_chunks"])
    assert told["split"] == "test" and {row["type"] for row in told["questions"]} == set(TYPES)
    known = {(q.text, q.answer) for q in every_question(made)}
    assert all((row["text"], row["answer"]) in known for row in told["questions"])
    assert sum(row["tiny_says"] == row["answer"] for row in told["questions"]) >= len(TYPES) - 1
    pictures, _ = files.read(ASSETS / "demo.mp4")
    again, _ = files.read(files.write(made, tmp_path / "again.mp4"))
    assert abs(pictures.astype(int) - again).mean() < 1  # equal bytes only with the same PyAV


# Dev clips of 4, 8 and 12 chunks and what the shipped model says: the truth.
FIXED = ((4, 0), (8, 1), (8, 2), (12, 3))


@pytest.mark.parametrize(("n_chunks", "index"), FIXED)
def test_a_fixed_small_set_is_answered(tiny, tmp_path, n_chunks, index):
    made = clip("dev", index, n_chunks)
    path = files.write(made, tmp_path / "clip.mp4")
    asked = {}
    for question in every_question(made):
        if question.type in ("video", "audio", "joint", *SEQUENCES):
            asked.setdefault((question.type, question.ask), question)
    assert {question.answer for question in asked.values()} & set(PATTERNS)
    assert len([question for question in asked.values() if question.type in SEQUENCES]) == 4
    for question in [*asked.values()][:6] + [*asked.values()][-4:]:
        assert says(tiny, path, question.text) == question.answer, question
