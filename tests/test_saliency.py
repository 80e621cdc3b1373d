"""What tokens receive in their encoder's last attention: recomputed here in plain loops, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from cases import EXPANDS_PICTURES, MEDIA, model_of
from prompts import AUDIO, IMAGE, VIDEO, Audio, Prompt, Video, batch, prompt
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

import omnidrop
from omnidrop.core import score
from omnidrop.core.tokens import RECORDING, TWO_GRIDS, Modality
from omnidrop.methods.base import InputView, Method

SEEN: list[InputView] = []


@dataclass(frozen=True, kw_only=True)
class Watching(Method):
    """Keeps all but the first token, and shows its view to the test."""

    @property
    def prunable(self):
        return (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE)

    @property
    def saliency(self):
        return self.prunable

    def at_input(self, view):
        SEEN.append(view)
        return torch.arange(1, len(view.modality))

    def plan(self, budget):
        return [0] * budget.layers

    def at_layer(self, view, k):
        raise AssertionError


@dataclass(frozen=True, kw_only=True)
class WithoutImages(Watching):
    @property
    def prunable(self):
        return (Modality.AUDIO, Modality.VIDEO)


def rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def by_hand(model: Any, made: Prompt, pixels: str, grid: str) -> Tensor:
    """Attention that each merged token gets in the last vision block, in the order of the picture."""
    visual = getattr(model.model, "visual", None) or model.visual
    attention, caught = visual.blocks[-1].attn, {}

    def remember(_module: Any, args: tuple, kwargs: dict) -> None:
        caught.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

    handle = attention.register_forward_pre_hook(remember, with_kwargs=True)
    with torch.no_grad():
        visual(made.inputs[pixels], grid_thw=made.inputs[grid])
    handle.remove()
    hidden, given = caught["hidden"], caught["position_embeddings"]
    n, heads, width = len(hidden), attention.num_heads, attention.head_dim
    if isinstance(given, Tensor):  # transformers 5.16: the angles
        cos, sin = given.cos().repeat(1, 2), given.sin().repeat(1, 2)
    else:
        cos, sin = given
    with torch.no_grad():
        if hasattr(attention, "qkv"):
            q, k = (part.reshape(n, heads, width) for part in attention.qkv(hidden).split(heads * width, -1)[:2])
        else:
            q, k = (part(hidden).reshape(n, heads, width) for part in (attention.q, attention.k))
    q, k = (x * cos[:, None] + rotate_half(x) * sin[:, None] for x in (q, k))
    received = torch.zeros(n)
    for start, stop in pairwise(caught["cu_seqlens"].tolist()):
        for head in range(heads):
            weights = (q[start:stop, head] @ k[start:stop, head].T / width**0.5).softmax(-1)
            received[start:stop] += weights.sum(0) / heads
    merge = model.config.vision_config.spatial_merge_size
    tokens = received.reshape(-1, merge**2).mean(1)
    if hasattr(attention, "qkv"):
        return tokens  # Qwen3's encoder never reorders
    vision = model.config.vision_config
    order, _ = get_vision_window_index(
        made.inputs[grid], spatial_merge_size=merge, window_size=vision.window_size, patch_size=vision.patch_size
    )
    return tokens[torch.argsort(torch.as_tensor(order))]


@pytest.mark.parametrize("clip", ["three videos", "image and video", "mixed"])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_vision_saliency_is_what_the_encoder_gave(family, clip):
    model, made = model_of(family), prompt(family, MEDIA[clip], seed=3)
    SEEN.clear()
    with torch.no_grad(), omnidrop.prune(model, Watching()):
        model(**made.inputs)
    (view,) = SEEN
    media = made.modality[made.modality > 0]
    assert torch.equal(view.modality, media)
    for kind, pixels, grid in (
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
        (IMAGE, "pixel_values", "image_grid_thw"),
    ):
        if (media == kind).any():
            expected = by_hand(model, made, pixels, grid)
            assert expected.std() > 0
            assert torch.allclose(view.saliency[media == kind], expected, atol=1e-6, rtol=1e-4)
    if (media == AUDIO).any():
        assert (view.saliency[media == AUDIO] > 0).all()


@dataclass(frozen=True, kw_only=True)
class Wider(Watching):
    """A soft-max over a whole recording, and over two temporal grids."""

    spans: ClassVar = {Modality.AUDIO: RECORDING, Modality.VIDEO: TWO_GRIDS}


def soft_maxes(monkeypatch: pytest.MonkeyPatch, run: Any) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Queries, keys and lengths of every soft-max of encoder attention while `run()` runs."""
    seen, real = [], score.attention_received

    def watched(queries: Tensor, keys: Tensor, lengths: Any, **options: Any) -> Tensor:
        seen.append((queries, keys, list(lengths)))
        return real(queries, keys, lengths, **options)

    with monkeypatch.context() as patch:
        patch.setattr(score, "attention_received", watched)
        run()
    return seen


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_a_method_may_ask_for_a_wider_soft_max(family, monkeypatch):
    model, made = model_of(family), prompt(family, (Video(5.0), Audio(7.3), Audio(1.0)), seed=3)

    def run(method: Method) -> None:
        SEEN.clear()
        with torch.no_grad(), omnidrop.prune(model, method):
            model(**made.inputs)

    own = soft_maxes(monkeypatch, lambda: run(Watching()))
    narrow = SEEN[0].saliency
    wide = soft_maxes(monkeypatch, lambda: run(Wider()))
    for (queries, keys, lengths), (more_queries, more_keys, spans) in zip(own, wide, strict=True):
        assert torch.equal(queries, more_queries) and torch.equal(keys, more_keys)
        assert sum(lengths) == sum(spans) and len(spans) < len(lengths)
    heard, seen = wide
    assert len(heard[2]) == 3  # the sound of the video, and two recordings
    t, h, w = made.inputs["video_grid_thw"][0].tolist()
    assert seen[2] == [2 * h * w] * (t // 2) + [h * w] * (t % 2)
    view = SEEN[0]
    assert not torch.allclose(view.saliency, narrow)
    for kind in (AUDIO, VIDEO):  # what is received is spread, not made
        assert float(view.saliency[view.modality == kind].mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_each_row_of_a_batch_gets_its_own(family):
    model = model_of(family)
    made = [prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(("video", "text", "three videos"))]
    SEEN.clear()
    with torch.no_grad(), omnidrop.prune(model, Watching()):
        model(**batch(made))
        together = list(SEEN)
        SEEN.clear()
        for row in (made[0], made[2]):
            model(**row.inputs)
    assert len(together) == len(SEEN) == 2
    for joint, alone in zip(together, SEEN, strict=True):
        assert torch.allclose(joint.saliency, alone.saliency, atol=1e-6)


@pytest.mark.skipif(not EXPANDS_PICTURES, reason="this transformers garbles pictures when it repeats a prompt")
def test_beams_share_one_encoding():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"])
    SEEN.clear()
    with torch.no_grad(), omnidrop.prune(model, Watching()):
        model.generate(**made.inputs, max_new_tokens=2, do_sample=False, num_return_sequences=2, num_beams=2)
    first, second = SEEN
    assert torch.equal(first.saliency, second.saliency) and first.saliency.std() > 0


@pytest.mark.parametrize("clip", ["image and video", "mixed", "image"])
def test_an_image_beside_is_seen_by_the_encoder_but_is_no_token_of_the_view(clip):
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA[clip])
    whole, part = [], []
    for method, into in ((Watching(), whole), (WithoutImages(), part)):
        SEEN.clear()
        with torch.no_grad(), omnidrop.prune(model, method):
            model(**made.inputs)
        into.extend(SEEN)
    if clip == "image":
        assert len(whole) == 1 and not part  # nothing there to drop
        return
    media = made.modality[made.modality > 0]
    assert torch.equal(part[0].saliency, whole[0].saliency[media != IMAGE])


def test_encoders_are_watched_only_when_asked():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["mixed"])
    attention = model_of("qwen2_5").model.visual.blocks[-1].attn if hasattr(model.model, "visual") else (
        model.visual.blocks[-1].attn
    )  # fmt: skip
    with omnidrop.prune(model, omnidrop.Uniform(keep=0.5)):
        assert not attention.q._forward_hooks
    with omnidrop.prune(model, Watching()):
        assert attention.q._forward_hooks
    assert not attention.q._forward_hooks
    with torch.no_grad(), omnidrop.prune(model, Watching()) as trace:
        model(**made.inputs)
    assert trace.budgets["input"] < 1
