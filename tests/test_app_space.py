"""examples/space deploys as it is: its header, its requirements, and the page that its app.py serves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'omnidrop[app]'")
httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "examples" / "space"
if not SPACE.is_dir():
    pytest.skip("the examples are in the repository only", allow_module_level=True)
NAME = "somebody-omnidrop.hf.space"


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_header_names_what_the_space_runs(header: dict[str, Any], project: dict[str, Any]) -> None:
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file()
    assert header["python_version"] in SpecifierSet(project["requires-python"])
    (gradio,) = (
        Requirement(each) for each in project["optional-dependencies"]["app"] if Requirement(each).name == "gradio"
    )
    assert header["sdk_version"] in gradio.specifier
    locked = re.search(r"^gradio==(\S+)", (ROOT / "requirements" / "browser.txt").read_text(), re.M)
    assert locked is not None and header["sdk_version"] == locked[1]  # the version that the browser tests use
    assert header["license"] == project["license"].lower() and len(header["short_description"]) <= 60


def test_the_requirements_are_this_package(project: dict[str, Any]) -> None:
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").split("\n")
    (requirement,) = (Requirement(line) for line in lines if line)
    assert requirement.name == project["name"] and requirement.extras == {"app"}
    assert requirement.url == f"git+{project['urls']['Source']}"


BUILD = """
import pathlib, sys
import app
from omnidrop.app import layout
built = layout.build(app.session(), pathlib.Path(sys.argv[1]), 50)
print(*sorted(filter(None, (part["props"].get("elem_id") for part in built.get_config_file()["components"]))))
"""


def test_its_page_can_be_built(tmp_path: Path) -> None:
    """In a process of its own: Gradio leaves an event loop open in the one that builds a page."""
    environment = {name: value for name, value in os.environ.items() if name != "OMNIDROP_MODEL"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], cwd=SPACE, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"od-ask", "od-question", "od-first-keep", "od-answers"} <= set(done.stdout.split())


def test_it_is_served_under_the_name_of_the_space_and_in_its_frame(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "SPACE_HOST": NAME, "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1",
                   "TMPDIR": str(tmp_path)}  # fmt: skip
    environment.pop("OMNIDROP_MODEL", None)
    process = subprocess.Popen([sys.executable, SPACE / "app.py"], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("http://")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            page = client.get("/", headers={"Host": NAME, "Origin": f"https://{NAME}"})
            assert page.status_code == 200
            assert page.headers["content-security-policy"].endswith("frame-ancestors 'self' https://huggingface.co")
            assert client.get("/").status_code == 200  # by its address
            assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
            assert client.get("/config", headers={"Host": NAME, "Origin": "https://evil.example"}).status_code == 403
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()
