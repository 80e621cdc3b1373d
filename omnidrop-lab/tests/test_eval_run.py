"""The runner end to end on small data sets in the official formats, with the trained tiny model.

Right answers score, sound is heard, errors are no answers, a stopped run goes on, batches and shards change nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omnidrop_lab import evals
from omnidrop_lab.evals import answer, own, reading, rows, runner, summary, tasks
from omnidrop_lab.evals.item import QWEN, Item

from omnidrop import loading, media, methods, prompt
from omnidrop.engine import session as runtime
from omnidrop.errors import InputError, SettingError

pytest.importorskip("av")

pytestmark = pytest.mark.slow

COSTS = ("seconds", "batch", "peak_memory_bytes")  # of a row: what may differ from run to run
TUNED = methods.parse("tuned", keep=0.3)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return loading.load()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A small data set of a task; written once."""
    made: dict[tuple, Path] = {}

    def get(task: str, **how: Any) -> Path:
        key = (task, *sorted(how.items()))
        if key not in made:
            made[key] = own.write(task, tmp_path_factory.mktemp(task), **how)
        return made[key]

    return get


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each measurement costs more than the tiny model's answers."""
    monkeypatch.setattr("omnidrop.memory._give_back", lambda: None)


def settings(task: str, **changes: Any) -> rows.Settings:
    of = tasks.find(task)
    common = {"data": "d", "weights": "w", "method": None, "words": True, "fps": of.fps, "max_frames": of.max_frames}
    more = {"max_pixels": of.max_pixels, "max_new_tokens": 8, "dtype": "float32", "attention": "sdpa"}
    return rows.Settings(task=task, **{**common, **more, **changes})


def run(
    tiny: tuple[Any, Any],
    task: str,
    items: list[Item],
    method: Any = None,
    out: Path | None = None,
    *,
    batch: int = 4,
    readers: int = 0,
    shard: tuple[int, int] = (0, 1),
    progress: Any = lambda *_: None,
    **changes: Any,
) -> dict[str, rows.Row]:
    """Rows by id."""
    if method is not None:
        changes = {"method": method.to_json(), **changes}
    folder = rows.Folder(out, settings(task, **changes), items=len(items), shard=shard)
    runner.run(
        *tiny, tasks.find(task), items, method, folder, batch=batch, readers=readers, shard=shard, progress=progress
    )
    return folder.rows


def items_of(task: str, folder: Path) -> list[Item]:
    return tasks.load(tasks.find(task), folder)[0]


def told(found: dict[str, rows.Row], task: str, items: list[Item]) -> dict[str, Any]:
    return summary.summarise(tasks.find(task), items, found, settings(task))


def same(one: dict[str, rows.Row], other: dict[str, rows.Row], but: tuple[str, ...] = COSTS) -> None:
    assert one.keys() == other.keys()
    for name, row in one.items():
        left, right = ({k: v for k, v in each.items() if k not in but} for each in (row, other[name]))
        shares = [each.pop("budgets", {}) for each in (left, right)]
        assert left == right and shares[0] == pytest.approx(shares[1])


# right and wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", own.FORMATS)
def test_every_task_end_to_end(tiny, data, task: str):
    if task == "videomme":
        pytest.importorskip("pyarrow")
    folder = data(task, clips=3)
    items = items_of(task, folder)
    found = run(tiny, task, items)
    document = told(found, task, items)
    assert document["complete"] and document["answered"] == len(items) and not document["errors"]
    for each in items:  # an oracle of its own: the word that is right, not the parser
        row = found[each.id]
        if each.options:
            right = each.options["ABCD".index(each.answer)]
            assert row["value"] == float(row["text"] == right), row
        assert row["ended"] and row["new_tokens"] >= 2
    value = document["score"]["value"]
    assert value < 0.2 if document["task"]["better"] == "lower" else value > 0.8
    assert document["groups"]


def test_questions_about_sound_fail_without_sound(tiny, data):
    items = items_of("avut", data("avut", clips=5, types=("audio",)))
    heard = told(run(tiny, "avut", items), "avut", items)
    muted_rows = run(tiny, "avut", items, sound=False)
    muted = told(muted_rows, "avut", items)
    assert heard["score"]["value"] >= 0.8 and muted["score"]["value"] < 0.5
    assert heard["tokens_in"]["audio"] == 80 and muted["tokens_in"]["audio"] == 0
    assert muted["tokens_in"]["video"] == heard["tokens_in"]["video"]


