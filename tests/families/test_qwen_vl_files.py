"""Qwen-VL from files: the family's own processor and template, `load`, `build`, batches, the commands."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import vl
import vl_files

import omnidrop
from omnidrop import loading, media, prompt
from omnidrop.batch import offline
from omnidrop.cli import main
from omnidrop.errors import InputError, MediaError, ModelError

pytest.importorskip("av")
pytestmark = pytest.mark.slow

FAMILIES = list(vl.BUILD)
family = pytest.mark.parametrize("family", FAMILIES)
QUESTION = "what is the color ?"
DEMO = str(loading.TINY.parent / "demo.mp4")


@cache
def folder(family: str) -> Path:
    return vl_files.save(family, Path(mkdtemp()))


@cache
def loaded(family: str) -> tuple[Any, Any]:
    return vl_files.load(family, folder(family))


def video(frames: int = 8, fps: float = 2.0, sound: bool = False, seed: int = 0) -> media.Media:
    shown = np.random.default_rng(seed).integers(0, 255, (frames, 24, 16, 3), dtype=np.uint8)
    wave = np.zeros(16_000, np.float32) if sound else None
    return media.Media("clip.mp4", "video", shown, np.arange(frames) / fps, fps, wave, 16_000, frames / fps)


def image(seed: int = 1) -> media.Media:
    shown = np.random.default_rng(seed).integers(0, 255, (1, 16, 24, 3), dtype=np.uint8)
    return media.Media("a.png", "image", shown, np.zeros(1), None, None, 16_000, 0.0)


@family
def test_a_prompt_is_what_the_processor_gives_for_all_clips_at_once(family: str) -> None:
    from transformers.video_utils import VideoMetadata

    _, processor = loaded(family)
    clips = [video(8), image(), video(6, seed=2)]
    ours = prompt.build(processor, clips, QUESTION)
    content = [{"type": clip.kind} for clip in clips]
    talk = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    videos = [torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips if clip.kind == "video"]
    sampled = [VideoMetadata(len(each), fps=2.0, frames_indices=list(range(len(each)))) for each in videos]
    theirs = processor(
        text=[text], videos=videos, images=[torch.from_numpy(clips[1].frames[0]).permute(2, 0, 1)],
        videos_kwargs={"do_sample_frames": False, "video_metadata": sampled}, return_tensors="pt",
    )  # fmt: skip
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(torch.as_tensor(theirs[name]).to(ours[name].dtype), ours[name]), name


@family
def test_times_follow_the_rate_of_the_clip(family: str) -> None:
    model, processor = loaded(family)
    inputs = prompt.build(processor, [video(8, fps=0.5), video(8)], QUESTION)
    assert inputs["video_grid_thw"][:, 0].tolist() == [4, 4]
    layout = omnidrop.layout(model, inputs)
    latest = [float(layout.second[0][layout.item[0] == i].max()) for i in (0, 1)]
    if family == "qwen2_5_vl":
        assert inputs["second_per_grid_ts"].tolist() == [4.0, 1.0] and latest == [12.0, 3.0]
        return
    words = processor.tokenizer.decode(inputs["input_ids"][0])
    for second in ("1", "5", "9", "1 3"):  # between two pictures 2 s apart
        assert f"< {second} . 0 seconds >" in words
    assert "< 3 . 2 seconds >" in words and latest == [3.0, 3.0]  # the layout takes a grid for a second


@family
def test_rows_of_a_batch_are_the_prompts_alone(family: str) -> None:
    model, processor = loaded(family)
    prompts = [prompt.build(processor, clip, "what ?") for clip in (video(6), video(12, seed=3))]
    batch = prompt.collate(processor, prompts)
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
        alone = [model(**each).logits[0, -1] for each in prompts]
        together = model(**batch).logits[:, -1]
    for one, row in zip(alone, together, strict=True):
        torch.testing.assert_close(one, row, atol=1e-4, rtol=1e-4)


@family
def test_one_picture_and_an_odd_number_of_pictures(family: str) -> None:
    _, processor = loaded(family)
    for frames, grids in ((1, 1), (7, 4)):
        assert prompt.build(processor, video(frames), QUESTION)["video_grid_thw"][0, 0] == grids


@family
def test_a_limit_below_the_processors_least_lowers_it(family: str) -> None:
    processor = vl_files.processor(family)
    processor.video_processor.size = {"shortest_edge": 8 * 12 * 64, "longest_edge": 8 * 40 * 64}
    whole = prompt.build(processor, video(8), QUESTION, max_pixels=None)["video_grid_thw"]
    small = prompt.build(processor, video(8), QUESTION, max_pixels=2 * 64)["video_grid_thw"]
    assert whole.prod() > small.prod()


def test_sound_is_left_out_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    _, processor = loaded("qwen3_vl")
    prompt._say_unheard.cache_clear()
    silent = prompt.build(processor, video(), QUESTION)
    with caplog.at_level(logging.WARNING, logger="omnidrop"):
        heard = prompt.build(processor, video(sound=True), QUESTION)
        prompt.build(processor, video(sound=True), QUESTION)
        prompt.build(processor, video(sound=True), QUESTION, use_audio=False)
    assert len(caplog.records) == 1 and "Qwen3VLProcessor has no audio encoder" in caplog.text
    assert torch.equal(heard["input_ids"], silent["input_ids"]) and set(heard) == set(silent)


@family
def test_sound_alone_is_refused(family: str) -> None:
    recording = replace(video(sound=True), kind="audio", frames=None, times=None, fps=None, path="a.wav")
    with pytest.raises(MediaError, match=r"a\.wav is sound alone, and .* has no audio encoder: give a video"):
        prompt.build(loaded(family)[1], recording, QUESTION)


@family
def test_a_question_with_a_placeholder_is_refused(family: str) -> None:
    with pytest.raises(InputError, match=r"must not contain <\|image_pad\|> or <\|video_pad\|>"):
        prompt.build(loaded(family)[1], video(), "what is <|video_pad|> ?")


@family
def test_the_question_of_a_dialogue_is_its_newest_turn(family: str) -> None:
    model, processor = loaded(family)
    turns = "what is the color ?<|im_end|><|im_start|>assistant <unk><|im_end|><|im_start|>user 7 ?"
    inputs = prompt.build(processor, video(), turns)
    layout = omnidrop.layout(model, inputs, query="question")
    assert processor.tokenizer.decode(inputs["input_ids"][0][layout.query[0]]) == "7 ?"


def test_vllm_does_not_build_these_prompts() -> None:
    with pytest.raises(ModelError, match="not those of Qwen3VLProcessor: give --engine transformers"):
        offline.check_processor(loaded("qwen3_vl")[1])


def test_a_processor_of_another_class_is_refused() -> None:
    other = type("OtherProcessor", (), {"tokenizer": None, "apply_chat_template": None})()
    with pytest.raises(ModelError, match=r"a OtherProcessor is no processor.*Qwen2_5_VLProcessor"):
        prompt.build(other, video(), QUESTION)


def test_a_config_with_another_placeholder_is_refused(tmp_path: Path) -> None:
    where = vl_files.save("qwen3_vl", tmp_path)
    document = json.loads((where / "config.json").read_text())
    document["video_token_id"] = 3
    (where / "config.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="marks video by token 3 in its config"):
        loading.load(where, device="cpu")


@family
def test_the_command_answers_and_draws_a_report(family: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The shipped clip has sound, which the family does not hear."""
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    command = [
        "run",
        DEMO,
        QUESTION,
        "--model",
        str(folder(family)),
        "--keep",
        "0.3",
        "--max-new-tokens",
        "2",
        "--json",
    ]
    assert main([*command, "--report", str(page), "--device", "cpu"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["tokens_in"]["audio"] == 0 and done["tokens_in"]["video"] > 0
    assert done["keep"] == pytest.approx(0.3, abs=0.02)
    assert "<img" in page.read_text() or "data:image" in page.read_text()


def test_an_unknown_model_is_told_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"'llama'; supported: .*qwen2_5_vl.*qwen3_vl_moe.*docs/add_a_model\.md"):
        loading.load(tmp_path, device="cpu")
    with pytest.raises(ModelError, match=r"a Linear is no model.*supported: .*Qwen3VL.*docs/add_a_model\.md"):
        omnidrop.prune(torch.nn.Linear(1, 1), omnidrop.OmniDrop(keep=0.3))
