"""`omnidrop app` in a process of its own, for tests: as it is, but for two questions and a watch on the network.

What it is: a script (`python app_server.py NOTE [arguments of omnidrop]`) and `Server`, which starts and ends it.
"what talks ?" gets an answer without an end, "what breaks ?" an error that nobody foresaw. `said` has a line for every
answer that was stopped, and for every address off this machine that anything asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Server:
    """A running page. `url` is its address, `folder` where its files lie, `said` what the script noted."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.note = folder / "tmp", folder / "said"
        self.folder.mkdir()
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

    def end(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.log.close()


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
            while True:
                arguments[-1](7)
                time.sleep(0.02)
        finally:
            write("stopped")

    sys.addaudithook(watch)
    measure.answer, prompt.build = answer_or_else, remember
    from omnidrop.cli import main as command

    return command(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
