"""The vLLM plugin's positions equal transformers', on every mix of media; nothing of vLLM is needed to know that."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omnidrop_vllm.media import media_of
from omnidrop_vllm.positions import positions_of
from prompts import Audio, Image, Item, Prompt, Video, prompt
from tiny import THINKERS, Ids

pytestmark = pytest.mark.slow

FAMILIES = ("qwen2_5", "qwen3")
MIXES: dict[str, Sequence[Item]] = {
    "text": [],
    "image": [Image()],
    "images": [Image(3, 2), Image(1, 7), Image(4, 4)],
    "recording": [Audio()],
    "recordings": [Audio(0.5), Audio(3.17), Audio(2)],
    "silent video": [Video(sound=False)],
    "silent videos": [Video(sound=False), Video(4, 3, 1, 2.0, sound=False)],
    "silent video, recording": [Video(sound=False), Audio(3)],
    "recording, silent video": [Audio(3), Video(sound=False)],
    "sound as long": [Video(6)],
    "sound as long as whole chunks": [Video(4, 9, 9)],
    "sound shorter": [Video(7, sound=2.3)],
    "sound much shorter": [Video(9, sound=0.4)],
    "sound longer": [Video(5, sound=9.1)],
    "sound a tick longer": [Video(6, sound=6.04)],
    "frames larger than their time": [Video(1, 30, 40, sound=0.5)],
    "one frame": [Video(0.5, sound=3)],
    "short steps": [Video(5, second_per_grid=0.5, sound=4)],
    "odd steps": [Video(6.5, second_per_grid=0.4, sound=6.1)],
    "odd steps, silent": [Video(6.5, second_per_grid=2 / 3, sound=False), Audio(1)],
    "steps that binary fractions miss": [Video(2, second_per_grid=0.08)],
    "long steps": [Video(8, second_per_grid=2.0)],
    "videos with sound": [Video(6), Video(3, 1, 4, sound=5), Video(4, 4, 4, 0.5, sound=1)],
    "video with sound, recording": [Video(6, sound=4.9), Audio(3)],
    "recording, video with sound": [Audio(3), Video(6, sound=7.7)],
    "everything": [Image(2, 5), Audio(1), Video(5, sound=3), Image(), Video(3, 3, 3), Audio(2), Image(6, 1)],
    "everything, silent": [Image(2, 5), Audio(1), Video(5, sound=False), Image(), Video(3, sound=False), Audio(2)],
}


@dataclass
class Feature:
    """What a `MultiModalFeatureSpec` of vLLM's offers."""

    modality: str
    data: Any
    offset: int = 0
    mm_position: Any = field(init=False)

    def __post_init__(self) -> None:
        self.mm_position = SimpleNamespace(offset=self.offset)
        if self.data is not None:
            self.data = {name: SimpleNamespace(data=value) for name, value in self.data.items()}


def features_of(asked: Prompt) -> list[Feature]:
    """One feature an item, each kind in order."""
    inputs, found = asked.inputs, []
    for index, grid in enumerate(inputs.get("image_grid_thw", ())):
        found.append(Feature("image", {"image_grid_thw": grid}, index))
    for index, grid in enumerate(inputs.get("video_grid_thw", ())):
        data = {
            "video_grid_thw": grid,
            "second_per_grid_ts": inputs["video_second_per_grid"][index],
            "use_audio_in_video": torch.tensor(inputs["use_audio_in_video"]),
        }
        found.append(Feature("video", data, index))
    for index, mask in enumerate(inputs.get("feature_attention_mask", ())):
        found.append(Feature("audio", {"audio_feature_lengths": mask.sum()}, index))
    return found


@pytest.fixture(scope="module")
def thinkers() -> dict[str, Any]:
    return {family: THINKERS[family](layers=2) for family in FAMILIES}


