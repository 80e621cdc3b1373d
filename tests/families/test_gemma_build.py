"""`build` with Gemma 4's own processors and a vocabulary of words: prompts, batches, limits."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import family_gemma4
import family_gemma4_unified
import gemma
import gemma_files
import numpy as np
import pytest
import torch
import zoo

import omnidrop
from omnidrop import loading, media, prompt
from omnidrop.batch import offline
from omnidrop.cli import main
from omnidrop.errors import MediaError, ModelError

pytestmark = pytest.mark.slow
if "family_gemma4" in zoo.LATER:
    pytest.skip("transformers has Gemma 4 as it is pruned from 5.23 on", allow_module_level=True)

FAMILIES = {"gemma4": family_gemma4, "unified": family_gemma4_unified}
each_family = pytest.mark.parametrize("name", FAMILIES)
DEMO = str(loading.TINY.parent / "demo.mp4")
QUESTION = "what is seen and heard ?"


@cache
def processor_of(name: str) -> Any:
    return gemma_files.processor(name == "unified")


@cache
def model_of(name: str) -> Any:
    return FAMILIES[name].build()


def video(name: str, frames: int = 8, seconds: float = 0.0, seed: int = 0) -> media.Media:
    """With `seconds` of sound, or none."""
    generator, rate = np.random.default_rng(seed), processor_of(name).feature_extractor.sampling_rate
    shown = generator.integers(0, 255, (frames, 40, 72, 3), dtype=np.uint8)
    wave = generator.standard_normal(int(seconds * rate)).astype(np.float32) if seconds else None
    return media.Media("clip.mp4", "video", shown, np.arange(frames) / 2, 2.0, wave, rate, frames / 2)


def image() -> media.Media:
    shown = np.random.default_rng(1).integers(0, 255, (1, 50, 30, 3), dtype=np.uint8)
    return media.Media("a.png", "image", shown, np.zeros(1), None, None, 16_000, 0.0)


def recording(name: str, seconds: float, seed: int = 2) -> media.Media:
    return replace(video(name, seconds=seconds, seed=seed), kind="audio", frames=None, times=None, fps=None)


@each_family
def test_a_prompt_is_what_the_processor_gives_for_all_clips_at_once(name: str) -> None:
    """Two videos, the first with sound, an image and a recording; times in the text, padding of sound apart."""
    from transformers.video_utils import VideoMetadata

    own = processor_of(name)
    clips = [video(name, 8, seconds=1.3), image(), recording(name, 0.5), video(name, 3, seed=3)]
    ours = prompt.build(own, clips, QUESTION)
    kinds = ["video", "audio", "image", "audio", "video"]
    talk = [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": QUESTION}]}]
    text = own.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    known = [VideoMetadata(total_num_frames=n, fps=2.0, duration=n / 2) for n in (8, 3)]
    theirs = own(
        text=[text], images=[[torch.from_numpy(clips[1].frames[0]).permute(2, 0, 1)]],
        videos=[torch.from_numpy(clips[i].frames).permute(0, 3, 1, 2) for i in (0, 3)],
        audio=[clips[0].waveform, clips[2].waveform],
        videos_kwargs={"video_metadata": known, "num_frames": 3}, return_tensors="pt",
    )  # fmt: skip
    assert own.video_processor.num_frames == 4  # of the second video there are three pictures: compare these below
    assert set(ours) == set(theirs) - {"video_metadata"}
    words = own.tokenizer.decode(ours["input_ids"][0])
    assert all(f"0 0 : 0 {second} <|image>" in words for second in (0, 1, 2, 3))
    assert ours["num_frames_per_video"].tolist() == [4, 3]
    for each in ("pixel_values", "image_position_ids", "input_features_mask"):
        assert torch.equal(torch.as_tensor(theirs[each]), ours[each]), each
    heard = ours["input_features_mask"]
    torch.testing.assert_close(torch.as_tensor(theirs["input_features"])[heard].float(), ours["input_features"][heard])
    torch.testing.assert_close(torch.as_tensor(theirs["pixel_values_videos"])[-3:], ours["pixel_values_videos"][-3:])
    mine, full = ours["input_ids"][0].tolist(), theirs["input_ids"][0].tolist()
    assert mine[mine.index(int(gemma.Ids.BOA)) :] == full[full.index(int(gemma.Ids.BOA)) :]
    assert torch.equal(ours["mm_token_type_ids"][0], types(ours["input_ids"][0]))


def types(ids: torch.Tensor) -> torch.Tensor:
    tokens = {int(gemma.Ids.IMAGE): 1, int(gemma.Ids.VIDEO): 2, int(gemma.Ids.AUDIO): 3}
    return torch.tensor([tokens.get(token, 0) for token in ids.tolist()])


@each_family
def test_rows_of_a_batch_are_the_prompts_alone(name: str) -> None:
    """Recordings of different lengths are padded along their frames."""
    model, own = model_of(name), processor_of(name)
    prompts = [prompt.build(own, video(name, n, seconds=s, seed=n), QUESTION) for n, s in ((6, 0.6), (8, 1.4))]
    batch = prompt.collate(own, prompts)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.5)) as trace:
        alone = [model(**each).logits[0, -1] for each in prompts]
        together = model(**batch).logits[:, -1]
    for one, row in zip(alone, together, strict=True):
        torch.testing.assert_close(one, row, atol=1e-4, rtol=1e-4)
    assert trace.counts[0]["audio"] > 0 < trace.counts[0]["video"]


@each_family
def test_the_sound_of_a_video_may_be_left_out(name: str) -> None:
    own = processor_of(name)
    assert "input_features" not in prompt.build(own, video(name, seconds=1.0), QUESTION, use_audio=False)
    short = prompt.build(own, recording(name, 0.004), QUESTION)
    assert int((short["input_ids"] == int(gemma.Ids.AUDIO)).sum()) == 1


def test_sound_that_the_processor_would_cut_off_is_refused() -> None:
    with pytest.raises(MediaError, match=r"has 30\.5 seconds of sound; .* reads 30 of a recording .*use_audio=False"):
        prompt.build(processor_of("gemma4"), video("gemma4", seconds=30.5), QUESTION)
    whole = prompt.build(processor_of("unified"), recording("unified", 30.5), QUESTION)
    assert int((whole["input_ids"] == int(gemma.Ids.AUDIO)).sum()) == 763


@each_family
def test_vllm_does_not_build_these_prompts(name: str) -> None:
    with pytest.raises(ModelError, match="give --engine transformers"):
        offline.check_processor(processor_of(name))


def test_the_command_loads_a_folder_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    family_gemma4.build().save_pretrained(tmp_path)
    gemma_files.processor(unified=False).save_pretrained(tmp_path)
    command = ["run", DEMO, QUESTION, "--model", str(tmp_path), "--keep", "0.5", "--max-new-tokens", "2", "--json"]
    assert main([*command, "--device", "cpu"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["keep"] == pytest.approx(0.5, abs=0.01)
    assert done["tokens_in"]["audio"] > 0 < done["tokens_in"]["video"]
