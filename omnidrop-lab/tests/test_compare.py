"""Runs of one task, question by question: numbers by hand, what is left out, the page, the picture, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from omnidrop_lab.evals import published
from omnidrop_lab.evals.compare import Run, compare
from omnidrop_lab.evals.compare_page import page

from omnidrop.errors import InputError, SettingError

SETTINGS = {"task": "worldsense", "data": "abc", "model": "Qwen/Qwen2.5-Omni-7B", "method": None, "fps": 2.0}
METHOD = {"name": "OmniDrop", "keep": 0.3, "budget": "layers"}


def row(item: str, said: str | None, answer: str = "B", video: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "item": item,
        "video": video or item.partition("-")[0],
        "groups": {"domain": "music" if item < "c" else "sport"},
        "question": f"what is {item} | {answer}?",
        "options": ["x", "y"],
        "answer": answer,
        "text": said,
        "parsed": said if said in ("A", "B") else None,
        "value": float(said == answer),
        "weight": 1.0,
        "error": None,
        "tokens_in": {"text": 5, "audio": 30, "video": 70, "image": 0},
        "tokens_entering": {"audio": [30, 10], "video": [70, 10]},
        "budgets": {"layers": 0.6, "input": 1.0, "flops": 0.5, "kv": 0.7},
        "seconds": {"read": 0.5, "answer": 2.0},
        "peak_memory_bytes": 10**9,
        **more,
    }


def failed(item: str) -> dict[str, Any]:
    gone = dict.fromkeys(("text", "parsed", "value", "tokens_entering", "budgets", "seconds", "peak_memory_bytes"))
    return row(item, "B", **gone, error={"kind": "MediaError", "message": "damaged"})


def run(name: str, rows: list[dict], method: dict | None = None, items: int | None = None, **settings: Any) -> Run:
    return Run(
        name=name,
        settings={**SETTINGS, "method": method, **settings},
        rows=rows,
        items=len(rows) if items is None else items,
    )


#         a-1  a-2  b-1  c-1  c-2  d-1      right: full 4 of 6, pruned 3 of 6
FULL = ["B", "B", "B", "A", "B", "A"]
PRUNED = ["B", "A", "no idea", "B", "B", "A"]
ITEMS = ["a-1", "a-2", "b-1", "c-1", "c-2", "d-1"]


def two() -> list[Run]:
    return [
        run("full", [row(item, said) for item, said in zip(ITEMS, FULL, strict=True)]),
        run("pruned", [row(item, said) for item, said in zip(ITEMS, PRUNED, strict=True)], METHOD),
    ]


def test_numbers_by_hand() -> None:
    document = compare(two(), resamples=500)
    assert (document["questions"], document["videos"]) == (6, 4)
    full, pruned = document["runs"]
    assert full["score"]["value"] == pytest.approx(4 / 6, abs=1e-6) and pruned["score"]["value"] == 0.5
    assert (full["unparsed"], pruned["unparsed"]) == (0, 1)
    assert full["score"]["low"] <= full["score"]["value"] <= full["score"]["high"]
    (pair,) = document["differences"]
    assert pair["difference"]["value"] == pytest.approx(-1 / 6, abs=1e-6)
    assert pair["mcnemar"] == {"both": 2, "neither": 1, "only_first": 2, "only_this": 1, "p": 1.0}
    assert {flip["item"]: flip["change"] for flip in pair["flips"]} == {"a-2": -1.0, "b-1": -1.0, "c-1": 1.0}
    flip = next(flip for flip in pair["flips"] if flip["item"] == "b-1")
    assert flip["video"] == "b" and flip["this"] == {"text": "no idea", "parsed": None}
    assert full["tokens"] == {"prompt": 100.0, "first_layer": 100.0, "layer_mean": 60.0}
    assert full["seconds"] == {"read": 0.5, "answer": 2.0} and full["peak_memory_bytes"] == 10**9
    assert document["settings_that_differ"] == {"method": [None, METHOD]}
    music, sport = document["groups"]["domain"]
    assert (music["group"], music["questions"], sport["questions"]) == ("music", 3, 3)
    assert [score["value"] for score in music["scores"]] == [1.0, pytest.approx(1 / 3, abs=1e-6)]
    assert sport["differences"][0]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert compare(two(), resamples=500) == document  # reproducible


def test_videos_are_drawn_whole() -> None:
    """All questions of one video: no interval can be told, and none is made up."""
    rows = [[row(item, said, video="one") for item, said in zip(ITEMS, said_, strict=True)] for said_ in (FULL, PRUNED)]
    document = compare([run("full", rows[0]), run("pruned", rows[1])], resamples=100)
    assert document["videos"] == 1
    assert document["runs"][0]["score"]["low"] is None and document["differences"][0]["difference"]["high"] is None


def test_an_error_or_a_gap_leaves_every_run_and_marks_its_own() -> None:
    full, pruned = two()
    broken = replace(pruned, rows=[*pruned.rows[:2], failed("b-1"), *pruned.rows[3:5]])  # d-1 was never asked
    document = compare([full, broken], resamples=100)
    assert document["questions"] == 4
    assert document["left_out"] == [
        {"item": "b-1", "because": {"pruned": "MediaError"}},
        {"item": "d-1", "because": {"pruned": "missing"}},
    ]
    told = {run["name"]: (run["complete"], run["errors"], run["missing"]) for run in document["runs"]}
    assert told == {"full": (True, {}, 0), "pruned": (False, {"MediaError": 1}, 1)}
    assert document["runs"][0]["score"]["value"] == 0.75  # of a-1, a-2, c-1, c-2: an error is no wrong answer
    text = page(document)
    assert "**INCOMPLETE: pruned** (errors: 1 of kind MediaError; 1 of 6 questions not asked)" in text
    assert "pruned (incomplete)" in text and "- b-1: pruned: MediaError" in text


def test_scores_that_are_no_shares_have_no_mcnemar() -> None:
    """Word error rate: 2 of 4 and 1 of 6 words wrong in the first run, 4 of 4 and 1 of 6 in the second."""
    runs = []
    for name, errors in (("full", (2.0, 1.0)), ("pruned", (4.0, 1.0))):
        rows = [
            row(item, "words", value=wrong, weight=words, options=[])
            for item, wrong, words in zip(("a-1", "b-1"), errors, (4.0, 6.0), strict=True)
        ]
        runs.append(replace(run(name, rows), metric="word error rate", better="lower"))
    document = compare(runs, resamples=100)
    assert [each["score"]["value"] for each in document["runs"]] == [0.3, 0.5]
    assert document["differences"][0]["mcnemar"] is None and document["runs"][0]["unparsed"] is None
    assert [(flip["item"], flip["change"]) for flip in document["differences"][0]["flips"]] == [("a-1", 0.5)]
    assert "lower is better" in page(document) and "McNemar" not in page(document).split("## Scores")[1]


def test_three_runs_share_their_questions() -> None:
    full, pruned = two()
    short = run("short", list(pruned.rows[:3]), METHOD | {"keep": 0.2}, items=6)
    document = compare([full, pruned, short], resamples=100)
    assert document["questions"] == 3 and [pair["run"] for pair in document["differences"]] == ["pruned", "short"]
    assert document["runs"][1]["score"]["value"] == pytest.approx(1 / 3, abs=1e-6)  # over the three, though it has six


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda runs: runs[:1], SettingError, "takes at least 2"),
        (lambda runs: [runs[0], runs[0]], SettingError, "same name"),
        (lambda runs: [runs[0], run("x", list(runs[1].rows), task="avut")], SettingError, "task is 'avut'"),
        (lambda runs: [runs[0], run("x", list(runs[1].rows), data="other")], SettingError, "data is 'other'"),
        (lambda runs: [runs[0], run("x", [row("z-1", "A")])], SettingError, "no question was answered by all"),
        (lambda runs: [runs[0], replace(runs[1], metric="word error rate")], SettingError, "word error rate"),
        (lambda runs: [runs[0], run("x", [row("a-1", "A", answer="A")])], InputError, "same question"),
    ],
)
def test_what_cannot_be_paired_is_refused(change: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        compare(change(two()), resamples=10)


# the page ------------------------------------------------------------------------------------------------------------


def test_page_lists_flips_and_keeps_its_tables_whole() -> None:
    document = compare(two(), resamples=100)
    text = page(document)
    assert text.startswith("# worldsense: full, pruned\n")
    assert "OmniDrop keep 0.3 (layers)" in text and "## By domain" in text
    assert "## Changed answers: pruned against full (3)" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            widths = {len(line.replace("\\|", "").split("|")) for line in block.splitlines()}
            assert len(widths) == 1, block
    assert "2 more are in --json" in page(document, flips=1)
    assert "| -16.67 |" in text


def test_published_numbers_stand_with_their_definition() -> None:
    document = compare(two(), resamples=100)
    document["published"] = [score.to_json() for score in published.scores("worldsense", "7B")]
    text = page(document)
    assert "| OmniDrop, arXiv 2605.14458 | OmniDrop | 30 | layers | 46.6 | -0.25 |" in text
    assert "- layers: mean over the decoder's layers" in text and "- input: share" in text


def test_published_table_is_whole() -> None:
    """Every line names a known paper and definition, and the paper's table 2 is there as `PAPER` has it."""
    found = [s for b in published.BENCHMARKS for m in ("7B", "3B", "30B") for s in published.scores(b, m)]
    assert len(found) > 200
    assert {s.definition for s in found} == {*published.DEFINITIONS, "-"}
    assert all((s.definition == "-") == (s.retention == 1.0) and 20 < s.percent < 80 for s in found)
    ours = {(s.benchmark, s.model, s.method, s.retention): s.percent for s in found if s.paper == "OmniDrop"}
    assert ours["videomme", "7B", "OmniDrop", 0.3] == 66.52 and ours["avut", "3B", "OmniDrop", 0.2] == 60.55
    assert ours["worldsense", "7B", "all tokens", 1.0] == 46.85
    lacking = {s.paper for s in found if s.all_tokens_percent is None}
    assert lacking == {"OmniZip", "OmniPack", "DASH"}  # their own all-tokens scores are not (all) in our notes
    sizes = {"Qwen/Qwen2.5-Omni-7B": "7B", "x/Qwen3-Omni-30B-A3B-Instruct": "30B", "tiny": None, None: None}
    assert {name: published.size(name) for name in sizes} == sizes


def test_plot_draws_every_run(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    from omnidrop_lab.evals.compare_plot import draw

    written = draw(compare(two(), resamples=100), tmp_path / "new" / "c.png")
    assert written.stat().st_size > 10_000


def test_document_is_plain_json() -> None:
    document = compare(two(), resamples=50)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
