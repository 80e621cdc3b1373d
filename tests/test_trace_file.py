"""A trace that somebody sends: whatever is in the file, it is a trace or a line that says why it is none."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import MEDIA, model_of
from prompts import batch, prompt

import omnidrop
from omnidrop import InputError, Trace
from omnidrop.cli import main
from omnidrop.core import schema, trace_file
from omnidrop.core.schema import SchemaError


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """Two rows of different lengths, scores, and a prompt before it."""
    model = model_of("qwen2_5")
    one, two = prompt("qwen2_5", MEDIA["mixed"]), prompt("qwen2_5", MEDIA["video"], seed=4)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.5), scores=True) as trace:
        model(**one.inputs)
        model(**batch([two, one]))
    trace.describe(question=["one ?", "two ?"], answer=["1", "2"], files=["a.mp4"], model="some/model")
    return trace.to_json()


def put(*path: Any) -> Callable[[dict[str, Any]], Any]:
    """A change: the last of `path` takes the place of what the others lead to."""
    *steps, last, value = path

    def change(document: dict[str, Any]) -> None:
        for step in steps:
            document = document[step]
        document[last] = value

    return change


def padding(document: dict[str, Any]) -> None:
    row = next(row for row in document["layout"]["valid"] if not all(row))
    row[row.index(False)] = True


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no layout": put("layout", None),
    "method is a list": put("method", []),
    "a method's name is markup": put("method", "name", "</script><script>alert(1)</script>"),
    "a name with a line end": put("method", "name", "OmniDrop\n"),
    "a setting is deep": put("method", "x", [[[[]]]]),
    "a stage is markup": put("seconds", "<img src=x onerror=alert(2)>", 1.0),
    "seconds are text": put("seconds", "decoder", "x"),
    "seconds are huge": put("seconds", "decoder", 1e308),
    "seconds are negative": put("seconds", "decoder", -1.0),
    "evicted is no flag": put("evicted", 1),
    "version 1.0": put("version", 1.0),
    "version true": put("version", True),
    "prunable is unknown": put("prunable", [99]),
    "prunable is text": put("prunable", "ab"),
    "prunable twice": put("prunable", [1, 1]),
    "a size is missing": lambda document: document["shape"].pop("mlp"),
    "a size too many": put("shape", "x", 1),
    "no layer": put("shape", "layers", 0),
    "a layer too many": put("shape", "layers", 5),
    "kept has no layers": put("kept", []),
    "kept lacks a row": lambda document: document["kept"][1].pop(),
    "kept lacks a layer": lambda document: document["kept"].pop(),
    "kept is a fraction": put("kept", 0, 0, [1.5]),
    "kept is nested": put("kept", 0, 0, [[1]]),
    "kept is a flag": put("kept", 0, 0, [True]),
    "kept is huge": put("kept", 0, 0, [2**63]),
    "kept is beyond the prompt": put("kept", 0, 0, [10_000]),
    "kept is negative": put("kept", 0, 0, [-1]),
    "kept twice": put("kept", 0, 0, [5] * 1000),
    "kept falls": lambda document: document["kept"][0][0].reverse(),
    "a token comes back": lambda document: document["kept"].reverse(),
    "padding was kept": lambda document: document["kept"][0][0].insert(0, 0),
    "modality is text": put("layout", "modality", "x"),
    "no row": put("layout", "modality", []),
    "rows of different lengths": put("layout", "modality", 0, [1, 2]),
    "a fifth modality": put("layout", "modality", 0, -1, 4),
    "nothing valid": put("layout", "valid", [[False] * 1000]),
    "an item is huge": put("layout", "item", 0, -1, 10**12),
    "text has an item": put("layout", "item", 0, -1, 0),
    "text has a second": put("layout", "second", 0, -1, 1.0),
    "media without a second": put("layout", "second", [[None] * 1000]),
    "a second is huge": put("layout", "second", 0, -1, 1e300),
    "a column more": lambda document: document["layout"]["chunk"][0].append(-1),
    "a fact more": put("layout", "other", [[0]]),
    "scores are text": put("scores", "x"),
    "scores of other tokens": lambda document: document["scores"][0][0].pop(),
    "scores of other layers": lambda document: document["scores"].pop(),
    "scores above 1": put("scores", 0, 0, 0, 1e30),
    "a question is no text": put("origin", "questions", 0, 5),
    "a question too many": lambda document: document["origin"]["questions"].append("three ?"),
    "answers of other rows": put("origin", "answers", ["1"]),
    "files of other rows": lambda document: document["origin"]["media"].pop(),
    "a file without a name": put("origin", "media", 0, 0, {}),
    "a checksum is markup": put("origin", "media", 0, 0, "checksum", "<b>"),
    "a model is a list": put("origin", "model", ["x"]),
    "a date is markup": put("origin", "date", "2026-01-01T00:00:00+00:00<script>"),
    "a version is a number": put("origin", "versions", "torch", 2),
    "an origin too long": put("origin", "answers", 0, "x" * 200_000),
    "a fact more in the origin": put("origin", "x", 1),
    "history is no trace": put("history", 0, {}),
    "history of a history": lambda document: document["history"][0].update(history=[{}]),
    "history is damaged": put("history", 0, "evicted", None),
    "a part more": put("more", {}),
    "a part less": lambda document: document.pop("budgets"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_trace_is_one_line(change: str, good: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(good)
    CHANGES[change](document)
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        Trace.load(tmp_path / "t.json")
    assert re.match(r".*t\.json is not a trace( of version 1)?: [^\n]+\Z", str(caught.value))


TEXTS = {
    "nothing": "",
    "a text": "no json",
    "another format": '{"format": "x", "version": 1}',
    "another version": '{"format": "omnidrop.trace", "version": 99}',
    "a list": "[]",
    "null": "null",
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a huge integer": '{"version": ' + "9" * 5000 + "}",
    "NaN": '{"version": NaN}',
    "twice the same name": '{"format": "x", "format": "omnidrop.trace"}',
    "a byte order mark": "\ufeff{}",
    "a lone surrogate": '"\\ud800"',
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_trace_at_all_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(TEXTS[name], encoding="utf-8")
    with pytest.raises(InputError, match=r"t\.json is not a trace[^\n]+\Z"):
        Trace.load(tmp_path / "t.json")


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError, match="is not a trace"):
        Trace.load(tmp_path / "t.json")


def test_a_file_beyond_the_bound_is_not_read_whole(good: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps(good))
    with pytest.raises(InputError, match=r"more than 1000 bytes; Trace.load\(path, max_bytes=...\)"):
        Trace.load(file, max_bytes=1000)
    assert Trace.load(file, max_bytes=file.stat().st_size).to_json() == good
    with pytest.raises(InputError, match="more than 5000 bytes"):
        Trace.load("/dev/zero", max_bytes=5000)  # it has no size and no end


def test_scores_that_are_no_numbers_survive_the_file(good: dict[str, Any], tmp_path: Path) -> None:
    trace = Trace.from_json(good)
    trace.record.scores[0][0][0] = float("nan")
    trace.save(tmp_path / "t.json")
    again = Trace.load(tmp_path / "t.json")
    assert again.scores is not None and again.scores[0][0][0].isnan() and "NaN" not in (tmp_path / "t.json").read_text()


def test_a_trace_knows_where_it_comes_from(good: dict[str, Any], tmp_path: Path) -> None:
    """Question, answer, files, model, versions and date survive the file; a file's checksum is that of its bytes."""
    file = tmp_path / "clip.mp4"
    content = bytes(range(256)) * 12_000  # 3 MB: the middle MiB does not count
    file.write_bytes(content)
    trace = Trace.from_json(good)
    before = datetime.now(UTC).replace(microsecond=0)
    trace.describe(question=["a ?", "b ?"], answer=["x", "y"], files=[[file], ["gone.wav"]], model="some/model")
    trace.save(tmp_path / "t.json")
    origin = Trace.load(tmp_path / "t.json").origin
    assert origin is not None and origin == trace.origin
    assert (origin.questions, origin.answers, origin.model) == (["a ?", "b ?"], ["x", "y"], "some/model")
    assert before <= datetime.fromisoformat(origin.date) <= datetime.now(UTC)
    assert origin.versions["torch"] == torch.__version__ and origin.versions["omnidrop"] == omnidrop.__version__
    ends = str(len(content)).encode() + content[: 1 << 20] + content[-(1 << 20) :]
    expected = hashlib.sha256(ends).hexdigest()[:16]
    assert origin.media == [[("clip.mp4", expected)], [("gone.wav", None)]]


