"""VisionZip-omni: dominant and contextual tokens by hand, exact counts, every window its share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from views import sample

from omnidrop import SettingError
from omnidrop.core.select.balance import audio_and_video
from omnidrop.core.tokens import Modality
from omnidrop.methods.base import InputView
from omnidrop.methods.visionzip import VisionZip, zipped

CLIPS = [(5, 8, 12), (1, 4, 0), (3, 6, 3)]  # frames, tokens a frame, audio tokens: 77 tokens


def view_of(clips: list[tuple[int, int, int]], sounds: int = 5, **given: torch.Tensor) -> InputView:
    """Both modalities have saliency."""
    view = sample(clips, sounds=sounds, **given)
    return replace(view, saliency=torch.rand(len(view.modality), generator=torch.Generator().manual_seed(5)))


def test_dominant_and_contextual_by_hand():
    features = torch.tensor([[[1.0, 0.0], [5.0, 5.0], [0.8, 0.6], [0.0, 1.0], [7.0, 7.0], [0.0, 2.0]]])
    attention = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.8, 0.1]])
    places, changed = zipped(features, attention, 2, 2)
    # dominant: 1 and 4. Of the rest (0, 2, 3, 5) two anchors at even distances: 0 and 3. Token 2 has cosine .8 to 0 and
    # .6 to 3; token 5 points as 3 does. Anchor 0: mean of (1, 0), (.8, .6); anchor 3: mean of (0, 1), (0, 2)
    assert places.tolist() == [[1, 4, 0, 3]]
    assert torch.allclose(changed, torch.tensor([[[5.0, 5.0], [7.0, 7.0], [0.9, 0.3], [0.0, 1.5]]]))


def test_equal_attention_and_equal_anchors_take_the_lower_index():
    places, changed = zipped(torch.ones(1, 6, 2), torch.ones(1, 6), 2, 2)
    assert places.tolist() == [[0, 1, 2, 4]]  # the rest is 2, 3, 4, 5
    assert torch.equal(changed, torch.ones(1, 4, 2))
    features = torch.tensor([[[2.0], [4.0], [9.0]]])  # anchors 0 and 1 are both at cosine 1 from token 2: (2 + 9) / 2
    assert zipped(features, torch.zeros(1, 3), 0, 2)[1].flatten().tolist() == [5.5, 4.0]


def slow_zipped(features, attention, dominant, anchors):
    """One window, one token after another."""
    n = len(features)
    best = sorted(sorted(range(n), key=lambda i: (-attention[i], i))[:dominant])
    rest = [i for i in range(n) if i not in best]
    heads = [rest[j * len(rest) // anchors] for j in range(anchors)]
    groups = {head: [head] for head in heads}
    for i in rest:
        if i not in heads and heads:
            cosines = {head: float(torch.cosine_similarity(features[i], features[head], dim=0)) for head in heads}
            groups[max(heads, key=lambda head: cosines[head])].append(i)
    return best + heads, [features[i] for i in best] + [features[groups[head]].mean(0) for head in heads]


@pytest.mark.parametrize(("dominant", "anchors"), [(0, 3), (4, 1), (3, 5), (2, 5), (6, 0), (5, 4)])
def test_against_a_slow_loop(dominant, anchors):
    generator = torch.Generator().manual_seed(dominant)
    features, attention = torch.randn(3, 9, 5, generator=generator), torch.rand(3, 9, generator=generator)
    places, changed = zipped(features, attention, dominant, anchors)
    for w in range(3):
        slow_places, slow_changed = slow_zipped(features[w], attention[w].tolist(), dominant, anchors)
        assert places[w].tolist() == slow_places
        assert torch.allclose(changed[w], torch.stack(slow_changed), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 13, 40, 76])
def test_exactly_n_and_every_window_its_share(n, dtype):
    view = view_of(CLIPS, features=torch.randn(77, 6, generator=torch.Generator().manual_seed(1)).to(dtype))
    kept, features = VisionZip().choose(view, n)
    assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == n == len(features)
    assert features.dtype == dtype and features.isfinite().all()
    tokens = [(view.modality == kind).sum().item() for kind in (Modality.AUDIO, Modality.VIDEO)]
    share = dict(zip((Modality.AUDIO, Modality.VIDEO), audio_and_video(n, *tokens), strict=True))
    for modality, item, frame in {*zip(*(x.tolist() for x in (view.modality, view.item, view.frame)), strict=True)}:
        if modality == Modality.VIDEO:
            mine = (view.modality == modality) & (view.item == item) & (view.frame == frame)
            assert abs(int(mine[kept].sum()) - int(mine.sum()) * share[modality] / tokens[1]) < 1
    for chunk in range(view.max_chunk + 1):
        mine = (view.modality == Modality.AUDIO) & (view.chunk == chunk)
        assert abs(int(mine[kept].sum()) - int(mine.sum()) * share[Modality.AUDIO] / tokens[0]) < 1


def test_audio_and_video_keep_seats_pairs():
    # 288 video and 50 audio tokens a chunk: 35 % are 30 % of the video and 65 % of the audio, 10 % are 6 and 35 %
    view = view_of([(8, 144, 200)], sounds=50)
    for seen, heard in ((0.30, 0.65), (0.06, 0.35)):
        n = round(seen * 1152 + heard * 200)
        kept, _ = VisionZip(keep=n / 1352).choose(view, n)
        assert int((view.modality[kept] == Modality.AUDIO).sum()) == pytest.approx(heard * 200, abs=1.5)
        told = VisionZip().extrapolated(view.runs, replace(view.budget, input_count=n))
        assert told == ""
    assert "keeps 0.50" in VisionZip().extrapolated(view.runs, replace(view.budget, input_count=676))


def test_five_percent_of_a_window_are_anchors():
    view = view_of([(4, 60, 0)])
    kept, features = VisionZip().choose(view, 128)
    assert int((features != view.features[kept]).any(-1).sum()) == 12  # 3 of the 60 of each frame


def test_five_of_32_kept_tokens_are_contextual():
    view = view_of([(4, 60, 0)])
    kept, features = VisionZip(contextual=30 / 192).choose(view, 128)
    assert int((features != view.features[kept]).any(-1).sum()) == 20  # 32 of 60 a frame, 5 of them changed


def test_a_window_never_merges_with_another():
    features = 1.0 + torch.arange(4.0).repeat_interleave(8)[:, None].expand(-1, 3)  # one value per frame
    kept, merged = VisionZip(contextual=0.5).choose(view_of([(4, 8, 0)], features=features), 16)
    assert torch.equal(merged, features[kept])


def test_keep_everything_is_nothing_to_choose():
    assert VisionZip(keep=1.0).at_input(view_of(CLIPS)) is None and VisionZip(keep=1.0).saliency == ()


def test_wrong_settings_fail_at_construction():
    with pytest.raises(SettingError, match=r"contextual is 1.5; it must lie in \[0.0, 1.0\]"):
        VisionZip(contextual=1.5)