def test_questions_about_pictures_do_not_need_the_sound(tiny, data):
    items = items_of("avut", data("avut", clips=5, types=("video",)))
    assert told(run(tiny, "avut", items, sound=False), "avut", items)["score"]["value"] >= 0.8


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> list[Item]:
    """Four clips, of which the second is no video and the third is missing."""
    items = items_of("dailyomni", own.write("dailyomni", tmp_path / "data", clips=4, types=("video",)))
    items[1].path.write_bytes(b"\x00\x01 not a video" * 100)
    items[2].path.unlink()
    return items


def test_a_corrupt_clip_is_an_error_and_no_wrong_answer(tiny, broken):
    found = run(tiny, "dailyomni", broken)
    good, corrupt, missing, last = (found[each.id] for each in broken)
    for row in (corrupt, missing):
        assert row["error"]["kind"] == "MediaError" and row["error"]["message"]
        assert row["value"] is row["weight"] is row["text"] is row["parsed"] is None
    assert good["error"] is last["error"] is None and good["value"] == last["value"] == 1.0
    document = told(found, "dailyomni", broken)
    assert not document["complete"] and document["errors"] == {"MediaError": 2} and document["missing"] == 0
    assert document["score"]["value"] == 1.0 and document["answered"] == 2
    assert document["if_errors_were_wrong"] == 0.5


def test_a_mended_clip_is_asked_again(tiny, broken, tmp_path: Path):
    out = tmp_path / "out"
    run(tiny, "dailyomni", broken, out=out)
    broken[2].path.write_bytes(broken[0].path.read_bytes())
    asked: list[str] = []
    found = run(tiny, "dailyomni", broken, out=out, progress=lambda done, total, what: asked.append(what))
    assert asked[1:] == [broken[1].id, broken[2].id]
    assert found[broken[2].id]["error"] is None and rows.read(out) == found
    assert told(found, "dailyomni", broken)["errors"] == {"MediaError": 1}


def test_a_batch_that_fails_is_asked_one_by_one(tiny, data, monkeypatch: pytest.MonkeyPatch):
    items = items_of("avut", data("avut", clips=3))
    real, sizes = answer.answer, []

    def failing(model: Any, processor: Any, some: Any, *more: Any) -> Any:
        sizes.append(len(some))
        if len(some) > 1:
            raise torch.OutOfMemoryError("tried to allocate 334 GiB\nmore")
        if some[0].item.id == "5":
            raise ValueError("odd")
        return real(model, processor, some, *more)

    monkeypatch.setattr(runner, "answer", failing)
    found = run(tiny, "avut", items)
    assert sizes == [4, 1, 1, 1, 1, 4, 1, 1, 1, 1, 1]  # nine items
    assert found["5"]["error"] == {"kind": "ValueError", "message": "odd"}
    assert all(row["error"] is None for name, row in found.items() if name != "5")


