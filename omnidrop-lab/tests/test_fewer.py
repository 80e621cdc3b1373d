"""Fewer frames a second and fewer pixels: clips by hand, the nearest option, and what needle and bench make of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from omnidrop_lab.bench import cost, plan, variants
from omnidrop_lab.bench.workload import Workload
from omnidrop_lab.kit import fewer
from omnidrop_lab.kit.fewer import Fewer
from omnidrop_lab.needle import ask, bench, clip, files

import omnidrop
from omnidrop.cli import main
from omnidrop.core.budget import BUDGETS
from omnidrop.errors import SettingError
from omnidrop.media import Media
from omnidrop.models import adapt

pytest.importorskip("av")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield omnidrop.load()
    torch.set_num_threads(threads)


def video(frames: np.ndarray, fps: float = 2.0) -> Media:
    return Media("made", "video", frames, np.arange(len(frames)) / fps, fps, None, 16_000, len(frames) / fps)


def test_as_it_is_written():
    assert fewer.read("fewer-frames:keep=0.3") == Fewer(kind="fewer-frames", keep=0.3)
    assert fewer.read("fewer-pixels", 0.5) == Fewer(kind="fewer-pixels", keep=0.5)
    assert fewer.read("fewer-pixels:keep=0.2", 0.5) == Fewer(kind="fewer-pixels", keep=0.2)
    assert fewer.read("omnidrop:keep=0.3") is None
    for text in ("fewer-frames:keep=much", "fewer-frames:fps=1", "fewer-frames"):
        with pytest.raises(SettingError, match=r"write fewer-frames:keep=0\.5"):
            fewer.read(text)
    with pytest.raises(SettingError, match="keep"):
        fewer.read("fewer-frames:keep=1.5")


def test_frames_are_those_then_on_screen(tmp_path):
    """8 pictures at 2 a second; at 1.25 a second 5 remain, as at 0, 0.8, 1.6, 2.4, 3.2 s. A file agrees."""
    frames = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.full((1, 28, 28, 3), 20, np.uint8)
    thinned = fewer.sampled(video(frames), 5)
    assert thinned.frames[:, 0, 0, 0].tolist() == [0, 20, 60, 80, 120]
    assert thinned.fps == 1.25 and thinned.times.tolist() == [0.0, 0.5, 1.5, 2.0, 3.0] and thinned.seconds == 4.0
    assert fewer.sampled(video(frames), 8).frames is frames
    made = clip("dev", 0, 4)
    path = files.write(made, tmp_path / "clip.mp4")
    whole = omnidrop.media.read(path)
    for fps in (1.0, 0.5):
        again, ours = omnidrop.media.read(path, fps=fps), fewer.sampled(whole, round(len(whole.frames) * fps / 2))
        assert np.array_equal(again.frames, ours.frames) and again.fps == ours.fps
        assert again.times.tolist() == ours.times.tolist()


def test_pixels_are_scaled(tmp_path):
    """A picture of one colour keeps it; a checkerboard finer than the new pixels becomes grey."""
    frames = np.full((2, 84, 56, 3), (200, 30, 60), np.uint8)
    small = fewer.shrunk(video(frames), 42 * 28)
    assert small.frames.shape == (2, 42, 28, 3)
    assert abs(small.frames.astype(int) - frames[:, :42, :28]).max() <= 3
    board = np.indices((84, 84)).sum(0) % 2 * np.uint8(255)
    grey = fewer.shrunk(video(np.repeat(board[None, :, :, None], 3, 3).astype(np.uint8)), 28 * 28).frames
    assert grey.shape == (1, 28, 28, 3) and 100 < grey.mean() < 155 and grey.std() < 60


def test_the_nearest_option_by_hand():
    share = lambda option: [0.4, 0.5, 0.7, 1.0][option - 1]  # noqa: E731
    wanted = {0.39: 1, 0.41: 1, 0.46: 2, 0.59: 2, 0.61: 3, 0.84: 3, 0.86: 4, 1.0: 4}
    for keep, option in wanted.items():
        assert Fewer(kind="fewer-frames", keep=keep).nearest(share, 4) == option, keep
    with pytest.raises(SettingError, match=r"fewer-frames:keep=0\.3 cannot be reached: the fewest already take 0\.400"):
        Fewer(kind="fewer-frames", keep=0.3).nearest(share, 4)


@pytest.mark.parametrize("kind", fewer.KINDS)
def test_needle_asks_about_the_smaller_clip(loaded, kind):
    """Counts by hand: 9 tokens a grid of two frames of 84 x 84, 4 of 56 x 56; 40 audio tokens in 8 s stay."""
    model, processor = loaded
    config = bench.Config(model="tiny", split="dev", chunks=4, types=("video", "audio"), draws=1)
    asked, made = bench.ask_about(config, 0), clip("dev", 0, 4)
    options = {"size": 84, "words": True, "batch": 8}
    (whole,) = ask.prepare(model, processor, made, asked, **options)
    (small,) = ask.prepare(model, processor, made, asked, fewer=Fewer(kind=kind, keep=0.75), **options)
    grid = small.inputs["video_grid_thw"][0].tolist()
    tokens = small.layout.count(0)
    assert tokens["audio"] == 40 and whole.layout.count(0)["video"] == 72
    if kind == "fewer-frames":
        assert grid[1:] == [6, 6] and tokens["video"] == 9 * grid[0] < 72
        assert small.inputs["video_second_per_grid"][0] == pytest.approx(8 / grid[0])
    else:
        assert grid == [8, 4, 4] and tokens["video"] == 32
    assert [each.question for each in small.asked] == [each.question for each in whole.asked]
    for row, answer in enumerate(ask.measure_fewer(model, small, whole)):
        adapter = adapt(model)
        flops = []
        for batch in (small, whole):
            mine = {
                name: x[row : row + 1] if name != "use_audio_in_video" else x
                for name, x in batch.inputs.items()
                if "pixel" not in name
            }
            flops.append(cost.flops(cost.shapes(adapter), cost.Sizes(
                rows=mine["attention_mask"].sum(1).tolist(), grids=[tuple(mine["video_grid_thw"][0].tolist())],
                recordings=mine["feature_attention_mask"].sum(1).tolist(),
            )))  # fmt: skip
        left = {stage: flops[0][stage] / flops[1][stage] for stage in ("decoder",)}
        assert answer.budgets["flops"] == pytest.approx(left["decoder"])
        assert answer.budgets["total"] == pytest.approx(sum(flops[0].values()) / sum(flops[1].values()))
        assert answer.budgets["total"] == pytest.approx(0.75, abs=0.1)
        assert answer.budgets["layers"] == answer.budgets["input"] == (40 + tokens["video"]) / 112
        length = [batch.layout.valid[row].sum() for batch in (small, whole)]
        assert answer.budgets["kv"] == pytest.approx(float(length[0] / length[1]))
        assert set(answer.budgets) == set(BUDGETS)


def test_a_run_has_its_rows_and_says_what_is_out_of_reach(capsys):
    command = ["needle", "--split", "dev", "--clips", "1", "--chunks", "4", "--draws", "1", "--types", "video", "audio",
               "--methods", "none", "fewer-frames", "fewer-pixels:keep=0.7", "--keep", "0.7", "0.1", "--threads", "1",
               "--resamples", "50", "--quiet"]  # fmt: skip
    assert main([*command, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    found = {(entry["method"], entry["asked_keep"]): entry for entry in results}
    assert "the fewest already take" in found["fewer-frames", 0.1]["unreachable"]
    for key in (("fewer-frames", 0.7), ("fewer-pixels:keep=0.7", None)):
        assert found[key]["budgets"]["total"] == pytest.approx(0.7, abs=0.06) and found[key]["survival"]
    assert found["none", None]["budgets"] == dict.fromkeys(BUDGETS, 1.0)
    assert main(command) == 0
    assert "fewer-frames" in capsys.readouterr().out
    with pytest.raises(SettingError, match="the only setting of fewer-frames"):
        bench.plan(["fewer-frames:fps=1"], [0.5], layers=1)


def test_a_benchmark_runs_it_beside_the_others(loaded, capsys, tmp_path):
    path = files.write(clip("dev", 1, 4), tmp_path / "clip.mp4")
    chosen = ["stock", "fewer-frames:keep=0.7", "lean+fewer-pixels:keep=0.7", "fewer-frames:keep=0.05"]
    for what in (["--seconds", "12"], ["--clip", str(path)]):
        command = ["bench", *what, "--new-tokens", "2", "--repeats", "1", "--warmup", "0", "--quiet", "--json"]
        assert main([*command, "--methods", *chosen]) == 0
        (point,) = json.loads(capsys.readouterr().out)["points"]
        stock, frames, pixels, less = point["variants"]
        assert frames["flops_over_stock"]["total"] == pytest.approx(0.7, abs=0.08)
        assert frames["pruned"]["fewer"]["budgets"]["total"] == pytest.approx(frames["flops_over_stock"]["total"])
        assert (
            frames["kv_bytes"] < stock["kv_bytes"]
            and frames["flops"]["audio_encoder"] == stock["flops"]["audio_encoder"]
        )
        assert pixels["flops_over_stock"]["total"] < pixels["pruned"]["fewer"]["budgets"]["total"]  # `lean`
        assert "the fewest already take" in less["error"]


def test_a_workload_is_made_smaller():
    """64 grids of 9 x 16 tokens in 64 s, by the formulas of Qwen2.5-Omni-7B."""
    from omnidrop_lab.bench import architectures

    adapter, work = adapt(architectures.make("qwen2.5-omni-7b", device="meta")), Workload()
    shapes = cost.shapes(adapter)
    stock = sum(cost.flops(shapes, plan.sizes(adapter, work)).values())
    for kind, keep in ((kind, keep) for kind in fewer.KINDS for keep in (0.3, 0.5)):
        small = plan.fewer(adapter, work, Fewer(kind=kind, keep=keep))
        t, h, w = small.grid(adapter.config)
        share = sum(cost.flops(shapes, plan.sizes(adapter, small)).values()) / stock
        assert share == pytest.approx(keep, abs=0.03)
        assert (t < 64, h < 18) == ((True, False) if kind == "fewer-frames" else (False, True))
        assert h / w == pytest.approx(18 / 32, abs=0.08)


def test_variants_read_it():
    read = variants.read("lean+fewer-frames:keep=0.5")
    assert (read.lean, read.method, read.fewer) == ({}, None, Fewer(kind="fewer-frames", keep=0.5))
    both = variants.read("fewer-frames:keep=0.5+omnidrop:keep=0.3")
    assert both.fewer and both.method == omnidrop.OmniDrop(keep=0.3)
    with pytest.raises(SettingError, match="is no variant"):
        variants.read("fewer-frames:keep=0.5+fewer-pixels:keep=0.5")
