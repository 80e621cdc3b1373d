"""`omnidrop doctor`: it says what is wrong and what to install, and its self-test sees a seam that does not hold."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import omnidrop
from omnidrop import doctor, tested
from omnidrop.cli import main
from omnidrop.doctor import machine, packages, selftest
from omnidrop.errors import SettingError

pytestmark = pytest.mark.slow


def found(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {each.name: each for each in findings}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that distributions have other versions; None is absent, for its modules too."""
    real, real_import = packages.version, builtins.__import__
    modules = {**{name: name for name in ("torch", "av", "transformers", "torchvision", "gradio")}, "pillow": "PIL"}

    def pretend(**pretended: str | None) -> None:
        gone = {modules.get(name, name) for name, number in pretended.items() if number is None}

        def version(name: str) -> str:
            if (number := pretended.get(name.replace("-", "_"), "real")) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name) if number == "real" else number

        def importer(name: str, *rest: Any, **options: Any) -> Any:
            if name.partition(".")[0] in gone:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real_import(name, *rest, **options)

        monkeypatch.setattr(packages, "version", version)
        monkeypatch.setattr(builtins, "__import__", importer)
        for name in list(sys.modules):
            if name.partition(".")[0] in gone:
                monkeypatch.delitem(sys.modules, name)

    return pretend


# packages and extras -------------------------------------------------------------------------------------------------


def test_this_environment_is_sound() -> None:
    findings = found(packages.required())
    assert {"python", "torch", "transformers", "numpy", "packaging"} <= set(findings)
    assert {each.state for each in findings.values()} <= {"ok", "note"}
    assert findings["torch"].details["tested"] == list(tested.TESTED["torch"])


@pytest.mark.parametrize(
    ("number", "state", "words"),
    [
        ("5.16.0", "ok", "tested: 5.16.0 to"),
        (tested.TESTED["transformers"][1], "ok", "tested"),
        ("5.15.1", "failed", "outside the range"),
        ("6.0.0", "failed", "pip install"),
        (None, "failed", 'not installed; pip install "omnidrop"'),
    ],
)
def test_a_release_of_transformers(versions: Callable, number: str | None, state: str, words: str) -> None:
    versions(transformers=number)
    finding = found(packages.required())["transformers"]
    assert finding.state == state and words in finding.text
    assert finding.details["version"] == number