def test_out_of_memory_is_an_error_of_its_kind(tiny, data, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 334 GiB")

    monkeypatch.setattr(runner, "answer", full)
    items = items_of("avut", data("avut", clips=3))
    document = told(run(tiny, "avut", items, batch=1), "avut", items)
    assert document["errors"] == {"OutOfMemoryError": len(items)} and document["score"]["value"] is None


def test_a_keep_out_of_reach_is_an_error(tiny, data):
    items = items_of("avut", data("avut", clips=3))[:1]
    (row,) = run(tiny, "avut", items, methods.parse("fastv", keep=0.01)).values()
    assert row["error"]["kind"] == "SettingError" and "cannot be reached" in row["error"]["message"]


# going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, TUNED], ids=["all tokens", "tuned"])
def test_an_interrupted_run_goes_on_to_the_same_result(tiny, data, tmp_path: Path, method):
    items = items_of("avut", data("avut", clips=3))
    whole = run(tiny, "avut", items, method, batch=2)

    def stop(done: int, total: int, what: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, "avut", items, method, tmp_path, batch=2, progress=stop)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"item": "7", "val')  # killed while it wrote
    before = rows.read(tmp_path)
    assert 0 < len(before) < len(items)
    asked: list[str] = []
    found = run(tiny, "avut", items, method, tmp_path, batch=2, progress=lambda *what: asked.append(what[2]))
    assert len(asked) - 1 == len(items) - len(before)  # the others were not asked again
    same(found, whole)
    same(rows.read(tmp_path), whole)


def test_other_settings_are_refused(tiny, data, tmp_path: Path):
    items = items_of("avut", data("avut", clips=3))[:1]
    run(tiny, "avut", items, out=tmp_path)
    with pytest.raises(SettingError, match=r"sound was True and is False\. Give another --out"):
        run(tiny, "avut", items, out=tmp_path, sound=False)
    with pytest.raises(SettingError, match="method was None and is"):
        run(tiny, "avut", items, TUNED, tmp_path)


def test_rows_of_other_settings_are_refused(tiny, data, tmp_path: Path):
    items = items_of("avut", data("avut", clips=3))[:1]
    run(tiny, "avut", items, out=tmp_path / "a")
    run(tiny, "avut", items, out=tmp_path / "b", sound=False)
    (tmp_path / "a" / "rows.2-of-2.jsonl").write_bytes((tmp_path / "b" / "rows.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"rows\.2-of-2\.jsonl, line 1 is no row of an evaluation .*of other settings"):
        rows.read(tmp_path / "a")
    (tmp_path / "a" / "rows.2-of-2.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="is no row of an evaluation"):
        rows.read(tmp_path / "a")


def test_shards_in_one_folder_are_the_whole(tiny, data, tmp_path: Path):
    items = items_of("avut", data("avut", clips=3))
    whole = run(tiny, "avut", items, batch=2)
    first = run(tiny, "avut", items, out=tmp_path, batch=2, shard=(0, 2))
    assert {row["video"] for row in first.values()} == {"dev000", "dev002"}  # a clip is read by one process
    assert not told(first, "avut", items)["complete"] and told(first, "avut", items)["missing"] == 3
    second = run(tiny, "avut", items, out=tmp_path, batch=2, shard=(1, 2))
    same(second, whole)
    assert told(rows.read(tmp_path), "avut", items)["complete"]
    assert {path.name for path in tmp_path.glob("rows*")} == {"rows.1-of-2.jsonl", "rows.2-of-2.jsonl"}


def test_a_prompt_beyond_the_models_positions_is_asked_by_both_and_says_so(tiny, data):
    """`prune` alone refuses it; a benchmark that errs on one side only would compare two sets of questions."""
    model = tiny[0]
    items = items_of("avut", data("avut", clips=3))[:2]
    config = model.config.get_text_config()
    limit, config.max_position_embeddings = config.max_position_embeddings, 40  # 8 s at 5 positions a second
    try:
        for method in (None, TUNED):
            found = run(tiny, "avut", items, method)
            assert all(row["beyond_positions"] and row["value"] == 1.0 for row in found.values())
            assert config.max_position_embeddings == 40
            assert told(found, "avut", items)["beyond_positions"] == 2
    finally:
        config.max_position_embeddings = limit
    assert not any(row["beyond_positions"] for row in run(tiny, "avut", items).values())


def test_sound_beyond_the_stock_processors_window_is_not_heard(tiny, data):
    assert {task.sound_seconds for name, task in tasks.TASKS.items() if name not in ("transcribe", "caption")} == {300}
    items = items_of("avut", data("avut", clips=3))[:1]
    for seconds, tokens in ((None, 80), (300.0, 80), (4.0, 20)):
        (row,) = run(tiny, "avut", items, sound_seconds=seconds).values()
        assert row["tokens_in"]["audio"] == tokens and row["tokens_in"]["video"] == 144


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_no_shard(text: str):
    with pytest.raises(SettingError, match="--shard is"):
        runner.parse_shard(text)


# batches --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Clips of three lengths, one of them without sound: what a batch has to pad, and to keep apart."""
    items = []
    for chunks in (8, 5, 3):
        folder = data("dailyomni", clips=1, chunks=chunks, types=("video", "audio"))
        items += [Item(**{**vars(each), "id": f"{chunks}-{each.id}"}) for each in items_of("dailyomni", folder)]
    silent = tmp_path_factory.mktemp("silent") / "clip.mp4"
    pictures = media.read(items[0].path).frames
    from omnidrop_lab.needle import files

    assert pictures is not None
    files.write_arrays(silent, pictures, None)
    items.insert(2, Item(**{**vars(items[0]), "id": "silent", "path": silent}))
    return items


@pytest.mark.parametrize("method", [None, TUNED, methods.parse("omnidrop", keep=0.3)], ids=["all", "tuned", "omnidrop"])
def test_a_batch_of_four_equals_four_batches_of_one(tiny, mixed, method):
    one, four = (run(tiny, "dailyomni", mixed, method, batch=batch) for batch in (1, 4))
    assert {row["batch"] for row in one.values()} == {1} and max(row["batch"] for row in four.values()) == 4
    same(four, one)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: workers of torch's own DataLoader
def test_clips_read_ahead_are_the_same(tiny, mixed, broken):
    items = [*mixed, *broken]
    same(run(tiny, "dailyomni", items, TUNED, batch=1, readers=2), run(tiny, "dailyomni", items, TUNED, batch=1))


def test_what_the_model_sees_is_prompt_build(tiny, mixed):
    """The runner preprocesses a clip once for all of its questions; the result is `prompt.build`'s, tensor for
    tensor."""
    processor = tiny[1]
    for system, some in ((None, mixed), (QWEN, mixed[:2])):
        reader = reading.Reader(processor, settings("dailyomni", system=system))
        for each in some:
            text = tasks.find("dailyomni").prompt(each)
            clip = media.read(each.path)
            wanted = prompt.build(processor, clip, text, system=system, max_pixels=media.MAX_PIXELS)
            equal(reader.ready(each, text).inputs, dict(wanted))


def equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # numpy 2 and transformers' processor
def test_what_the_model_sees_is_the_processors_own(tiny, mixed):
    """The same clip, benchmark prompt and system prompt through transformers' processor in one call."""
    processor = tiny[1]
    each = mixed[0]
    text, clip = tasks.find("dailyomni").prompt(each), media.read(each.path)
    talk = [
        {"role": "system", "content": [{"type": "text", "text": QWEN}]},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]},
    ]
    written = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    timing = {"position_id_per_seconds": 5, "seconds_per_chunk": 2.0}  # the tiny model's
    video = {"size": {"shortest_edge": 84**2, "longest_edge": 84**2}, "do_sample_frames": False, "fps": 2.0}
    if hasattr(type(processor), "load_audio_from_video"):  # transformers 5.23
        words = timing | {"load_audio_from_video": True, "audio_from_video_indices": [0], "videos_kwargs": video}
    else:
        words = {"videos_kwargs": video | timing | {"use_audio_in_video": True}}
    theirs = processor(
        text=[written], videos=[clip.frames], audio=[clip.waveform], sampling_rate=16_000, return_tensors="pt", **words
    )
    ours = reading.Reader(processor, settings("dailyomni", system=QWEN)).ready(each, text).inputs
    assert ours.pop("use_audio_in_video") is True and set(ours) <= set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(torch.as_tensor(theirs[name]).to(tensor.dtype), tensor), name


def test_a_question_with_the_models_own_signs_is_refused(tiny, mixed):
    reader = reading.Reader(tiny[1], settings("dailyomni"))
    for sign in (tiny[1].video_token, tiny[1].audio_token):
        with pytest.raises(InputError, match="the question or the system text must not contain"):
            reader.ready(mixed[0], f"what is {sign} ?")


def test_a_clip_is_read_once_for_all_of_its_questions(tiny, mixed, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []
    real = media.read
    monkeypatch.setattr(reading.media, "read", lambda path, *a, **k: read.append(path) or real(path, *a, **k))
    run(tiny, "dailyomni", mixed, batch=2)
    assert read == list(dict.fromkeys(each.path for each in mixed)) and len(read) < len(mixed)


# what a row says ------------------------------------------------------------------------------------------------------


def test_a_row_says_what_the_trace_says(tiny, data):
    model, processor = tiny
    items = items_of("avut", data("avut", clips=3))[:2]
    found = run(tiny, "avut", items, TUNED, batch=2)
    for each in items:
        inputs = prompt.build(processor, media.read(each.path), each.question, max_pixels=media.MAX_PIXELS)
        with runtime.prune(model, TUNED) as trace, torch.inference_mode():
            model(**inputs)
        row = found[each.id]
        assert row["budgets"] == pytest.approx(trace.budgets)
        assert row["tokens_in"] == trace.layout.count(0)
        for kind in ("audio", "video"):
            assert row["tokens_entering"][kind] == [layer[kind] for layer in trace.counts]


def test_a_row_is_complete(tiny, data):
    items = items_of("avut", data("avut", clips=3))[:1]
    for method in (None, TUNED):
        (row,) = run(tiny, "avut", items, method).values()
        stages = {"read", "prepare", "vision_encoder", "audio_encoder", "decoder", "head", "first_token", "answer"}
        assert set(row["seconds"]) >= stages and all(value >= 0 for value in row["seconds"].values())
        assert row["question"] == items[0].question and row["options"] == list(items[0].options)
        assert (
            len(row["code"]) == 12
            and row["settings"] == settings("avut", method=method and method.to_json()).fingerprint
        )
        assert json.loads(json.dumps(row)) == row


def test_the_package_says_what_it_is():
    assert "errors never scored" in (evals.__doc__ or "")


# tables ---------------------------------------------------------------------------------------------------------------


def hand(name: str, video: str, value: float | None, weight: float | None = 1.0, **more: Any) -> rows.Row:
    error = None if value is not None else {"kind": "MediaError", "message": "no"}
    known = {
        "beyond_positions": False,
        "groups": {"domain": more.pop("domain", "x")},
        "ended": True,
        "peak_memory_bytes": 5,
        "options": ["a", "b"],
    }
    costs = {"tokens_in": {"audio": 2}, "budgets": {"layers": 0.5}, "seconds": {"answer": 1.0}}
    return {
        "item": name,
        "video": video,
        "value": value,
        "weight": weight,
        "error": error,
        "parsed": "A",
        **known,
        **costs,
        **more,
    }


def test_scores_by_hand():
    made = [
        hand("1", "v", 1.0),
        hand("2", "v", 0.0, domain="y", parsed=None),
        hand("3", "w", 1.0, ended=False, peak_memory_bytes=9),
        hand("4", "w", None),
    ]
    items = [Item(id=str(i), video="", path=Path(), question="", answer="A", options=("a", "b")) for i in range(1, 6)]
    document = told({row["item"]: row for row in made}, "avut", items)
    assert document["score"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert (document["items"], document["answered"], document["missing"]) == (5, 3, 1)
    assert document["errors"] == {"MediaError": 1} and not document["complete"]
    assert document["unparsed"] == 1 and document["unfinished"] == 1
    assert document["if_errors_were_wrong"] == 0.5 and document["peak_memory_bytes"] == 9
    assert document["groups"]["domain"]["x"]["value"] == 1.0 and document["groups"]["domain"]["y"]["value"] == 0.0
    assert document["groups"]["domain"]["x"]["items"] == 2 and document["bootstrap"]["clips"] == 2
    assert document["tokens_in"] == {"audio": 2.0} and document["budgets"]["layers"] == 0.5


def test_a_rate_is_a_ratio_of_sums():
    made = [hand("1", "v", 1.0, 10.0), hand("2", "w", 4.0, 2.0)]
    items = [Item(id=str(i), video="", path=Path(), question="", answer="A") for i in (1, 2)]
    document = told({row["item"]: row for row in made}, "transcribe", items)
    assert document["score"]["value"] == pytest.approx(5 / 12, abs=1e-6) and document["complete"]
    assert document["task"]["better"] == "lower"


def test_questions_of_one_clip_do_not_narrow_the_interval():
    """Ten copies of each clip's questions carry no more information than one."""
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    widths = []
    for copies in (1, 10):
        made = [hand(f"{v}-{c}", str(v), value) for v, value in enumerate(values) for c in range(copies)]
        items = [Item(id=row["item"], video="", path=Path(), question="", answer="A") for row in made]
        score = told({row["item"]: row for row in made}, "avut", items)["score"]
        widths.append(score["high"] - score["low"])
    assert widths[0] == pytest.approx(widths[1]) and widths[0] > 0.4


def test_two_processes_do_not_write_one_folder(tmp_path: Path):
    """A second run of the same questions is refused; other shards of the same division share the folder."""
    code = (
        "import sys; from test_eval_run import rows, settings; from pathlib import Path\n"
        "shard = tuple(map(int, sys.argv[2].split('/')))\n"
        "rows.Folder(Path(sys.argv[1]), settings('avut'), items=3, shard=shard)\nprint('open')"
    )

    def opened(shard: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run"), shard], capture_output=True, text=True,
            cwd=Path(__file__).parent,
        )  # fmt: skip

    held = rows.Folder(tmp_path / "run", settings("avut"), items=3, shard=(0, 2))
    assert opened("1/2").stdout == "open\n"
    for shard in ("0/2", "0/1", "0/3"):
        refused = opened(shard)
        assert refused.stdout == "" and "is being written by another `omnidrop eval`" in refused.stderr, shard
    rows.Folder(tmp_path / "run", settings("avut"), items=3, shard=(0, 1))  # this process is no other
    assert held.own == "rows.1-of-2.jsonl"