def theirs(thinker: Any, asked: Prompt) -> torch.Tensor:
    """(3, L) as transformers has them: Qwen3-Omni's are float32, and not always whole."""
    owner = thinker.model if hasattr(thinker.model, "get_rope_index") else thinker  # transformers 5.23, 5.16
    inputs = asked.inputs
    mask = inputs.get("feature_attention_mask")
    numbers, delta = owner.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        inputs.get("use_audio_in_video", False),
        None if mask is None else mask.sum(-1),
        inputs.get("video_second_per_grid"),
    )
    assert float(delta) == pytest.approx(float(numbers.max()) + 1 - asked.length, abs=1e-3)  # float32
    return numbers[:, 0]


def nearest(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers.double() + 0.5).floor().long()


def check(thinker: Any, asked: Prompt) -> None:
    expected = nearest(theirs(thinker, asked))
    found = positions_of(thinker.config, asked.inputs["input_ids"][0].tolist(), features_of(asked))
    assert found is not None
    positions, delta = found
    assert positions.dtype == torch.long
    torch.testing.assert_close(positions, expected, rtol=0, atol=0)
    assert delta == int(expected.max()) + 1 - asked.length and type(delta) is int


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_of_transformers(family: str, mix: str, thinkers: dict[str, Any]) -> None:
    for question_first in (False, True):
        check(thinkers[family], prompt(family, MIXES[mix], question_first=question_first))


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_of_transformers_on_random_mixes(family: str, thinkers: dict[str, Any]) -> None:
    """Frame rates at which both ends of transformers, processor and model, weave picture and sound alike."""
    draw = random.Random(6)
    for seed in range(300):
        sound, items = draw.random() < 0.6, []
        for _ in range(draw.randint(1, 4)):
            kind = draw.choice([Video, Video, Image, Audio])
            if kind is Video:
                seconds, step = draw.choice([1, 2, 3, 4, 6, 7.3]), 2 / draw.choice([1, 2, 3, 4, 5, 6, 8])
                length = draw.choice([seconds, 0.5 * seconds + 0.1, seconds + 0.04, seconds + 3.7])
                size = draw.randint(1, 9), draw.randint(1, 9 if step > 0.3 else 1)
                items.append(Video(seconds, *size, step, sound=length if sound else False))
            elif kind is Image:
                items.append(Image(draw.randint(1, 12), draw.randint(1, 12)))
            else:
                items.append(Audio(draw.choice([0.5, 1, 2.37, 4])))
        check(thinkers[family], prompt(family, items, seed, draw.randint(0, 9), draw.randint(0, 5)))


def test_numbers_between_two_ticks_occur_and_become_the_nearest(thinkers: dict[str, Any]) -> None:
    asked = prompt("qwen3", [Video(5, second_per_grid=0.5, sound=4)])
    numbers = theirs(thinkers["qwen3"], asked)
    assert (numbers % 1 == 0.5).any()  # else the test shows nothing
    found = positions_of(thinkers["qwen3"].config, asked.inputs["input_ids"][0].tolist(), features_of(asked))
    assert found is not None
    assert float((found[0] - numbers).abs().max()) == 0.5
    text = numbers[:, asked.modality == 0][0]
    assert len(set(nearest(text).tolist())) == len(text)  # rounding to even would give two tokens one number


@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_video_between_videos_with_sound(family: str, thinkers: dict[str, Any]) -> None:
    """transformers has one flag for all videos of a prompt; here each clip is numbered as it is when it is alone."""
    parts = [prompt(family, [video], seed=i) for i, video in enumerate([Video(5), Video(4, sound=False), Video(3)])]
    features, expected, begin = [], [], 0
    for index, part in enumerate(parts):
        for feature in features_of(part):
            feature.mm_position.offset = index
            features.append(feature)
        expected.append(nearest(theirs(thinkers[family], part)) + begin)
        begin = int(expected[-1][:, -1].max()) + 1
    ids = [token for part in parts for token in part.inputs["input_ids"][0].tolist()]
    found = positions_of(thinkers[family].config, ids, features)
    assert found is not None
    torch.testing.assert_close(found[0], torch.cat(expected, dim=1), rtol=0, atol=0)