def test_a_trace_without_an_origin_is_read(good: dict[str, Any]) -> None:
    document = {name: value for name, value in copy.deepcopy(good).items() if name != "origin"}
    trace = Trace.from_json(document)
    assert trace.origin is None and "origin" not in trace.to_json()
    trace.describe()
    assert trace.origin is not None and trace.origin.questions == [] and trace.origin.media == []


@pytest.mark.parametrize(
    "facts, text",
    [
        ({"question": "one for two"}, "question has 1 entries; the trace has 2 rows"),
        ({"answer": ["x"]}, "answer has 1 entries; the trace has 2 rows"),
        ({"files": [["a.mp4"]]}, "files has 1 entries; the trace has 2 rows"),
        ({"model": 5}, "model is of type int; give the path or hub id"),
    ],
    ids=["question", "answer", "files", "model"],
)
def test_a_wrong_origin_is_refused(facts: dict[str, Any], text: str, good: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=text):
        Trace.from_json(good).describe(**facts)
    with pytest.raises(InputError, match="the trace is empty"):
        Trace().describe(question="x ?")


def test_the_command_says_it_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    for content in ("[" * 100_000, '{"format": "omnidrop.trace", "version": 1}', '"x"'):
        (tmp_path / "t.json").write_text(content)
        assert main(["report", str(tmp_path / "t.json"), "--out", str(tmp_path / "p.html"), "-q"]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "p.html").exists()


