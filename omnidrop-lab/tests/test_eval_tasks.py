"""Each benchmark's official file, as published, becomes items; and what is not as published is refused.

The rows here are written by hand from the published descriptions; `evals.own` (the generator of small data sets) is
judged by the same readers in `test_eval_run`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omnidrop_lab.evals import files, item, tasks

from omnidrop.errors import InputError, SettingError

OPTIONS = ["A. one", "B. two", "C. three", "D. four"]
VIDEOMME = {
    "video_id": "001",
    "duration": "medium",
    "domain": "Knowledge",
    "sub_category": "Law",
    "url": "https://example.org",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many?",
    "options": OPTIONS,
    "answer": "C",
}
WORLDSENSE = {
    "index": 7,
    "video": "abc",
    "video_path": "videos/abc.mp4",
    "duration": "1-2min",
    "domain": "Music",
    "sub_category": "Piano",
    "audio_class": ["Speech", "Event"],
    "task_domain": "Recognition",
    "task_type": "Audio Counting",
    "subtitle_path": "subtitles/abc.srt",
    "video_caption": "",
    "question": "How many?",
    "answer": "B",
    "candidates": OPTIONS,
}
AVUT = {
    "video_id": 3,
    "url": "https://example.org",
    "video_type": "vlog",
    "task_type": "Audio Information Extraction",
    "question": "Which sound?",
    "option_A": "a bell",
    "option_B": "a dog",
    "option_C": "",
    "option_D": "rain",
    "option_E": None,
    "answer": "D",
    "video_path": "data/xyz.mp4",
    "QA_id": 455,
}
DAILY = {
    "Question": "What is first?",
    "Choice": OPTIONS,
    "Answer": "A",
    "video_id": "Ec_lQgZ9wlg",
    "Type": "Event Sequence",
    "content_parent_category": "Lifestyle",
    "content_fine_category": "Skincare",
    "video_category": "Howto & Style",
    "video_duration": "30s",
}
LVO = {
    "video_id": "video_0",
    "question": "Who speaks?",
    "options": OPTIONS,
    "correct_option": "B",
    "question_type": "Perception",
    "audio_type": "Speech",
    "difficulty": "hard",
    "video_category": "Lecture",
}
OVB_QUESTION = {
    "question": "Which direction?",
    "question_type": "spatial understanding",
    "audio_type": "Speech",
    "reasoning_steps": [],
    "answer": "Northeast",
    "options": ["A.Northwest", "B.Southwest", "C.Southeast", "D.Northeast"],
    "correct_option": "D",
}
OVB = {"video": "video_1", "video_type": "Vlog", "duration": "03:28", "questions": [OVB_QUESTION, OVB_QUESTION]}

JSON = {
    "avut": ("AV_Human_data.json", [AVUT], "data/xyz.mp4"),
    "dailyomni": ("qa.json", [DAILY], "Videos/Ec_lQgZ9wlg/Ec_lQgZ9wlg_video.mp4"),
    "lvomnibench": ("data.json", [LVO], "videos/video_0.mp4"),
    "omnivideobench": ("data.json", [OVB], "videos/video_1.mp4"),
}


def data_set(folder: Path, name: str, content: Any, clip: str) -> Path:
    """A folder with an annotation file and one clip, of which only the name matters here."""
    for path in (folder / name, folder / clip):
        path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(content), folder / name)
    elif name.endswith(".jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        (folder / name).write_text(json.dumps(content))
    (folder / clip).write_bytes(b"clip")
    return folder


def load(folder: Path, task: str) -> list[item.Item]:
    return tasks.load(tasks.find(task), folder)[0]


@pytest.mark.parametrize("task", JSON)
def test_official_json(tmp_path: Path, task: str):
    name, content, clip = JSON[task]
    first = load(data_set(tmp_path, name, content, clip), task)[0]
    assert first.path == tmp_path / clip and first.path.exists()
    assert len(first.options) == 4 and first.answer in "ABCD"
    assert all(name in tasks.find(task).prompt(first) for name in (first.question, *first.lines))


def test_videomme(tmp_path: Path):
    folder = data_set(tmp_path, "videomme/test-00000-of-00001.parquet", [VIDEOMME], "data/fFjv93ACGo8.mp4")
    (first,) = load(folder, "videomme")
    assert (first.id, first.video, first.answer, first.options[2]) == ("001-1", "fFjv93ACGo8", "C", "three")
    assert first.groups == {
        "length": "medium",
        "domain": "Knowledge",
        "sub-category": "Law",
        "question type": "Counting Problem",
    }
    task = tasks.find("videomme")
    assert task.max_frames == 768 and task.prompt(first).endswith(
        "How many?\nA. one\nB. two\nC. three\nD. four\n\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_worldsense_is_the_same_from_both_published_files(tmp_path: Path):
    second = {**WORLDSENSE, "index": 8, "question": "Which piece?", "answer": "D"}
    parquet = data_set(tmp_path / "p", "data/test-00000-of-00001.parquet", [WORLDSENSE, second], "videos/abc.mp4")
    about = {name: WORLDSENSE[name] for name in ("duration", "domain", "sub_category", "audio_class", "video_caption")}
    asked = ("task_domain", "task_type", "question", "answer", "candidates")
    own = {"abc": {"video_id": "abc", **about, **{
        f"task{at}": {name: row[name] for name in asked} for at, row in enumerate((WORLDSENSE, second))
    }}}  # fmt: skip
    original = data_set(tmp_path / "j", "worldsense_qa.json", own, "videos/abc.mp4")
    one, other = load(parquet, "worldsense"), load(original, "worldsense")
    assert [each.id for each in one] == ["abc-0", "abc-1"]
    for a, b in zip(one, other, strict=True):
        assert (a.id, a.question, a.options, a.answer, a.groups) == (b.id, b.question, b.options, b.answer, b.groups)
    assert one[0].groups["sound"] == "Event + Speech"
    assert tasks.find("worldsense").prompt(one[0]) == (
        "How many?\nOptions:\nA. one\nB. two\nC. three\nD. four\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_avut_keeps_an_empty_option_and_leaves_absent_ones_out(tmp_path: Path):
    (first,) = load(data_set(tmp_path, *JSON["avut"]), "avut")
    assert first.options == ("a bell", "a dog", "", "rain") and first.id == "455" and first.video == "xyz"


def test_omnivideobench_from_json_and_rows(tmp_path: Path):
    nested = load(data_set(tmp_path / "j", *JSON["omnivideobench"]), "omnivideobench")
    flat = {"video": "videos/video_1.mp4", "video_type": "Vlog", "duration": "03:28", **OVB_QUESTION}
    rows = load(data_set(tmp_path / "p", "data.parquet", [flat, flat], "videos/video_1.mp4"), "omnivideobench")
    assert [each.id for each in nested] == [each.id for each in rows] == ["video_1-0", "video_1-1"]
    assert nested[0].options[3] == "Northeast" and nested[0].lines[3] == "D.Northeast"
    assert nested[0].groups["length"] == "1-5 min" and nested[0].groups == rows[0].groups


def test_questions_of_one_clip_are_one_cluster(tmp_path: Path):
    first, second = load(data_set(tmp_path, *JSON["omnivideobench"]), "omnivideobench")
    assert first.video == second.video and first.id != second.id


def test_a_clip_is_found_wherever_it_was_unpacked(tmp_path: Path):
    name, content, _ = JSON["lvomnibench"]
    (first,) = load(data_set(tmp_path, name, content, "chunk_01/more/video_0.mp4"), "lvomnibench")
    assert first.path == tmp_path / "chunk_01/more/video_0.mp4"


def test_two_clips_of_one_name_are_not_guessed_between(tmp_path: Path):
    name, content, _ = JSON["lvomnibench"]
    folder = data_set(tmp_path, name, [*content, {**LVO, "video_id": "video_1"}], "a/video_0.mp4")
    for clip in ("b/video_0.mp4", "videos/video_1.mp4"):
        (folder / clip).parent.mkdir(exist_ok=True)
        (folder / clip).write_bytes(b"clip")
    first, second = load(folder, "lvomnibench")
    assert not first.path.exists() and second.path.exists()


BROKEN = {
    "a field is missing": ([{name: value for name, value in LVO.items() if name != "options"}], "'options' is missing"),
    "the answer is no option": ([{**LVO, "correct_option": "E"}], "the answer is 'E'"),
    "an option without its letter": ([{**LVO, "options": ["A. one", "two"]}], "option 2 is 'two'"),
    "two questions with one id": (
        [{**LVO, "question_id": 1}, {**LVO, "question_id": 1}],
        "two questions with the id '1'",
    ),
    "no question": ([], "holds no question"),
    "another kind of document": ({"data": 1}, "not in the format of LVOmniBench"),
}


@pytest.mark.parametrize("why", BROKEN)
def test_what_is_not_as_published_is_refused(tmp_path: Path, why: str):
    content, message = BROKEN[why]
    with pytest.raises(InputError, match=message):
        load(data_set(tmp_path, "data.json", content, "videos/video_0.mp4"), "lvomnibench")


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds none of AV_Human_data\.json"):
        load(tmp_path, "avut")
    (tmp_path / "AV_Human_data.json").write_text("{not json")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path, "avut")
    (tmp_path / "AV_Human_data.json").write_text(json.dumps([AVUT]))
    with pytest.raises(InputError, match="download the videos too"):
        load(tmp_path, "avut")
    (tmp_path / "videos_chunk_001.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"unpack videos_chunk_001\.zip there"):
        load(tmp_path, "avut")


def test_folders_and_names():
    with pytest.raises(SettingError, match="there is no task 'mmmu'; choose one of videomme"):
        tasks.find("mmmu")
    with pytest.raises(SettingError, match="no data set on the hub"):
        files.folder_of(None, None)
    with pytest.raises(SettingError, match="is no folder"):
        files.folder_of("./nowhere/at/all", "a/b")


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No network here: what the hub's client is asked for, and what becomes of its errors."""
    asked: list[tuple] = []

    def snapshot(name: str, repo_type: str) -> str:
        asked.append((name, repo_type))
        if name == "a/b":
            raise OSError("no route\nto the host")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    said: list[str] = []
    assert files.folder_of(None, "x/y", said.append) == tmp_path and "x/y" in said[0]
    assert files.folder_of(tmp_path, "x/y", said.append) == tmp_path and len(said) == 1
    with pytest.raises(InputError, match=r"a/b cannot be downloaded from the hub \(no route\); download it"):
        files.folder_of("a/b", "x/y")
    assert asked == [("x/y", "dataset"), ("a/b", "dataset")]


