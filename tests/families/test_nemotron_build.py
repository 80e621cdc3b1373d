"""Nemotron 3 Nano Omni from files: its own processor and a toy template, `load`, `build`, batches, the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nemotron
import nemotron_files
import numpy as np
import pytest
import tiny
import torch
import zoo

import omnidrop
from omnidrop import loading, media, prompt
from omnidrop.batch import offline
from omnidrop.cli import main
from omnidrop.errors import InputError, MediaError, ModelError

pytestmark = pytest.mark.slow
if "family_nemotron_h_omni" in zoo.LATER:
    pytest.skip("transformers has Nemotron 3 Nano Omni as it is pruned from 5.24 on", allow_module_level=True)

DEMO = str(loading.TINY.parent / "demo.mp4")
QUESTION = "what is seen and heard ?"


@cache
def own() -> Any:
    return nemotron_files.processor()


@cache
def model() -> Any:
    return nemotron.build()


def video(frames: int = 8, seconds: float = 0.0, seed: int = 0) -> media.Media:
    """With `seconds` of sound, or none."""
    generator = np.random.default_rng(seed)
    shown = generator.integers(0, 255, (frames, 40, 60, 3), dtype=np.uint8)
    wave = generator.standard_normal(int(seconds * 16_000)).astype(np.float32) if seconds else None
    return media.Media("clip.mp4", "video", shown, np.arange(frames) / 2, 2.0, wave, 16_000, frames / 2)


def image(seed: int = 1, height: int = 50) -> media.Media:
    shown = np.random.default_rng(seed).integers(0, 255, (1, height, 30, 3), dtype=np.uint8)
    return media.Media("a.png", "image", shown, np.zeros(1), None, None, 16_000, 0.0)


def recording(seconds: float, seed: int = 2) -> media.Media:
    return replace(video(seconds=seconds, seed=seed), kind="audio", frames=None, times=None, fps=None)


def whole(kinds: list[str], **given: Any) -> Any:
    """What the processor makes of all clips in one call."""
    talk = [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": QUESTION}]}]
    text = own().apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    return own()(text=[text], return_tensors="pt", **given)


def assert_equal(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(torch.as_tensor(theirs[name]).to(value.dtype), value, atol=1e-5, rtol=1e-5)


def test_a_prompt_of_videos_is_what_the_processor_gives_for_all_clips_at_once() -> None:
    """The first of two videos has sound, a recording comes last; nine frames are five pairs; times are text."""
    from transformers.video_utils import VideoMetadata

    clips = [video(9, seconds=1.35), video(9, seed=3), recording(0.5)]
    ours = prompt.build(own(), clips, QUESTION)
    sampled = [VideoMetadata(total_num_frames=9, fps=2.0, frames_indices=list(range(9))) for _ in range(2)]
    theirs = whole(
        ["video", "audio", "video", "audio"],
        videos=[torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips[:2]],
        audio=[clips[0].waveform, clips[2].waveform],
        videos_kwargs={"video_metadata": sampled, "do_sample_frames": False},
    )  # fmt: skip
    assert_equal(ours, theirs)
    assert ours["pixel_values_videos"].shape == (2, 5, 6, 16, 24)
    words = own().tokenizer.decode(ours["input_ids"][0])
    assert "Frame 3 sampled at 1 . 0 0 seconds and frame 4 sampled at 1 . 5 0 seconds : <img>" in words
    layout = omnidrop.layout(model(), ours)
    assert layout.count(0)["video"] == 2 * 5 * 6 and layout.item.max() == 1
    times = layout.second[0][layout.modality[0] == 2]
    assert times.view(2, 5, 6)[:, :, 0].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]] * 2


def test_a_prompt_of_images_is_what_the_processor_gives_for_all_clips_at_once() -> None:
    clips = [image(), recording(0.5), image(2, height=20)]
    pictures = [torch.from_numpy(clips[i].frames[0]).permute(2, 0, 1) for i in (0, 2)]
    ours = prompt.build(own(), clips, QUESTION)
    assert_equal(ours, whole(["image", "audio", "image"], images=pictures, audio=[clips[1].waveform]))
    layout = omnidrop.layout(model(), ours)
    assert layout.count(0)["image"] == int((ours["input_ids"] == int(tiny.Ids.IMAGE)).sum())
    assert layout.count(0)["video"] == 0


@pytest.mark.parametrize("seconds", [0.01, 0.64, 0.65, 1.0, 1.27, 2.0])
def test_sound_of_any_length_is_counted(seconds: float) -> None:
    inputs = prompt.build(own(), recording(seconds), QUESTION)
    with torch.no_grad(), omnidrop.prune(model(), omnidrop.OmniDrop(keep=0.5)) as trace:
        model()(**inputs)
    assert trace.layout.count(0)["audio"] == int((inputs["input_ids"] == int(tiny.Ids.AUDIO)).sum())


def test_rows_of_a_batch_are_the_prompts_alone() -> None:
    """Recordings of different lengths are padded along their frames."""
    prompts = [prompt.build(own(), video(8, seconds=s, seed=n), QUESTION) for n, s in enumerate((0.61, 1.35))]
    batch = prompt.collate(own(), prompts)
    with torch.no_grad(), omnidrop.prune(model(), omnidrop.OmniDrop(keep=0.5)) as trace:
        alone = [model()(**each).logits[0, -1] for each in prompts]
        together = model()(**batch).logits[:, -1]
    for one, row in zip(alone, together, strict=True):
        torch.testing.assert_close(one, row, atol=1e-4, rtol=1e-4)
    assert trace.counts[0]["audio"] > 0 < trace.counts[0]["video"]


def test_what_cannot_be_in_one_prompt_is_refused_before_the_model_runs() -> None:
    with pytest.raises(MediaError, match="refuses both in one prompt"):
        prompt.build(own(), [image(), video()], QUESTION)
    with pytest.raises(MediaError, match=r"pixel_values_videos of sizes \[\(2, 6, .* it takes one size"):
        prompt.build(own(), [video(8), video(4)], QUESTION)
    for word in ("<video>", "<image>"):
        with pytest.raises(InputError, match="must not contain <image> or <so_embedding>"):
            prompt.build(own(), video(), f"what is {word} ?")


def test_fewer_pixels_make_fewer_tokens() -> None:
    def tokens(limit: int | None) -> int:
        made = prompt.build(own(), video(4), QUESTION, max_pixels=limit)
        return int((made["input_ids"] == int(tiny.Ids.IMAGE)).sum())

    assert tokens(None) == tokens(10**6) == 12 and tokens(8 * 4**2) == 4 and tokens(1) == 2


def test_vllm_does_not_build_these_prompts() -> None:
    with pytest.raises(ModelError, match="give --engine transformers"):
        offline.check_processor(own())


def test_the_command_loads_a_folder_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    nemotron_files.save(tmp_path)
    command = ["run", DEMO, QUESTION, "--model", str(tmp_path), "--keep", "0.5", "--max-new-tokens", "2", "--json"]
    assert main([*command, "--device", "cpu"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["keep"] == pytest.approx(0.5, abs=0.01)
    assert done["tokens_in"]["audio"] > 0 < done["tokens_in"]["video"]


def test_a_dialogue_asks_twice_about_media_that_are_encoded_once() -> None:
    chat = omnidrop.Conversation(model(), own(), omnidrop.OmniDrop(keep=0.5))
    chat.add(video(8, seconds=0.61))
    for question in (QUESTION, "what is heard ?"):
        chat.ask(question, max_new_tokens=3)
        assert chat.trace is not None and chat.trace.keep == pytest.approx(0.5, abs=0.02)
    assert (chat.encoded.encoded, chat.encoded.reused) == (2, 2)
