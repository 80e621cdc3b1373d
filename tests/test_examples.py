"""The scripts of examples/ run as they stand, write nothing, and show what they say that they show."""

from __future__ import annotations

import base64
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from omnidrop.loading import TINY

pytest.importorskip("av")

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are in the repository only", allow_module_level=True)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    """Runs a script in an empty folder, with arguments: -> its names, and what it printed."""

    def one(name: str, *arguments: str) -> tuple[dict[str, Any], str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert not list(tmp_path.iterdir()), "an example leaves no file behind"
        return names, capsys.readouterr().out

    return one


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "your_clip",
        "choose_keep",
        "look_at_what_was_kept",
        "compare_methods",
        "your_own_method",
        "batch_on_ray",
        "ray_batch",  # needs Ray and vLLM: omnidrop-vllm/tests/vllm_env/test_ray.py runs it
    }


DEMO = TINY.parent / "demo.mp4"


def test_your_clip(run: Any) -> None:
    names, printed = run(
        "your_clip", str(DEMO), "what color is the circle ?", "--model", str(TINY), "--max-tokens", "4"
    )
    assert names["full"] == names["pruned"] == "blue" and "the answers differ" not in printed
    assert names["trace"].keep == pytest.approx(0.3, abs=0.01)
    assert f"{DEMO}: 16 s, 144 video and 80 audio tokens" in printed and "layers 0.30" in printed
    assert re.search(r"^keep 0\.3 +\d+\.\d\d s  blue$", printed, re.M)


def test_your_clip_reads_the_file_first(run: Any) -> None:
    from omnidrop import MediaError

    with pytest.raises(MediaError, match=r"no_such\.mp4"):
        run("your_clip", "no_such.mp4", "what ?", "--model", "/no/such/model")


def test_choose_keep(run: Any) -> None:
    names, printed = run("choose_keep", "--clips", "2", "--keep", "0.3", "0.02")
    right = {entry["asked_keep"]: entry["accuracy"]["evidence"]["value"] for entry in names["results"]}
    assert names["before"] - right[0.3] <= 0.05 < names["before"] - right[0.02]
    assert names["chosen"] == 0.3 and "the lowest keep that loses at most 0.05: 0.3" in printed
    assert f"{right[0.02]:.2f}" in printed


def test_batch_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'omnidrop[ray]'")
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(DEMO, tmp_path / "clips" / name)
    script = [sys.executable, str(EXAMPLES / "batch_on_ray.py"), str(tmp_path / "clips")]
    done = subprocess.run(
        [*script, "what color is the circle ?", "--out", str(tmp_path / "answers.jsonl")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 answers in" in done.stdout and "0 failures" in done.stdout and "    2  blue" in done.stdout


def test_the_batch_script_gives_the_commands_own_refusal(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "batch_on_ray.py"), str(tmp_path / "none"), "what ?"]
    done = subprocess.run([*script, "--out", str(tmp_path / "answers.jsonl")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("omnidrop: error: ") and "Traceback" not in done.stderr


# serving in vLLM, as far as it goes without vLLM: omnidrop-vllm/tests/vllm_env runs both files against a server


class _Client:
    """Stands in for `openai.OpenAI`: notes the request, and streams two words."""

    requests: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url
        self.models = SimpleNamespace(list=lambda: SimpleNamespace(data=[SimpleNamespace(id="served")]))
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, **request: Any) -> Any:
        self.requests.append({"base_url": self.base_url, **request})
        return [
            SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=word))])
            for word in ("deep ", "blue")
        ]


@pytest.mark.parametrize(
    "more, sound, keep",
    [([], True, 0.3), (["--no-sound", "--keep", "0.6"], False, 0.6), (["--keep", "off"], True, None)],
    ids=["server", "keep", "off"],
)
def test_the_client_of_vllm(
    run: Any, monkeypatch: pytest.MonkeyPatch, more: list[str], sound: bool, keep: float | None
) -> None:
    from omnidrop_vllm import settings

    stub = ModuleType("openai")
    stub.OpenAI = _Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openai", stub)
    monkeypatch.setattr(_Client, "requests", [])
    _, printed = run("vllm/ask", str(DEMO), "what color ?", "--server", "http://h:1", *more)
    (request,) = _Client.requests
    video, text = request["messages"][0]["content"]
    head, _, data = video["video_url"]["url"].partition(",")
    assert head == "data:video/mp4;base64" and base64.b64decode(data) == DEMO.read_bytes()
    assert text == {"type": "text", "text": "what color ?"} and request["model"] == "served"
    assert request["base_url"] == "http://h:1/v1" and printed == "deep blue\n"
    assert request["extra_body"]["mm_processor_kwargs"] == {"fps": 2.0, "use_audio_in_video": sound}
    served = settings.read({"omnidrop": True})
    assert served is not None
    method = settings.for_request(served, request["extra_body"].get("vllm_xargs"))
    assert getattr(method, "keep", None) == keep


def test_the_server_of_vllm_is_started_with_options_that_the_plugin_takes() -> None:
    from omnidrop_vllm import settings

    script = EXAMPLES / "vllm" / "serve.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    words = shlex.split(next(line for line in lines if line.startswith("exec vllm serve")))
    served = settings.read(json.loads(words[words.index("--additional-config") + 1]))
    assert served is not None and served.method.keep == 0.3 and served.stages == 4
    assert {"--no-enable-prefix-caching", "--no-enable-chunked-prefill"} <= set(words)
    assert "export VLLM_USE_V2_MODEL_RUNNER=0" in lines


def test_look_at_what_was_kept(run: Any) -> None:
    names, printed = run("look_at_what_was_kept")
    truth = {each["text"]: each["answer"] for each in json.loads((TINY.parent / "demo.json").read_text())["questions"]}
    seen, heard = names["QUESTIONS"]
    assert names["answers"] == {question: truth[question] for question in (seen, heard)}
    assert names["audio_share"][heard] > names["audio_share"][seen]
    for question, trace in names["traces"].items():
        assert trace.keep == pytest.approx(0.3, abs=0.01)
        kinds, layers = (names["Modality"].AUDIO, names["Modality"].VIDEO), names["LAYERS"]
        for layer in layers:
            chunks = [names["by_chunk"](trace, layer, kind) for kind in kinds]
            assert [sum(row) for row in chunks] == [trace.counts[layer][kind.name.lower()] for kind in kinds]
            assert all(" ".join(f"{count:3d}" for count in row) in printed for row in chunks)
        assert f"{question}  ->  {truth[question]}" in printed


def test_compare_methods(run: Any) -> None:
    names, printed = run("compare_methods")
    results, keep = names["results"], names["KEEP"]
    assert set(results) == {"none", *names["METHODS"]}
    assert {row["keep"] for row in names["rows"]} == {None, keep} and names["config"].split == "dev"
    right = {name: entry["accuracy"]["evidence"]["value"] for name, entry in results.items()}
    assert right["none"] == 1.0 and right["tuned"] > right["random"]
    for name in names["METHODS"]:
        assert results[name]["budgets"]["layers"] == pytest.approx(keep, abs=0.01)
        assert any(line.startswith(name) and f"{right[name]:.2f}" in line for line in printed.splitlines())


def test_your_own_method(run: Any) -> None:
    names, printed = run("your_own_method")
    right = {name: entry["accuracy"]["evidence"]["value"] for name, entry in names["results"].items()}
    assert right["none"] == 1.0 and right["novelty"] > right["random"]
    assert names["results"]["novelty"]["budgets"]["layers"] == pytest.approx(names["KEEP"], abs=0.01)
    for word in ("layers", "flops", "kv"):
        measured = printed.partition(f"keep 0.4 of {word}: measured ")[2].partition(",")[0]
        assert float(measured) == pytest.approx(0.4, abs=0.01)