# the schema ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_schema_is_one_and_means_what_a_library_reads_in_it(good: dict[str, Any]) -> None:
    """Python's jsonschema as the second opinion: on the document, and on every change above."""
    library = pytest.importorskip("jsonschema")
    library.Draft202012Validator.check_schema(trace_file.SCHEMA)
    # ours is stricter in one thing: 1.0 is no integer
    whole = library.TypeChecker({**library.Draft202012Validator.TYPE_CHECKER._type_checkers}).redefine(
        "integer", lambda checker, value: type(value) is int
    )
    other = library.validators.extend(library.Draft202012Validator, type_checker=whole)(trace_file.SCHEMA)
    schema.check(good, trace_file.SCHEMA)
    assert other.is_valid(good)
    refused = 0
    for name, change in CHANGES.items():
        if name == "a name with a line end":  # Python's "$" stands before a last line end too
            continue
        document = copy.deepcopy(good)
        change(document)
        try:
            schema.check(document, trace_file.SCHEMA)
            ours = True
        except SchemaError:
            ours = False
            refused += 1
        assert ours == other.is_valid(document) or name.startswith("version"), name
    assert refused > 30


def test_a_keyword_that_is_not_known_is_no_silence() -> None:
    with pytest.raises(KeyError):
        schema.check(1, {"multipleOf": 2})


@pytest.mark.parametrize("value", ["x" * 10**6, [0] * 10**6, 10**400, {"a": 1}, "\u202e\n\x1b[31m"])
def test_a_message_is_short_and_printable(value: Any) -> None:
    with pytest.raises(SchemaError) as caught:
        schema.check(value, {"type": "null"})
    assert len(str(caught.value)) < 200 and str(caught.value).isascii() and str(caught.value).isprintable()