def test_transcription_and_captions(tmp_path: Path):
    rows = [
        {"clip": "a.flac", "text": "Good morning.", "speaker": "84"},
        {"clip": "b.flac", "text": "Yes", "group": "clean"},
    ]
    first, second = load(data_set(tmp_path / "t", "transcribe.jsonl", rows, "a.flac"), "transcribe")
    assert first.video == "84" and first.options == () and second.groups == {"group": "clean"}
    with pytest.raises(InputError, match="at least one word"):
        load(data_set(tmp_path / "u", "transcribe.jsonl", [{"clip": "a.flac", "text": "..."}], "a.flac"), "transcribe")
    caption = [{"clip": "a.mp4", "keywords": ["red car", "Siren"]}]
    (told,) = load(data_set(tmp_path / "c", "caption.jsonl", caption, "a.mp4"), "caption")
    assert told.answer == "red car; Siren"
    with pytest.raises(InputError, match="give at least one"):
        load(data_set(tmp_path / "d", "caption.jsonl", [{"clip": "a.mp4", "keywords": []}], "a.mp4"), "caption")


def free(answer: str) -> item.Item:
    return item.Item(id="x", video="x", path=Path("x"), question="?", answer=answer)


@pytest.mark.parametrize(
    "said, right, errors, words",
    [
        ("good morning", "Good morning.", 0, 2),
        ("good evening", "Good morning.", 1, 2),
        ("", "Good morning.", 2, 2),
        ("a b c d", "b c", 2, 2),  # insertions
        ("it's", "It’s", 0, 1),
        ("its", "It's", 1, 1),
        ("GOOD, Morning!", "good morning", 0, 2),
        ("早上好", "早上好", 0, 3),
        ("早安", "早上好", 2, 3),
    ],
)
def test_word_errors(said: str, right: str, errors: float, words: float):
    assert item.word_errors(said, free(right))[:2] == (errors, words)


@pytest.mark.parametrize(
    "said, wanted, found",
    [
        ("A red car passes, with a siren.", "red car; siren", 2),
        ("A red truck and a car.", "red car; siren", 0),
        ("Sirens are heard.", "siren", 0),  # whole words
        ("", "siren", 0),
        ("RED CAR", "red car", 1),
    ],
)
def test_keywords(said: str, wanted: str, found: float):
    got = item.keywords(said, free(wanted))
    assert got.value == found and got.weight == len(wanted.split(";"))


def test_an_unparsed_answer_is_not_right_and_says_so(tmp_path: Path):
    (first,) = load(data_set(tmp_path, *JSON["lvomnibench"]), "lvomnibench")
    assert item.choice("B. two", first) == (1.0, 1.0, "B")
    assert item.choice("A", first) == (0.0, 1.0, "A")
    assert item.choice("", first) == (0.0, 1.0, None)