def test_each_token_keeps_its_own_time_where_the_prompt_is_woven_otherwise(thinkers: dict[str, Any]) -> None:
    """vLLM's processor weaves at 1 s a step, whatever the frame rate; transformers would number it as if it had not."""
    config = thinkers["qwen2_5"].config
    asked = prompt("qwen2_5", [Video(4, 1, 1, 1.0)])
    ids = asked.inputs["input_ids"][0]
    asked.inputs["video_second_per_grid"] = torch.tensor([0.5])
    found = positions_of(config, ids.tolist(), features_of(asked))
    assert found is not None
    pictures, sounds = found[0][0, ids == Ids.VIDEO], found[0][0, ids == Ids.AUDIO]
    assert (pictures - pictures[0]).tolist() == [0, 12, 25, 37]
    assert (sounds - sounds[0]).tolist() == list(range(100))


def test_media_are_in_the_order_of_the_prompt() -> None:
    features = [
        Feature("audio", {"audio_feature_lengths": torch.tensor([30])}, 90),
        Feature("image", {"image_grid_thw": torch.tensor([1, 4, 6])}, 50),
        Feature("audio", {"feature_attention_mask": torch.ones(1, 20)}, 10),
        Feature("image", {"image_grid_thw": torch.tensor([[1, 2, 2]])}, 5),
        Feature("video", _video(seconds=0.5), 70),
        Feature("video", _video(seconds=2.0), 30),
    ]
    media = media_of(features)
    assert media is not None
    assert media.image_grid.tolist() == [[1, 2, 2], [1, 4, 6]]
    assert media.video_grid.tolist() == [[2, 4, 4], [2, 4, 4]]
    assert media.seconds_per_grid == [2.0, 0.5]
    assert media.mel_frames.tolist() == [20, 30]
    assert media.use_audio_in_video is False
    sound = media_of([Feature("video", {**_video(), "use_audio_in_video": torch.tensor(True)})])
    assert sound is not None and sound.use_audio_in_video is True


def test_no_media() -> None:
    media = media_of([])
    assert media is not None
    assert media.image_grid.shape == media.video_grid.shape == (0, 3)
    assert media.seconds_per_grid == [] and media.mel_frames.tolist() == []


def _video(seconds: float = 1.0) -> dict[str, Any]:
    return {"video_grid_thw": torch.tensor([2, 4, 4]), "second_per_grid_ts": torch.tensor(seconds)}


@pytest.mark.parametrize(
    "feature",
    [
        Feature("video", None),
        Feature("image", {"pixel_values": torch.ones(1)}),
        Feature("image", {"image_grid_thw": None}),
        Feature("video", {"video_grid_thw": torch.tensor([2, 4, 4])}),
        Feature("video", {"second_per_grid_ts": torch.tensor(1.0)}),
        Feature("audio", {"input_audio_features": torch.ones(1)}),
        Feature("prompt_embeds", {"prompt_embeds": torch.ones(1)}),
    ],
)
def test_unknown_media_are_none(feature: Feature, thinkers: dict[str, Any]) -> None:
    assert media_of([feature]) is None
    assert positions_of(thinkers["qwen2_5"].config, [1, 2, 3], [feature]) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mix", ["image", "silent video", "sound as long", "everything"])
def test_media_that_do_not_fit_the_prompt_are_none(family: str, mix: str, thinkers: dict[str, Any]) -> None:
    asked, config = prompt(family, MIXES[mix]), thinkers[family].config
    ids, features = asked.inputs["input_ids"][0].tolist(), features_of(asked)
    assert positions_of(config, ids, features) is not None
    seen = [feature for feature in features if feature.modality != "audio"]
    assert positions_of(config, ids, seen[1:]) is None  # one item too few
    assert positions_of(config, ids, [*features, seen[0]]) is None  # one too many
    place = max(i for i, token in enumerate(ids) if token in (Ids.IMAGE, Ids.VIDEO))
    assert positions_of(config, ids[:place] + ids[place + 1 :], features) is None  # one token too few