@pytest.mark.parametrize("number", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_a_local_build_of_torch_is_the_release_it_builds(versions: Callable, number: str) -> None:
    versions(torch=number)
    assert found(packages.required())["torch"].state == "ok"


def test_an_untested_release_inside_the_range_is_noted(versions: Callable) -> None:
    versions(torch="2.99.0")
    finding = found(packages.required())["torch"]
    assert finding.state == "note" and "tested with 2.13.0 only" in finding.text


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libavcodec.so: cannot open shared object file")

    monkeypatch.setattr(packages, "import_module", broken)
    finding = found(packages.required())["av"]
    assert finding.state == "failed" and "libavcodec.so" in finding.text


def test_a_missing_extra_is_listed_and_fails_only_where_asked(versions: Callable) -> None:
    versions(gradio=None)
    finding = found(packages.extras([]))["app"]
    assert finding.state == "missing" and 'pip install "omnidrop[app]"' in finding.text and "gradio" in finding.text
    assert found(packages.extras(["app"]))["app"].state == "failed"


def test_an_extra_that_is_too_new(versions: Callable) -> None:
    versions(gradio="9.0.0")
    finding = found(packages.extras([]))["app"]
    assert finding.state == "note" and "9.0.0 is outside the range" in finding.text


def test_extras_name_what_they_contain(versions: Callable) -> None:
    """`app` contains `report`: without Jinja both are missing."""
    versions(jinja2=None, gradio="6.31.0")
    findings = found(packages.extras([]))
    assert findings["report"].state == "missing" and findings["app"].state == "missing"


@pytest.mark.parametrize(
    ("number", "state", "text"),
    [
        (None, "missing", "pip install ./omnidrop-lab in a checkout"),
        (omnidrop.__version__, "ok", f"{omnidrop.__version__}: the commands bench, needle, eval and compare"),
        ("99.0", "note", f"99.0 is of another release than omnidrop, {omnidrop.__version__}"),
    ],
)
def test_the_other_packages_of_the_project(versions: Callable, number: str | None, state: str, text: str) -> None:
    versions(omnidrop_lab=number)
    (found,) = (each for each in packages.add_ons() if each.name == "omnidrop-lab")
    assert (found.area, found.state) == ("add-ons", state) and text in found.text


def test_a_broken_package_of_the_project(monkeypatch: pytest.MonkeyPatch, versions: Callable) -> None:
    versions(omnidrop_lab=omnidrop.__version__)
    monkeypatch.setitem(sys.modules, "omnidrop_lab", None)
    (found,) = (each for each in packages.add_ons() if each.name == "omnidrop-lab")
    assert found.state == "failed" and "cannot be imported: ModuleNotFoundError" in found.text


def test_an_unknown_extra() -> None:
    with pytest.raises(SettingError, match="extra is 'repotr'; choose heif, report, app, ray"):
        packages.extras(["repotr"])


# machine -------------------------------------------------------------------------------------------------------------


def test_machine() -> None:
    findings = found(machine.look())
    assert findings["device"].details["cores"] > 0
    assert findings["attention"].details["sdpa"] and findings["attention"].details["eager"]
    pytest.importorskip("av")
    assert "libavcodec" in findings["ffmpeg"].text


def test_machine_without_pyav(versions: Callable) -> None:
    versions(av=None)
    finding = found(machine.look())["ffmpeg"]
    assert finding.state == "skipped" and "av" in finding.text


# self-test -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip() -> Iterator[None]:
    pytest.importorskip("av")
    yield


def test_the_seams_hold(clip: None) -> None:
    findings = selftest.run("cpu", [])
    assert [each.name for each in findings] == ["prune, sdpa", "prune, eager", "lean", "stream"]
    for each in findings:
        assert each.state == "ok", each
        assert len(each.details["logit_difference"]) == selftest.STEPS
        assert each.details["tokens"] == each.details["reference_tokens"]
    assert abs(findings[0].details["keep"] - selftest.KEEP) < 0.02


def _bench(attention: str = "sdpa") -> Any:
    return selftest._Bench("cpu", attention)


def test_a_mask_that_hides_too_little_is_seen(clip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference really masks: with everything visible it differs from the pruned run."""
    import torch

    real = selftest._hiding
    monkeypatch.setattr(selftest, "_hiding", lambda positions, length: real(torch.arange(length), length))
    with pytest.raises(selftest.SeamError, match="dropped equals masked"):
        selftest._prune(_bench())


def test_a_trace_that_shows_nothing_pruned_is_seen(clip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnidrop.core.trace import Trace

    monkeypatch.setattr(Trace, "keep", property(lambda self: 1.0))
    with pytest.raises(selftest.SeamError, match=r"1\.000 of the tokens were kept"):
        selftest._prune(_bench())


def test_a_cache_of_another_length_is_seen(clip: None) -> None:
    bench = _bench()
    out = bench.generate()
    lengths = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
    selftest._same_lengths(out, lengths)
    with pytest.raises(selftest.SeamError, match="cache of layer 1 has"):
        selftest._same_lengths(out, [lengths[0], lengths[1] - 1, *lengths[2:]])


def test_lean_with_a_wrong_last_layer_is_seen(clip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    from omnidrop.engine import lossless as savings

    @contextlib.contextmanager
    def wrong(model: Any) -> Iterator[None]:
        handle = model.lm_head.register_forward_hook(lambda module, args, out: out + 0.35)
        yield
        handle.remove()

    monkeypatch.setattr(savings, "lean", wrong)
    with pytest.raises(selftest.SeamError, match=r"at step 0 a logit differs by 0\.35"):
        selftest._lean(_bench())


def test_any_exception_is_a_finding(monkeypatch: pytest.MonkeyPatch, clip: None) -> None:
    def crash(bench: Any) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'layers'")

    finding = selftest._tested("stream", "cpu", "sdpa", crash)
    assert finding.state == "failed" and finding.text.startswith("AttributeError: 'NoneType'")


def test_self_test_is_skipped_where_it_cannot_run(versions: Callable) -> None:
    assert selftest.run(None, ["transformers"])[0].state == "skipped"
    versions(av=None)
    (finding,) = selftest.run(None, [])
    assert finding.state == "skipped" and "pip install av pillow torchvision" in finding.text


# the command ---------------------------------------------------------------------------------------------------------


def test_json(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--no-self-test", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "omnidrop.doctor" and document["works"] is True
    assert {each["area"] for each in document["findings"]} == {"packages", "extras", "add-ons", "machine"}


def test_text_and_status_where_something_is_broken(versions: Callable, capsys: pytest.CaptureFixture) -> None:
    versions(transformers="5.99.0")
    assert main(["doctor", "--no-self-test"]) == 1
    out = capsys.readouterr().out
    assert "5.99.0 is outside the range" in out and out.endswith("broken: transformers\n")


def test_asked_extras_decide_the_status(versions: Callable, capsys: pytest.CaptureFixture) -> None:
    versions(gradio=None)
    assert main(["doctor", "--no-self-test"]) == 0
    assert main(["doctor", "app", "--no-self-test"]) == 1
    assert "broken: app" in capsys.readouterr().out
    assert main(["doctor", "apps", "--no-self-test"]) == 2


def test_without_transformers_it_reports(versions: Callable, capsys: pytest.CaptureFixture) -> None:
    versions(transformers=None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "transformers      not installed" in out and "skipped all" in out.replace("  ", " ").replace("  ", " ")
