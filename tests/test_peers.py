"""Against the authors' own code: small inputs, and what their published code gives for them (tests/peers/README.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from views import AUDIO, VIDEO, sample

from omnidrop.core import score
from omnidrop.core.budget import DecoderShape, TokenCounts, counts_of
from omnidrop.core.select import segments
from omnidrop.methods import DASH, SEATS, DivPrune, DyCoke, FastV, OmniPack, OmniZip, PyramidDrop, VisionZip
from omnidrop.methods.base import InputView
from omnidrop.methods.omnipack import audio_event, minmax, relevance, video_event
from omnidrop.methods.seats import windowed_quotas
from omnidrop.methods.visionzip import zipped
from omnidrop.models.base import grid_pairs

FOLDER = Path(__file__).parent / "peers"
if not FOLDER.is_dir():
    pytest.skip("the authors' results are in the repository only", allow_module_level=True)
Case = dict[str, Any]


@cache
def cases(name: str) -> list[Case]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["cases"]


def each(name: str) -> Any:
    """One test a case of the file."""
    return pytest.mark.parametrize(
        "case", cases(name), ids=lambda case: "tail" * case["tail"] + "ties" * case.get("ties", 0)
    )


def f32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def close(found: Tensor, theirs: Any, tolerance: float) -> None:
    torch.testing.assert_close(found.float(), f32(theirs), atol=tolerance, rtol=0)


def best_by(values: list[float], kept: list[int]) -> bool:
    """Whether no dropped token is worth more to their rule than a kept one."""
    dropped = [value for place, value in enumerate(values) if place not in set(kept)]
    return min(values[place] for place in kept) >= max(dropped, default=float("-inf")) - 1e-5


def first_of(window: Case, kept: list[int]) -> bool:
    """Whether the kept tokens are the first that their code lets in; of identical tokens any."""
    wanted = window["order"][: len(kept)]
    twin = window.get("twin", list(range(1 + max(wanted + kept))))
    return sorted(twin[place] for place in kept) == sorted(twin[place] for place in wanted)


def clip_of(case: Case, **given: Tensor) -> InputView:
    """One video with its sound, chunk by chunk, as the fixtures number them."""
    video = f32(case["video"])
    frames, tokens, width = video.shape
    view = sample([(frames, tokens, len(case["audio"]))], sounds=case["sounds"][0], grids=case["grids"][0], width=width)
    chunk = torch.arange(len(case["grids"]))
    assert [int((view.chunk[view.modality == VIDEO] == c).sum()) for c in chunk] == [g * tokens for g in case["grids"]]
    assert [int((view.chunk[view.modality == AUDIO] == c).sum()) for c in chunk] == case["sounds"]
    features, saliency = torch.empty_like(view.features), torch.zeros(len(view.modality))
    features[view.modality == VIDEO], features[view.modality == AUDIO] = video.flatten(0, 1), f32(case["audio"])
    for kind, values in given.items():
        saliency[view.modality == {"heard": AUDIO, "seen": VIDEO}[kind]] = values
    return replace(view, features=features, saliency=saliency)


def split(view: InputView, kept: Tensor) -> tuple[list[int], list[list[int]]]:
    """Kept audio tokens, and kept places of each frame."""
    audio = (view.modality == AUDIO).cumsum(0) - 1
    video = (view.modality == VIDEO).cumsum(0) - 1
    tokens = next(count // frames for kind, _, count, frames in view.runs if kind == VIDEO)
    frames = next(frames for kind, _, _, frames in view.runs if kind == VIDEO)
    seen = video[kept[view.modality[kept] == VIDEO]]
    return audio[kept[view.modality[kept] == AUDIO]].tolist(), [
        (seen[seen // tokens == frame] % tokens).tolist() for frame in range(frames)
    ]


# DASH and OmniZip ----------------------------------------------------------------------------------------------------


@each("dash_frames")
def test_dash_frames(case):
    x = f32(case["x"])
    frames, tokens, width = x.shape
    view = sample([(frames, tokens, 0)], features=x.flatten(0, 1), width=width)
    for count in case["counts"]:
        kept = DASH().choose(view, count * frames).kept
        for frame in range(frames):
            mine = (kept[kept // tokens == frame] % tokens).tolist()
            assert len(mine) == count and best_by(case["value"][frame], mine)


def listening(case: Case, method: Any) -> tuple[Tensor, Tensor]:
    """Audio tokens that stay, and their features."""
    view = sample(
        [(2, len(case["video"][0]), len(case["audio"]))], sounds=len(case["audio"]), width=len(case["audio"][0])
    )
    features = torch.cat([f32(case["video"]).flatten(0, 1), f32(case["audio"])])
    saliency = torch.cat([torch.zeros(len(features) - len(case["audio"])), f32(case["attn"])])
    view = replace(view, features=features, saliency=saliency)
    return method._listen(view, len(case["kept"]), len(case["anchors"]))


@pytest.mark.parametrize(("name", "kind"), [("dash_audio", DASH), ("omnizip_audio", OmniZip)])
def test_audio_that_stays_and_what_it_takes_in(name, kind):
    for case in cases(name):
        places, features = listening(case, kind(anchors=case["share"], g=case["g"]))
        first = 2 * len(case["video"][0])
        assert (places - first).tolist() == case["kept"]
        merged = [case["kept"].index(anchor) for anchor in case["anchors"]]
        close(features[merged], case["into"], 1e-4)


@each("dash_audio")
def test_dash_scores(case):
    audio = f32(case["audio"])
    probability = segments.boundary_probability(audio)
    close(probability, case["p"], 1e-5)
    close(DASH().audio_scores(audio, f32(case["attn"])), case["score"], 1e-5)
    starts = segments.first_apart(probability > (1 - 0.4) / 2, 30)
    breaks = case["breaks"][:-1] if case["breaks"][-1] == len(audio) else case["breaks"]
    assert starts.nonzero()[:, 0].tolist() == breaks


@each("omnizip_video")
def test_omnizip_video(case):
    view = clip_of(case, heard=f32(case["attn"]))
    method = OmniZip(anchors=case["share"], g=case["g"])
    theirs = len(case["audio_kept"])
    audio, _ = method._listen(view, theirs, round(case["share"] * len(case["audio"])))
    stays = torch.zeros(len(view.modality), dtype=torch.bool)
    stays[audio] = True
    tokens = len(case["video"][0])  # theirs rounds every frame down: what its ratios say
    seen = round(sum((1 - drop) * grids * tokens for drop, grids in zip(case["drop"], case["grids"], strict=True)))
    heard, frames = split(view, torch.cat([audio, method._watch(view, stays, seen)]))
    assert heard == case["audio_kept"]
    first = 0
    for drop, grids in zip(case["drop"], case["grids"], strict=True):
        mine = frames[first : first + grids]
        assert abs(sum(map(len, mine)) - (1 - drop) * grids * tokens) <= 1.5
        first += grids
    assert all(best_by(values, mine) for values, mine in zip(case["value"], frames, strict=True))


@each("omnizip_reach")
def test_omnizip_lets_audio_go_where_the_video_may_drop_no_more(case):
    view = clip_of(case, heard=f32(case["attn"]))
    method = OmniZip(keep=case["left"], anchors=case["share"], g=case["g"])
    heard, frames = split(view, method.at_input(view).kept)
    tokens, video = len(case["video"][0]), sum(map(len, case["video"]))
    theirs, seen = len(case["audio_kept"]), sum(map(len, case["kept"]))
    assert theirs - 1 <= len(heard) <= theirs + (seen - video / 4) + 1
    first = 0
    for grids in case["grids"]:
        size = grids * tokens
        assert 0.35 * size - 1 <= size - sum(map(len, frames[first : first + grids])) <= 0.75 * size + 1
        first += grids
    assert all(best_by(values, mine) for values, mine in zip(case["value"], frames, strict=True))


# SEATS ---------------------------------------------------------------------------------------------------------------


@each("seats_stage1")
def test_seats_attends_to_two_grids_at_once(case):
    frames, tokens = len(case["video"]), len(case["video"][0])
    lengths = grid_pairs(torch.tensor([[frames, 1, tokens]]))
    received = score.attention_received(f32(case["q"]), f32(case["k"]), lengths, scale=len(case["q"][0][0]) ** -0.5)
    close(received, case["sal_v"], 2e-5)


@each("seats_stage1")
def test_seats_first_stage(case):
    view = clip_of(case, heard=f32(case["sal_a"]), seen=f32(case["sal_v"]))
    n = sum(window["count"] for window in case["windows"])
    kept = SEATS(scale=case["scale"], keep=n / len(view.modality), budget="input").at_input(view)
    assert len(kept) == n
    base = torch.zeros(len(view.modality), dtype=torch.long)
    for window in case["windows"]:
        mine = (view.modality == window["kind"]) & (view.chunk == window["chunk"])
        base[mine] = torch.arange(int(mine.sum()))
        places = base[kept[mine[kept]]].tolist()
        assert abs(len(places) - window["count"]) <= 2 and first_of(window, places)


@each("seats_stage2")
def test_seats_second_stage(case):
    both = case["audio"], case["video"]
    mean = f32([[sum(window) / len(window) if window else 0.0 for window in kind] for kind in both])
    size = torch.tensor([[len(window) for window in kind] for kind in both])
    heard, seen = windowed_quotas(mean, size, case["total"], case["temp"]).tolist()
    for found, theirs in ((heard, case["keep_a"]), (seen, case["keep_v"])):
        assert all(abs(a - b) <= 2 for a, b in zip(found, theirs, strict=True))


# in the decoder ------------------------------------------------------------------------------------------------------


def budget(layers: int, tokens: int) -> TokenCounts:
    shape = DecoderShape(
        layers=layers, hidden=8, heads=2, kv_heads=1, head_dim=4, mlp=24, vocabulary=9, bytes_per_value=2
    )
    return TokenCounts(layers=layers, total=tokens, input_count=tokens, text=0, shape=shape)


def test_fastv_of_the_main_code():
    for case in cases("fastv"):
        if "layers" in case:
            method, given = FastV(keep=case["keep"]), budget(case["layers"], case["tokens"])
            assert method.layer == case["scores"]
            counts = counts_of(method.plan(given), case["tokens"])
            assert counts[: case["full"]] == [case["tokens"]] * case["full"]
            assert abs(counts[case["full"]] - case["left"]) <= 1
        if "choice" in case:
            pick(case["choice"])


def pick(choice: Case) -> None:
    scores = f32(choice["last_row"])[FastV().layer].mean(0)[choice["before"] :]
    k = len(scores) - len(choice["kept"])
    assert FastV().at_layer(SimpleNamespace(scores=scores), k).tolist() == choice["kept"]


@each("pyramiddrop")
def test_pyramiddrop(case):
    counts = counts_of(PyramidDrop(keep=case["mean"]).plan(budget(case["layers"], case["tokens"])), case["tokens"])
    assert all(abs(counts[at] - left) <= 1 for at, left in zip(case["at"], case["left"], strict=True))
    assert all(counts[at - 1] > counts[at] for at in case["at"])


# before the decoder --------------------------------------------------------------------------------------------------


@each("divprune")
def test_divprune(case):
    for window in case["windows"]:
        x = f32(window["x"])
        view = sample([(1, len(x), 0)], features=x, width=x.shape[1])
        assert first_of(window, DivPrune().choose(view, window["count"]).tolist())


@each("dycoke")
def test_dycoke(case):
    x = f32(case["x"])
    frames, tokens, width = x.shape
    view = sample([(frames, tokens, 0)], features=x.flatten(0, 1), width=width)
    total = sum(tokens if frame % 4 == 0 else case["left"] for frame in range(frames))
    kept = DyCoke().choose(view, total)
    for frame in range(case["compare"]):
        mine = (kept[kept // tokens == frame] % tokens).tolist()
        assert len(mine) == len(case["kept"][frame]) and best_by(case["value"][frame], mine)


@each("visionzip")
def test_visionzip(case):
    for window in case["windows"]:
        x, dominant, anchors = f32(window["x"]), window["dominant"], window["anchors"]
        places, features = zipped(x[None], f32(window["attn"])[None], len(dominant), len(anchors))
        assert places[0].tolist() == dominant + anchors
        close(features[0, len(dominant) :], window["mean"], 1e-4)


@each("visionzip")
def test_visionzip_as_a_method(case):
    """All windows of a case as one clip: frames, or sound."""
    windows = case["windows"]
    n = sum(len(window["dominant"]) + len(window["anchors"]) for window in windows)
    x = torch.cat([f32(window["x"]) for window in windows])
    size, width = len(windows[0]["x"]), x.shape[1]
    clip = (0, 0, len(x)) if case["sound"] else (len(windows), size, 0)
    view = sample([clip], features=x, sounds=size, width=width)
    view = replace(view, saliency=torch.cat([f32(window["attn"]) for window in windows]))
    kept, _ = VisionZip(contextual=case["contextual"]).choose(view, n)
    for place, window in enumerate(windows):
        mine = (kept[kept // size == place] % size).tolist()
        assert mine == sorted(window["dominant"] + window["anchors"])


@each("omnipack1")
def test_omnipack_before_the_decoder(case):
    seen, heard = case["video"], case["audio"]
    x, audio = f32(seen["x"]), f32(heard["x"])
    frames, tokens, width = x.shape
    close(minmax(video_event(x)).flatten(), minmax(f32(seen["bias"])).tolist(), 1e-5)
    close(minmax(audio_event(audio)), minmax(f32(heard["bias"])).tolist(), 1e-5)
    for clip, features, given, accepted in (
        ((frames, tokens, 0), x.flatten(0, 1), seen, ("kept", "kept_time")),
        ((0, 0, len(audio)), audio, heard, ("kept",)),
    ):
        view = sample([clip], features=features, sounds=len(audio), width=width)
        view = replace(view, saliency=f32(given["attn"]))
        method = OmniPack(keep=given["count"] / len(features), budget="input")
        kept, merged = method.at_input(view)
        assert kept.tolist() in [given[name] for name in accepted]
        if clip[0] == 0:  # of a video theirs depend on height and width
            close(merged, given["cluster"], 1e-3)


@each("omnipack2")
def test_omnipack_in_the_decoder(case):
    states = {"v": f32(case["v"]), "a": f32(case["a"])}
    question = f32(case["t"])
    close(relevance(states["v"], question, states["a"]), case["rel_v"], 1e-4)
    close(relevance(states["a"], question, states["v"]), case["rel_a"], 1e-4)
    hidden = torch.cat([states["v"], states["a"]])
    view = SimpleNamespace(
        modality=torch.tensor([VIDEO] * len(states["v"]) + [AUDIO] * len(states["a"])),
        hidden=lambda: hidden,
        question_hidden=lambda: question,
    )
    left = len(case["kept_v"]) + len(case["kept_a"])
    kept, merged = OmniPack().at_layer(view, len(hidden) - left)
    for name, first in (("v", 0), ("a", len(states["v"]))):
        mine = (kept >= first) & (kept < first + len(states[name]))
        assert (kept[mine] - first).tolist() in (case[f"kept_{name}"], case[f"kept1_{name}"])
        which = "1" if (kept[mine] - first).tolist() == case[f"kept1_{name}"] else ""
        close(merged[mine], case[f"out{which}_{name}"], 1e-4)


# what encoders attend to ---------------------------------------------------------------------------------------------


@each("short_window")
def test_a_short_window_gets_its_due_and_no_more(case):
    received = score.attention_received(f32(case["q"]), f32(case["k"]), case["lengths"], scale=case["scale"])
    theirs = f32(case["sum"])
    scaled = received * (theirs.mean() / received.mean())
    close(scaled, theirs.tolist(), 1e-3 * float(theirs.mean()))
