"""`omnidrop app` in a process of its own, for tests: as it is, but for two questions and a watch on the network.

A script (`python app_server.py NOTE [arguments of omnidrop]`) and `Server`, which starts and ends it. "what talks ?"
gets an answer without an end, "what breaks ?" an error that nobody foresaw. `said` has a line for every answer that was
stopped, and for every address off this machine that anything asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

WORD, TOKEN = "52s", 100  # the first word of the answer without an end


class Server:
    """A running page. `url` is its address, `folder` where its files lie, `said` what the script noted."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.note = folder / "tmp", folder / "said"
        self.folder.mkdir(exist_ok=True)
        self.log = (folder / "log").open("w+")
        command = [sys.executable, __file__, str(self.note), "app", "--json", "--port", "0", "-q", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors
        self.ready = json.loads(line)
        self.url = self.ready["url"]

    @property
    def said(self) -> list[str]:
        return self.note.read_text().splitlines() if self.note.exists() else []

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return Path(self.log.name).read_text()

    def files(self) -> list[Path]:
        """Every file with something in it that lies in the page's temporary folder. (Gradio leaves empty ones.)"""
        return [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size]

    def wait(self, is_so: Any, seconds: float = 30) -> bool:
        """Whether it comes true in time."""
        end = time.monotonic() + seconds
        while not (true := is_so()) and time.monotonic() < end:
            time.sleep(0.05)
        return bool(true)

    def peak(self) -> int:
        """Bytes of memory that the process has held at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))

    def children(self) -> list[str]:
        """Its processes, such as those that decode files and pictures."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                state, parent, *_ = path.read_text().rpartition(")")[2].split()
                found += [path.parent.name] if parent == str(self.process.pid) and state != "Z" else []
        return found

    def end(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.log.close()


class Visitor:
    """One browser tab's part of Gradio's protocol: join the queue, follow the events."""

    # whether there is a second setting; the first, the second; whether to answer with all tokens too
    settings = (False, "omnidrop", 0.3, "layers", "omnidrop", 0.1, "layers", True)

    def __init__(self, server: Server) -> None:
        import httpx

        self.client, self.session = httpx.Client(base_url=server.url, timeout=60, trust_env=False), uuid4().hex
        config = self.client.get("config").json()
        self.events = {}
        ids = {part["id"]: part["props"].get("elem_id") or part["type"] for part in config["components"]}
        for event in filter(lambda event: event["backend_fn"], config["dependencies"]):
            for target, what in event["targets"]:
                self.events.setdefault((ids.get(target), what), event["id"])

    def close(self) -> None:
        self.client.close()

    def join(self, event: tuple[str, str], data: list[Any]) -> Any:
        body = {"data": data, "fn_index": self.events[event], "session_hash": self.session, "trigger_id": None}
        return self.client.post("gradio_api/queue/join", json=body)

    def ask(self, question: str, clip: str = "the shipped clip (16 s)") -> Any:
        return self.join(("od-ask", "click"), [None, clip, None, question, *self.settings])

    def follow(self) -> Iterator[dict[str, Any]]:
        with self.client.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def upload(self, name: str, content: bytes) -> Any:
        return self.client.post("gradio_api/upload", files={"files": (name, content)})

    def give(self, path: str) -> str:
        """Everything that the page says to a file."""
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert self.join(("file", "upload"), [file, "what ?", *self.settings]).status_code == 200
        return json.dumps([message for message in self.follow() if message["msg"] == "process_completed"])


def main(note: str, arguments: list[str]) -> int:
    from omnidrop import measure, prompt

    answer, build = measure.answer, prompt.build
    asked: list[str] = []

    def write(line: str) -> None:
        with Path(note).open("a") as out:
            print(line, file=out)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" and details[0] not in ("127.0.0.1", "localhost", "::1", None):
            write(f"asked for {details[0]}")
        if event == "socket.connect" and isinstance(details[1], tuple) and details[1][0] not in ("127.0.0.1", "::1"):
            write(f"connected to {details[1][0]}")

    def remember(processor: Any, clips: Any, question: str, **options: Any) -> Any:
        asked.append(question)
        return build(processor, clips, question, **options)

    def answer_or_else(*arguments: Any) -> Any:
        if asked[-1] == "what breaks ?":
            raise ZeroDivisionError("a bug that nobody foresaw")
        if asked[-1] != "what talks ?":
            return answer(*arguments)
        try:
            for number in itertools.count():
                arguments[-1](TOKEN if number == 0 else 7)  # a word that can be seen, then marks that cannot
                time.sleep(0.02)
        finally:
            write("stopped")

    sys.addaudithook(watch)
    measure.answer, prompt.build = answer_or_else, remember
    from omnidrop.cli import main as command

    return command(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
