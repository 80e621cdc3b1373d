"""Numbers that are none: an error before the decoder runs; and whatever reaches a method, its places are in range."""

from __future__ import annotations

import importlib.util
import math
import random
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cases import MEDIA, model_of
from prompts import prompt
from test_methods import METHODS

import omnidrop
from omnidrop import InputError, SettingError, methods
from omnidrop.core.budget import TokenCounts
from omnidrop.core.finite import check_finite
from omnidrop.core.select import diversity, merge, quota, segments
from omnidrop.core.tokens import Modality
from omnidrop.methods.reach import SHAPE
from omnidrop.models import adapt

ROOT = Path(__file__).parent.parent
FUZZ = ROOT / "benchmarks" / "fuzz_cheap.py"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize(("name", "said"), [("input_features", "audio"), ("pixel_values_videos", "video")])
def test_one_such_value_in_an_input_is_an_error_before_the_decoder(
    family: str, name: str, said: str, number: float
) -> None:
    model, made = model_of(family), prompt(family, MEDIA["video"])
    bad = made.inputs[name].clone()
    bad.view(-1)[bad.numel() // 3] = number
    ran: list[int] = []
    for method in (omnidrop.OmniDrop(keep=0.5), methods.DASH(keep=0.5), methods.OmniPack(keep=0.5)):
        with torch.no_grad(), omnidrop.prune(model, method) as trace:
            with adapt(model).decoder.layers[0].register_forward_pre_hook(lambda *_: ran.append(1)):
                with pytest.raises(InputError, match=rf"\d+ of \d+ {said} tokens are not finite numbers.*{name[:5]}"):
                    model(**{**made.inputs, name: bad})
                assert not ran
            model(**made.inputs)  # the `with` goes on
            assert trace.keep < 1


def test_the_message_counts_tokens_of_this_kind_and_padding_is_nobody() -> None:
    from omnidrop.core.tokens import TokenLayout

    modality = torch.tensor([[0, 0, 1, 1, 2, 0]])
    valid = torch.tensor([[False, True, True, True, True, True]])
    none = torch.full_like(modality, -1)
    layout = TokenLayout(
        modality=modality, valid=valid, chunk=none, second=none.float(), query=~valid, item=none, frame=none
    )
    embeds = torch.zeros(1, 6, 4, dtype=torch.float16)
    embeds[0, 0] = math.nan  # padding
    check_finite(embeds, layout, {})
    embeds[0, 3, 2] = math.inf
    with pytest.raises(InputError, match=r"1 of 2 audio tokens are not finite"):
        check_finite(embeds, layout, {})
    embeds[0, 3, 2] = 6e4  # large, and a number: a sum would overflow
    check_finite(embeds, layout, {Modality.VIDEO: torch.ones(1)})
    with pytest.raises(InputError, match=r"attention to 1 of 1 video tokens is no finite number"):
        check_finite(embeds, layout, {Modality.VIDEO: torch.tensor([math.nan])})
    embeds[0, 1] = math.nan
    with pytest.raises(InputError, match=r"1 of 2 text tokens.*embeddings are damaged"):
        check_finite(embeds, layout, {})


# no index out of range -----------------------------------------------------------------------------------------------


def test_nearest_of_what_is_no_number_is_in_range() -> None:
    points, anchors = torch.full((3, 4), math.nan), torch.randn(2, 4)
    index, _ = merge.nearest(points, anchors)
    assert index.tolist() == [1, 1, 1]
    merge.into_anchors(anchors, points, index, torch.ones(3))


def test_places_ascend_where_quotas_are_made_of_no_numbers() -> None:
    scores, group = torch.rand(12), torch.arange(12) % 3
    for wrong in ([-(2**63), 4, 2], [2**62] * 3, [0, 0, 0], [1, 1, 1]):
        kept = quota.best_of_each(scores, group, torch.tensor(wrong), 5)
        assert len(kept) == 5 and kept.tolist() == sorted(set(kept.tolist())) and min(kept) >= 0 and max(kept) < 12
    features = torch.full((12, 4), math.nan)
    kept = diversity.within(features, group, [4, 4, 4], [2, 1, 2])
    assert len(kept) == 5 and kept.tolist() == sorted(set(kept.tolist()))


def test_a_gap_beyond_the_recording_is_no_overflow() -> None:
    assert segments.first_apart(torch.ones(9, dtype=torch.bool), 2**63 - 1).tolist() == [True] + [False] * 8


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    if not FUZZ.is_file():
        pytest.skip("the fuzz run is in the repository only")
    spec = importlib.util.spec_from_file_location("fuzz_cheap", FUZZ)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["traces", "tensors"])
def test_some_cases_of_the_fuzz_run(kind: str, fuzz: ModuleType) -> None:
    if kind == "traces":
        pytest.importorskip("numpy")
    found = fuzz.run(kind, 150, seed=1)
    assert found["raw"] == [] and found["outcomes"]["right"] > 10 and found["outcomes"]["refused"] > 10


def test_the_fuzz_run_finds_what_it_looks_for(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of the check: a method that may point anywhere, and a file that is not checked."""
    monkeypatch.setattr(quota, "where", lambda mask, count: torch.arange(count) + 1)
    assert fuzz.run("tensors", 60, seed=1)["raw"]
    monkeypatch.setattr("omnidrop.core.trace_file.check", lambda document: None)
    assert fuzz.run("traces", 60, seed=1)["raw"]


# settings ------------------------------------------------------------------------------------------------------------

HUGE = (10**400, -(10**400), 10**5000, 1e308, -1e308, math.inf, math.nan, 2**63)


@pytest.mark.parametrize("name", METHODS)
def test_huge_settings_are_setting_errors_or_work(name: str) -> None:
    kind = METHODS[name]
    budget = TokenCounts(layers=6, total=40, input_count=40, text=9, shape=SHAPE)
    for spec in fields(kind(keep=0.5)):
        for value in HUGE:
            try:
                method = kind(**{"keep": 0.5, spec.name: value})
                method.plan(budget)
            except SettingError as error:
                assert len(str(error)) < 400 and "\n" not in str(error)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_many_digits_is_said_in_a_line(digits: int) -> None:
    for text in ("9" * digits, f"-{'9' * digits}", f"1e{'9' * digits}"):
        with pytest.raises(SettingError) as caught:
            methods.parse(f"omnidrop:keep={text}")
        assert len(str(caught.value)) < 300
        with pytest.raises(SettingError):
            omnidrop.OmniDrop(keep=int("9" * min(digits, 4000)))


def test_seeds_of_the_fuzz_run_repeat(fuzz: ModuleType) -> None:
    one, two = (fuzz.good(random.Random(5)) for _ in range(2))
    assert one == two
